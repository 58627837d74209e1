"""Log-likelihood of continuations of contexts, through a pruned cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from workers.cache.scoring import NOT_FINITE, OutputLayer, score
from workers.footprint.harness import rows_at_once
from workers.footprint.model_shape import shape_of
from workers.harness.counts import Counts
from workers.harness.rows import Contexts, Rows, context_batches, in_halves
from workers.harness.tasks import HarnessError
from workers.messages.kept_answers import AnswerBook
from workers.policies.settings import PruneSettings

Pair = tuple[list[int], list[int]]
"""Ids of a context, and of what continues it; neither is empty."""


def fitted(pair: Pair, most: int) -> Pair:
    """The pair with its context cut from the left, so that a model takes both, which takes ``most`` tokens.

    Raises HarnessError where a part is empty, or nothing of the context would be left.
    """
    context, continuation = pair
    if not context or not 0 < len(continuation) <= most:
        raise HarnessError(
            f"a context of {len(context)} and a continuation of {len(continuation)} tokens: neither may "
            f"be empty, and the continuation must fit into {most} tokens"
        )
    return (context + continuation)[-(most + 1) : -len(continuation)], continuation


@dataclass(frozen=True)
class ContinuationScore:
    """A continuation's log-probability in nats,
    whether every token of it had the highest logit, and what it went through."""

    logprob: float
    greedy: bool
    counts: Counts

    def plain(self) -> list[Any]:
        """As JSON can hold it; ``of_plain`` reads it."""
        return [self.logprob, self.greedy, self.counts.plain()]

    @classmethod
    def of_plain(cls, values: Any) -> ContinuationScore:
        """Raises ValueError for what is no score."""
        if not isinstance(values, list) or len(values) != 3:
            raise ValueError("no score")
        logprob, greedy, counts = values
        if type(logprob) is not float or not math.isfinite(logprob) or type(greedy) is not bool:
            raise ValueError("no score")
        return cls(logprob, greedy, Counts.of_plain(counts))


@torch.inference_mode()
def score_continuations(
    model: nn.Module,
    settings: PruneSettings,
    pairs: Sequence[Pair],
    device: torch.device,
    batch_size: int = 1,
    done: Callable[[int], object] = lambda count: None,
    book: AnswerBook | None = None,
) -> list[ContinuationScore]:
    """Scores of all pairs, in order. Equal contexts share their pass and its check, which changes no figure.

    ``done`` is told of pairs as they are finished; what ``book`` knows is not computed.

    Raises FloatingPointError for NaN logits, ValueError for an output layer whose likelihoods cannot be told.
    """
    OutputLayer.of(model)
    book = book or AnswerBook()
    found: dict[int, ContinuationScore] = {}
    for batch in context_batches([context for context, _ in pairs], batch_size, shape_of(model)):
        found |= in_halves(partial(_score_batch, model, settings, pairs, device, book), batch)
        done(sum(map(len, batch)))
    return [found[i] for i in range(len(pairs))]


def _score_batch(
    model: nn.Module,
    settings: PruneSettings,
    pairs: Sequence[Pair],
    device: torch.device,
    book: AnswerBook,
    batch: list[list[int]],
) -> dict[int, ContinuationScore]:
    contexts = Contexts(model, [pairs[group[0]][0] for group in batch], settings, device)
    rows = [(place, i) for place, group in enumerate(batch) for i in group]
    scores: dict[int, ContinuationScore] = {}
    size = rows_at_once(shape_of(model), len(contexts.ids[0]), len(batch))

    for start in range(0, len(rows), size):
        places, indices = zip(*rows[start : start + size], strict=True)
        continuations = [pairs[i][1] for i in indices]
        asked = [contexts.name, places, indices, continuations]
        compute = partial(_score_places, contexts, places, continuations)
        scored = book.answers(asked, len(places), ContinuationScore, compute)
        scores |= dict(zip(indices, scored, strict=True))
    return scores


def _score_places(
    contexts: Contexts, places: Sequence[int], continuations: Sequence[list[int]]
) -> list[ContinuationScore]:
    """Scores of continuations, each of the context at its place."""
    # of the token after each row's context
    first = contexts.prefill.logits.float().log_softmax(-1)[list(places)]
    rows = Rows(contexts, places)

    device = first.device
    lengths = [len(continuation) for continuation in continuations]
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
    return [
        ContinuationScore(*figures)
        for figures in zip(total.tolist(), greedy.tolist(), rows.counts, strict=True)
    ]
