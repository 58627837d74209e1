"""How far the next-token distribution moved: KL divergence from the dense twin's against what a cell held."""

from __future__ import annotations

import polars as pl

from analysis.cell_charts import ABOUT, HELD
from analysis.marks import (
    Axis,
    Chart,
    Points,
    bounds,
    dash,
    equal,
    in_order,
    mark,
    names_of,
    shape,
    specification,
    tooltips,
)
from analysis.points import Group
from analysis.policy_looks import PolicyLooks, look

DIVERGENCE = Axis("kl", "KL from dense, nats per token", log_span=20, also=("kl_low", "kl_high"))


def kl_curves(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Mean KL per scored token, with its interval, against the realised budget; one panel per threshold. Dense is 0."""
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        own = points.frame.filter(pl.col("after") == after, ~pl.col("end"), pl.col("kl") > 0, pl.col("budget").is_not_null())
        if own.is_empty():
            continue
        x, kind, tint = Axis("budget", HELD.title, HELD.form), look(own, "variant"), looks.colour(own)
        variants = in_order(own, kind)
        place = {"x": x.x(own), "y": DIVERGENCE.y(own)}
        cells = mark().transform_filter(equal("end", False)).transform_filter("datum.kl > 0")
        line = cells.transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.8)
        line = line.encode(**place, color=tint, detail="variant:N", order="budget:Q", strokeDash=dash(variants, "dash"))
        bars = cells.transform_filter("isValid(datum.kl_low)").mark_rule(strokeWidth=1.2, opacity=0.6)
        bars = bars.encode(x=x.x(own), y=DIVERGENCE.y(own, "kl_low"), y2="kl_high", color=tint)
        dots = cells.mark_point(filled=True, size=50, opacity=1)
        about = [
            *ABOUT[:4], ("KL, nats per token", "kl", ".4~r"), bounds("95 % interval of it", "kl_low", "kl_high"),
            ("same first choice as dense", "agreement", ".1%"), *ABOUT[4:],
        ]  # fmt: skip
        dots = tooltips(dots.encode(**place, color=tint, shape=shape(variants, kind, "settings")), about)
        title = [group.title, " · ".join(part for part in (f"prune_after {after}", group.detail) if part)]
        description = f"KL divergence from dense against {HELD.title}, {', '.join(title)}: {own.height} cells"
        spec = specification([line, bars, dots], points, title, description, where={"after": after}, height=220)
        charts.append(Chart(f"kl-{group.number}-{number}", description, spec, points, group.about))
    return charts
