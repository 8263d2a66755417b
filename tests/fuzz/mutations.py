"""What the mutations of all formats share: a source of chance, numbers that break parsers, and changes of raw bytes."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
"""Values that lie at the edges of types, sizes and limits."""

Mutation = Callable[[Random, bytes], bytes]
"""One change of a file; what it draws comes from the generator alone, so that a case can be made again."""


def number(random: Random, bits: int = 32) -> int:
    """A number below ``2**bits``, most often from ``NUMBERS`` or small."""
    kind = random.randrange(4)
    if kind < 2:
        value = random.choice(NUMBERS)
    elif kind == 2:
        value = random.randrange(64)
    else:
        value = random.getrandbits(bits)
    return value % (1 << bits)


def flip(random: Random, data: bytes) -> bytes:
    """Flips some bits."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(random: Random, data: bytes) -> bytes:
    """Writes a few bytes over others."""
    at = random.randrange(len(data) + 1)
    new = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * random.randint(1, 8)
    if random.random() < 0.5:
        new = random.randbytes(random.randint(1, 8))
    return data[:at] + new + data[at + len(new) :]


def cut(random: Random, data: bytes) -> bytes:
    """Cuts the end off."""
    return data[: random.randrange(len(data) + 1)]


def lengthen(random: Random, data: bytes) -> bytes:
    """Appends what does not belong there."""
    return data + random.choice(
        (random.randbytes(random.randint(1, 100)), data, b"\0" * 1000, b"PK\x05\x06" + bytes(18))
    )


def move(random: Random, data: bytes) -> bytes:
    """Copies a part over another, or removes or repeats it."""
    first, last = sorted(random.randrange(len(data) + 1) for _ in range(2))
    part = data[first:last][:1000]
    at = random.randrange(len(data) + 1)
    return random.choice(
        (data[:at] + part + data[at:], data[:at] + part + data[at + len(part) :], data[:first] + data[last:])
    )


BYTES: tuple[Mutation, ...] = (flip, overwrite, cut, lengthen, move)


def change_bytes(random: Random, data: bytes) -> bytes:
    """One of the changes of raw bytes."""
    return random.choice(BYTES)(random, data)


def rearrange(random: Random, items: Sequence[Item]) -> list[Item]:
    """Drops, repeats or exchanges items."""
    changed = list(items)
    if not changed:
        return changed
    at, other = random.randrange(len(changed)), random.randrange(len(changed))
    kind = random.randrange(3)
    if kind == 0:
        del changed[at]
    elif kind == 1:
        changed.insert(other, changed[at])
    else:
        changed[at], changed[other] = changed[other], changed[at]
    return changed
