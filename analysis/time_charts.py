"""Charts of timed generation: six panels against keep_ratio, everything against dense = 100 %, tokens' times round by round."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.marks import (
    HEIGHT,
    Axis,
    Chart,
    Points,
    bounds,
    colour,
    dash,
    equal,
    holes,
    in_order,
    mark,
    rule,
    shape,
    specification,
    tooltips,
)
from analysis.measures import MEASURES, TIMED, TURNS, cell_label
from analysis.points import Group, groups, spread
from analysis.policy_looks import PolicyLooks, look
from analysis.speed import KEYS
from analysis.verdicts import IMPOSSIBLE

ABOUT = [
    ("policy", "policy"), ("keep_ratio", "keep_ratio", ".3~f"), ("settings", "settings"), ("measure", "measure"),
    ("median", "value", ".4~r"), bounds("95 % interval", "low", "high"), ("unit", "unit"),
    ("per cent of dense", "share", ".4~r"), bounds("95 % interval of it", "share_low", "share_high"), ("rounds", "n", ","),
    ("timing", "timing"),
]  # fmt: skip
COMPARED_CELLS = 6
"""Cells in a chart that gives each cell marks of its own."""


def timed_groups(table: pl.DataFrame) -> list[Group]:
    """Rows of ``measures`` by what took turns; a wrong protocol is named in the title."""
    found = []
    for group in groups(table, TURNS):
        first = group.cells.row(0, named=True)
        title = f"WRONG ON PURPOSE · {group.title}" if first["timing_protocol"] == "report_2025" else group.title
        sizes = f"prompt {first['prompt_tokens']}, {first['new_tokens']} new tokens"
        sizes += "" if first["batch_size"] == 1 else f", batch {first['batch_size']}"
        said = ("prompt_tokens", "new_tokens", "batch_size", "timing_protocol")
        others = [part for part in group.detail.split(" · ") if part and not part.startswith(said)]
        found.append(Group(group.number, title, " · ".join([sizes, *others]), group.about, group.cells))
    return found


def six_panels(group: Group, looks: PolicyLooks) -> list[Chart]:
    """TTFT, TPOT, throughput, change of each, PPL and KV memory at the end, against keep_ratio.

    The memory is what was allocated, which may deny what the entries seem to save; the entries where a schema has no more.
    """
    dense = group.cells.filter(pl.col("policy") == "dense")
    compared = group.cells.filter(pl.col("policy") != "dense")
    series = compared.select("policy", "settings").unique(maintain_order=True)
    ends = series.join(dense.drop("policy", "settings"), how="cross").with_columns(end=pl.lit(True))
    both = pl.concat([compared.with_columns(end=pl.lit(False)), ends.select(*compared.columns, "end")])
    points = Points(f"timed_{group.number}", looks.told_apart(both, "settings"))
    charts = []
    known = points.frame.filter(pl.col("measure") == "KV allocated at end")["value"].drop_nulls()
    memory = "KV allocated at end" if len(known) else "KV entries at end"
    for number, name in enumerate(["TTFT", "TPOT", "throughput", "change", "PPL", memory], start=1):
        chosen = pl.col("measure").is_in(TIMED) if name == "change" else pl.col("measure") == name
        frame = points.frame.filter(chosen, pl.col("share" if name == "change" else "value").is_not_null())
        if frame.filter(~pl.col("end")).is_empty():
            continue
        title = "change of TTFT, TPOT, throughput" if name == "change" else f"{name} ({MEASURES[name][1]})"
        description = f"{title} against keep_ratio, {group.title}, {group.detail}: {frame.filter(~pl.col('end')).height} figures"
        layers = _change(frame) if name == "change" else _level(frame, looks, title)
        where = None if name == "change" else {"measure": name}
        spec = specification(layers, points, [group.title, group.detail], description, where=where, height=220)
        charts.append(Chart(f"timed-{group.number}-{number}", description, spec, points, group.about))
    return charts


def _level(frame: pl.DataFrame, looks: PolicyLooks, title: str) -> list[alt.Chart]:
    """A measure in its own unit; lines end in the dense cell."""
    x, y = Axis("keep_ratio", "keep_ratio", ".2~f", reach=(1.0,)), Axis("value", title, also=("low", "high"))
    kind, tint = look(frame, "settings"), looks.colour(frame)
    names = in_order(frame, kind)
    place = {"x": x.x(frame), "y": y.y(frame)}
    line = mark().transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.8)
    line = line.encode(**place, color=tint, detail="settings:N", strokeDash=dash(names, "dash"))
    bars = mark().transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.3)
    bars = bars.encode(x=x.x(frame), y=y.y(frame, "low"), y2=alt.Y2("high"), color=tint)
    dots = mark().transform_filter(equal("end", False)).mark_point(filled=True, size=60, opacity=1)
    dots = tooltips(dots.encode(**place, color=tint, shape=shape(names, kind, "settings")), ABOUT)
    dense = frame.filter("end")["value"].drop_nulls()
    reference = rule(dense[0], f"dense {dense[0]:.4g}", y, frame) if len(dense) else []
    return [*reference, line, bars, dots, *holes(frame, kind, names, place)]


def _change(frame: pl.DataFrame) -> list[alt.Chart]:
    """The three times as per cent of dense."""
    x = Axis("keep_ratio", "keep_ratio", ".2~f", reach=(1.0,))
    y = Axis("share", "per cent of dense", reach=(100.0,), also=("share_low", "share_high"))
    tint, names = colour(list(TIMED), "measure", "measure"), in_order(frame, "settings")
    measured = mark().transform_filter(alt.FieldOneOfPredicate(field="measure", oneOf=list(TIMED)))
    place = {"x": x.x(frame), "y": y.y(frame)}
    line = measured.mark_line(strokeWidth=1.5, opacity=0.8).encode(**place, color=tint, detail=["settings:N", "policy:N"])
    bars = measured.transform_filter("isValid(datum.share_low)").mark_rule(strokeWidth=1.3)
    bars = bars.encode(x=x.x(frame), y=y.y(frame, "share_low"), y2=alt.Y2("share_high"), color=tint)
    dots = measured.transform_filter(equal("end", False)).mark_point(filled=True, size=50, opacity=1)
    dots = tooltips(dots.encode(**place, color=tint, shape=shape(names, "settings", "settings")), ABOUT)
    empty = measured.transform_filter("datum.hollow && !datum.end").mark_point(filled=True, size=18, opacity=1, fill="var(--bg)")
    return [*rule(100.0, "dense", y, frame), line, bars, dots, empty.encode(**place)]


def summary_chart(group: Group) -> Chart | None:
    """Everything measured of a few cells against dense = 100 %."""
    compared = group.cells.filter(pl.col("policy") != "dense", pl.col("share").is_not_null())
    if compared.is_empty():
        return None
    kinds = (
        compared.select("policy", "settings", "keep_ratio")
        .unique(maintain_order=True)
        .sort("keep_ratio", descending=True, maintain_order=True)
    )
    places = [round(i) for i in spread([float(i) for i in range(kinds.height)], COMPARED_CELLS)]
    chosen = compared.join(kinds[sorted(places)], on=["policy", "settings", "keep_ratio"], how="semi", maintain_order="left")
    chosen = chosen.with_columns(cell=pl.format("{} {}, {}", "policy", "keep_ratio", "settings"))
    chosen = chosen.with_columns(place=pl.col("cell").rank("dense"))  # a number, as for policies side by side
    points = Points(f"summary_{group.number}", chosen)
    cells, x = (
        chosen["cell"].unique().sort().to_list(),
        Axis("share", "per cent of dense", log_span=4, reach=(100.0,), also=("share_low", "share_high")),
    )
    rows = alt.Y(
        "measure:N",
        title=None,
        scale=alt.Scale(domain=[m for m in MEASURES if m in set(chosen["measure"])], paddingInner=0.2),
    )
    tint = colour(cells, "cell", "cell")
    place = {"y": rows, "yOffset": alt.YOffset("place:O", scale=alt.Scale(domain=list(range(1, len(cells) + 1)))), "color": tint}
    bars = mark().transform_filter("isValid(datum.share_low)").mark_rule(strokeWidth=1.5)
    bars = bars.encode(x=x.x(chosen, "share_low"), x2=alt.X2("share_high"), **place)
    dots = tooltips(mark().mark_point(filled=True, size=55, opacity=1).encode(x=x.x(chosen), **place), ABOUT)
    description = f"PPL, times and bytes as per cent of the dense cell, {group.title}, {group.detail}: {len(cells)} cells"
    height = max(160, chosen["measure"].n_unique() * (11 * len(cells) + 14))
    empty = mark().transform_filter(equal("hollow", True)).mark_point(filled=True, size=18, opacity=1, fill="var(--bg)")
    empty = empty.encode(x=x.x(chosen), **{key: place[key] for key in ("y", "yOffset")})
    layers = [*rule(100.0, "dense", x, chosen, upright=True), bars, dots, empty]
    spec = specification(layers, points, [group.title, group.detail], description, height=height)
    return Chart(f"normalised-{group.number}", description, spec, points, group.about)


def rounds(rows: pl.DataFrame, speeds: pl.DataFrame) -> list[Chart]:
    """Time per token round by round: median and 10-90 % of the tokens, for the dense cell and a few others of each group.

    ``rows``: generation's; those of cells that are IMPOSSIBLE in ``speeds`` (``speed.generation``) are left out.
    """
    charts = []
    spoilt = speeds.filter(pl.col("timing") == IMPOSSIBLE)
    possible = rows.join(spoilt, on=KEYS, how="anti", nulls_equal=True, maintain_order="left")
    known = possible.filter(pl.col("step_middle").is_not_null(), ~pl.col("control")).with_columns(cell=cell_label())
    for group in timed_groups(known):
        kept = spread(group.cells.filter(pl.col("policy") != "dense")["keep_ratio"].to_list(), COMPARED_CELLS - 1)
        own = group.cells.filter((pl.col("policy") == "dense") | pl.col("keep_ratio").is_in(kept))
        cells = (
            own.sort("policy", "keep_ratio", descending=True)["cell"].unique(maintain_order=True).to_list()[: COMPARED_CELLS - 1]
        )
        cells = ["dense", *[cell for cell in cells if cell != "dense"]] if "dense" in own["cell"] else cells
        offset = {cell: 0.7 * ((i + 0.5) / len(cells) - 0.5) for i, cell in enumerate(cells)}
        own = own.filter(pl.col("cell").is_in(cells)).select(
            "cell", "repeat", at=pl.col("repeat") + 1 + pl.col("cell").replace_strict(offset), middle=1e3 * pl.col("step_middle"),
            low=1e3 * pl.col("step_low"), high=1e3 * pl.col("step_high"), n=pl.col("new_tokens") - 1,
        )  # fmt: skip
        charts.append(_round_chart(group, own, cells))
    return charts


def _round_chart(group: Group, own: pl.DataFrame, cells: list[str]) -> Chart:
    points = Points(f"rounds_{group.number}", own)
    x, y = Axis("at", "round", "d"), Axis("middle", "ms per token", log_span=8, also=("low", "high"))
    tint = colour(cells, "cell", "cell")
    bars = mark().mark_rule(strokeWidth=1.3).encode(x=x.x(own), y=y.y(own, "low"), y2=alt.Y2("high"), color=tint)
    dots = mark().mark_point(filled=True, size=45, opacity=1).encode(x=x.x(own), y=y.y(own), color=tint)
    about = [
        ("cell", "cell"),
        ("round", "repeat"),
        ("median, ms", "middle", ".4~r"),
        bounds("10 % to 90 % of the tokens", "low", "high"),
        ("tokens", "n", ","),
    ]
    description = (
        f"time per token round by round, {group.title}, {group.detail}: {len(cells)} cells, {own['repeat'].n_unique()} rounds"
    )
    spec = specification([bars, tooltips(dots, about)], points, [group.title, group.detail], description, height=HEIGHT - 40)
    return Chart(f"rounds-{group.number}", description, spec, points, group.about)
