"""Typed values from parsed JSON and YAML: ``msgspec.convert``, with errors that name field, expectation and value."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta

T = TypeVar("T")
FieldPath = tuple[str | int, ...]
"""Keys and indices that lead to a value."""

_NOUNS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_FIRST_USE = threading.Lock()  # msgspec plans a type at its first use; threads that see half a plan end the process
_EXPECTED: dict[str, str] = {}
"""Pattern of a string -> what it stands for, in words."""


class UnfitError(ValueError):
    """A value does not fit its type.

    Attributes:
        field: Where it is, such as ``prompts[2].format``.
        problem: What follows the field in a sentence: ``" is missing"``, ``" is unknown ..."``, or ``": expected ..."``
            with what was given.
    """

    def __init__(self, field: str, problem: str) -> None:
        """Keeps both."""
        super().__init__(field + problem)
        self.field, self.problem = field, problem

    @classmethod
    def from_value(cls, field: str, expected: str, got: object) -> UnfitError:
        """Of a value that should be another."""
        return cls(field, f": expected {expected}, got {shown(got)}")


def matches(pattern: str, expected: str) -> Meta:
    """Allows strings that a regular expression finds; ``expected`` says in words which these are."""
    _EXPECTED[pattern] = expected
    return Meta(pattern=pattern)


def one_of(names: Iterable[str]) -> Meta:
    """Allows these strings alone."""
    names = tuple(names)
    return matches(rf"\A(?:{'|'.join(map(re.escape, names))})\Z", f"one of {', '.join(names)}")


def convert(value: Any, kind: type[T], path: FieldPath = ()) -> T:
    """A parsed value as a type that ``msgspec`` knows.

    Args:
        value: Nested dictionaries, lists and scalars.
        kind: The type.
        path: Where the value is, for errors.

    Raises:
        UnfitError: It does not fit.
    """
    try:
        with _FIRST_USE:
            return msgspec.convert(value, kind)
    except UnicodeEncodeError:
        raise UnfitError(dotted(path) or "a string", ": expected Unicode, got a lone surrogate") from None
    except msgspec.ValidationError as error:
        message = str(error)

    def fails() -> bool:
        try:
            msgspec.convert(value, kind)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            return str(error) == message
        return False

    match = re.fullmatch(r"(.*?)(?: - at `(key` in `)?(\$[^`]*)`)?", message, re.DOTALL)
    text, of_key, place = match.groups(default="") if match else (message, "", "")
    inner: FieldPath = ()
    got = value
    try:
        for name, index in re.findall(r"\.(\w+)|\[([^]]*)\]", place):
            step = name or (int(index) if index.isdigit() else _wrong_key(got, fails))
            inner, got = (*inner, step), got[step]
        if of_key:
            got = _wrong_key(got, fails)
    except (KeyError, IndexError, TypeError):  # a name in the message reads like a place
        text, inner, got = message, (), value
    if absent := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", text, re.DOTALL):
        known = f" is unknown; expected {', '.join(_fields(kind, inner))}"
        raise UnfitError(dotted((*path, *inner, absent[2])), " is missing" if "missing" in absent[1] else known)
    raise UnfitError.from_value(dotted((*path, *inner)), _expectation(text), got)


def dotted(path: FieldPath) -> str:
    """A path as text, such as ``prompts[2].format``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def shown(value: object) -> str:
    """A value as JSON, cut to 60 printable characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except TypeError:  # a key that is no string
        text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _wrong_key(mapping: dict[str, Any], fails: Callable[[], bool]) -> str:
    """The key that makes a conversion fail, by halves of the mapping, which stays as it was."""
    whole, names = dict(mapping), list(mapping)
    while len(names) > 1:
        half = names[: len(names) // 2]
        mapping.clear()
        mapping.update((name, whole[name]) for name in half)
        names = half if fails() else names[len(half) :]
    mapping.clear()
    mapping.update(whole)
    return names[0]


def _fields(kind: type, path: FieldPath) -> list[str]:
    """The fields of the struct at a path within a type."""
    info: Any = msgspec.inspect.type_info(kind)
    for step in (*path, None):
        if isinstance(info, msgspec.inspect.UnionType):  # of a struct and null
            info = next(each for each in info.types if isinstance(each, msgspec.inspect.StructType))
        if step is None:
            break
        if isinstance(info, msgspec.inspect.StructType):
            info = next(each.type for each in info.fields if each.name == step)
        else:
            info = info.value_type if isinstance(info, msgspec.inspect.DictType) else info.item_type
    return [each.name for each in info.fields]


def _expectation(text: str) -> str:
    """What a message of ``msgspec`` expected, in words of ours."""
    for pattern, expected in _EXPECTED.items():
        if text.endswith(f"matching regex {pattern!r}"):
            return expected
    text = text.partition(", got ")[0].removeprefix("Expected ")
    text = re.sub("`([^`]*)`", lambda found: " or ".join(_NOUNS.get(n, n) for n in found[1].split(" | ")), text)
    return re.sub(r"an? (\w+) of length >= 1$", r"a non-empty \1", text)
