"""run.json: written before the first cell, so that every figure
can be traced to versions, hardware, weights and text."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.planning.plan import Plan
from pipeline.store.schema import PROTOCOL_VERSION, SCHEMA_VERSION
from workers.machine.code_digest import code_digest
from workers.machine.gpus import list_gpus
from workers.machine.host import this_machine
from workers.models.model_files import ModelFacts

TRUST = ("trust_remote_code", "allow_pickle")
PACKAGES = ("torch", "transformers", "tokenizers", "ray", "polars", "numpy")


def describe_run(plan: Plan, previous: dict[str, Any] | None) -> dict[str, Any]:
    """The content of run.json; a resumed run keeps its id and start and lists when it was taken up again."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    resumed = [*(previous or {}).get("resumed_at", []), now] if previous else []

    return {
        "run_id": (previous or {}).get("run_id") or uuid.uuid4().hex[:12],
        "name": plan.spec.name,
        "started_at": (previous or {}).get("started_at") or now,
        "resumed_at": resumed,
        "kvsweep_version": importlib.metadata.version("kvsweep"),
        "protocol_version": PROTOCOL_VERSION,
        "schema_version": SCHEMA_VERSION,
        "spec": plan.spec.model_dump(),
        "argv": sys.argv,
        "git": _git(),
        "code_digest": code_digest(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": _hardware(),
        "seed": plan.spec.seed,
        "models": [_model(facts, plan.resolved.bos[name]) for name, facts in plan.resolved.models.items()],
        "datasets": [
            {"name": corpus.name, "fingerprint": corpus.fingerprint, "model": model, "tokens": tokens.tokens}
            | {"special_tokens_spelled": tokens.special_spelled}
            | corpus.facts()
            for (model, dataset), tokens in plan.resolved.tokens.items()
            for corpus in [plan.resolved.corpora[dataset]]
        ],
        "planned": dict(Counter(cell.task for cell in plan.grid.cells)),
        "planned_rows": {
            task: sum(plan.rows_expected(cell) for cell in plan.grid.cells if cell.task == task)
            for task in dict.fromkeys(cell.task for cell in plan.grid.cells)
        },
        "dropped": [{"reason": reason, "count": count} for reason, count in plan.grid.dropped.items()],
        "notes": plan.notes,
    }


def _model(facts: ModelFacts, bos: int | None) -> dict[str, Any]:
    named = {
        name: getattr(facts, name)
        for name in ("name", "revision", "architecture", "layers", "context", *TRUST)
    }
    named |= {"bos": bos is not None, "bos_token_id": bos}
    named |= {"quantization": facts.quantization} if facts.quantization else {}
    return named | {
        "positions": {key: value for key, value in asdict(facts.positions).items() if value is not None}
    }


def as_json(run: dict[str, Any]) -> bytes:
    """Readable and strict."""
    return (json.dumps(run, indent=1, allow_nan=False) + "\n").encode()


def _git() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed since; nulls outside a checkout."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit, changed = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _hardware() -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu

    machine = this_machine()
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cpu_count": machine.cpus,
        "usable_cpus": machine.usable_cpus,
        "memory_bytes": machine.memory_bytes,
        "usable_memory_bytes": machine.usable_memory_bytes,
        "gpus": list(list_gpus()[0]),
    }
