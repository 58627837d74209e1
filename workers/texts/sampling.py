"""In which order blocks, rows, passages and windows are taken. Pure integers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

Sample = Literal["spread", "first", "random"]
"""Evenly over the whole, its beginning, or by chance (the sweep's seed)."""


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of the numbers under ``count``: the middle of each of so many equal stretches."""
    taken = min(count, limit)
    return [(2 * part + 1) * count // (2 * taken) for part in range(taken)]


def in_order(count: int, wanted: int, sample: Sample, seed: int) -> Iterator[int]:
    """The numbers under ``count``, each once, in the order in which a sample of ``wanted`` takes them.

    Whoever needs more than ``wanted``, because some are of no use, goes on. Made only as far as it is asked
    for.
    """
    if sample == "first":
        return iter(range(count))
    if sample == "random":
        return _shuffled(count, random.Random(f"kvsweep/{seed}/{count}"))
    return _spread_first(count, wanted)


def _spread_first(count: int, wanted: int) -> Iterator[int]:
    chosen = spread(count, wanted)
    yield from chosen
    known = set(chosen)
    yield from (number for number in _scattered(count) if number not in known)


def _scattered(count: int) -> Iterator[int]:
    """However many are taken, they lie about evenly:
    numbers in the order of their reversed bits (van der Corput 1935)."""
    bits = max(0, count - 1).bit_length()  # those of the largest number
    for number in range(1 << bits):
        place = int(f"{number:0{bits}b}"[::-1], 2) if bits else 0
        if place < count:
            yield place


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """A random permutation (Fisher and Yates, with a table of what was moved alone)."""
    moved: dict[int, int] = {}
    for at in range(count):
        drawn = rng.randrange(at, count)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(at, at)


def even_shares(room: Sequence[int], count: int) -> list[int]:
    """How many of ``count`` each gets: as equal as their ``room`` allows, one more for the earlier ones."""
    level = 0
    left = min(count, sum(room))
    for filled, least in enumerate(sorted(room)):
        rest = len(room) - filled
        if (least - level) * rest > left:
            level += left // rest
            left %= rest
            break
        left -= (least - level) * rest
        level = least

    shares = [min(each, level) for each in room]
    with_more = (i for i, each in enumerate(room) if each > level)
    for i in islice(with_more, left):
        shares[i] += 1
    return shares
