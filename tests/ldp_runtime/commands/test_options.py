import argparse

import pytest

from ldp_runtime.commands.options import parse_size


@pytest.mark.parametrize("text", ["", "1120", "x", "1120x", "0x32", "32x0", "-1x5", "1.5x2", "1x2x3", "½x2"])
def test_a_size_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="HEIGHTxWIDTH"):
        parse_size(text)
    assert parse_size("1120X1680") == (1120, 1680)
