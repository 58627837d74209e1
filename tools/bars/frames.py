"""How far it is from the command to a policy's score: the calls of our own that a debugger walks through."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / package) for package in ("kvsweep", "pipeline", "workers"))
FIRST, LAST = "pipeline/cli.py: run", "workers/policies/policy_calls.py: scores_of"

SWEEPS: dict[str, dict[str, Any]] = {
    "perplexity": {
        "perplexity": {"window": 64, "stride": 64, "windows": 2},
        "policies": ["walked:plain", "walked:entrywise"],
    },
    "long passes": {
        "perplexity": {"window": 512, "stride": 512, "windows": 8},
        "prune_after": [256], "keep_ratios": [0.5],
    },
    "generation": {
        "generation": {
            "prompt_tokens": [64], "new_tokens": 8, "batch_sizes": [1], "repeats": 5, "max_repeats": 5,
            "warmup": 0, "protocol": ["interleaved", "report_2025"],
        },
    },
    "retrieval": {"retrieval": {"context_tokens": [240], "questions": 2}},
}  # fmt: skip
"""Small ones, by what they walk through."""

POLICIES = """
import sys
import traceback

from kvsweep import Policy

stacks = set()

def plain(view):
    frames = traceback.walk_stack(sys._getframe())
    stacks.add(tuple((frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in frames))
    return view.positions.float()

entrywise = Policy(plain, entrywise=True)
"""
"""Two, because entries of the second may stay where they are, and ``slot_layer`` calls it then."""


def longest_walk(blocks: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The most functions of ours on the stack as a policy is called, in a sweep with these blocks.

    From that of ``kvsweep run`` to the one that calls the policy, both included. The sweep runs in this
    process. Raises RuntimeError where it fails.
    """
    usual = {
        "name": "frames", "models": ["reference-llama"], "datasets": ["pydocs"], "devices": ["cpu"],
        "policies": ["walked:plain"], "keep_ratios": [0.9], "prune_after": [32],
    }  # fmt: skip
    sweep = {key: value for key, value in {**usual, **blocks}.items() if value is not None}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    (folder / "walked.py").write_text(POLICIES)

    sys.modules.pop("walked", None)
    sys.path.insert(0, str(folder))
    try:
        options = ["--inline", "--threads", "1", "--out", str(folder / "out")]
        done = CliRunner().invoke(app, ["run", str(folder / "sweep.yaml"), *options])
        if done.exit_code:
            raise RuntimeError(f"the run ended with {done.exit_code}: {done.output}")
        return max(map(_calls, importlib.import_module("walked").stacks), key=len)
    finally:
        sys.path.remove(str(folder))


def _calls(stack: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Our own functions, the outermost first; stack: (file, function), the innermost first."""
    own = [f"{Path(file).relative_to(ROOT)}: {name}" for file, name in stack[::-1] if file.startswith(OURS)]
    if own[-1] != LAST:
        raise RuntimeError(f"a policy is called by {own[-1]}, not by {LAST}")
    return tuple(own[own.index(FIRST) :])
