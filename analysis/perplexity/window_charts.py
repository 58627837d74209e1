"""Charts inside a window: where pruning starts to hurt,
token by token, and how long the cache is (the saw-tooth)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import altair as alt
import numpy as np
import polars as pl

from analysis import labels
from analysis.draw.marks import Axis, cycle, dash, in_order, interval_entry, mark, names_of
from analysis.draw.panel import Panel
from analysis.draw.points import Group, groups, spread, with_words
from analysis.draw.policy_looks import PALETTE, PolicyLooks, look
from analysis.draw.specification import HEIGHT, Chart, Points, chooser
from analysis.keys import SCORED, VERSIONS
from analysis.load import Results
from analysis.statistics.uncertainty import ALPHA, t_quantile, weighted_mean

BINS = 32
"""Stretches of a window over which tokens are averaged."""
POLICIES, RATIOS = 6, 2
"""Most policies and values of keep_ratio in one picture."""
MOST_OF = 0.6
"""A keep_ratio that this share of the policies has is compared."""
MOST_CELLS = 60
"""Cells whose tokens are read; of a larger report the first ones, in the order of its panels."""
SAW_CELLS = 16
"""Cells of a group that can be chosen for the saw-tooth."""

OF_POSITION = [
    ("policy", "policy"),
    ("keep_ratio", "kept"),
    ("tokens", "stretch"),
    ("NLL minus dense", "difference", ".3~f"),
    interval_entry("95 % interval", "low", "high"),
    ("windows", "windows", ","),
]
OF_TEETH = [
    ("cell", "cell"),
    ("tokens seen", "token", ","),
    ("entries held", "held", ","),
    ("prunes", "events", ","),
    ("of the last 8 positions", "retained"),
]


def by_position(results: Results, cells: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """NLL minus the dense twin's by token position, one panel
    per group and threshold: a few policies and keep_ratios."""
    known = pl.col("verdict").is_in(["VALID", "BARELY_PRUNED"])
    valid = with_words(cells.filter(known, pl.col("n_paired") > 0))
    panels = [
        (group, after, _chosen(group.cells.filter(pl.col("after") == after)))
        for group in groups(valid, SCORED)
        for after in names_of(group.cells, "after")
    ]
    panels = panels[: _readable([chosen for _, _, chosen in panels])]
    if not panels:
        return []

    ids = pl.concat([chosen.select("cell_id", "dense_cell_id") for _, _, chosen in panels])
    wanted = [*ids["cell_id"].unique(), *ids["dense_cell_id"].drop_nulls().unique()]
    rows = results.lists(wanted, "window", "nll")
    charts = [_position_chart(group, after, chosen, rows, looks) for group, after, chosen in panels]
    return [chart for chart in charts if chart is not None]


def _readable(frames: Sequence[pl.DataFrame]) -> int:
    """How many of the frames, from the first on, have ``MOST_CELLS`` at most together."""
    totals = itertools.accumulate(frame.height for frame in frames)
    return sum(total <= MOST_CELLS for total in totals)


def _chosen(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of the most common settings: some policies at
    the highest and lowest keep_ratio that most policies have."""
    sound = cells.filter(pl.col("position_mode").ne_missing("cache_length"))
    sound = sound if sound.height else cells
    variants = sound.group_by("variant", maintain_order=True).len()
    usual = variants.sort("len", descending=True, maintain_order=True)["variant"][0]
    own = sound.filter(pl.col("variant") == usual)

    shared = own.group_by("keep_ratio").agg(pl.col("policy").n_unique())
    most = shared.filter(pl.col("policy") >= MOST_OF * pl.col("policy").max())["keep_ratio"]
    own = own.filter(pl.col("keep_ratio").is_in(spread(most.drop_nulls().to_list(), RATIOS)))

    known = [name for name in PALETTE if name in own["policy"]]
    policies = list(dict.fromkeys([*known, *in_order(own, "policy")]))
    return own.filter(pl.col("policy").is_in(policies[:POLICIES]))


def _position_chart(
    group: Group, after: str, chosen: pl.DataFrame, rows: pl.DataFrame, looks: PolicyLooks
) -> Chart | None:
    frames = [frame for cell in chosen.iter_rows(named=True) if (frame := positions(cell, rows)) is not None]
    if not frames:
        return None

    frame = looks.told_apart(pl.concat(frames), "kept")
    kind = look(frame, "kept")
    kept = names_of(frame, kind)
    x = Axis("position", "position of the token in its window", ",d")
    y = Axis("difference", "NLL minus dense, nats per token", reach=(0.0,), also=("low", "high"))
    panel = Panel(frame, x, y, looks.colour(frame)).rule(0.0, "dense")
    panel = panel.rule(int(after), "first prune possible", upright=True) if after.isdigit() else panel
    panel = panel.band("low", "high", opacity=0.12, detail=f"{kind}:N")
    panel = panel.line(opacity=None, strokeDash=dash(kept, kind)).dots(OF_POSITION, size=25, opacity=0.9)

    lines = _position_lines(group, after, chosen, kept)
    told = f"{len(frames)} cells, {BINS} stretches of a window"
    words = f"NLL minus dense by token position, {', '.join([group.title, *lines])}: {told}"
    points = Points(f"position_{group.number}_{after}", frame)
    return panel.chart("position", group, points, words, *lines, part=after)


