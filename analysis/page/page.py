"""All tables and charts of some results, and the HTML page that holds them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from analysis import coverage, labels
from analysis.audit.claim_models import Judged, head, judged
from analysis.audit.claims import audit, control_experiment, evidences
from analysis.draw.points import with_words
from analysis.draw.specification import Chart
from analysis.generation.speed import DRIFT
from analysis.harness.findings import task_findings
from analysis.load import Results
from analysis.page import columns, layout
from analysis.page.charts import charts, not_drawn
from analysis.page.column import Column
from analysis.page.findings import findings, warnings
from analysis.page.norm_attention import correlations_in_words, norm_attention
from analysis.page.provenance import facts
from analysis.perplexity.tables import by_ratio
from analysis.recommend import advice_in_words
from analysis.retrieval.findings import retrieval_findings
from analysis.retrieval.tables import DROPPED, HELD
from analysis.statistics.margins import ACCURACY_MARGIN
from analysis.statistics.uncertainty import LEVEL
from analysis.tables import Tables
from analysis.verdicts import BARELY
from pipeline.results import TASKS

HERE = Path(__file__).resolve().parent
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end a script element or a line of it, as JSON writes them."""

BUNDLE = "window.vegaEmbed = vegaEmbed;"
"""The one name of the Vega bundle that the page uses."""

MANY_CHARTS = 60
"""Above this number of charts a page opens on one model and
dataset, and draws the others when they are asked for."""


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows.

    ``tables``: name -> frame and columns; ``audited``: the audit's parts, if any.
    """

    made: Tables
    tolerance: float
    tables: dict[str, tuple[pl.DataFrame, list[Column]]]
    charts: dict[str, list[Chart]]
    audited: list[Judged]
    norm_lines: dict[str, list[str]]
    """By task: how key norm and attention go together in the models of its knorm cells."""


LAYOUT = {
    "recommended": columns.RECOMMENDED,
    "front": columns.FRONT,
    "coverage": columns.COVERAGE,
    "excluded": columns.EXCLUDED,
    "shapes": columns.SHAPES,
    "by-ratio": columns.BY_RATIO,
    "cells": columns.PERPLEXITY,
    "checks": columns.CHECKS,
    "generation": columns.GENERATION,
    "texts": columns.TEXTS,
    "retrieval": columns.RETRIEVAL,
    "tasks": columns.TASKS,
    "failures": columns.FAILURES,
}


def contents(results: Results, tolerance: float, *, with_audit: bool = False) -> Contents:
    """Read the rows and make every table and chart; ``with_audit`` adds the audit of the reports' claims.

    Raises RunUnreadableError where a part cannot be read.
    """
    with results.reading():
        made = Tables.of(results)
        shown = {name: (frame, LAYOUT[name]) for name, frame in _frames(made, tolerance).items()}
        audited: list[Judged] = []
        for number, own in enumerate(evidences(made) if with_audit else [], start=1):
            audited.append(judged(own, audit(own)))
            shown[f"claims-{number}"] = audited[-1].claims, columns.CLAIMS
            shown[f"control-{number}"] = control_experiment(own.cells), columns.CONTROL
        norms = {task: correlations_in_words(norm_attention(results, task)) for task in TASKS}
        return Contents(made, tolerance, shown, charts(made), audited, norms)


def _frames(made: Tables, tolerance: float) -> dict[str, pl.DataFrame]:
    """The frame of each of the page's tables."""
    timed_texts = made.generation.filter(pl.col("text_length").is_not_null())

    return {
        "recommended": made.recommended(tolerance),
        "front": made.front,
        "coverage": made.coverage,
        "excluded": made.excluded,
        "shapes": with_words(made.curves),
        "by-ratio": by_ratio(made.perplexity),
        "cells": made.cells,
        "checks": made.checks,
        "generation": made.generation,
        "texts": timed_texts,
        "retrieval": made.retrieval,
        "tasks": made.harness,
        "failures": made.failures,
    }


def render(shown: Contents) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = shown.made
    panels = [chart for panel in shown.charts.values() for chart in panel]
    sentences = [
        *findings(made),
        *retrieval_findings(made),
        *task_findings(made.harness),
        *advice_in_words(shown.tables["recommended"][0]),
    ]

    return environment.get_template("template.html").render(
        runs=[facts(run) for run in made.results.runs],
        head=coverage.coverage_in_words(made.coverage, made.excluded),
        names=[str(run.info.get("name") or "unnamed run") for run in made.results.runs],
        findings=sentences,
        warnings=warnings(made, not_drawn(made, shown.charts)),
        charts=shown.charts,
        points={chart.points.name: chart.points for chart in panels},
        choices=_choices(made),
        opens_on_one=len(panels) > MANY_CHARTS,
        tables={name: layout.table(name, *table) for name, table in shown.tables.items()},
        audited=[each.words for each in shown.audited],
        audit_head=head(shown.audited),
        norm_lines=shown.norm_lines,
        tolerance=shown.tolerance,
        failure_kinds=coverage.failure_kinds(made.failures).to_dicts(),
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


def _choices(made: Tables) -> dict[str, list[str]]:
    """What the page can be narrowed to: the models, datasets and policies of which there are several."""
    others = made.harness.with_columns(dataset=pl.lit(None, pl.String))
    frames = (made.perplexity, made.generation, made.retrieval, others)
    both = pl.concat([frame.select("model", "dataset", "policy") for frame in frames])
    listed = {
        name: both.filter(pl.col(name) != "dense")[name].unique(maintain_order=True).to_list()
        for name in both.columns
    }
    return {
        name: [labels.text(value) for value in values] for name, values in listed.items() if len(values) > 1
    }


@functools.cache
def _bundle() -> Markup:
    return Markup(vl_convert.javascript_bundle(BUNDLE))


def script_safe(json_text: str) -> Markup:
    """JSON text that can stand inside a script element: same
    value, no character that HTML or old JavaScript acts on."""
    return Markup(json_text.translate(str.maketrans(ESCAPES)))
