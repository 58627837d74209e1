"""The commands on runs that are there: status, compact, report, export; ``cli`` puts them among others."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pipeline.options import refuse


def status(directory: str) -> None:
    """Whether a run directory is being driven now, and its cells done, failed and missing."""
    from pipeline.commands.run_status import status_lines
    from pipeline.store.place import PlaceError
    from pipeline.store.run_store import STORE_ERRORS, RunStore
    from pipeline.store.store_errors import RunUnreadableError, first_line_of

    try:
        lines = status_lines(RunStore(directory))
    except (*STORE_ERRORS, RunUnreadableError, PlaceError) as error:
        refuse([first_line_of(error)])
    print("\n".join(lines))


def compact_run(directory: str) -> None:
    """Put the many small files of a run together, which nothing that reads it notices but by its speed."""
    from pipeline.driving.compaction import compact
    from pipeline.store.lease import Lease
    from pipeline.store.place import PlaceError
    from pipeline.store.run_json import required_run
    from pipeline.store.run_store import STORE_ERRORS, RunStore
    from pipeline.store.store_errors import RunUnreadableError, first_line_of
    from pipeline.sweepfile.sweep_error import SweepError

    try:
        store = RunStore(directory)
        required_run(store)
        with Lease(store):
            replaced = compact(store)
    except SweepError as error:
        refuse(error.faults)
    except (*STORE_ERRORS, RunUnreadableError, PlaceError) as error:
        refuse([first_line_of(error)])
    print(f"{replaced} files put together")


def report(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Where to write it (default: report.html in the first)."),
    ] = None,
    max_ppl_increase: Annotated[
        str, typer.Option(help="What a recommended setting may cost, such as 1% or 0.01.")
    ] = "1%",
    png: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write every chart as a PNG into this folder.")
    ] = None,
    svg: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write every chart as an SVG into this folder.")
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Also write every table, whole, as CSV into this folder."),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Judge what the seed reports claimed by these rows.")
    ] = False,
) -> None:
    """Write the report of one or several run directories."""
    from analysis.report import main as report_main

    options = ["--max-ppl-increase", max_ppl_increase]
    for name, value in (("-o", output), ("--png", png), ("--svg", svg), ("--csv", csv)):
        options += [name, value] if value else []
    options += ["--audit"] if audit else []
    raise typer.Exit(report_main([*directories, *options]))


def export_to_tracker(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...")],
    to: Annotated[Literal["trackio", "mlflow"], typer.Option(help="The experiment tracker.")],
    project: Annotated[str, typer.Option(help="Project of trackio, experiment of MLflow.")] = "kvsweep",
    store: Annotated[
        str | None,
        typer.Option(
            help="trackio: a directory (default: trackio's own); MLflow: a directory or sqlite:///FILE."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write tracked runs anew whose figures have changed.")
    ] = False,
) -> None:
    """Write one tracked run per setting, with its verdicts, into a tracker's store on this machine; what is
    there is skipped."""
    from analysis.tracking.export_runs import export
    from analysis.tracking.record import TrackingError
    from pipeline.store.place import PlaceError
    from pipeline.store.store_errors import RunUnreadableError, first_line_of

    try:
        exported = export(directories, to, project, store, replace=replace)
    except (RunUnreadableError, PlaceError, TrackingError, OSError) as error:
        refuse([first_line_of(error)])
    print(
        f"{exported.place}: {exported.written} tracked runs written, {exported.skipped} skipped (there "
        "already)"
    )
    if exported.changed and replace:
        print(f"{exported.changed} had changed since they were exported and were written anew")
    elif exported.changed:
        print(
            f"{exported.changed} have changed since they were exported and were left; "
            "--replace writes them anew"
        )
