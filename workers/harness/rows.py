"""Continuations of prefilled contexts through a pruned cache, as rows of a batch that leave it one by one.

The protocol is that of generation: a context goes through in one pass with one check at its end; then one
token per pass with a check after each. Between two prune events nothing is dropped, so the tokens up to the
next one go through in one pass with the same result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import body_of
from workers.footprint.harness import contexts_at_once
from workers.footprint.shape import Shape
from workers.harness.counts import Counts
from workers.messages.kept_answers import digest_of
from workers.messages.out_of_memory import is_out_of_memory
from workers.policies.settings import PruneSettings

Result = TypeVar("Result")


def text_id(ids: Sequence[int]) -> int:
    """What names a text for the ``random`` policy: 31 bits of its tokens' hash, so that no draw depends on
    what else is asked."""
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
    return int.from_bytes(digest[:4]) >> 1  # 31 of 32 bits: positive as an int32 too


def context_batches(contexts: Sequence[Sequence[int]], size: int, shape: Shape) -> Iterator[list[list[int]]]:
    """Indices of equal contexts together, and such groups of one length together; longest first.

    ``size`` groups at most, and as many as the model of this shape takes at once (``footprint``).
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for i, context in enumerate(contexts):
        same.setdefault(tuple(context), []).append(i)
    by_length: dict[int, list[list[int]]] = {}
    for context, group in same.items():
        by_length.setdefault(len(context), []).append(group)
    for length in sorted(by_length, reverse=True):
        groups = by_length[length]
        count = min(size, contexts_at_once(shape, length))
        yield from (groups[first : first + count] for first in range(0, len(groups), count))


def in_halves(
    run: Callable[[list[list[int]]], dict[int, Result]], batch: list[list[int]]
) -> dict[int, Result]:
    """``run(batch)``, in halves where the memory does not hold it whole."""
    try:
        return run(batch)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return {**in_halves(run, batch[:middle]), **in_halves(run, batch[middle:])}


class Contexts:
    """Contexts of one length that go through together, once something is to go on from them."""

    def __init__(
        self, model: nn.Module, ids: Sequence[Sequence[int]], settings: PruneSettings, device: torch.device
    ) -> None:
        self.model = model
        self.ids = ids
        self.settings = settings
        self.device = device

    @cached_property
    def name(self) -> str:
        """Tells this batch from others."""
        return digest_of(self.ids)

    @cached_property
    def prefill(self) -> Prefill:
        """Their pass, made when it is first asked for. Raises as ``Prefill`` does."""
        return Prefill(self.model, torch.tensor(self.ids, device=self.device), [self.settings.policy])


class Rows:
    """Rows that go on from ``contexts``, each from the one at its place; several may go on from one context.

    ``counts`` has one entry per row, in the order of ``places``; rows that left keep theirs.
    """

    def __init__(self, contexts: Contexts, places: Sequence[int]) -> None:
        """places: for each row, the index of its context."""
        self.model, self.settings = contexts.model, contexts.settings
        self.cache: PrunedCache = contexts.prefill.cache(
            self.settings, [text_id(ids) for ids in contexts.ids]
        )
        self._pruning = [i for i in range(len(self.cache.pruned_layers)) if self.settings.prunes(i)]
        self.cache.take_rows(list(places))
        events, held = self._state()
        self.active = list(range(len(places)))
        self.counts = [Counts(0, events, 1, 0, held) for _ in places]

    def _state(self) -> tuple[int, float]:
        """Prunes of a pruning layer so far, and entries held, averaged over layers."""
        layers = self.cache.pruned_layers
        return max(layer.record.events for layer in layers), sum(layer.held for layer in layers) / len(layers)

    def until_event(self) -> int | None:
        """Tokens that go through in one pass before the next check that drops something;
        None if there is none."""
        if not self._pruning or not self.settings.budget.checks_steps:
            return None
        held = self.cache.pruned_layers[self._pruning[0]].held
        at = self.settings.budget.next_event(held)
        return None if at is None else at - held

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with ``rows`` alone, a subset of ``active`` in its order."""
        if list(rows) != self.active:
            self.cache.take_rows([self.active.index(row) for row in rows])
            self.active = list(rows)

    def feed(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """One pass; hidden states [active, q, width] of tokens [active, q].

        A row's first ``lengths`` tokens are its own, the rest is filler that no other row sees; it must leave
        after that.
        """
        before, held_before = self._state()
        count = tokens.shape[1]
        self.cache.begin_steps(count)
        hidden = body_of(self.model)(**self.cache.inputs(tokens)).last_hidden_state
        after, held = self._state()
        for row, own in zip(self.active, lengths, strict=True):
            whole = own == count  # the check at the pass's end is this row's too
            steps = own - 1 if whole else own
            entries = steps * held_before + steps * (steps + 1) / 2 + (held if whole else 0)
            self.counts[row].add(
                Counts(
                    0,
                    after - before if whole else 0,
                    own,
                    own if self.counts[row].prune_events else 0,
                    entries,
                )
            )
        return hidden
