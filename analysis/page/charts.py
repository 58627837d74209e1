"""Which charts the report has: name of the section -> its panels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import polars as pl
from altair.utils.schemapi import debug_mode

from analysis.draw.panel import HELD
from analysis.draw.points import Group, cell_points, groups
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import Chart, Points
from analysis.generation import time_charts
from analysis.generation.measures import measures
from analysis.harness import charts as task_charts
from analysis.keys import SCORED
from analysis.perplexity import cell_charts, window_charts
from analysis.perplexity.kl_charts import kl_curves
from analysis.retrieval import budget_charts, depth_charts, outcome_charts
from analysis.retrieval import charts as retrieval_charts
from analysis.retrieval.disagreement import disagreement_charts
from analysis.tables import Tables
from analysis.verdicts import IMPOSSIBLE

MOST_CELLS = 8_000
"""Cells that the charts of a page show, about 200 bytes each."""


@dataclass(frozen=True)
class Drawing:
    """What the charts of a page are drawn from; what several of them share is made once."""

    made: Tables

    @cached_property
    def looks(self) -> PolicyLooks:
        """The colours of the page's policies."""
        return PolicyLooks.on_page(
            self.made.perplexity, self.made.generation, self.made.retrieval, self.made.harness
        )

    @cached_property
    def scored(self) -> list[tuple[Group, Points]]:
        """What was scored on the same windows, with the points of its cells."""
        groups_drawn = drawn_groups(self.made.perplexity)[0]
        frames = [(group, cell_points(group.cells, self.made.curves)) for group in groups_drawn]
        return [
            (group, Points(f"cells_{group.number}", self.looks.told_apart(frame, "variant", "after")))
            for group, frame in frames
            if frame.height
        ]

    @cached_property
    def held(self) -> list[tuple[Group, Points]]:
        """``scored`` where a realised budget is known."""
        compared = pl.col("budget").filter(~pl.col("end")).is_not_null().any()
        return [(group, points) for group, points in self.scored if points.frame.select(compared).item()]

    @cached_property
    def timed(self) -> list[Group]:
        """What took turns."""
        return time_charts.timed_groups(measures(self.made.generation, self.made.perplexity))

    def front(self, group: Group) -> pl.DataFrame:
        """The cells of a group that no other beats."""
        return self.made.front.join(group.cells, on="cell_id", how="semi")


def charts(made: Tables) -> dict[str, list[Chart]]:
    """Every chart of a page, by section."""
    drawing = Drawing(made)
    # Altair checks every part of every layer against its schema, for a third of the time.
    with debug_mode(False):
        return {name: list(chain.from_iterable(draw(drawing))) for name, draw in SECTIONS.items()}


def drawn_groups(cells: pl.DataFrame) -> tuple[list[Group], int]:
    """The groups that have charts of their cells, and how many more have none because a page would grow past
    a few MB."""
    every = [group for group in groups(cells, SCORED) if (group.cells["policy"] != "dense").any()]
    totals = accumulate(group.cells.height for group in every)
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


SECTIONS: dict[str, Callable[[Drawing], Iterable[list[Chart]]]] = {
    "ucurve": lambda d: (cell_charts.u_curves(*own, d.looks) for own in d.scored),
    "retained": lambda d: (cell_charts.retained(*own, d.looks) for own in d.scored),
    "budget": lambda d: (cell_charts.u_curves(*own, d.looks, HELD, "budget") for own in d.held),
    "kl": lambda d: (kl_curves(*own, d.looks) for own in d.scored),
    "tradeoff": lambda d: (cell_charts.trade_off(*own, d.looks, d.front(own[0])) for own in d.held),
    "heatmap": lambda d: (cell_charts.heatmap(*own) for own in d.scored),
    "beside": lambda d: (cell_charts.side_by_side(*own, d.looks) for own in d.held),
    "position": lambda d: [window_charts.by_position(d.made.results, d.made.perplexity, d.looks)],
    "saw": lambda d: [window_charts.saw_teeth(d.made.results, d.made.perplexity)],
    "bytes": lambda d: (cell_charts.kv_bytes(group) for group, _ in d.scored),
    "timed": lambda d: (time_charts.six_panels(group, d.looks) for group in d.timed),
    "normalised": lambda d: (time_charts.summary_chart(group) for group in d.timed),
    "rounds": lambda d: [time_charts.rounds(d.made.timings.collect(), d.made.generation)],
    "accuracy": lambda d: [budget_charts.budget_charts(d.made.retrieval, d.looks)],
    "retrieval": lambda d: [depth_charts.depth_charts(d.made.answers)],
    "outcomes": lambda d: [outcome_charts.outcome_charts(d.made.retrieval)],
    "disagreement": lambda d: [disagreement_charts(d.made.perplexity, d.made.retrieval, d.looks)],
    "tasks": lambda d: [task_charts.task_charts(d.made.harness, d.looks)],
}
"""Section -> its charts, as lists that follow each other; what stands around them is in template.html."""
