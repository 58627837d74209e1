"""Spec -> cells: the product of the axes; duplicates and impossible combinations leave with a reason; one dense twin per group.

A cell belongs to one task: its id covers that task's settings only, so a changed generation block never invalidates perplexity.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.results import ANSWER_TOKENS
from pipeline.sweep_keys import CellFilter, SweepSpec, cell_value
from workers.budget import event_schedule, kept_count, next_event

PROTOCOL_VERSION = 1
"""Raised whenever the method changes so that numbers of before and after must not be mixed."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid and one task; everything here changes the numbers."""

    task: str
    model: str
    model_revision: str
    dataset: str
    dataset_fingerprint: str
    device: str
    dtype: str
    policy: str
    keep_ratio: float
    prune_after: int | None
    """None for the dense cell."""
    skip_layers: tuple[int, ...]
    protect_sink: int
    protect_recent: int
    schedule: str
    position_mode: str
    seed: int
    settings: str
    """The task's settings as canonical JSON."""

    @property
    def cell_id(self) -> str:
        """16 hex digits of everything above and the protocol version."""
        content = json.dumps({"protocol_version": PROTOCOL_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def dense(self) -> Cell:
        """The twin that never prunes, to compare with."""
        return replace(
            self, policy="dense", keep_ratio=1.0, prune_after=None, skip_layers=(), protect_sink=0, protect_recent=0,
            schedule="every_step", position_mode="absolute",
        )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What a group of cells shares before the axes of pruning: resolved model, dataset, device."""

    model: str
    model_revision: str
    layers: int
    dataset: str
    dataset_fingerprint: str
    device: str
    dtype: str


@dataclass
class Grid:
    """Cells in a fixed order, dense twins first in their group, and what left with which reason."""

    cells: list[Cell] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def make_grid(spec: SweepSpec, targets: list[Target]) -> Grid:
    """All cells of a sweep over resolved targets."""
    grid = Grid()
    seen: set[str] = set()
    for target, (task, settings) in itertools.product(targets, task_settings(spec)):
        template = Cell(
            task, target.model, target.model_revision, target.dataset, target.dataset_fingerprint, target.device, target.dtype,
            "dense", 1.0, None, (), 0, 0, "every_step", "absolute", spec.seed, json.dumps(settings, sort_keys=True),
        )  # fmt: skip
        grid.cells.append(template)
        for cell in _product(spec, template):
            reason = _reason_to_drop(cell, target.layers, spec)
            if reason is None and cell.cell_id in seen:
                reason = "listed twice"
            if reason is None:
                seen.add(cell.cell_id)
                grid.cells.append(cell)
            elif reason:
                grid.dropped[reason] += 1
    grid.cells = _with_partners(grid.cells)
    return grid


def _with_partners(cells: list[Cell]) -> list[Cell]:
    """Timed cells with the digest of what they take turns with: partners change a timing, so they are in its id."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell.task == "generation":
            groups.setdefault(cell.dense, []).append(cell)
    digests = {
        dense: hashlib.sha256(" ".join(cell.cell_id for cell in group).encode()).hexdigest()[:16]
        for dense, group in groups.items()
    }
    return [
        replace(cell, settings=json.dumps(json.loads(cell.settings) | {"compared": digests[cell.dense]}, sort_keys=True))
        if cell.task == "generation"
        else cell
        for cell in cells
    ]


def task_settings(spec: SweepSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each task of a sweep with the settings that change its numbers; one entry per protocol, prompt length
    and batch size for generation. Filters choose cells and change no number, so they are not among them."""
    if spec.perplexity:
        yield "perplexity", spec.perplexity.model_dump()
    filters = set(CellFilter.model_fields)
    if spec.generation:
        task = spec.generation
        common = task.model_dump(exclude={"protocol", "prompt_tokens", "batch_sizes", *filters})
        for protocol, prompt, batch in itertools.product(task.protocol, task.prompt_tokens, task.batch_sizes):
            yield "generation", {"protocol": protocol, "prompt_tokens": prompt, "batch_size": batch, **common}
    if spec.retrieval:
        yield "retrieval", spec.retrieval.model_dump(exclude=filters)


def _product(spec: SweepSpec, template: Cell) -> Iterator[Cell]:
    for policy, threshold, skipped, sink, recent, schedule, mode, ratio in itertools.product(
        spec.policies, spec.prune_after, spec.skip_layers, spec.protect_sink, spec.protect_recent, spec.schedules,
        spec.position_modes, spec.keep_ratios,
    ):  # fmt: skip
        yield replace(
            template, policy=policy, keep_ratio=ratio, prune_after=threshold, skip_layers=cell_value("skip_layers", skipped),
            protect_sink=sink, protect_recent=recent, schedule=schedule, position_mode=mode,
        )  # fmt: skip


def _reason_to_drop(cell: Cell, layers: int, spec: SweepSpec) -> str | None:
    """Why a combination is no cell of its own; None where it is one, an empty string where its task's filter leaves it out."""
    task = getattr(spec, cell.task)
    if isinstance(task, CellFilter) and not task.matches(cell):
        return ""
    if any(block.matches(cell) for block in spec.exclude):
        return "excluded by the sweep file"
    if cell.policy == "dense" or cell.keep_ratio == 1.0:
        return "keep_ratio 1.0 or policy dense: is the dense cell"
    if len(cell.skip_layers) == layers:
        return "all layers skipped: is the dense cell"
    if cell.task == "perplexity" and cell.schedule == "prefill_once":
        return "prefill_once prunes after a prompt, and perplexity has none"
    assert cell.prune_after is not None
    first = next_event(cell.keep_ratio, max(cell.prune_after, _prompt_tokens(cell)), 0)
    if first is not None and cell.protect_sink + cell.protect_recent > kept_count(cell.keep_ratio, first):
        return "protect_sink + protect_recent exceed the entries kept at the first prune"
    return None


def _prompt_tokens(cell: Cell) -> int:
    """Tokens that go through before the first check: the (shortest) prompt, or one step of perplexity."""
    settings = json.loads(cell.settings)
    if cell.task == "generation":
        return settings["prompt_tokens"]
    return min(settings["context_tokens"]) if cell.task == "retrieval" else 1


def tokens_read(cell: Cell) -> int:
    """The most tokens of one text that the cell's model sees at once."""
    settings = json.loads(cell.settings)
    if cell.task == "perplexity":
        return settings["window"]
    if cell.task == "generation":
        return settings["prompt_tokens"] + settings["new_tokens"]
    return max(settings["context_tokens"]) + ANSWER_TOKENS


def never_prunes(cell: Cell, settings: dict[str, Any]) -> bool:
    """Whether a compressed cell is certain never to score or decode a token with anything dropped."""
    if cell.prune_after is None:
        return False
    if cell.task == "perplexity":
        return event_schedule(cell.keep_ratio, cell.prune_after, settings["window"] - 1).scored_pruned(1) == 0
    first = next_event(cell.keep_ratio, cell.prune_after, 0)
    if cell.task == "generation":
        prompt = settings["prompt_tokens"]
        last = prompt if cell.schedule == "prefill_once" else prompt + settings["new_tokens"] - 2
        return first is None or first > last
    decoded = 0 if cell.schedule == "prefill_once" else ANSWER_TOKENS - 2
    return first is None or first > max(settings["context_tokens"]) + decoded
