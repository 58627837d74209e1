"""The command line: ``python -m tools.golden keep FOLDER`` and ``compare FOLDER [--with OTHER]``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.golden.command import CommandError
from tools.golden.difference import MADE, REPORT, Comparison, Part, compare
from tools.golden.machine import made_by
from tools.golden.page import keep_report
from tools.golden.refusals import keep_refusals
from tools.golden.runs import RUN, measure
from tools.golden.sweeps import SWEEPS, write_inputs

SAME, DIFFERENT, BAD_INPUT = 0, 1, 2
SHOWN = 40
"""Differences of a part that are printed; the others are counted."""


def make(place: Path, kept: Path | None = None) -> None:
    """A golden run by the code as it is, into an empty folder.

    Reports are made of the rows of ``kept`` where it is given: their times, hosts and dates are then equal.
    Raises CommandError where a command does not end as it should.
    """
    with tempfile.TemporaryDirectory(prefix="golden") as name:
        scratch = Path(name).resolve()
        inputs, cache = scratch / "inputs", scratch / "cache"
        inputs.mkdir()
        write_inputs(inputs)
        for sweep in SWEEPS:
            began = time.monotonic()
            measure(sweep, inputs, cache, place / sweep.name)
            run = (kept or place).resolve() / sweep.name / RUN
            keep_report(run, place / sweep.name / REPORT, scratch, cache, audit=sweep.audit)
            print(f"{sweep.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        began = time.monotonic()
        keep_refusals(place, cache)
        print(f"refusals: {time.monotonic() - began:.0f} s", file=sys.stderr)
    (place / MADE).write_text(json.dumps(made_by(), indent=1) + "\n", encoding="utf-8")


def keep(folder: Path) -> int:
    """Make a golden run and put it in the folder; one that is there stays until the new one is whole."""
    with tempfile.TemporaryDirectory(prefix="golden") as name:
        made = Path(name) / "made"
        made.mkdir()
        make(made)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1000:,.0f} kB kept")
    return SAME


def told(comparison: Comparison) -> int:
    """Print it; the exit status."""
    print(comparison.how)
    for part in comparison.parts:
        print(f"{part.name}: {part.counted}, {_outcome(part)}")
        for line in part.differences[:SHOWN]:
            print(f"  {line}")
        if len(part.differences) > SHOWN:
            print(f"  and {len(part.differences) - SHOWN} more")
    return DIFFERENT if any(part.differences for part in comparison.parts) else SAME


def _outcome(part: Part) -> str:
    if part.left_out:
        return f"not compared: {part.left_out}"
    return f"{len(part.differences)} differences" if part.differences else "the same"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 where nothing differs, 1 where something does, 2 where a folder is wrong or a command
    fails."""
    words = "Keep what kvsweep does, and compare changed code with it."
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=words)
    parser.add_argument("what", choices=("keep", "compare"))
    parser.add_argument("folder", type=Path, help="where the golden run is kept, or goes")
    parser.add_argument(
        "--with",
        type=Path,
        dest="other",
        metavar="OTHER",
        help="compare with another kept one; nothing is run",
    )
    given = parser.parse_args(arguments)
    try:
        if given.what == "keep":
            return keep(_free(given.folder))
        kept = _golden(given.folder)
        if given.other is not None:
            return told(compare(kept, _golden(given.other)))
        with tempfile.TemporaryDirectory(prefix="golden") as name:
            make(Path(name), kept)
            return told(compare(kept, Path(name)))
    except (CommandError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _golden(folder: Path) -> Path:
    if not (folder / MADE).is_file():
        make_one = f"`python -m tools.golden keep {folder}` makes one"
        raise NotADirectoryError(f"{folder}: holds no golden run; {make_one}")
    return folder


def _free(folder: Path) -> Path:
    """A folder that holds nothing else, for what is in it goes."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MADE).is_file())):
        raise NotADirectoryError(f"{folder}: holds other things than a golden run; name a new folder")
    return folder


if __name__ == "__main__":
    sys.exit(main())
