"""How figures are spelled in tables of others: decimal marks, thousands, per cent, units. One reading for a
whole file, or none.

Whether ``1,234`` is a thousand or a little more than one, no cell can tell alone: ``7,41`` elsewhere in the
file can. Where nothing tells, the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NOTHING = ("", "-", "–", "—", "n/a", "na", "none", "null", "#n/a", "?")
"""What stands for a figure that is not there."""
NOT_FINITE = {"nan": "nan", "inf": "inf", "infinity": "inf", "∞": "inf"}
UNITS = {
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
    "ms": 1e-3,
    "milliseconds": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
}
"""Of times, in seconds."""

_SPACES = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'’](?=\d{3}(?!\d))")
"""Between thousands."""
_BODY = re.compile(r"(?P<sign>[-+−]?)(?P<body>[0-9.,]*[0-9][0-9.,]*)(?P<power>[eE][-+]?[0-9]{1,4})?")


class NumberError(ValueError):
    """A cell that is no figure, in words that go behind its column and line."""


@dataclass(frozen=True)
class Cell:
    """A figure as it is written, without a sign of per cent behind it."""

    line: int
    text: str
    in_per_cent: bool

    @classmethod
    def of(cls, line: int, text: str) -> Cell:
        """A cell of a table, whatever is in it."""
        bare = text.strip()
        per_cent = bare.endswith("%")
        return cls(line, _SPACES.sub("", bare.removesuffix("%").strip()), per_cent)

    @property
    def is_nothing(self) -> bool:
        """Whether no figure is there."""
        return self.text.lower() in NOTHING and not self.in_per_cent

    @property
    def marks(self) -> tuple[str, bool] | None:
        """The decimal mark that this cell alone shows, and whether it is certain; None where it has none."""
        found = _BODY.fullmatch(self.text)
        body = found["body"] if found else ""
        comma, point = body.rfind(","), body.rfind(".")
        if comma < 0 and point < 0:
            return None
        if comma >= 0 and point >= 0:
            return ("," if comma > point else "."), True

        mark, other = (",", ".") if comma >= 0 else (".", ",")
        before, *after = body.split(mark)
        if len(after) > 1:
            return other, True
        could_be_thousands = len(after[0]) == 3 and 1 <= len(before) <= 3 and not before.startswith("0")
        return mark, not could_be_thousands


def decimal_mark(cells: Iterable[Cell]) -> str:
    """The mark of all figures of a file, a point where nothing says otherwise. Raises NumberError where two
    cells contradict."""
    certain: dict[str, Cell] = {}
    doubtful: Cell | None = None
    for cell in cells:
        found = cell.marks
        if found and found[1]:
            certain.setdefault(found[0], cell)
        elif found and found[0] == ",":
            doubtful = doubtful or cell
    if len(certain) == 2:
        comma, point = certain[","], certain["."]
        raise NumberError(
            f"{comma.text!r} (line {comma.line}) has a decimal comma and {point.text!r} (line {point.line}) "
            "a decimal point; write one of the two everywhere"
        )
    if doubtful and not certain:
        fraction, thousands = doubtful.text.replace(",", "."), doubtful.text.replace(",", "")
        raise NumberError(
            f"{doubtful.text!r} (line {doubtful.line}) may be {fraction} or {thousands}; "
            "write a decimal point, and nothing between thousands"
        )
    return next(iter(certain), ".")


def figure(cell: Cell, mark: str) -> float | None:
    """The figure of a cell in a file with this decimal mark; None where there is none. Raises NumberError."""
    if cell.is_nothing:
        return None
    sign, bare = (-1.0, cell.text[1:]) if cell.text[:1] in "-−" else (1.0, cell.text.removeprefix("+"))
    if bare.lower() in NOT_FINITE:
        return sign * float(NOT_FINITE[bare.lower()])

    found = _BODY.fullmatch(cell.text)
    thousands = "." if mark == "," else ","
    whole, _, rest = found["body"].partition(mark) if found else ("", "", "")
    groups = whole.split(thousands)
    is_grouped = len(groups) == 1 or (
        1 <= len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    )
    if not found or not is_grouped or not re.fullmatch(r"\d*", rest):
        raise NumberError("is not a number")
    return sign * float(f"{''.join(groups) or '0'}.{rest or '0'}{found['power'] or ''}")
