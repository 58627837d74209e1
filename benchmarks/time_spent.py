"""Where an evaluation spends its time: a clock around each part, stopped while a part within it runs.

- matmul: linear layers of the model's body;
- attention: the attention modules less their linear layers: rotation, appending keys, the products, masks of
  padded rows;
- scoring: the output layer, its log-sum-exp, and the comparison with the dense cell;
- pruning: forks of the shared prefix, scores, selection, moving entries, and what a cache whose entries stay
  does instead;
- other: norms, activations, embeddings, planning of passes, Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from workers.cache import scoring
from workers.cache.batch.cell_batch import BatchLayer
from workers.cache.batch.slot_layer import SlotStore
from workers.cache.scoring import body_of
from workers.perplexity.cell_group import CellGroup

PARTS: tuple[str, ...] = ("matmul", "attention", "scoring", "pruning", "other")

TIMED: tuple[tuple[Any, str, str], ...] = (
    (scoring, "_score_rows", "scoring"),
    (scoring, "_dense_rows", "scoring"),
    (CellGroup, "_score", "scoring"),
    (BatchLayer, "_fork", "pruning"),
    (BatchLayer, "prune", "pruning"),
    (SlotStore, "__init__", "pruning"),
    (SlotStore, "begin", "pruning"),
    (SlotStore, "end", "pruning"),
)
"""(owner, name, part) of the functions that make a part; linear layers and attention are found in the
model."""

Spent = dict[str, float]
"""Seconds by part."""


def best_clock() -> Callable[[], float]:
    """Seconds of this thread's processor where it computes alone, which other processes hardly touch; else of
    the wall."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def nothing() -> Spent:
    """No seconds of any part."""
    return dict.fromkeys(PARTS, 0.0)


class Stopwatch:
    """Seconds by part. A part that begins stops the one around it, so the parts add up to what went by."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._parts = clock, ["other"]
        self._spent, self._last = nothing(), clock()

    def begin(self, part: str) -> None:
        """From now on it is this part's time, until the ``end`` that belongs to it."""
        self._count()
        self._parts.append(part)

    def end(self) -> None:
        """Back to the part around it."""
        self._count()
        self._parts.pop()

    def take(self) -> Spent:
        """What went by since the last ``take``."""
        self._count()
        spent, self._spent = self._spent, nothing()
        return spent

    def _count(self) -> None:
        now = self._clock()
        self._spent[self._parts[-1]] += now - self._last
        self._last = now


@contextmanager
def watching(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Until it is left, the watch follows the parts of whatever runs through ``model``."""
    hooks = []
    for part, modules in (("matmul", linear_layers(model)), ("attention", attention_modules(model))):
        for module in modules:
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: watch.begin(part)))
            hooks.append(module.register_forward_hook(lambda *_: watch.end()))

    stock = [(owner, name, getattr(owner, name)) for owner, name, _ in TIMED]
    for owner, name, part in TIMED:
        setattr(owner, name, _followed(getattr(owner, name), watch, part))
    try:
        yield
    finally:
        for owner, name, function in stock:
            setattr(owner, name, function)
        for hook in hooks:
            hook.remove()


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Of the body; the output layer belongs to scoring."""
    return [module for module in body_of(model).modules() if isinstance(module, nn.Linear)]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """One of each layer, as transformers names them."""
    return [module for module in body_of(model).modules() if type(module).__name__.endswith("Attention")]


def _followed(function: Callable[..., Any], watch: Stopwatch, part: str) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        watch.begin(part)
        try:
            return function(*args, **kwargs)
        finally:
            watch.end()

    return timed
