from ldp_runtime.errors import counted, one_line


def test_an_exception_becomes_one_line() -> None:
    assert one_line(RuntimeError("a\n  b\tc")) == "a b c"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 1000))) == 300


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "pair") for count in range(3)] == ["0 pairs", "1 pair", "2 pairs"]
