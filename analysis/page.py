"""All tables and charts of some results, and the HTML page that holds them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from analysis import coverage, labels, layout, tables
from analysis.charts import charts, not_drawn
from analysis.claim_models import Judged, head, judged
from analysis.claims import audit, control_experiment, evidences
from analysis.curve_shape import shapes
from analysis.findings import findings, warnings
from analysis.load import Results
from analysis.margins import ACCURACY_MARGIN
from analysis.marks import Chart
from analysis.norm_attention import in_words, norm_attention
from analysis.pairs import with_dense
from analysis.points import with_words
from analysis.provenance import facts
from analysis.recommend import advice_in_words, front, recommended
from analysis.retrieval_findings import accuracy_findings
from analysis.retrieval_tables import DROPPED, HELD, retrieval
from analysis.speed import DRIFT, checks, generation
from analysis.task_tables import tasks
from analysis.uncertainty import LEVEL
from analysis.verdicts import BARELY
from pipeline.results import RunUnreadableError

HERE = Path(__file__).resolve().parent
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end a script element or a line of it, as JSON writes them."""

BUNDLE = "window.vegaEmbed = vegaEmbed;"
"""The one name of the Vega bundle that the page uses."""

MANY_CHARTS = 60
"""Above this number of charts a page opens on one model and dataset, and draws the others when they are asked for."""


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows. ``tables``: name -> frame and columns; ``audited``: the audit's parts, if any."""

    results: Results
    tolerance: float
    cells: pl.DataFrame
    speeds: pl.DataFrame
    tables: dict[str, tuple[pl.DataFrame, list[layout.Column]]]
    charts: dict[str, list[Chart]]
    audited: list[Judged]
    norm_lines: dict[str, list[str]]
    """By task: how key norm and attention go together in the models of its knorm cells."""


LAYOUT = {
    "recommended": layout.RECOMMENDED, "front": layout.FRONT, "coverage": layout.COVERAGE, "excluded": layout.EXCLUDED,
    "shapes": layout.SHAPES, "by-ratio": layout.BY_RATIO, "cells": layout.PERPLEXITY, "checks": layout.CHECKS,
    "generation": layout.GENERATION, "texts": layout.TEXTS, "retrieval": layout.RETRIEVAL, "tasks": layout.TASKS,
    "failures": layout.FAILURES,
}  # fmt: skip


def contents(results: Results, tolerance: float, *, with_audit: bool = False) -> Contents:
    """Read the rows and make every table and chart; ``with_audit`` adds the audit of the reports' claims.

    Raises RunUnreadableError where a part cannot be read.
    """
    try:
        measured = with_dense(results.rows("perplexity"))
        cells = tables.summary(measured)
        checked = checks(results.rows("generation"))
        speeds = generation(results.rows("generation"), checked)
        answers, scores = retrieval(results.rows("retrieval")), tasks(results.rows("tasks"))
        failed = coverage.failures(results)
        curves = shapes(measured, cells)
        frames = {
            "recommended": recommended(measured, cells, answers, tolerance),
            "front": front(cells),
            "coverage": coverage.coverage(results),
            "excluded": tables.excluded(tables.with_failures(cells, failed), speeds, answers, scores),
            "shapes": with_words(curves),
            "by-ratio": tables.by_ratio(cells),
            "cells": tables.with_failures(cells, failed),
            "checks": checked,
            "generation": speeds,
            "texts": speeds.filter(pl.col("text_length").is_not_null()),
            "retrieval": answers,
            "tasks": scores,
            "failures": failed,
        }
        shown = {name: (frames[name], columns) for name, columns in LAYOUT.items()}
        audited: list[Judged] = []
        evidence = evidences(results, measured, cells, speeds, answers) if with_audit else []
        for number, own in enumerate(evidence, start=1):
            audited.append(judged(own, audit(own)))
            shown[f"claims-{number}"] = audited[-1].claims, layout.CLAIMS
            shown[f"control-{number}"] = control_experiment(own.cells), layout.CONTROL
        drawn = charts(results, cells, curves, speeds, answers, scores)
        norms = {task: in_words(norm_attention(results, task)) for task in ("perplexity", "generation", "retrieval", "tasks")}
        return Contents(results, tolerance, cells, speeds, shown, drawn, audited, norms)
    except (pl.exceptions.ComputeError, OSError) as error:
        where = ", ".join(run.directory for run in results.runs)
        raise RunUnreadableError(
            f"{where}: a part cannot be read ({error}). `kvsweep run` into that directory sets broken parts aside."
        ) from error


def render(shown: Contents) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    frames = {name: frame for name, (frame, _) in shown.tables.items()}
    panels = [chart for panel in shown.charts.values() for chart in panel]
    return environment.get_template("template.html").render(
        runs=[facts(run) for run in shown.results.runs],
        head=coverage.in_words(frames["coverage"], frames["excluded"]),
        names=[str(run.info.get("name") or "unnamed run") for run in shown.results.runs],
        findings=[
            *findings(shown.cells, shown.speeds),
            *accuracy_findings(shown.cells, frames["retrieval"], frames["tasks"]),
            *advice_in_words(frames["recommended"]),
        ],
        warnings=_warned(shown),
        charts=shown.charts,
        points={chart.points.name: chart.points for chart in panels},
        choices=_choices(shown),
        opens_on_one=len(panels) > MANY_CHARTS,
        tables={name: layout.table(name, *table) for name, table in shown.tables.items()},
        audited=[each.words for each in shown.audited],
        audit_head=head(shown.audited),
        norm_lines=shown.norm_lines,
        tolerance=shown.tolerance,
        failure_kinds=coverage.failure_kinds(frames["failures"]).to_dicts(),
        numbers=layout.NUMBERS,
        few=BARELY,
        accuracy_margin=ACCURACY_MARGIN,
        dropped=DROPPED,
        held=HELD,
        drift=DRIFT,
        level=LEVEL,
        bundle=_bundle(),
        script_safe=script_safe,
    )


def _warned(shown: Contents) -> list[str]:
    frames = {name: frame for name, (frame, _) in shown.tables.items()}
    left_out = not_drawn(shown.cells, frames["retrieval"], frames["tasks"], shown.charts)
    return warnings(shown.results, shown.cells, shown.speeds, frames["coverage"], frames["excluded"], left_out)


def _choices(shown: Contents) -> dict[str, list[str]]:
    """What the page can be narrowed to: the models, datasets and policies of which there are several."""
    answers, scores = (shown.tables[name][0] for name in ("retrieval", "tasks"))
    others = scores.with_columns(dataset=pl.lit(None, pl.String))
    both = pl.concat([frame.select("model", "dataset", "policy") for frame in (shown.cells, shown.speeds, answers, others)])
    listed = {name: both.filter(pl.col(name) != "dense")[name].unique(maintain_order=True).to_list() for name in both.columns}
    return {name: [labels.text(value) for value in values] for name, values in listed.items() if len(values) > 1}


@functools.cache
def _bundle() -> Markup:
    return Markup(vl_convert.javascript_bundle(BUNDLE))


def script_safe(json_text: str) -> Markup:
    """JSON text that can stand inside a script element: same value, no character that HTML or old JavaScript acts on."""
    return Markup(json_text.translate(str.maketrans(ESCAPES)))
