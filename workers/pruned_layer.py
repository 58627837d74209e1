"""One layer of a pruned cache: buffers with room to grow, and the prune step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from workers.attention import LAYER, Scale, attention, probe
from workers.budget import is_due, kept_count
from workers.eviction import OBSERVED_QUERIES, CacheView, select, take_entries

if TYPE_CHECKING:
    from workers.pruned_cache import PrunedCache
    from workers.shared_prefix import PrefixLayer

SLACK = 64
"""Entries a buffer has room for beyond what it holds when it is made, so that appending copies nothing most of the time."""

RECENT = 8
"""``recent_retained`` looks at this many of the last positions."""


def retained(positions: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    """What is left of ``seen`` tokens: the share of the last ``RECENT`` positions, and whether position 0 is still there.

    positions: [batch, kv_heads, kept], in any order -> [batch, kv_heads] float each.
    """
    recent = (positions >= seen - RECENT).sum(-1) / min(RECENT, seen)
    return recent, (positions == 0).any(-1).float()


@dataclass
class LayerRecord:
    """Sums over a layer's prune events, [batch, kv_heads] each, so that nothing is synchronised while running."""

    events: int = 0
    recent: Tensor | None = None
    sink: Tensor | None = None
    ties: Tensor | None = None

    def add(self, positions: Tensor, seen: int, tied: Tensor) -> None:
        """Count one event: ``positions`` [batch, kv_heads, kept] are what is left of ``seen`` tokens."""
        recent, sink = retained(positions, seen)
        self.events += 1
        self.recent = recent if self.recent is None else self.recent + recent
        self.sink = sink if self.sink is None else self.sink + sink
        self.ties = tied.float() if self.ties is None else self.ties + tied.float()


class PrunedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers with room to grow; prunes after each pass.

    ``update`` returns what the queries of this pass attend to: everything stored and the new entries. Our own attention then
    calls ``attend``, which prunes after attending. Under stock attention ``update`` itself prunes: the kept entries are
    copied into new buffers, so the returned tensors stay whole.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, index: int, owner: PrunedCache) -> None:
        super().__init__()
        self.index, self.owner = index, owner
        self.held = self.seen = 0
        self.positions: Tensor | None = None
        self.queries: Tensor | None = None
        self.mass: Tensor | None = None
        self.scale = Scale(1.0, None)
        self.record = LayerRecord()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers of the shape, type and device of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._reserve(key_states, value_states, key_states.shape[2] + SLACK)
        self.is_initialized = True

    def go_on_from(self, prefix: PrefixLayer) -> None:
        """Take what a dense pass stored and observed as this layer's own first pass, and prune where due.

        The prefix stays whole: its tensors have no room behind them, so the next entries make this layer copy what it holds.
        """
        assert prefix.keys is not None and prefix.values is not None
        self.keys, self.values = prefix.keys, prefix.values
        self.dtype, self.device, self.is_initialized = prefix.keys.dtype, prefix.keys.device, True
        self.held = self.seen = prefix.seen
        if self.owner.settings.prunes(self.index):
            batch, heads = prefix.keys.shape[:2]
            self.positions = torch.arange(self.seen, dtype=torch.int32, device=self.device).expand(batch, heads, -1)
            observes = self.owner.policy.observes  # the prefix may hold what other cells' policies observe
            self.queries = prefix.queries.get(self.seen) if observes == "queries" else None
            self.mass, self.scale = prefix.mass.get(self.seen) if observes == "mass" else None, prefix.scale
        self.prune_if_due()

    def take_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone; a row may come more than once."""
        for owner, names in ((self, ("queries", "mass")), (self.record, ("recent", "sink", "ties"))):
            for name in names:
                if getattr(owner, name) is not None:
                    setattr(owner, name, getattr(owner, name)[list(rows)])
        (keys, values), positions = self.stored(), None if self.positions is None else self.stored_positions()
        self._reserve(keys[:1].expand(len(rows), -1, -1, -1), values, self.held + SLACK)
        for old, new in ((keys, self.keys), (values, self.values), (positions, self.positions)):
            if old is not None and new is not None:
                for place, row in enumerate(rows):  # one copy each, where indexing would make two
                    new[place, :, : self.held] = old[row]

    def _reserve(self, key_like: Tensor, value_like: Tensor, room: int) -> None:
        batch, heads = key_like.shape[:2]  # values have as many
        self.keys = key_like.new_empty(batch, heads, room, key_like.shape[3])
        self.values = value_like.new_empty(batch, heads, room, value_like.shape[3])
        if self.owner.settings.prunes(self.index):
            self.positions = torch.empty(batch, heads, room, dtype=torch.int32, device=key_like.device)

    def _adopt(self, keys: Tensor, values: Tensor, positions: Tensor | None) -> None:
        """Copy entries into fresh buffers that have room behind them."""
        held = keys.shape[2]
        self._reserve(keys, values, held + max(SLACK, held // 4))
        assert self.keys is not None and self.values is not None
        self.keys[:, :, :held], self.values[:, :, :held] = keys, values
        if self.positions is not None and positions is not None:
            self.positions[:, :, :held] = positions
        self.held = held

    def stored(self) -> tuple[Tensor, Tensor]:
        """Views of the entries held now, [batch, kv_heads, held, head_dim] each."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.held], self.values[:, :, : self.held]

    def stored_positions(self) -> Tensor:
        """Absolute positions of the entries held now, [batch, kv_heads, held], ascending where the policy is temporal."""
        if self.positions is None:
            assert self.keys is not None
            return torch.arange(self.held, device=self.keys.device, dtype=torch.int32).expand(*self.keys.shape[:2], -1)
        return self.positions[:, :, : self.held]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new entries, return all for this pass's attention, then prune what is stored.

        key_states, value_states: [batch, kv_heads, q, head_dim] -> [batch, kv_heads, held + q, head_dim] each.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        self.owner.check_attention(new, self)
        first_pass = self.seen == 0
        assert self.keys is not None and self.values is not None
        if self.held + new > self.keys.shape[2]:
            self._grow(new)
        end = self.held + new
        self.keys[:, :, self.held : end], self.values[:, :, self.held : end] = key_states, value_states
        if self.positions is not None:
            self.positions[:, :, self.held : end] = torch.arange(self.seen, self.seen + new, device=self.device)
        self.held, self.seen = end, self.seen + new
        keys, values = self.stored()
        if self.owner.own_attention:
            setattr(keys, LAYER, self)
        elif self.owner.settings.schedule == "every_step" or first_pass:
            self.prune_if_due()
        return keys, values

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """The queries of the entries that ``update`` just took: attends, lets the policy observe, then prunes where due.

        query: [batch, heads, q, head_dim] -> [batch, q, heads, head_dim].
        """
        keys, values = self.stored()
        observes = self.owner.policy.observes if self.owner.settings.prunes(self.index) else "nothing"
        if observes == "mass":
            out, mass = probe(query, keys, values, scale)
            if self.mass is not None:
                mass[..., : self.mass.shape[2]] += self.mass
            self.mass = mass
        else:
            out = attention(query, keys, values, scale)
        if observes == "queries":
            before = [] if self.queries is None else [self.queries]
            self.queries, self.scale = torch.cat([*before, query[:, :, -OBSERVED_QUERIES:]], 2)[:, :, -OBSERVED_QUERIES:], scale
        if self.owner.settings.schedule == "every_step" or self.seen == query.shape[2]:
            self.prune_if_due()
        return out.transpose(1, 2)

    def _grow(self, new: int) -> None:
        keys, values = self.stored()
        held, positions = self.held, None if self.positions is None else self.stored_positions()
        self._reserve(keys, values, held + new + max(SLACK, held // 4))
        assert self.keys is not None and self.values is not None
        self.keys[:, :, :held], self.values[:, :, :held] = keys, values
        if self.positions is not None and positions is not None:
            self.positions[:, :, :held] = positions

    def prune_if_due(self) -> None:
        """Drop entries down to the budget where this layer prunes and its threshold is reached."""
        settings, start, end = self.owner.settings, *self.owner.outside
        if start < end == self.seen:  # this pass brought nothing else
            return
        if settings.prunes(self.index) and is_due(settings.keep_ratio, settings.prune_after, self._counted()):
            with self.owner.stopwatch:
                self._prune()

    def _counted(self) -> int:
        """Entries that thresholds and budgets speak of."""
        start, end = self.owner.outside
        return self.held - (min(end, self.seen) - start if start < self.seen else 0)

    def _prune(self) -> None:
        policy, positions = self.owner.policy, self.stored_positions()
        keys, values = self.stored()
        counted = self._counted()
        keep = kept_count(self.owner.settings.keep_ratio, counted) + self.held - counted
        scores, protected = policy.score(self._view(keep)), self._protected(positions)
        index, tied = select(scores, keep, protected, None if policy.temporal else positions)
        kept_positions = positions.gather(2, index)
        if self.mass is not None:
            self.mass = self.mass.gather(2, index)
        self._adopt(take_entries(keys, index), take_entries(values, index), kept_positions)
        self.record.add(kept_positions, self.seen, tied)

    def _view(self, keep: int) -> CacheView:
        keys, device = self.stored()[0], self.device

        def scalar(value: int) -> Tensor:
            return torch.full((1, 1, 1), value, device=device)

        return CacheView(
            keys, self.stored_positions(), scalar(self.seen), scalar(keep), scalar(self.index), scalar(self.owner.settings.seed),
            self.owner.rows(keys.shape[0], keys.device)[:, None, None], self.queries, self.mass, *self.scale,
        )  # fmt: skip

    def _protected(self, positions: Tensor) -> Tensor | None:
        settings, start, end = self.owner.settings, *self.owner.outside
        if not settings.protect_sink and not settings.protect_recent and start == end:
            return None
        own = (positions < settings.protect_sink) | (positions >= self.seen - settings.protect_recent)
        return own | (positions >= start) & (positions < end)

    def get_seq_length(self) -> int:
        """Tokens seen (absolute positions follow from it), or the length held where the classic bug is reproduced."""
        return self.owner.next_position()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen after the next pass, offset): as long as the caller's attention mask, so that one without padding
        is recognised as such and no mask is made; what a pruned layer holds is never masked.
        """
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = self.positions = self.queries = self.mass = None
        self.is_initialized, self.held, self.seen, self.record = False, 0, 0, LayerRecord()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search reorders rows; refused rather than half supported."""
        _refuse("beam search")

    def crop(self, *_: Any) -> None:
        """Cropping (assisted generation) cannot bring dropped entries back."""
        _refuse("cropping, which assisted generation needs,")


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"PrunedCache does not support {what} because dropped entries cannot be restored; use greedy or sampling")
