"""Log-likelihood of continuations of contexts, through a pruned cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workers.footprint import rows_at_once
from workers.harness.counts import Counts
from workers.harness.rows import Rows, batches, in_halves
from workers.model_shape import shape_of
from workers.prefill import Prefill
from workers.scoring import NOT_FINITE, OutputLayer, score
from workers.settings import PruneSettings

Pair = tuple[list[int], list[int]]
"""Ids of a context, and of what continues it; neither is empty."""


@dataclass(frozen=True)
class ContinuationScore:
    """A continuation's log-probability in nats, whether every token of it had the highest logit, and what it went through."""

    logprob: float
    greedy: bool
    counts: Counts


@torch.inference_mode()
def score_continuations(
    model: nn.Module, settings: PruneSettings, pairs: Sequence[Pair], device: torch.device, batch_size: int = 1,
    done: Callable[[int], object] = lambda count: None,
) -> list[ContinuationScore]:  # fmt: skip
    """Scores of all pairs, in order. Equal contexts share their pass and its check, which changes no figure.

    ``done`` is told of pairs as they are finished. Raises FloatingPointError for NaN logits, ValueError for an output layer whose
    likelihoods cannot be told.
    """
    OutputLayer.of(model)
    found: dict[int, ContinuationScore] = {}
    for batch in batches([context for context, _ in pairs], batch_size, shape_of(model)):
        found |= in_halves(partial(_score_batch, model, settings, pairs, device), batch)
        done(sum(map(len, batch)))
    return [found[i] for i in range(len(pairs))]


def _score_batch(
    model: nn.Module, settings: PruneSettings, pairs: Sequence[Pair], device: torch.device, batch: list[list[int]]
) -> dict[int, ContinuationScore]:
    contexts = [pairs[group[0]][0] for group in batch]
    prefill = Prefill(model, torch.tensor(contexts, device=device), [settings.policy])
    first = prefill.logits.float().log_softmax(-1)
    rows = [(place, i) for place, group in enumerate(batch) for i in group]
    found: dict[int, ContinuationScore] = {}
    size = rows_at_once(shape_of(model), len(contexts[0]), len(batch))
    for start in range(0, len(rows), size):
        places, indices = zip(*rows[start : start + size], strict=True)
        going = Rows(model, prefill, settings, contexts, places)
        scored = _score_rows(going, first[list(places)], [pairs[i][1] for i in indices])
        found |= dict(zip(indices, scored, strict=True))
    return found


def _score_rows(rows: Rows, first: Tensor, continuations: Sequence[list[int]]) -> list[ContinuationScore]:
    """first: [rows, vocabulary], log-probabilities of the token after each row's context."""
    device, lengths = first.device, [len(continuation) for continuation in continuations]
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=device)
    for row, continuation in enumerate(continuations):
        tokens[row, : lengths[row]] = torch.tensor(continuation, device=device)
    total = first.gather(1, tokens[:, :1])[:, 0].double()
    greedy = first.argmax(-1) == tokens[:, 0]
    scored = 1
    while going := [row for row in rows.active if lengths[row] > scored]:
        rows.keep(going)
        left = max(lengths[row] for row in going) - scored
        count = min(left, rows.until_event() or left)
        own = [min(count, lengths[row] - scored) for row in going]
        hidden = rows.feed(tokens[going, scored - 1 : scored - 1 + count], own)
        part = score(rows.model, hidden, tokens[going, scored : scored + count])
        filler = torch.arange(count, device=device)[None] >= torch.tensor(own, device=device)[:, None]
        total[going] -= part.nll.double().masked_fill(filler, 0).sum(1)
        greedy[going] &= (part.correct | filler).all(1)
        scored += count
    if not bool(total.isfinite().all()):
        raise FloatingPointError(NOT_FINITE)
    return [ContinuationScore(*figures) for figures in zip(total.tolist(), greedy.tolist(), rows.counts, strict=True)]
