from collections.abc import Mapping
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from ldp_runtime.structs import UnfitError, convert, dotted, matches, one_of, shown
from tests.processes import python


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    side: Annotated[int, Meta(ge=1)]
    name: Annotated[str, one_of(("near", "far"))] = "near"


class Outer(Struct, frozen=True, forbid_unknown_fields=True):
    parts: Mapping[Annotated[str, matches(r"\A[a-z]\Z", "a letter")], tuple[Inner, ...]] = {}
    inner: Inner | None = None


VALID = {"parts": {letter: [{"side": 1}, {"side": 2, "name": "far"}] for letter in "abcdefg"}, "inner": {"side": 3}}


def test_what_fits_is_typed() -> None:
    assert convert(VALID, Outer).parts["g"] == (Inner(1), Inner(2, "far"))


@pytest.mark.parametrize("letter", "abcdefg")
def test_the_key_of_a_mapping_is_found_and_the_value_left_alone(letter: str) -> None:
    value: dict[str, Any] = {"parts": {**VALID["parts"], letter: [{"side": 1}, {"side": 0}]}}
    before = repr(value)
    with pytest.raises(UnfitError) as caught:
        convert(value, Outer, ("all",))
    assert str(caught.value) == f"all.parts.{letter}[1].side: expected an integer >= 1, got 0"
    assert repr(value) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"parts": {**VALID["parts"], "hh": []}}, 'parts: expected a letter, got "hh"'),
        ({"parts": {"a": [{"name": "far"}]}}, "parts.a[0].side is missing"),
        ({"parts": {"a": [{"side": 1, "edge": 2}]}}, "parts.a[0].edge is unknown; expected side, name"),
        ({"inner": {"side": 1, "edge": 2}}, "inner.edge is unknown; expected side, name"),
        ({"inner": {"side": 1, "name": "here"}}, 'inner.name: expected one of near, far, got "here"'),
        ({"inner": 3}, "inner: expected an object or null, got 3"),
        (3, ": expected an object, got 3"),
        ({"\ud800": 3}, "a string: expected Unicode, got a lone surrogate"),
    ],
)
def test_what_does_not_fit_is_named(value: object, message: str) -> None:
    with pytest.raises(UnfitError) as caught:
        convert(value, Outer)
    assert str(caught.value) == message


def test_places_and_values_are_written_as_in_json() -> None:
    assert dotted(("a", 0, "b", 1)) == "a[0].b[1]"
    assert shown({"a": [None, True, "é\x1b"]}) == '{"a": [null, true, "é\\u001b"]}'
    assert shown({(1, 2): 3}) == "{(1, 2): 3}"
    assert shown("x" * 100) == '"' + "x" * 56 + "..."


def test_threads_may_convert_to_a_new_type_at_a_time() -> None:
    """Msgspec alone ends the process with a segmentation fault here, within a few types."""
    done = python(
        """
import sys, threading, msgspec
from ldp_runtime.structs import convert

sys.setswitchinterval(1e-6)
for n in range(100):
    inner = msgspec.defstruct(f"Inner{n}", [(f"a{i}", int) for i in range(8)])
    outer = msgspec.defstruct(f"Outer{n}", [(f"b{i}", list[inner] | None) for i in range(8)])
    value = {f"b{i}": [{f"a{j}": j for j in range(8)}] for i in range(8)}
    gate = threading.Barrier(6)
    threads = [threading.Thread(target=lambda: (gate.wait(), convert(value, outer))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("done")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
