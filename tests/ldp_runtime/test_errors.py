from ldp_runtime.errors import one_line


def test_an_exception_becomes_one_line() -> None:
    assert one_line(RuntimeError("a\n  b\tc")) == "a b c"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 1000))) == 300