def _position_lines(group: Group, after: str, chosen: pl.DataFrame, kept: list[str]) -> list[str]:
    """What stands below the title: the threshold, which dash is which keep_ratio, and the settings."""
    looks_of = zip(kept, cycle(["solid", "dashed", "dotted"], kept), strict=True)
    dashes = ", ".join(f"{ratio} {dashed}" for ratio, dashed in looks_of)
    settings = " · ".join(part for part in (chosen["variant"][0], group.detail) if part)
    return [f"prune_after {after} · keep_ratio {dashes}", settings]


def positions(cell: labels.Row, rows: pl.DataFrame) -> pl.DataFrame | None:
    """A cell's mean NLL minus its twin's per stretch of a
    window, with an interval over windows; None without lists.

    ``rows`` comes from ``Results.lists``. Windows of another length than most are left out: their positions
    do not line up.
    """
    both = _windows_of_both(cell, rows)
    scored = int(both["length"][0]) if both.height else 0
    if scored == 0:
        return None

    own, dense = (_as_array(both[name], scored) for name in ("nll", "nll_dense"))
    frame = _stretches(own - dense, int(both["window"][0]))
    floats = pl.selectors.float()
    return frame.with_columns(
        pl.when(floats.is_finite()).then(floats).name.keep(),
        policy=pl.lit(cell["policy"]),
        kept=pl.lit(labels.ratio_setting(cell["keep_ratio"])),
        windows=pl.lit(len(own)),
    )


def _stretches(differences: np.ndarray, window: int) -> pl.DataFrame:
    """Means over the stretches of a window of so many tokens: differences [windows, scored tokens]."""
    scored = differences.shape[1]
    edges = np.unique(np.linspace(0, scored, min(BINS, scored) + 1).round().astype(int))
    means = np.add.reduceat(differences, edges[:-1], axis=1) / np.diff(edges)
    low, high = _intervals(means)
    first = window - scored + edges  # the position of a scored token: the last ones of a window are scored

    stretches = {
        "position": (first[:-1] + first[1:] - 1) / 2,
        "difference": means.mean(0),
        "low": low,
        "high": high,
        "stretch": [f"{start} to {end - 1}" for start, end in itertools.pairwise(first)],
    }
    return pl.DataFrame(stretches)


def _windows_of_both(cell: labels.Row, rows: pl.DataFrame) -> pl.DataFrame:
    """The windows that a cell and its twin scored in the same ``length``, that of most."""
    own = _lists_of(cell, rows, "cell_id")
    twin = _lists_of(cell, rows, "dense_cell_id")
    length = pl.col("nll").list.len()
    both = own.join(twin, on="window_index", suffix="_dense").filter(length == pl.col("nll_dense").list.len())
    both = both.with_columns(length=length).sort("window_index")
    return both.filter(pl.col("length") == pl.col("length").mode().max())


def _lists_of(cell: labels.Row, rows: pl.DataFrame, key: str) -> pl.DataFrame:
    same = [pl.col(name).eq_missing(pl.lit(cell[name])) for name in VERSIONS]
    own = rows.filter(pl.col("cell_id") == cell[key], pl.col("nll").is_not_null(), *same)
    return own.select("window_index", "window", "nll")


def _as_array(lists: pl.Series, length: int) -> np.ndarray:
    """[windows, length] of lists that are as long."""
    return lists.cast(pl.List(pl.Float64)).list.to_array(length).to_numpy()


