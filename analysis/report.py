"""Run directories to one self-contained HTML page: `python analysis/report.py DIR [DIR ...] [-o FILE]`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: the packages lie beside this directory
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from analysis import coverage, layout, tables
from analysis.charts import Chart, speed_curves, trade_off, u_curves
from analysis.export import write_charts
from analysis.findings import findings, warnings
from analysis.load import Results, RunUnreadableError, load
from analysis.provenance import facts
from analysis.recommend import MAX_PPL_INCREASE, advice_in_words, front, recommended
from analysis.speed import DRIFT, checks, generation
from analysis.uncertainty import LEVEL, RESAMPLES
from pipeline.results import RunStore

HERE = Path(__file__).resolve().parent
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end a script element or a line of it, as JSON writes them."""


BUNDLE = "window.vegaEmbed = vegaEmbed;"
"""The one name of the Vega bundle that the page uses."""


@dataclass(frozen=True)
class Frames:
    """The tables that a page shows, as frames."""

    cells: pl.DataFrame
    speeds: pl.DataFrame
    checked: pl.DataFrame
    answers: pl.DataFrame
    covered: pl.DataFrame
    failed: pl.DataFrame


def write_report(
    directories: Sequence[str], output: str | None = None, tolerance: float = MAX_PPL_INCREASE,
    pictures: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Write the report of one or several run directories; returns where it lies.

    ``tolerance``: the increase of PPL that a recommended setting may cost, as a share. ``pictures``: folders for every chart by
    form (png, svg). Default place: ``report.html`` in the first directory, which may be an s3:// URL. Raises RunUnreadableError
    where a directory is not a run, and OSError where a file cannot be written.
    """
    results = load(directories)
    frames = _frames(results)
    charts = _charts(frames)
    page = _render(results, frames, charts, tolerance).encode()
    for form, folder in (pictures or {}).items():
        write_charts((chart for panels in charts.values() for chart in panels), folder, form)
    if output is not None:
        Path(output).write_bytes(page)
        return output
    store = RunStore(results.runs[0].directory)
    store.put("report.html", page, overwrite=True)
    return f"{store.directory}/report.html"


def _render(results: Results, frames: Frames, charts: dict[str, list[Chart]], tolerance: float) -> str:
    """The page as HTML text."""
    advised = recommended(frames.cells, tolerance)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        runs=[facts(run) for run in results.runs],
        head=coverage.in_words(frames.covered),
        names=[str(run.info.get("name") or "unnamed run") for run in results.runs],
        findings=[*findings(frames.cells, frames.speeds), *advice_in_words(advised)],
        warnings=warnings(results, frames.cells, frames.speeds, frames.covered),
        charts=charts,
        tables=_tables(frames, advised),
        tolerance=tolerance,
        failure_kinds=coverage.failure_kinds(frames.failed).to_dicts(),
        numbers=layout.NUMBERS,
        few=tables.BARELY,
        drift=DRIFT,
        resamples=RESAMPLES,
        level=LEVEL,
        bundle=_bundle(),
        script_safe=script_safe,
    )


@functools.cache
def _bundle() -> Markup:
    return Markup(vl_convert.javascript_bundle(BUNDLE))


def script_safe(json_text: str) -> Markup:
    """JSON text that can stand inside a script element: same value, no character that HTML or old JavaScript acts on."""
    return Markup(json_text.translate(str.maketrans(ESCAPES)))


def _frames(results: Results) -> Frames:
    try:
        checked = checks(results.rows("generation"))
        return Frames(
            cells=tables.summary(results.rows("perplexity")),
            speeds=generation(results.rows("generation"), checked),
            checked=checked,
            answers=tables.retrieval(results.rows("retrieval")),
            covered=coverage.coverage(results),
            failed=coverage.failures(results),
        )
    except (pl.exceptions.ComputeError, OSError) as error:
        where = ", ".join(run.directory for run in results.runs)
        raise RunUnreadableError(
            f"{where}: a part cannot be read ({error}). `kvsweep run` into that directory sets broken parts aside."
        ) from error


def _charts(frames: Frames) -> dict[str, list[Chart]]:
    return {
        "ucurve": u_curves(frames.cells, realised=False),
        "budget": u_curves(frames.cells, realised=True),
        "tradeoff": trade_off(frames.cells),
        "tpot": speed_curves(frames.speeds, "tpot_seconds"),
        "ttft": speed_curves(frames.speeds, "ttft_seconds"),
    }


def _tables(frames: Frames, advised: pl.DataFrame) -> dict[str, layout.Table]:
    return {
        "recommended": layout.table("recommended", advised, layout.RECOMMENDED),
        "front": layout.table("front", front(frames.cells), layout.FRONT),
        "coverage": layout.table("coverage", frames.covered, layout.COVERAGE),
        "by-ratio": layout.table("by-ratio", tables.by_ratio(frames.cells), layout.BY_RATIO),
        "cells": layout.table("cells", frames.cells, layout.PERPLEXITY),
        "checks": layout.table("checks", frames.checked, layout.CHECKS),
        "generation": layout.table("generation", frames.speeds, layout.GENERATION),
        "retrieval": layout.table("retrieval", frames.answers, layout.RETRIEVAL),
        "failures": layout.table("failures", frames.failed, layout.FAILURES),
    }


def _share(text: str) -> float:
    """``1%`` or ``0.01`` as 0.01. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1; write 1% or 0.01")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 where a directory is not a run or the page cannot be written."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="Write one self-contained HTML report of kvsweep run directories."
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directory, local or s3://")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the page (default: DIR/report.html)")
    parser.add_argument(
        "--max-ppl-increase", type=_share, default=MAX_PPL_INCREASE, metavar="SHARE", dest="tolerance",
        help="what a recommended setting may cost, such as 1%% or 0.01 (default: 1%%)",
    )  # fmt: skip
    parser.add_argument("--png", metavar="DIR", help="also write every chart as a PNG into this folder")
    parser.add_argument("--svg", metavar="DIR", help="also write every chart as an SVG into this folder")
    arguments = parser.parse_args(argv)
    try:
        pictures = {form: folder for form, folder in (("png", arguments.png), ("svg", arguments.svg)) if folder}
        print(write_report(arguments.directories, arguments.output, arguments.tolerance, pictures))
    except (RunUnreadableError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
