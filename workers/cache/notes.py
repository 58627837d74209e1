"""What one layer keeps of the queries that go through, for the policy that will ask:
a class for each kind of observation.

Four things happen to a layer's entries, and to what is noted of them: queries see them (``attend``), some
stay (``keep``), rows of the batch go (``take_rows``), and a cell goes on from a dense pass at a point of the
text (``noted``, ``take_up``, ``fork``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.cache.attention import attention, probabilities, probe
from workers.policies.attention_weights import Scale, of_values, weights
from workers.policies.observation import WEIGHT_BYTES, LastQueries, Mass, Nothing, Observation

RowChoice = slice | Sequence[int] | Tensor
EVERY = slice(None)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A pass in one layer: queries, and what they attend to."""

    query: Tensor
    """[rows, heads, q, head_dim], padded behind rows that bring fewer."""
    keys: Tensor
    """[rows, kv_heads, n, head_dim]"""
    values: Tensor
    """As ``keys``."""
    scale: Scale
    mask: Tensor | None = None
    """[rows, 1 or kv_heads, q, n], added to the logits."""
    counts: Tensor | None = None
    """[rows], queries that are no padding; None where no row has any."""
    asked: int = 0
    """Behind this pass policies ask what so many of the last queries attend to,
    in every row, and its own are among them."""
    positions: Tensor | None = None
    """[rows, kv_heads, n] of the entries, where ``asked``."""
    seen: Tensor | None = None
    """[rows] tokens after the pass, where ``asked``."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a view shows of the notes; ``CacheView`` says the shapes."""

    queries: Tensor | None = None
    mass: Tensor | None = None
    weights: Tensor | None = None


class Notes:
    """Of a policy that observes nothing: the pass attends, and nothing is kept."""

    def noted(self, query: Tensor, keys: Tensor, scale: Scale, points: Sequence[int]) -> dict[int, Tensor]:
        """Of a dense pass over whole texts:
        what is noted by the time that so many tokens were seen, for each point.

        query: [rows, heads, tokens, head_dim]; keys: [rows, kv_heads, tokens, head_dim]; points ascend.
        """
        return {}

    def take_up(self, noted: Tensor) -> None:
        """Go on from what a dense pass noted."""

    def reserve(self, rows: int, room: int, keys: Tensor, heads: int) -> None:
        """Make room for rows that are forked from a dense pass one after the other; ``keys`` says type,
        device and widths."""

    def fork(self, rows: slice, noted: Tensor, kept: Tensor) -> None:
        """Lay what a dense pass noted into some rows, whose entries ``kept`` [rows, kv_heads, k] stayed."""

    def attend(self, look: Look) -> Tensor:
        """Attention's result, [rows, heads, q, head_dim]; what is to be noted of it is."""
        return attention(look.query, look.keys, look.values, look.scale, look.mask)

    def keep(self, index: Tensor, stays: Tensor | None = None) -> None:
        """The entries ``index`` [rows, kv_heads, k] are held from now on; ``stays`` [rows, 1, k]: those that
        are no padding."""

    def take_rows(self, rows: RowChoice) -> None:
        """Go on with these rows alone."""

    def observed(
        self, by: Observation, rows: slice = EVERY, entries: int | None = None, seen: int | None = None
    ) -> Observed:
        """What a policy that observes so is shown of some rows,
        which hold so many entries and have seen so many tokens."""
        return Observed()

    def tensors(self) -> Iterator[Tensor]:
        """What is kept."""
        yield from ()


