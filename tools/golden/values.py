"""When two values are the same: bit by bit, or, of floats of another machine, nearly."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import Any

RELATIVE = 1e-4
"""How far floats of another processor or another torch may be apart, as a share of the larger."""

ABSOLUTE = 1e-5
"""Or by this much: figures that are rounding themselves, as the KL divergence of equal distributions is, have
no digit that another machine must share."""

FIGURE = re.compile(r"-?\d+\.\d+(e-?\d+)?")


def departures(kept: Any, now: Any, at: str = "", *, exact: bool) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ: path, kept, now."""
    if isinstance(kept, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*kept, *now]):
            if name in kept and name in now:
                yield from departures(kept[name], now[name], f"{at}.{name}", exact=exact)
            else:
                yield f"{at}.{name}", kept.get(name, "nothing"), now.get(name, "nothing")
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for place, (one, other) in enumerate(zip(kept, now, strict=True)):
            yield from departures(one, other, f"{at}[{place}]", exact=exact)
    elif not _same_scalar(kept, now, exact=exact):
        yield at, kept, now


def _same_scalar(kept: Any, now: Any, *, exact: bool) -> bool:
    numbers = _is_number(kept) and _is_number(now)
    if numbers and not exact and (isinstance(kept, float) or isinstance(now, float)):
        return _near(float(kept), float(now))
    if isinstance(kept, float) and isinstance(now, float):
        return _bits(kept) == _bits(now)
    return type(kept) is type(now) and kept == now


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(kept: float, now: float) -> bool:
    both_nan = math.isnan(kept) and math.isnan(now)
    return both_nan or math.isclose(kept, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _bits(value: float) -> bytes:
    return struct.pack("d", value)


def figures(text: str) -> Any:
    """A field of a CSV file as the number with a point that it spells, or the list of them; else the text.

    Whole numbers are counts and stay text, and so do ids, which can look like numbers.
    """
    parts = text.split(",")
    if not all(FIGURE.fullmatch(part) for part in parts):
        return text
    numbers = [float(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]
