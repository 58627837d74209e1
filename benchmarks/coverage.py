"""How often what a report says is wrong: ``python -m benchmarks.coverage [--rows DIR] [--trials N] [--out
DIR]``.

The rows of a large run are taken for the whole truth: every window of a text, and hundreds of questions, of
both embedded models. From them experiments of the embedded sweeps' sizes are drawn, windows or questions at
random with replacement, and each goes through the code that makes a report. Printed is how often an interval
misses the truth, and how often a finding, a p, a recommendation or a check of timing is wrong, beside how
often it may be by what is said. Where an error needs a truth that the rows do not hold (no difference, a loss
just above what is tolerated), the rows are moved so that it holds.

Without ``--rows`` the run is made first (some 20 minutes on 2 cores) and kept in ``--out``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

from analysis.keys import VERSIONS
from analysis.load import load
from analysis.statistics.pairs import with_dense
from benchmarks.answer_errors import DOCUMENTS, of_answers
from benchmarks.perplexity_errors import of_costly_cells, of_equal_cells, of_intervals
from benchmarks.tally import tell
from benchmarks.timing_errors import of_times

SWEEP = Path(__file__).resolve().parent / "coverage.yaml"
WINDOWS = 16
"""Windows of a cell in the embedded sweeps."""


def parsed() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", help="a run directory of benchmarks/coverage.yaml; made where it is left out"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the sweep that is run"
    )
    parser.add_argument(
        "--out", default="results/coverage", help="where the run is made (default: results/coverage)"
    )
    parser.add_argument(
        "--trials", type=int, default=400, help="experiments drawn for each table (default: 400)"
    )
    parser.add_argument(
        "--limit", type=float, default=1.5, help="times as often as is said an error may come"
    )
    windows = [8, WINDOWS, 32]
    parser.add_argument(
        "--windows", type=int, nargs="*", default=windows, help="of an experiment (default: 8 16 32)"
    )
    return parser.parse_args()


def main() -> int:
    """Make the rows where none are given, draw experiments from them, print how often what is said of each is
    wrong."""
    args = parsed()
    directory = args.rows or args.out
    if args.rows is None:
        settings = [part for setting in args.set for part in ("--set", setting)]
        command = [sys.executable, "-m", "pipeline.cli", "run", str(SWEEP), "--out", directory]
        subprocess.run([*command, *settings], check=True)

    results, rng = load([directory]), np.random.default_rng(20_240_611)
    measured, answers = with_dense(results.rows("perplexity")), results.rows("retrieval").collect()
    fine = tell("Times, A against A", of_times(5 * args.trials, rng), args.limit)
    for (model,), own in answers.group_by("model", maintain_order=True):
        questions = DOCUMENTS * own["depth"].n_unique()
        title = f"Retrieval, {model}, {questions} questions of a kind"
        fine &= tell(title, of_answers(own, args.trials, rng), args.limit)
    for (model,), own in measured.group_by("model", maintain_order=True):
        whole = own["window_index"].n_unique()
        cells = own.filter(pl.col("policy") != "dense").select("pool_id", *VERSIONS).n_unique()
        for count in args.windows:
            title = f"Perplexity, {model}, {count} of {whole} windows, {cells} cells"
            for part in (of_intervals, of_equal_cells, of_costly_cells):
                named = f"{title}: {part.__name__.replace('_', ' ')}"
                fine &= tell(named, part(own, args.trials, count, rng), args.limit)
    print(
        f"\n{'every error' if fine else 'NOT every error'} is at most {args.limit:g} times "
        "as frequent as is said"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