class QueryNotes(Notes):
    """The last ``count`` queries; their attention is made when a policy asks, over what is held then."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queries: Tensor | None = None
        self._weights: Tensor | None = None
        """Attention of the last queries of the pass at hand, where policies asked for it and it was made."""
        self._is_batch = False

    def noted(self, query: Tensor, keys: Tensor, scale: Scale, points: Sequence[int]) -> dict[int, Tensor]:
        """The last queries before each point."""
        return {point: query[:, :, max(0, point - self._count) : point].clone() for point in points}

    def take_up(self, noted: Tensor) -> None:
        """As many of them as are kept here."""
        self._queries = noted[:, :, -self._count :]

    def reserve(self, rows: int, room: int, keys: Tensor, heads: int) -> None:
        """Zeros, before which no row looks."""
        self._queries = keys.new_zeros(rows, heads, self._count, keys.shape[3])
        self._is_batch = True

    def fork(self, rows: slice, noted: Tensor, kept: Tensor) -> None:
        """The newest last, behind zeros where a text had fewer."""
        assert self._queries is not None
        last = noted[:, :, -self._count :]
        self._queries[rows, :, self._count - last.shape[2] :] = last

    def attend(self, look: Look) -> Tensor:
        """Where policies will ask for the attention of this pass, it is made once and attends."""
        self._queries = self._with(look)
        size = 4 * look.query.shape[0] * look.query.shape[1] * look.asked * look.keys.shape[2]
        if not look.asked or size > WEIGHT_BYTES:
            return super().attend(look)

        assert look.positions is not None and look.seen is not None
        asking = self._queries[:, :, -look.asked :]
        self._weights = weights(asking, look.keys, look.scale, look.positions, look.seen[:, None, None])
        return of_values(self._weights[:, :, :, -look.query.shape[2] :], look.values)

    def _with(self, look: Look) -> Tensor:
        """The last queries now that those of the pass came."""
        before = [] if self._queries is None else [self._queries]
        if look.counts is None:
            last = torch.cat([*before, look.query[:, :, -self._count :]], 2)[:, :, -self._count :]
            return last.clone() if self._is_batch else last  # of many rows a view would keep as many again

        both = torch.cat([*before, look.query], 2)
        last = look.counts[:, None] + torch.arange(self._count, device=both.device)
        return both.gather(2, last[:, None, :, None].expand(-1, both.shape[1], -1, both.shape[3]))

    def keep(self, index: Tensor, stays: Tensor | None = None) -> None:
        """Queries stay; what they attended to was of other entries."""
        self._weights = None

    def take_rows(self, rows: RowChoice) -> None:
        self._queries = None if self._queries is None else self._queries[rows]

    def observed(
        self, by: Observation, rows: slice = EVERY, entries: int | None = None, seen: int | None = None
    ) -> Observed:
        """As many queries as are asked for, whatever others ask, and their attention where it was made."""
        assert self._queries is not None
        count = by.amount if seen is None else min(by.amount, seen)
        made = None if self._weights is None else self._weights[rows]
        return Observed(queries=self._queries[rows, :, -count:], weights=made)

    def tensors(self) -> Iterator[Tensor]:
        if self._queries is not None:
            yield self._queries


class MassNotes(Notes):
    """The attention that each entry got, summed over queries and group: [rows, kv_heads, n] float32."""

    def __init__(self) -> None:
        self._mass: Tensor | None = None

    def noted(self, query: Tensor, keys: Tensor, scale: Scale, points: Sequence[int]) -> dict[int, Tensor]:
        """The sums before each point, queries in order so that sums grow as in a loop."""
        total = torch.zeros(keys.shape[:3], device=keys.device)
        found: dict[int, Tensor] = {}
        done = 0
        for point in points:
            for _, chance in probabilities(query[:, :, done:point], keys[:, :, :point], scale, None):
                total[..., :point] += chance.sum((2, 3))
            found[point] = total[..., :point].clone()
            done = point
        return found

    def take_up(self, noted: Tensor) -> None:
        self._mass = noted

    def reserve(self, rows: int, room: int, keys: Tensor, heads: int) -> None:
        """Zeros, which are also the sums of entries that are none."""
        self._mass = torch.zeros(rows, keys.shape[1], room, device=keys.device)

    def fork(self, rows: slice, noted: Tensor, kept: Tensor) -> None:
        """The sums of the entries that stayed."""
        assert self._mass is not None
        self._mass[rows, :, : kept.shape[2]] = noted.gather(2, kept)

    def attend(self, look: Look) -> Tensor:
        """The pass's probabilities are made, and add up."""
        real = None
        if look.counts is not None:
            real = torch.arange(look.query.shape[2], device=look.query.device) < look.counts[:, None]
        out, mass = probe(look.query, look.keys, look.values, look.scale, look.mask, real)

        if self._mass is not None:
            known = min(self._mass.shape[2], mass.shape[2])
            mass[:, :, :known] += self._mass[:, :, :known]
        self._mass = mass
        return out

    def keep(self, index: Tensor, stays: Tensor | None = None) -> None:
        """The sums go where the entries go; behind a row's entries there are none."""
        assert self._mass is not None
        kept = self._mass.gather(2, index)
        self._mass = kept if stays is None else kept.masked_fill(~stays, 0.0)

    def take_rows(self, rows: RowChoice) -> None:
        self._mass = None if self._mass is None else self._mass[rows]

    def observed(
        self, by: Observation, rows: slice = EVERY, entries: int | None = None, seen: int | None = None
    ) -> Observed:
        """The sums of the entries held."""
        assert self._mass is not None
        return Observed(mass=self._mass[rows, :, :entries])

    def tensors(self) -> Iterator[Tensor]:
        if self._mass is not None:
            yield self._mass


_KINDS: Mapping[str, Callable[[Any], Notes]] = {
    Nothing.kind: lambda _: Notes(),
    LastQueries.kind: lambda observes: QueryNotes(observes.kept),
    Mass.kind: lambda observes: MassNotes(),
}


def notes_of(observes: Observation) -> Notes:
    """What one layer keeps of what is observed, empty."""
    return _KINDS[observes.kind](observes)
