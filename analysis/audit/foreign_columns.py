"""Which columns of anybody's table are known, by their headings, and in which units their figures are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from analysis.audit.foreign_csv import CsvRow, TableError, excerpt
from analysis.audit.foreign_numbers import NOTHING, UNITS

COLUMNS = {
    "model": ("model", "model_name"),
    "dataset": ("dataset", "data", "text"),
    "policy": ("policy", "method", "name", "config"),
    "keep_ratio": ("keep_ratio", "ratio", "keep"),
    "prune_after": ("prune_after", "threshold"),
    "ppl": ("ppl", "perplexity"),
    "ttft": ("ttft", "ttft_seconds", "ttft_s", "time_to_first_token"),
    "total": ("total", "total_seconds", "total_time", "total_s"),
    "cache_tokens": ("cache_tokens", "cache_length", "kv_length", "cache_size"),
    "tokens": ("tokens", "evaluated_tokens", "eval_tokens", "num_tokens"),
    "samples": ("samples", "n", "runs", "repeats", "num_samples"),
}
"""What a table may hold, and the headings by which it is recognised (case, spaces and hyphens do not
matter)."""

TEXTS = ("model", "dataset", "policy")

TIMES = ("ttft", "total")

SPREADS = (
    "std", "sd", "stdev", "std dev", "std. dev.", "standard deviation", "var", "variance", "se", "sem",
    "stderr", "std err", "standard error", "ci", "95% ci", "95 % ci", "iqr", "±", "+/-", "error",
)  # fmt: skip
"""In brackets behind a heading: a column of these says how far figures lie apart and is none of them."""

UNIT_LIKE = re.compile(
    r"[a-zµμ]?s|([a-zµμ]+)?secs?\.?|([a-z]+)?seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|weeks?"
    r"|cycles?|ticks?|frames?"
    r"|nats?|bits?|bytes?|[kmg]i?b|bp[bc]|log|log ?2|log ?10|ln|k|thousands?|millions?"
    r"|[x×*]?\s*1(0|e)[\^*e]*\s*[-+−]?\d+|%( .*)?|per ?cent.*"
)
"""What in brackets says what a figure counts. Anything else
there is a remark, like (lower is better) or (wikitext-2)."""

SHARE_LIKE = re.compile(r".*/.*|per .*|(share|fraction|ratio).*|tokens|steps")
"""What a time is not in seconds of, beside those."""


@dataclass(frozen=True)
class Heading:
    """A column that is known: where it stands, and the unit that its heading gives."""

    at: int
    written: str
    unit: str | None


def known_columns(path: str, headings: list[str]) -> dict[str, Heading]:
    """Name -> its column. Raises TableError for two columns of the same figure, or a unit that is not known.

    Of two columns that may name the same thing in words the first counts.
    """
    columns: dict[str, Heading] = {}
    for at, heading in enumerate(headings):
        name, remarks = _meant(heading)
        if (
            name is None
            or (name in columns and name in TEXTS)
            or any(remark in SPREADS for remark in remarks)
        ):
            continue
        if name in columns:
            raise TableError(
                f"{path}: columns {columns[name].written!r} and {excerpt(heading)!r} both are {name}; "
                "leave one out"
            )
        columns[name] = Heading(at, excerpt(heading.strip()), _unit(path, name, remarks))
    return columns


def _meant(heading: str) -> tuple[str | None, list[str]]:
    """The name of the column that a heading stands for, None where it is not known, and its remarks."""
    bare, remarks = _remarks_in(heading)
    plain = re.sub(r"[ -]+", "_", bare.strip().lower())
    if not remarks and plain.endswith("_ms"):
        plain, remarks = plain.removesuffix("_ms"), ["ms"]
    name = next((name for name, spellings in COLUMNS.items() if plain in spellings), None)
    return name, remarks


def _remarks_in(heading: str) -> tuple[str, list[str]]:
    """``TTFT (mean, ms)`` -> TTFT, and mean and ms."""
    remarks: list[str] = []
    bare = heading.strip()
    while brackets := re.fullmatch(r"(.*?)\s*[(\[]([^()\[\]]*)[)\]]", bare, re.DOTALL):
        bare = brackets[1]
        parts = re.split("[,;]", brackets[2])
        remarks = [part.strip().lower().removeprefix("in ") for part in parts] + remarks
    return bare, remarks


def _unit(path: str, name: str, remarks: list[str]) -> str | None:
    """The one that stands in a heading's brackets; None where there is none. Raises TableError for one that
    is not known."""
    if name in TEXTS:
        return None
    units = [remark for remark in remarks if remark and _fits(name, remark)]
    looks = [UNIT_LIKE, SHARE_LIKE] if name in TIMES else [UNIT_LIKE]
    others = [remark for remark in remarks if remark not in units]
    strange = [remark for remark in others if any(look.fullmatch(remark) for look in looks)]

    if strange or len(set(units)) > 1:
        unknown = strange[0] if strange else ", ".join(units)
        raise TableError(
            f"{path}: the unit {excerpt(unknown)!r} of column {name} is not known; {_allowed(name)}"
        )
    return units[0] if units else None


PER_CENT = ("%", "per cent", "percent")
"""The units of keep_ratio, beside none."""


def _fits(name: str, unit: str) -> bool:
    if name in TIMES:
        return unit in UNITS
    further = {"keep_ratio": PER_CENT, "cache_tokens": ("tokens",)}.get(name, ())
    return unit in ("", "-", *further, name)


def _allowed(name: str) -> str:
    if name in TIMES:
        return f"times are in {', '.join(UNITS)}"
    return "give the figure itself, keep_ratio also in %"


def without_units(
    path: str, known: dict[str, Heading], rows: list[CsvRow]
) -> tuple[dict[str, Heading], list[CsvRow]]:
    """The columns with the units of a row below the heading that holds units alone, and the rows behind it.

    Raises TableError where it contradicts the heading.
    """
    first = rows[0].cells if rows else []
    inside = {name: column for name, column in known.items() if column.at < len(first)}
    said = {name: first[column.at].strip().lower().strip("()[]") for name, column in inside.items()}
    units = {name: unit for name, unit in said.items() if name not in TEXTS and unit}
    if not units or not all(unit not in NOTHING and _fits(name, unit) for name, unit in units.items()):
        return known, rows

    both = next((name for name in units if known[name].unit not in (None, units[name])), None)
    if both:
        raise TableError(
            f"{path}: column {both} is in {known[both].unit} by its heading and in {units[both]} by line "
            f"{rows[0].line}"
        )
    named = {name: replace(column, unit=units.get(name, column.unit)) for name, column in known.items()}
    return named, rows[1:]
