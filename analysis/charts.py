"""Which charts the report has: name of the section -> its panels."""

from __future__ import annotations

import itertools

import polars as pl
from altair.utils.schemapi import debug_mode

from analysis import cell_charts, retrieval_charts, task_charts, time_charts, window_charts
from analysis.disagreement import disagreement_charts
from analysis.keys import SCORED
from analysis.kl_charts import kl_curves
from analysis.marks import Chart, Points
from analysis.measures import measures
from analysis.points import Group, cell_points, groups
from analysis.policy_looks import PolicyLooks
from analysis.tables import Tables
from analysis.verdicts import IMPOSSIBLE

SECTIONS = (
    "ucurve", "retained", "budget", "kl", "tradeoff", "heatmap", "beside", "position", "saw", "bytes", "timed", "normalised",
    "rounds", "accuracy", "retrieval", "outcomes", "disagreement", "tasks",
)  # fmt: skip

MOST_CELLS = 8_000
"""Cells that the charts of a page show, about 200 bytes each."""


def charts(made: Tables) -> dict[str, list[Chart]]:
    """Every chart of a page."""
    found: dict[str, list[Chart]] = {name: [] for name in SECTIONS}
    looks = PolicyLooks.on_page(made.perplexity, made.generation, made.retrieval, made.harness)
    with debug_mode(False):  # altair checks every part of every layer against its schema, for a third of the time
        _of_cells(found, made, looks)
        found["position"] = window_charts.by_position(made.results, made.perplexity, looks)
        found["saw"] = window_charts.saw_teeth(made.results, made.perplexity)
        for group in time_charts.timed_groups(measures(made.generation, made.perplexity)):
            found["timed"] += time_charts.six_panels(group, looks)
            found["normalised"] += [chart for chart in [time_charts.summary_chart(group)] if chart]
        found["rounds"] = time_charts.rounds(made.timings.collect(), made.generation)
        found["accuracy"] = retrieval_charts.budget_charts(made.retrieval, looks)
        found["retrieval"] = retrieval_charts.depth_charts(made.answers)
        found["outcomes"] = retrieval_charts.outcome_charts(made.retrieval)
        found["disagreement"] = disagreement_charts(made.perplexity, made.retrieval, looks)
        found["tasks"] = task_charts.task_charts(made.harness, looks)
    return found


def drawn_groups(cells: pl.DataFrame) -> tuple[list[Group], int]:
    """The groups that have charts of their cells, and how many more have none because a page would grow past a few MB."""
    every = [group for group in groups(cells, SCORED) if (group.cells["policy"] != "dense").any()]
    totals = itertools.accumulate(group.cells.height for group in every)
    small = [group for group, total in zip(every, totals, strict=True) if total <= MOST_CELLS] or every[:1]
    return small, len(every) - len(small)


def not_drawn(made: Tables, drawn: dict[str, list[Chart]]) -> dict[str, int]:
    """How many groups of what have no charts, to keep the page small."""
    possible = made.retrieval.filter(pl.col("verdict") != IMPOSSIBLE)
    asked, measured = groups(possible, retrieval_charts.PANEL), task_charts.compared_groups(made.harness)
    return {
        "models and datasets have no charts of perplexity": drawn_groups(made.perplexity)[1],
        "sorts of question have no charts by depth": len(list(asked)) - len(drawn["retrieval"]),
        "metrics of tasks have no charts": len(measured) - len(drawn["tasks"]),
    }


def _of_cells(found: dict[str, list[Chart]], made: Tables, looks: PolicyLooks) -> None:
    for group in drawn_groups(made.perplexity)[0]:
        frame = looks.told_apart(cell_points(group.cells, made.curves), "variant", "after")
        if frame.is_empty():
            continue
        points = Points(f"cells_{group.number}", frame)
        found["ucurve"] += cell_charts.u_curves(group, points, looks)
        found["retained"] += cell_charts.retained(group, points, looks)
        found["kl"] += kl_curves(group, points, looks)
        if frame["budget"].filter(~frame["end"]).drop_nulls().len():
            found["budget"] += cell_charts.u_curves(group, points, looks, cell_charts.HELD, "budget")
            own = made.front.join(group.cells, on="cell_id", how="semi")
            found["tradeoff"].append(cell_charts.trade_off(group, points, looks, own))
            found["beside"] += cell_charts.side_by_side(group, points, looks)
        found["heatmap"] += [chart for chart in [cell_charts.heatmap(group, points)] if chart]
        found["bytes"] += [chart for chart in [cell_charts.kv_bytes(group)] if chart]