def _intervals(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t intervals over windows of the mean of each column:
    means [windows, stretches] -> low, high [stretches]."""
    n = len(means)
    if n < 2:
        return np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    middle, error = weighted_mean(means.T, np.ones_like(means.T))
    half = t_quantile(1 - ALPHA / 2, n) * error
    return middle - half, middle + half


def saw_teeth(results: Results, cells: pl.DataFrame) -> list[Chart]:
    """Entries of a pruning layer after each token of a window; the cell is chosen below the chart."""
    pruned = with_words(cells.filter(pl.col("policy") != "dense", pl.col("prune_events") > 0))
    chosen = [(group, _few(group.cells)) for group in groups(pruned, SCORED)]
    chosen = chosen[: _readable([own for _, own in chosen])]
    if not chosen:
        return []

    wanted = pl.concat([own for _, own in chosen])["cell_id"].unique().to_list()
    rows = results.lists(wanted, "window", "event_steps", "event_kept")
    rows = rows.filter(pl.col("event_steps").list.len() > 0)
    rows = rows.unique("cell_id", keep="first", maintain_order=True)
    charts = []
    for group, own in chosen:
        found = [_teeth(cell, rows) for cell in own.iter_rows(named=True)]
        teeth = [frame for frame in found if frame is not None]
        if teeth:
            charts.append(_saw_chart(group, pl.concat(teeth)))
    return charts


def _few(cells: pl.DataFrame) -> pl.DataFrame:
    """Cells of one group to choose from: every threshold and setting once at its highest and lowest
    keep_ratio, then others."""
    first = cells.sort("keep_ratio", descending=True, maintain_order=True)
    kinds = ["policy", "after", "variant"]
    highest = first.unique(kinds, keep="first", maintain_order=True)
    lowest = first.unique(kinds, keep="last", maintain_order=True)
    ends = pl.concat([highest, lowest]).unique("cell_id", keep="first", maintain_order=True)
    return ends.sort("position_mode", "protect_recent", maintain_order=True).head(SAW_CELLS)


def _teeth(cell: labels.Row, rows: pl.DataFrame) -> pl.DataFrame | None:
    """The corners of the saw-tooth as lists in one row: it
    grows by one entry a token and falls at each event."""
    row = rows.filter(pl.col("cell_id") == cell["cell_id"])
    if row.is_empty():
        return None
    steps, kept = (row[name].to_list()[0] or [] for name in ("event_steps", "event_kept"))
    if len(steps) != len(kept):
        return None

    tokens, held = _corners(steps, kept, last=int(row["window"][0]) - 1)
    ratio = labels.ratio_setting(cell["keep_ratio"])
    corners = {
        "cell": f"{cell['policy']} {ratio}, prune_after {cell['after']}, {cell['variant']}",
        "retained": f"recent retained {labels.percent(cell['recent_retained'])}",
        "after": cell["prune_after"],
        "events": len(steps),
        "token": tokens,
        "held": held,
    }
    return pl.DataFrame([corners])


def _corners(steps: list[int], kept: list[int], last: int) -> tuple[list[int], list[int]]:
    """Tokens seen and entries held at each corner, from nothing to the window's ``last`` token."""
    tokens, held = [0], [0]
    for step, left in zip(steps, kept, strict=True):
        grown = held[-1] + step - tokens[-1]
        tokens += [step, step]
        held += [grown, left]
    return [*tokens, last], [*held, held[-1] + last - tokens[-1]]


def _saw_chart(group: Group, frame: pl.DataFrame) -> Chart:
    x = alt.X("token:Q", title="tokens seen", axis=alt.Axis(tickCount=6, format=",d"))
    zero, ticks = alt.Scale(zero=True), alt.Axis(tickCount=6)
    y = alt.Y("held:Q", title="entries of a pruning layer", scale=zero, axis=ticks)

    chosen = mark().transform_filter("datum.cell === shown")
    corners = chosen.transform_flatten(["token", "held"]).transform_window(corner="row_number()")
    corners = corners.transform_filter("datum.token <= upto * datum.after")
    note = chosen.mark_text(align="left", dx=4, dy=-4, fontSize=11, fill="var(--fg)")
    note = note.encode(x=alt.value(0), y=alt.value(0), text="retained:N")
    panel = Panel(frame, x, y, "var(--c-knorm)", rows=corners).line(width=1.2, opacity=None, order="corner:Q")
    panel = panel.dots(OF_TEETH, size=12, opacity=0.5).add(note)

    names = in_order(frame, "cell")
    params = [chooser("cell", names), {"name": "upto", "value": 4, "bind": _slider(frame)}]
    words = f"cache length over the tokens of a window, {group.title}: {len(names)} cells to choose from"
    points = Points(f"saw_{group.number}", frame)
    return panel.chart("saw", group, points, words, group.detail, params=params, height=HEIGHT - 50)


def _slider(frame: pl.DataFrame) -> dict[str, object]:
    """What is chosen below the chart: up to which token, in multiples of the cell's threshold."""
    last = int(frame.select(pl.col("token").list.max().max()).item())
    least_after = int(frame.select(pl.col("after").min()).item())
    return {
        "input": "range",
        "min": 2,
        "max": max(4, math.ceil(last / least_after)),
        "step": 1,
        "name": "tokens shown, in multiples of prune_after: ",
    }
