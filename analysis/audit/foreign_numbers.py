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
class WrittenFigure:
    """A figure as it is written, without a sign of per cent behind it."""

    line: int
    text: str
    in_per_cent: bool

    @classmethod
    def of(cls, line: int, text: str) -> WrittenFigure:
        """A cell of a table, whatever is in it."""
        bare = text.strip()
        per_cent = bare.endswith("%")
        return cls(line, _SPACES.sub("", bare.removesuffix("%").strip()), per_cent)

    @property
    def is_nothing(self) -> bool:
        """Whether no figure is there."""
        return self.text.lower() in NOTHING and not self.in_per_cent

    @property
    def mark(self) -> tuple[str, bool] | None:
        """The decimal mark that this figure alone shows, and whether it is certain; None without one."""
        written = _BODY.fullmatch(self.text)
        body = written["body"] if written else ""
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


def decimal_mark(figures: Iterable[WrittenFigure]) -> str:
    """The mark of all figures of a file, a point where nothing says otherwise. Raises NumberError where two
    of them contradict."""
    certain: dict[str, WrittenFigure] = {}
    doubtful: WrittenFigure | None = None
    for figure in figures:
        mark, is_certain = figure.mark or ("", False)
        if is_certain:
            certain.setdefault(mark, figure)
        elif mark == ",":
            doubtful = doubtful or figure

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


def number(figure: WrittenFigure, mark: str) -> float | None:
    """What is written, in a file with this decimal mark; None where nothing is. Raises NumberError."""
    if figure.is_nothing:
        return None
    is_negative = figure.text[:1] in ("-", "−")
    sign = -1.0 if is_negative else 1.0
    bare = figure.text[1:] if is_negative else figure.text.removeprefix("+")
    if bare.lower() in NOT_FINITE:
        return sign * float(NOT_FINITE[bare.lower()])

    parts = _BODY.fullmatch(figure.text)
    if not parts:
        raise NumberError("is not a number")
    whole, _, rest = parts["body"].partition(mark)
    groups = whole.split("." if mark == "," else ",")
    if not _are_thousands(groups) or not re.fullmatch(r"\d*", rest):
        raise NumberError("is not a number")
    return sign * float(f"{''.join(groups) or '0'}.{rest or '0'}{parts['power'] or ''}")


def _are_thousands(groups: list[str]) -> bool:
    """Whether digits between marks of thousands are grouped as such: 1 to 3 first, then 3 each."""
    first, *others = groups
    return not others or (1 <= len(first) <= 3 and all(len(group) == 3 for group in others))
