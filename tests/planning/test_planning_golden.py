"""What planning makes of fixed facts is what it made before it was fast, byte for byte: ids, order, units,
costs, notes."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.cells import cell as cells
from pipeline.cells.planned_unit import Part
from pipeline.cells.resolved import Resolved, Target
from pipeline.planning import plan as plans
from pipeline.planning.cell_reach import planned_budget
from pipeline.planning.spec import EMBEDDED_SWEEPS, load_spec
from pipeline.sweepfile.sweep_keys import SweepSpec
from pipeline.tasks.perplexity import Windows
from pipeline.tasks.retrieval import Documents
from workers.corpora import TokenizedCorpus
from workers.models.model_files import ModelFacts
from workers.models.positions import Positions
from workers.texts.windows import Window

EVERYTHING = {
    "name": "everything",
    "models": ["a", "b"],
    "datasets": ["d"],
    "devices": ["cpu"],
    "dtypes": ["float32"],
    "policies": ["knorm", "random", "dense", "streaming_rolled"],
    "keep_ratios": [1.0, 0.95, 0.9, 0.5, 0.1],
    "prune_after": [1, 2, 8, 100, 512, 2000],
    "skip_layers": [[], [0], [1, 0], [0, 1], "auto:1", [0, 1, 2, 3]],
    "protect_recent": [0, 8],
    "protect_sink": [0, 4],
    "schedules": ["every_step", "prefill_once", "constant"],
    "position_modes": ["absolute", "cache_length"],
    "exclude": [
        {"policies": ["random"], "prune_after": [100]},
        {"schedules": ["constant"], "keep_ratios": [0.9, 0.1]},
        {"skip_layers": [[1, 0]], "protect_sink": [4]},
    ],
    "perplexity": {"window": 256, "stride": 128, "windows": 40, "protect_sink": [0]},
    "generation": {
        "prompt_tokens": [64, 128],
        "batch_sizes": [1, 2],
        "new_tokens": 16,
        "repeats": 5,
        "policies": ["knorm", "random"],
        "keep_ratios": [0.9, 0.5],
        "protocol": ["interleaved", "report_2025"],
    },
    "retrieval": {
        "kinds": ["passkey", "needle"],
        "context_tokens": [300, 512],
        "depths": [0.1, 0.9],
        "questions": 3,
        "question_pruned": [True, False],
        "prune_after": [100, 512],
    },
    "seed": 3,
}


def facts(name: str) -> ModelFacts:
    return ModelFacts(
        name=name,
        revision=f"r-{name}",
        source=name,
        commit=None,
        architecture="llama",
        layers=4,
        context=500,
        positions=Positions("rotary", 1.0),
        limits=(),
        refusals=(),
        kv_heads=2,
        head_dim=8,
        parameters=10**6,
        tokenizer_file="",
    )


def resolved(spec: SweepSpec) -> Resolved:
    """Facts that no weights, no text and no Python version move."""
    models = {ref.name: facts(ref.name) for ref in spec.models}
    bos = {name: 1 if name == "b" else None for name in models}
    names = [ref.entry.label for ref in spec.datasets]
    tokens = {(m, d): TokenizedCorpus(np.zeros(5000, np.int32)) for m in models for d in names}
    targets = [
        Target(m, models[m].revision, 4, d, f"f-{d}", "cpu", t, bos[m])
        for m in models
        for d in names
        for t in spec.dtypes
    ]
    return Resolved(models, {}, tokens, targets, [], bos, dict.fromkeys(models, False))


@dataclass(frozen=True)
class AsThen:
    """A window that is written as it was before it could lie in a document."""

    window: Window

    def __repr__(self) -> str:
        w = self.window
        return f"Window(index={w.index}, start={w.start}, length={w.length}, first_scored={w.first_scored})"


def documents(part: Part) -> Documents | None:
    return part if isinstance(part, Documents) else None


def windows(part: Part) -> tuple[AsThen, ...]:
    return tuple(map(AsThen, part.windows)) if isinstance(part, Windows) else ()


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


GOLDEN = {
    "everything": (
        29662,
        934,
        "3ba1a25f5949",
        "c1e580aece34",
        "262fdb460261",
        "8191062c5c88",
        "9d913f7d9cb8",
        "ac974d40ea91",
    ),
    "default": (
        184,
        14,
        "794f0aa1339f",
        "f1df4f4e3090",
        "a155b8da3140",
        "aa4665ad86bc",
        "4f53cda18c2b",
        "061a6139022f",
    ),
    "ucurve": (
        301,
        16,
        "9ab75ebe234b",
        "7fab4269b188",
        "e2cf72b6f871",
        "dd8ac746955f",
        "4f53cda18c2b",
        "c631dd46b7b4",
    ),
    "retrieval": (
        318,
        40,
        "40780eb02fdc",
        "f0435eade8b5",
        "93e7a3a4fc74",
        "a8291868123b",
        "4f53cda18c2b",
        "5f91419a3ebb",
    ),
    "seed_reports": (
        302,
        19,
        "4daf37db8b60",
        "b18bcbbd9821",
        "5043e0f796b2",
        "26c628327631",
        "dcae002926a6",
        "b78952482aa0",
    ),
}
"""Written by the code of commit 4499762, but for the units, which have been cut by seconds since: cells,
units, digests of ids in order, of units, of what was dropped, of the notes, of cells that never prune, of
budgets."""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_plan_is_what_it_was(monkeypatch, name):
    if name == "everything":
        spec = SweepSpec.model_validate_json(json.dumps(EVERYTHING))
    else:
        spec = load_spec(str(EMBEDDED_SWEEPS / f"{name}.yaml"))
    monkeypatch.setattr(cells, "PROTOCOL_VERSION", 3)  # as the code had it that wrote the digests
    monkeypatch.setattr(plans, "resolve", lambda spec, *_: resolved(spec))
    plan = plans.make_plan(spec, "cpu")

    needs = [(unit.need.device, unit.need.timed, unit.need.model) for unit in plan.units]
    units = [
        (u.unit_id, u.task, u.cost_seconds, need, documents(u.part), u.scout, windows(u.part))
        for u, need in zip(plan.units, needs, strict=True)
    ]
    budgets = [
        (budget.events, budget.share) if (budget := planned_budget(cell)) else None
        for cell in plan.grid.cells
    ]
    found = (
        len(plan.grid.cells),
        len(plan.units),
        digest([cell.cell_id for cell in plan.grid.cells]),
        digest(units),
        digest(sorted(plan.grid.dropped.items())),
        digest(plan.notes),
        digest([cell.cell_id for cell in plan.never_prune]),
        digest(budgets),
    )
    assert found == GOLDEN[name]
