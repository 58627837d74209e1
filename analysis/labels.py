"""Words and number formats: how settings and figures are written in tables, charts and findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from analysis.keys import PRUNING, VARIANT

NONE = "–"
"""Stands for a figure that does not exist."""

PLAIN = "no layer skipped"
"""The settings beside policy, keep_ratio and prune_after where none is set."""

Row = Mapping[str, Any]


def skipped(layers: list[int] | None, rule: str | None = None) -> str:
    """The layers left whole, in words; where a rule chose them (``auto:2``), the rule and what it chose."""
    if rule is not None:
        return f"skip {rule}" + (f" ({','.join(map(str, layers))})" if layers else "")
    if not layers:
        return PLAIN
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers)) + " skipped"


def variant(row: Row) -> str:
    """The settings beside policy, keep_ratio and prune_after; the defaults of the protocol are not
    mentioned."""
    return ", ".join(variant_parts(row))


SETTING_WORDS = {
    "protect_sink": "first {} protected",
    "protect_recent": "last {} protected",
    "schedule": "{}",
    "position_mode": "{} positions (bug)",
}
"""How settings that depart from the dense cell's are said, where their name and value are not enough."""

_SAID_OTHERWISE = ("skip_layers", "skip_layers_rule")


def variant_parts(row: Row) -> list[str]:
    """``variant`` as a list, the skipped layers first."""
    parts = [skipped(row["skip_layers"], row.get("skip_layers_rule"))]
    for name in VARIANT:
        value = row.get(name)
        if name not in _SAID_OTHERWISE and value not in (None, PRUNING[name]):
            parts.append(SETTING_WORDS.get(name, f"{name} {{}}").format(value))
    return parts


def cell(row: Row) -> str:
    """A cell in one line, as in the findings."""
    if row["policy"] == "dense":
        return "dense"
    return f"{row['policy']}, keep_ratio {ratio_setting(row['keep_ratio'])}, {variant(row)}"


def place(row: Row, several: Collection[str] = ()) -> str:
    """Model and dataset, and what else tells a group from the
    page's others: ``several`` names columns of many values."""
    named = {
        "dtype": "{}",
        "device": "{}",
        "window": "windows of {}",
        "stride": "stride {}",
        "bos": "BOS first: {}",
    }
    others = [form.format(text(row[name])) for name, form in named.items() if name in several]
    return ", ".join([f"{row['model']} on {row['dataset']}", *others])


def questions(row: Row) -> str:
    """What was asked, in words: kind, digits, distractors, and whether the question was there when the
    context was pruned."""
    among = f" among {row['distractors']} distractors" if row["distractors"] else ""
    asked = "asked before the prune" if row["question_pruned"] else "asked after the prune"
    return f"{text(row['kind'])}, {row['digits']} digits{among}, {asked}"


LINE_ENDS = {0x2028: "⏎", 0x2029: "⏎"}
"""Characters of a name that Vega's expressions take for an end of line, and what is shown instead."""


def text(value: Any) -> str:
    """Anything as text, lists joined; a dash for null."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return NONE if value is None else str(value).translate(LINE_ENDS)


def count(value: float | None) -> str:
    """A count with thousands marks; up to one decimal where it is a mean."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def ratio_setting(value: float | None) -> str:
    """A keep_ratio as it was set."""
    return NONE if value is None else f"{value:g}"


def figure(value: float | None) -> str:
    """A measured number to four significant digits, without exponents in the usual range."""
    if value is None:
        return NONE
    size = abs(value)
    if size != 0 and (size >= 1e7 or size < 1e-3):
        return f"{value:.3g}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}"


def percent(value: float | None) -> str:
    """A share as per cent; a small share is not shown as none."""
    if value is None:
        return NONE
    return "< 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points."""
    return NONE if value is None else f"{100 * value:+.2f}"


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds, without the unit."""
    return NONE if value is None else figure(1000 * value)


def gigabytes(value: float | None) -> str:
    """Bytes as GB (10**9), without the unit."""
    return figure(None if value is None else value / 1e9)


def mebibytes(value: float | None) -> str:
    """Bytes as MiB, without the unit."""
    return NONE if value is None else figure(value / 2**20)


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; a dash where there is none."""
    return NONE if low is None or high is None else f"[{figure(low)}, {figure(high)}]"


def yes(value: bool | None) -> str:
    """A fact."""
    return NONE if value is None else "yes" if value else "no"


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": text,
    "count": count,
    "setting": ratio_setting,
    "figure": figure,
    "percent": percent,
    "points": points,
    "milliseconds": milliseconds,
    "mebibytes": mebibytes,
    "gigabytes": gigabytes,
    "yes": yes,
}
"""The formats a table's column can name."""
