"""What ``ray submit`` and ``ray job submit`` start: ``python pipeline/sweep.py SWEEP.yaml --out URI``.

It is ``kvsweep run`` that joins the cluster it finds itself in, unless ``--address`` says otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

if __package__ in (None, ""):  # run as a script: the packages are beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import run
from pipeline.driving.streams import run_guarded


def main() -> None:
    """``python pipeline/sweep.py`` and ``python -m pipeline.sweep``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    app(prog_name="pipeline/sweep.py", default_map={"address": "auto"})


if __name__ == "__main__":
    run_guarded(main)
