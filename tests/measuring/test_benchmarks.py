"""Every benchmark runs, at its smallest size, in a process of its own, and prints what it promises.

Figures are judged elsewhere, where they are: of coverage, perplexity and gpu_check in files of their names.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import ROOT, run_inline

FOLDER = ROOT / "benchmarks"


@dataclass(frozen=True)
class Run:
    """A benchmark at its smallest size."""

    arguments: str
    """Of the command line; OUT is a folder for it, FINISHED that of a finished run."""
    header: str
    """A line that begins like this is printed."""
    figures: str
    """A line that matches is printed, and each of its groups is a number."""


NUMBER = r"(-?[\d.,]+(?:e[-+]\d+)?)"
COVERED = (
    "models=[reference-neox]",
    "policies=[knorm, random]",
    "keep_ratios=[0.9, 0.5]",
    "prune_after=[32]",
    "exclude=[]",
    "perplexity={window: 64, windows: 8}",
    "retrieval={context_tokens: [160], depths: [0.5], questions: 4, question_pruned: [false]}",
    "retrieval.prune_after=[32]",
)
"""The sweep of coverage, made small."""
RUNS = {
    "cache_memory": Run(
        "--models reference-neox --prompt-tokens 32 --new-tokens 4 --prune-after 16 --keep-ratios 0.5",
        "keep_ratio steps pruning entries held",
        rf"^ +0.5 +1 +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$",
    ),
    "coverage": Run(
        "--out OUT --trials 1 --limit 40 --windows 8 " + " ".join(f"--set '{each}'" for each in COVERED),
        "statement ",
        rf"^95 % interval of an accuracy +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$",
    ),
    "datasets": Run(
        "--shards 8 --megabytes 0.1 --windows 2 --samples spread",
        "8 shards: all tokenized in ",
        rf"^  planned, sample: spread +{NUMBER} s, {NUMBER} GiB: {NUMBER} times faster$",
    ),
    "driver": Run(
        "--units 4 --rounds 1 --trials 1 --scaling --nodes 1 --workers 2 --seconds 0.1",
        "nodes  workers  unit s",
        rf"^kvsweep, whole \(24 rows stored per unit\) +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$",
    ),
    "generation": Run(
        "--models llama-shape --prompt-tokens 24 --prune-after 16 --new-tokens 4 --rounds 1",
        "model             contestant ",
        rf"^llama-shape +transformers generate +{NUMBER} +{NUMBER} +{NUMBER} \[too few rounds\]$",
    ),
    "long_windows": Run(
        "--policies knorm --lengths 64",
        "policy   tokens",
        rf"^knorm +64 +{NUMBER} +{NUMBER}$",
    ),
    "memory": Run(
        "--models reference-llama --tasks check perplexity --policies knorm --lengths 64",
        "task       model ",
        rf"^perplexity reference-llama +float32 +knorm +64 +\d+ +3 +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}",
    ),
    "perplexity": Run(
        "--models pythia-70m-shape --window 48 --windows 1 --rounds 1 --prune-after 24 --keep-ratios 0.5",
        "  policy           reference s",
        rf"^  knorm +{NUMBER} +{NUMBER} +{NUMBER}x +{NUMBER} +{NUMBER} +{NUMBER}$",
    ),
    "report": Run("--rows 40 --windows 4", "     rows   cells", rf"^ +40 +10 +{NUMBER} +{NUMBER} +{NUMBER} "),
    "retrieval": Run(
        "--rounds 1 --questions 1 --depths 0.5 --context-tokens 240 --prune-after 64 --cells 2",
        "  question  cells",
        rf"^  kept out +2 +{NUMBER} +{NUMBER} +{NUMBER} \[too few rounds\]  2 of 2$",
    ),
    "rounding": Run(
        "--models reference-llama --dtype bfloat16 --policies knorm --window 48 --windows 1 --prune-after 24",
        "model           dtype    policy",
        rf"^reference-llama bfloat16 knorm +old +12 +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER} +\d+ of +\d+ ",
    ),
    "scale": Run(
        "--cells 100 --axes datasets --against . --results 1 --units 2",
        "2 units, 48 rows in ",
        rf"^the same, compacted: looked over for resume in {NUMBER} s; kvsweep status {NUMBER} s$",
    ),
    "time_left": Run("FINISHED", "FINISHED: ", rf"^  largest factor up to 80 %: {NUMBER}$"),
}
ELSEWHERE = {
    "gpu_check": "test_gpu_check.py runs all of it, small, on a CPU",
    "kvpress_contestant": "generation runs it, in kvpress's environment",
}
"""Those that have a ``main`` and no smallest size here, and why."""


def started(name: str, arguments: list[str]) -> str:
    """What a benchmark printed, which ended well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs_at_its_smallest_size_and_prints_what_it_promises(name, tmp_path, sweep_file):
    places, run = {"OUT": str(tmp_path / "out"), "FINISHED": str(tmp_path / "run")}, RUNS[name]
    if "FINISHED" in run.arguments:
        many = sweep_file(keep_ratios=[i / 100 for i in range(1, 48)])
        assert run_inline(many, places["FINISHED"]) == 0
    printed = started(name, [places.get(each, each) for each in shlex.split(run.arguments)])
    header = run.header.replace("FINISHED", places["FINISHED"])
    assert any(line.startswith(header) for line in printed.splitlines()), printed
    found = re.search(run.figures, printed, re.MULTILINE)
    assert found, printed
    assert all(float(figure.replace(",", "")) >= 0 for figure in found.groups())


@pytest.mark.slow
@pytest.mark.skipif("KVPRESS_VENV" not in os.environ, reason="KVPRESS_VENV names no environment with kvpress")
def test_generation_runs_beside_kvpress():
    arguments = [*RUNS["generation"].arguments.split(), "--kvpress-venv", os.environ["KVPRESS_VENV"]]
    line = rf"^llama-shape +kvpress keep_ratio 0.5 +{NUMBER} +{NUMBER} "
    found = re.search(line, started("generation", arguments), re.MULTILINE)
    assert found and all(float(figure) > 0 for figure in found.groups())


def programs() -> set[str]:
    """The modules of benchmarks that can be started."""
    found = set()
    for file in FOLDER.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            parts = file.relative_to(FOLDER).with_suffix("").parts
            found.add(".".join(part for part in parts if part != "__main__"))
    return found


def test_no_benchmark_is_forgotten():
    assert programs() == RUNS.keys() | ELSEWHERE.keys() and not RUNS.keys() & ELSEWHERE.keys()
    judged = (ROOT / "tests" / "measuring" / "test_gpu_check.py").read_text(encoding="utf-8")
    assert '"benchmarks.gpu_check", *small' in judged


def test_make_bench_runs_every_benchmark_or_says_why_not():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    begin = lines.index("bench: setup")
    end = lines.index("", begin)
    run = {match[1] for line in lines[begin:end] if (match := re.search(r"-m benchmarks\.(\w+)", line))}
    said = list(itertools.takewhile(lambda line: line.startswith("#"), reversed(lines[:begin])))
    reasons = " ".join(line.removeprefix("#").strip() for line in reversed(said)).partition("Not here: ")[2]
    left_out = {clause.split(",")[0].strip() for clause in reasons.split(";")}
    assert run | left_out == programs() and not run & left_out


def test_benchmarks_import_nothing_of_tests():
    for file in FOLDER.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(Path(name.replace(".", "/")).parts[:1] == ("tests",) for name in names), file
