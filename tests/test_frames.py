"""How far it is from the command to the score function: the calls that a debugger walks through."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tests.support.command import ROOT

OURS = tuple(str(ROOT / package) for package in ("kvsweep", "pipeline", "workers"))
FIRST, LAST = "pipeline/cli.py: run", "workers/policies/policy_calls.py: scores_of"

MOST = {"perplexity": 17, "long passes": 17, "generation": 17, "retrieval": 17, "harness": 24}
"""Calls of our own functions at most, from that of ``kvsweep run`` to the one that calls the policy, both
included."""

SWEEPS: dict[str, dict[str, Any]] = {
    "perplexity": {
        "perplexity": {"window": 64, "stride": 64, "windows": 2}, "policies": ["walked:plain", "walked:entrywise"],
    },
    "long passes": {
        "perplexity": {"window": 512, "stride": 512, "windows": 8}, "prune_after": [256], "keep_ratios": [0.5],
    },
    "generation": {
        "generation": {
            "prompt_tokens": [64], "new_tokens": 8, "batch_sizes": [1], "repeats": 5, "max_repeats": 5, "warmup": 0,
            "protocol": ["interleaved", "report_2025"],
        },
    },
    "retrieval": {"retrieval": {"context_tokens": [240], "questions": 2}},
    "harness": {"lm_eval": {"tasks": ["kv_choice", "kv_text"]}, "prune_after": [8]},
}  # fmt: skip

POLICIES = """
import sys
import traceback

from workers.policies.policy import Policy

stacks = set()

def plain(view):
    frames = traceback.walk_stack(sys._getframe())
    stacks.add(tuple((frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in frames))
    return view.positions.float()

entrywise = Policy(plain, entrywise=True)
"""
"""Two, because entries of the second may stay where they are, and other functions call it then
(``slot_layer``)."""


def calls(stack: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Our own functions, from the command to what calls the policy; stack: (file, function), the innermost
    first."""
    own = [f"{Path(file).relative_to(ROOT)}: {name}" for file, name in stack[::-1] if file.startswith(OURS)]
    assert own[-1] == LAST
    return tuple(own[own.index(FIRST) :])


@pytest.mark.slow
@pytest.mark.parametrize("task", MOST)
def test_from_the_command_to_the_score_function_are_few_calls(task, tmp_path, monkeypatch):
    sweep = {
        "name": "frames",
        "models": ["reference-llama"],
        "datasets": ["pydocs"],
        "devices": ["cpu"],
        "policies": ["walked:plain"],
        "keep_ratios": [0.9],
        "prune_after": [32],
        **SWEEPS[task],
    }
    if task == "harness":
        pytest.importorskip("lm_eval")
        from tests.harness.local_tasks import write_tasks

        del sweep["datasets"]
        sweep["lm_eval"] = sweep["lm_eval"] | {"include_path": str(write_tasks(tmp_path))}
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(json.dumps(sweep))
    (tmp_path / "walked.py").write_text(POLICIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "walked", raising=False)

    done = CliRunner().invoke(app, ["run", str(file), "--inline", "--threads", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    longest = max((calls(stack) for stack in importlib.import_module("walked").stacks), key=len)
    assert len(longest) <= MOST[task], "\n".join(longest)
