"""Which entries each prune kept, recorded from one evaluation and imposed on another.

Two float32 implementations give an entry scores that differ in the last bits, and now and then such a
difference decides which of two nearly equal entries goes. From there on the two keep different sets, and
their figures differ although neither is wrong. With one's cuts imposed on the other everything else can be
compared strictly, and every cut that the other would have made otherwise is counted and measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workers.policies.cache_view import CacheView
from workers.policies.policy import Policy

ROUNDING_STEP = 2.0**-11
"""Largest relative difference of two scores that lie in neighbouring steps of 12 significant bits."""


@dataclass
class Cuts:
    """Kept positions of every prune, by (row id, layer, KV head, tokens seen)."""

    kept: dict[tuple[int, int, int, int], tuple[int, ...]] = field(default_factory=dict)
    otherwise: int = 0
    """Imposed cuts that the policy would have made otherwise."""
    largest_gap: float = 0.0
    """The largest relative difference between the scores of what it would have kept and of what it had to
    keep instead."""

    def recording(self, policy: Policy) -> Policy:
        """The policy, noting what it keeps. Evaluate one cell at a time with it, without protected
        positions."""

        def score(view: CacheView) -> Tensor:
            scores = policy.score(view)
            for key, positions, values, keep in _heads(view, scores):
                self.kept[key] = _best(positions, values, keep)
            return scores

        return replace(policy, score=score)

    def imposed(self, policy: Policy) -> Policy:
        """A policy that keeps what was recorded and compares it with what ``policy`` would keep; KeyError for
        other cuts."""

        def score(view: CacheView) -> Tensor:
            own = policy.score(view)
            asked = torch.zeros_like(own)
            for (row, layer, head, seen), positions, values, keep in _heads(view, own):
                kept = self.kept[row, layer, head, seen]
                self._compare(dict(zip(positions, values, strict=True)), _best(positions, values, keep), kept)
                at = [
                    i
                    for i, position in enumerate(view.positions[_row(view, row), head].tolist())
                    if position in kept
                ]
                asked[_row(view, row), head, at] = 1.0
            return asked

        return replace(policy, score=score)

    def _compare(self, scores: dict[int, float], own: tuple[int, ...], kept: tuple[int, ...]) -> None:
        if set(own) == set(kept):
            return
        self.otherwise += 1
        wanted, given = ([scores[p] for p in set(a) - set(b)] for a, b in ((own, kept), (kept, own)))
        gap = max(wanted) - min(given)
        self.largest_gap = max(self.largest_gap, gap / max(abs(x) for x in [*wanted, *given]))


def _row(view: CacheView, row_id: int) -> int:
    return view.row_ids.flatten().tolist().index(row_id)


def _heads(
    view: CacheView, scores: Tensor
) -> Iterator[tuple[tuple[int, int, int, int], list[int], list[float], int]]:
    """((row id, layer, head, seen), positions, scores, keep) of every row and head; places that hold nothing
    are left out."""
    batch, heads = scores.shape[:2]
    rows, layers, seen, keep = (
        x.flatten().expand(batch).tolist() for x in (view.row_ids, view.layer, view.seen, view.keep)
    )
    positions, values = view.positions.tolist(), scores.tolist()
    for b in range(batch):
        for head in range(heads):
            held = [(p, s) for p, s in zip(positions[b][head], values[b][head], strict=True) if p < seen[b]]
            yield (rows[b], layers[b], head, seen[b]), [p for p, _ in held], [s for _, s in held], keep[b]


def _best(positions: list[int], scores: list[float], keep: int) -> tuple[int, ...]:
    order = sorted(range(len(positions)), key=lambda i: (-scores[i], positions[i]))
    return tuple(sorted(positions[i] for i in order[:keep]))
