import math

import pytest

from benchmarks.harness.tables import load_text, markdown_table, signed, significant


def test_markdown_table() -> None:
    table = markdown_table(["a", "b|c"], [["x", None], ["y|z", 2]])
    assert table == "| a | b\\|c |\n| --- | ---: |\n| x | – |\n| y\\|z | 2 |"
    assert markdown_table(["a", "b"], [], "ll").endswith("| --- | --- |")
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        markdown_table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="expected 2 letters"):
        markdown_table(["a", "b"], [], "lx")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1.2345, "1.23"), (1234.5, "1230"), (0.0, "0"), (-0.5, "-0.500"), (9.999, "10.0")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_what_is_no_number_has_no_digits() -> None:
    assert significant(None) is None
    assert significant(math.inf) is None


@pytest.mark.parametrize(("value", "text"), [(0.00123, "+0.0012"), (-0.00123, "-0.0012"), (-1e-7, "0.0000")])
def test_changes_that_round_to_zero_have_no_sign(value: float, text: str) -> None:
    assert signed(value, 4) == text


def test_an_unknown_load_is_said() -> None:
    assert load_text({"before": 0.5, "after": None}) == "0.50 and unknown"
