"""What each cell takes by itself beyond the dense pass that all cells share, beside a stock dense pass of the
same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from benchmarks.time_spent import PARTS, Spent, Stopwatch, best_clock, watching
from workers.cache.scoring import score
from workers.footprint import perplexity as footprint
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, schedule_of
from workers.perplexity.watch import Outcome, Watch
from workers.policies.settings import PruneSettings

HEADER = f"{'  cell':24} {'own s':>7} {'dense s':>7} {'ratio':>6}" + "".join(
    f"  {f'{part} (dense)':>19}" for part in PARTS
)


@dataclass
class Measured:
    """Of one model, threshold and set of windows, one value per round."""

    shared: list[Spent] = field(default_factory=list)
    """Of our dense pass."""
    stock: list[Spent] = field(default_factory=list)
    """Of a stock dense pass over all tokens."""
    own: dict[int, list[Spent]] = field(default_factory=dict)
    """Of each cell that prunes, by index, beyond the dense pass."""
    floors: dict[int, list[Spent]] = field(default_factory=dict)
    """Of a stock dense pass over the tokens behind an event, by the number of tokens before it."""


def lines(
    model: Any, tokens: Tensor, starts: list[int], cells: Sequence[PruneSettings], rounds: int
) -> Iterator[str]:
    """A line of the dense pass and one of each cell that prunes, each beside its stock pass."""
    steps = tokens.shape[1] - 1
    found = measured(model, tokens, starts, cells, rounds)
    yield _line("dense pass, shared", found.shared, found.stock)
    for index, own in sorted(found.own.items()):
        cell = cells[index]
        yield _line(f"{cell.policy} {cell.keep_ratio:g}", own, found.floors[first_event(cell, steps)])


def first_event(cell: PruneSettings, steps: int) -> int:
    """Tokens before which nothing is dropped; ``steps`` where nothing ever is."""
    first = schedule_of(cell, steps).first_event
    return steps if first is None else first


def measured(
    model: Any, tokens: Tensor, starts: list[int], cells: Sequence[PruneSettings], rounds: int
) -> Measured:
    """Stock passes and cells in turns. Raises what a cell failed of."""
    steps, watch, found = tokens.shape[1] - 1, Stopwatch(best_clock()), Measured()
    firsts = sorted({first_event(cell, steps) for cell in cells} - {steps})
    for _ in range(rounds):
        model.set_attn_implementation("sdpa")
        with watching(model, watch):
            stock, *floors = each_pass(model, tokens, firsts, watch)
        model.set_attn_implementation("kvsweep")
        with watching(model, watch):
            shared, own = each_alone(model, tokens, starts, cells, watch)

        found.stock.append(stock)
        found.shared.append(shared)
        for first, floor in zip(firsts, floors, strict=True):
            found.floors.setdefault(first, []).append(floor)
        for cell, spent in own.items():
            found.own.setdefault(cell, []).append(spent)
    return found


def each_pass(model: Any, tokens: Tensor, firsts: Sequence[int], watch: Stopwatch) -> list[Spent]:
    """Of each of ``dense_passes``."""
    spent = []
    watch.take()
    dense_passes(model, tokens, firsts, lambda: spent.append(watch.take()))
    return spent


@torch.inference_mode()
def dense_passes(
    model: Any, tokens: Tensor, firsts: Sequence[int], ended: Callable[[], None] = lambda: None
) -> None:
    """A stock dense pass over all tokens, then one from each of ``firsts`` on, with streamed cross-entropy;
    tells as one ends."""
    steps, shared = tokens.shape[1] - 1, DynamicCache()
    hidden = model.base_model(input_ids=tokens[:, :steps], past_key_values=shared).last_hidden_state
    score(model, hidden, tokens[:, 1:])
    ended()
    for first in firsts:
        cache = DynamicCache()
        for i, layer in enumerate(shared.layers):
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            cache.update(layer.keys[:, :, :first], layer.values[:, :, :first], i)
        hidden = model.base_model(input_ids=tokens[:, first:steps], past_key_values=cache).last_hidden_state
        score(model, hidden, tokens[:, first + 1 :])
        ended()


def each_alone(
    model: Any, tokens: Tensor, starts: list[int], cells: Sequence[PruneSettings], watch: Stopwatch
) -> tuple[Spent, dict[int, Spent]]:
    """Of the dense pass, and of each cell that prunes, by index, beyond it. Raises what a cell failed of."""
    shared, own = [], {}

    def worked(tokens: int, cell: int) -> None:
        if cell == -1:
            shared.append(watch.take())

    def ended(dense: CellScores, cell: int, outcome: Outcome) -> None:
        spent = watch.take()
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            own[cell] = spent

    watch.take()
    with one_cell_at_a_time():
        evaluate(model, tokens, cells, starts, None, Watch(ended, worked))
    return shared[0], own


@contextmanager
def one_cell_at_a_time() -> Iterator[None]:
    """No two cells share a pass, as where memory holds no more."""
    stock = footprint.AT_ONCE_BYTES
    footprint.AT_ONCE_BYTES = 0
    try:
        yield
    finally:
        footprint.AT_ONCE_BYTES = stock


def _line(name: str, own: list[Spent], floors: list[Spent]) -> str:
    """Medians of seconds and of their ratio by round; the parts are those of the round in the middle."""
    ratio = median(
        sum(floor.values()) / sum(spent.values()) for floor, spent in zip(floors, own, strict=True)
    )
    middle, floor = (
        sorted(each, key=lambda spent: sum(spent.values()))[len(each) // 2] for each in (own, floors)
    )
    parts = "".join(f"  {f'{middle[part]:.2f} ({floor[part]:.2f})':>19}" for part in PARTS)
    return f"  {name:22} {sum(middle.values()):7.2f} {sum(floor.values()):7.2f} {ratio:6.2f}{parts}"
