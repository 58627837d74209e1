"""How far the next-token distribution moved: KL divergence from the dense twin's against what a cell held."""

from __future__ import annotations

import polars as pl

from analysis.draw.marks import Axis, interval_entry, names_of
from analysis.draw.panel import COMPARED, HELD, Panel, Series
from analysis.draw.points import Group
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import Chart, Points
from analysis.perplexity.cell_charts import ABOUT

DIVERGENCE = Axis("kl", "KL from dense, nats per token", log_span=20, also=("kl_low", "kl_high"))

OF_KL = [
    *ABOUT[:4],
    ("KL, nats per token", "kl", ".4~r"),
    interval_entry("95 % interval of it", "kl_low", "kl_high"),
    ("same first choice as dense", "agreement", ".1%"),
    *ABOUT[4:],
]


def kl_curves(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Mean KL per scored token, with its interval, against the realised budget; one panel per threshold.
    Dense is 0."""
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        known = (pl.col("after") == after, ~pl.col("end"), pl.col("kl") > 0, pl.col("budget").is_not_null())
        own = points.frame.filter(*known)
        if own.is_empty():
            continue
        panel = Panel(own, HELD, DIVERGENCE, looks.colour(own), Series.of(own, "variant"))
        panel = panel.among(COMPARED, "datum.kl > 0").line(order="budget:Q")
        panel = panel.bars("kl_low", "kl_high", width=1.2, opacity=0.6).dots(OF_KL, size=50)

        line = " · ".join(part for part in (f"prune_after {after}", group.detail) if part)
        words = f"KL divergence from dense against {HELD.title}, {group.title}, {line}: {own.height} cells"
        where = {"after": after}
        charts.append(panel.chart("kl", group, points, words, line, part=number, where=where, height=220))
    return charts
