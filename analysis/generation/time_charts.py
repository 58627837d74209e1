"""Charts of timed generation: six panels against keep_ratio, everything against dense = 100 %, tokens' times
round by round."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import polars as pl

from analysis.draw.marks import Axis, colour, equal, in_order, interval_entry
from analysis.draw.panel import COMPARED, KEPT, Panel, Series
from analysis.draw.points import Group, groups, spread
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import HEIGHT, Chart, Points
from analysis.generation.measures import MEASURES, ONE_PICTURE, TIMED, cell_label
from analysis.generation.speed import KEYS
from analysis.verdicts import IMPOSSIBLE

ABOUT = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("settings", "settings"),
    ("measure", "measure"),
    ("median", "value", ".4~r"),
    interval_entry("95 % interval", "low", "high"),
    ("unit", "unit"),
    ("per cent of dense", "share", ".4~r"),
    interval_entry("95 % interval of it", "share_low", "share_high"),
    ("rounds", "n", ","),
    ("timing", "timing"),
]
OF_ROUNDS = [
    ("cell", "cell"),
    ("round", "repeat"),
    ("median, ms", "middle", ".4~r"),
    interval_entry("10 % to 90 % of the tokens", "low", "high"),
    ("tokens", "n", ","),
]
COMPARED_CELLS = 6
"""Cells in a chart that gives each cell marks of its own."""


def timed_groups(table: pl.DataFrame) -> list[Group]:
    """Rows of ``measures`` by what took turns; a wrong protocol is named in the title."""
    said = ("prompt_tokens", "new_tokens", "batch_size", "timing_protocol")
    found = []
    for group in groups(table, ONE_PICTURE):
        first = group.cells.row(0, named=True)
        wrong = first["timing_protocol"] == "report_2025"
        title = f"WRONG ON PURPOSE · {group.title}" if wrong else group.title

        sizes = f"prompt {first['prompt_tokens']}, {first['new_tokens']} new tokens"
        sizes += "" if first["batch_size"] == 1 else f", batch {first['batch_size']}"
        others = [part for part in group.detail.split(" · ") if part and not part.startswith(said)]
        found.append(replace(group, title=title, detail=" · ".join([sizes, *others])))
    return found


def six_panels(group: Group, looks: PolicyLooks) -> list[Chart]:
    """TTFT, TPOT, throughput, change of each, PPL and KV memory at the end, against keep_ratio.

    The memory is what was allocated, which may deny what the entries seem to save; the entries where a schema
    has no more.
    """
    points = Points(f"timed_{group.number}", looks.told_apart(_with_ends(group.cells), "settings"))
    allocated = points.frame.filter(pl.col("measure") == "KV allocated at end")["value"].drop_nulls()
    memory = "KV allocated at end" if len(allocated) else "KV entries at end"

    charts = []
    for number, name in enumerate(["TTFT", "TPOT", "throughput", "change", "PPL", memory], start=1):
        changes = name == "change"
        chosen = pl.col("measure").is_in(TIMED) if changes else pl.col("measure") == name
        frame = points.frame.filter(chosen, pl.col("share" if changes else "value").is_not_null())
        figures = frame.filter(~pl.col("end")).height
        if not figures:
            continue

        title = "change of TTFT, TPOT, throughput" if changes else f"{name} ({MEASURES[name][1]})"
        panel = _change(frame) if changes else _level(frame, looks, title)
        words = f"{title} against keep_ratio, {group.title}, {group.detail}: {figures} figures"
        where = None if changes else {"measure": name}
        charts.append(
            panel.chart("timed", group, points, words, group.detail, part=number, where=where, height=220)
        )
    return charts


def _with_ends(cells: pl.DataFrame) -> pl.DataFrame:
    """The compared cells, and the dense one as the ``end`` of each policy's and setting's line."""
    dense = cells.filter(pl.col("policy") == "dense").drop("policy", "settings")
    compared = cells.filter(pl.col("policy") != "dense")
    lines = compared.select("policy", "settings").unique(maintain_order=True)
    ends = lines.join(dense, how="cross").select(*compared.columns, end=pl.lit(True))
    return pl.concat([compared.with_columns(end=pl.lit(False)), ends])


def _level(frame: pl.DataFrame, looks: PolicyLooks, title: str) -> Panel:
    """A measure in its own unit; lines end in the dense cell."""
    y = Axis("value", title, also=("low", "high"))
    panel = Panel(frame, KEPT, y, looks.colour(frame), Series.of(frame, "settings"))
    panel = panel.dense(frame.filter("end")["value"]).line().bars("low", "high")
    return panel.among(COMPARED).dots(ABOUT).holes(frame)


def _change(frame: pl.DataFrame) -> Panel:
    """The three times as per cent of dense."""
    y = Axis("share", "per cent of dense", reach=(100.0,), also=("share_low", "share_high"))
    series = Series("settings", in_order(frame, "settings"), by="settings", dashed=False)
    timed = alt.FieldOneOfPredicate(field="measure", oneOf=list(TIMED))
    panel = Panel(frame, KEPT, y, colour(list(TIMED), "measure", "measure"), series).rule(100.0, "dense")
    panel = panel.among(timed).line(detail=["settings:N", "policy:N"]).bars("share_low", "share_high")
    return panel.among(timed, COMPARED).dots(ABOUT, size=50).among(timed).cores("datum.hollow && !datum.end")


def summary_chart(group: Group) -> list[Chart]:
    """Everything measured of a few cells against dense = 100 %."""
    chosen = _few_cells(group.cells)
    if chosen.is_empty():
        return []

    cells = chosen["cell"].unique().sort().to_list()
    measured = [name for name in MEASURES if name in set(chosen["measure"])]
    x = Axis("share", "per cent of dense", log_span=4, reach=(100.0,), also=("share_low", "share_high"))
    y = alt.Y("measure:N", title=None, scale=alt.Scale(domain=measured, paddingInner=0.2))
    places = alt.Scale(domain=list(range(1, len(cells) + 1)))
    panel = Panel(chosen, x, y, colour(cells, "cell", "cell"), offset=alt.YOffset("place:O", scale=places))
    panel = panel.rule(100.0, "dense", upright=True)
    panel = panel.bars("share_low", "share_high", across=True, width=1.5)
    panel = panel.dots(ABOUT, size=55).cores(equal("hollow", True))

    told = f"{group.title}, {group.detail}: {len(cells)} cells"
    words = f"PPL, times and bytes as per cent of the dense cell, {told}"
    points = Points(f"summary_{group.number}", chosen)
    height = max(160, len(measured) * (11 * len(cells) + 14))
    return [panel.chart("normalised", group, points, words, group.detail, height=height)]


def _few_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """Rows of ``COMPARED_CELLS`` at most, spread over
    keep_ratio, with their name and a number for their place."""
    compared = cells.filter(pl.col("policy") != "dense", pl.col("share").is_not_null())
    of_cell = ["policy", "settings", "keep_ratio"]
    kinds = compared.select(of_cell).unique(maintain_order=True)
    kinds = kinds.sort("keep_ratio", descending=True, maintain_order=True)
    numbers = [float(number) for number in range(kinds.height)]
    chosen = sorted(round(number) for number in spread(numbers, COMPARED_CELLS))
    own = compared.join(kinds[chosen], on=of_cell, how="semi", maintain_order="left")
    own = own.with_columns(cell=pl.format("{} {}, {}", "policy", "keep_ratio", "settings"))
    return own.with_columns(place=pl.col("cell").rank("dense"))  # a number, as for policies side by side


def rounds(rows: pl.DataFrame, speeds: pl.DataFrame) -> list[Chart]:
    """Time per token round by round: median and 10-90 % of the
    tokens, for the dense cell and a few others of each group.

    ``rows``: generation's; those of cells that are IMPOSSIBLE
    in ``speeds`` (``speed.generation``) are left out.
    """
    spoilt = speeds.filter(pl.col("timing") == IMPOSSIBLE)
    possible = rows.join(spoilt, on=KEYS, how="anti", nulls_equal=True, maintain_order="left")
    known = possible.filter(pl.col("step_middle").is_not_null(), ~pl.col("control"))
    return [_round_chart(group) for group in timed_groups(known.with_columns(cell=cell_label()))]


def _few_timed(rows: pl.DataFrame) -> list[str]:
    """The names of the cells that are drawn, the dense one first."""
    dense = pl.col("policy") == "dense"
    ratios = rows.filter(~dense)["keep_ratio"].to_list()
    own = rows.filter(dense | pl.col("keep_ratio").is_in(spread(ratios, COMPARED_CELLS - 1)))
    ordered = own.sort("policy", "keep_ratio", descending=True)["cell"].unique(maintain_order=True)
    cells = ordered.to_list()[: COMPARED_CELLS - 1]
    return ["dense", *[cell for cell in cells if cell != "dense"]] if "dense" in own["cell"] else cells


def _round_chart(group: Group) -> Chart:
    cells = _few_timed(group.cells)
    offset = {cell: 0.7 * ((place + 0.5) / len(cells) - 0.5) for place, cell in enumerate(cells)}
    own = group.cells.filter(pl.col("cell").is_in(cells)).select(
        "cell",
        "repeat",
        at=pl.col("repeat") + 1 + pl.col("cell").replace_strict(offset),
        middle=1e3 * pl.col("step_middle"),
        low=1e3 * pl.col("step_low"),
        high=1e3 * pl.col("step_high"),
        n=pl.col("new_tokens") - 1,
    )
    x = Axis("at", "round", "d")
    y = Axis("middle", "ms per token", log_span=8, also=("low", "high"))
    panel = Panel(own, x, y, colour(cells, "cell", "cell"))
    panel = panel.bars("low", "high", gaps=False).dots(OF_ROUNDS, size=45)

    told = f"{group.title}, {group.detail}: {len(cells)} cells, {own['repeat'].n_unique()} rounds"
    words = f"time per token round by round, {told}"
    points = Points(f"rounds_{group.number}", own)
    return panel.chart("rounds", group, points, words, group.detail, height=HEIGHT - 40)
