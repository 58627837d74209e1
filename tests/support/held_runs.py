"""Runs that stand still at a known place until they are let go, and the rows that two runs must share."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import polars as pl

from tests.support.command import ROOT

POLICIES = """\
import time
from pathlib import Path

def fails(view):
    raise RuntimeError("no score")

def waits(view):
    hold = Path({hold!r})
    # In generation, whose prompt is longer than the windows.
    while view.positions.shape[-1] > 80 and hold.exists():
        hold.write_text("reached")
        time.sleep(0.1)
    return -view.positions.float()
"""
"""A module of a user's own."""
LONGER = "{prompt_tokens: [100], new_tokens: 4, repeats: 5, max_repeats: 5, keep_ratios: [0.5]}"
"""A generation task on which ``waits`` waits, after the perplexity of a sweep is done."""
OF_A_RUN = ("run_id", "seconds", "device_name")
KEY = ("cell_id", "window_index", "repeat")


def copy_of_project(folder: Path) -> Path:
    """The project as somebody edits it, with policies of their own beside the packages; ``folder / "hold"``
    holds."""
    project = folder / "project"
    for package in ("pipeline", "workers", "analysis"):
        shutil.copytree(
            ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__", "reference")
        )
    (project / "users_policy.py").write_text(POLICIES.format(hold=str(folder / "hold")))
    return project


def until_held(hold: Path, client: subprocess.Popen[str]) -> None:
    """Until ``waits`` waits."""
    deadline = time.monotonic() + 90
    while hold.read_text() != "reached":
        assert client.poll() is None, client.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def rows_of(out: Path, task: str) -> pl.DataFrame:
    """A task's rows in a fixed order."""
    frame = pl.read_parquet(out / task / "*.parquet")
    return frame.sort(*(name for name in KEY if name in frame.columns))


def same_rows(ours: Path, theirs: Path, count: int) -> None:
    """Both runs hold the same perplexity rows, bit for bit, but for what names the run or is a time."""
    a, b = (rows_of(out, "perplexity").drop(OF_A_RUN) for out in (ours, theirs))
    assert len(a) == count and a.equals(b)
