"""One layer of a pruned cache: buffers with room to grow, and the prune step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.cache.attending_layer import AttendingLayer
from workers.cache.layer_record import LayerRecord
from workers.cache.notes import Look, Notes, notes_of
from workers.cache.prune_step import chosen, kept_entries, protected_entries
from workers.cache.shared_prefix import PrefixLayer
from workers.cache.shared_state import SharedState
from workers.cache.stock_attention import check_stock_attention
from workers.footprint.shape import with_room
from workers.policies.attention_weights import Scale
from workers.policies.cache_view import CacheView, view_of
from workers.policies.policy_calls import scores_of


class PrunedLayer(AttendingLayer):
    """Keys and values of one layer in buffers with room to grow; prunes where a check follows the pass.

    ``update`` returns what the queries of this pass attend to: everything stored and the new entries. Our own
    attention then calls ``attend``, which prunes after attending, within its buffers where they have the room
    that is needed. Under stock attention ``update`` itself prunes: the kept entries are copied into new
    buffers, so the returned tensors stay whole.
    """

    is_initialized = False
    held: int
    """Entries stored now."""
    met: int
    """Entries that the last pass attended to: those held before it and its own, before any was dropped."""

    def __init__(self, index: int, state: SharedState) -> None:
        self.index, self.state = index, state
        self.prunes = state.settings.prunes(index)
        self.budget = state.settings.budget
        self._forget()

    def _forget(self) -> None:
        self.held = self.seen = self.met = 0
        self.waits = self._is_checked = self.is_initialized = False
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None
        self._notes = notes_of(self.state.policy.observes) if self.prunes else Notes()
        self._is_shared = False
        self._scale = Scale(1.0, None)
        self.record = LayerRecord()

    @property
    def keys(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[batch, kv_heads, held, head_dim], the entries held now and nothing else; None before the first."""
        return None if self._keys is None else self._keys[:, :, : self.held]

    @property
    def values(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return None if self._values is None else self._values[:, :, : self.held]

    @property
    def batch_size(self) -> int:
        """Texts in the batch. Raises AttributeError before there is one, as transformers expects it."""
        if self._keys is None:
            raise AttributeError("the layer holds no batch yet")
        return self._keys.shape[0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers of the shape, type and device of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._reserve(key_states, value_states, self._room(key_states.shape[2]))
        self.is_initialized = True

    def go_on_from(self, prefix: PrefixLayer) -> None:
        """Take what a dense pass stored and observed as this layer's own first pass, and prune where due.

        The prefix stays whole: its tensors have no room behind them, so the next entries make this layer copy
        what it holds.
        """
        assert prefix.keys is not None and prefix.values is not None
        self._keys, self._values = prefix.keys, prefix.values
        self.dtype = prefix.keys.dtype
        self.device = prefix.keys.device
        self.is_initialized = True
        self.held = self.seen = self.met = prefix.seen
        self._is_shared = True
        if self.prunes:
            batch, heads = prefix.keys.shape[:2]
            self._positions = torch.arange(self.seen, dtype=torch.int32, device=self.device).expand(
                batch, heads, -1
            )
            self._scale = prefix.scale
            noted = prefix.noted(self.state.policy.observes, self.seen)
            if noted is not None:
                self._notes.take_up(noted)
        self._prune_if_due()

    def take_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone; a row may come more than once."""
        self.check_attended()
        order = list(rows)
        self._notes.take_rows(order)
        self.record.take_rows(order)

        keys, values = self.stored()
        positions = None if self._positions is None else self.stored_positions()
        self._reserve(keys[:1].expand(len(order), -1, -1, -1), values, self._room(self.held))
        for old, new in ((keys, self._keys), (values, self._values), (positions, self._positions)):
            if old is not None and new is not None:
                for place, row in enumerate(order):  # one copy each, where indexing would make two
                    new[place, :, : self.held] = old[row]

    def _reserve(self, key_like: Tensor, value_like: Tensor, room: int) -> None:
        batch, heads = key_like.shape[:2]  # values have as many
        self._keys = key_like.new_empty(batch, heads, room, key_like.shape[3])
        self._values = value_like.new_empty(batch, heads, room, value_like.shape[3])
        if self.prunes:
            self._positions = torch.empty(batch, heads, room, dtype=torch.int32, device=key_like.device)

        self._is_shared = False

    def _room(self, held: int) -> int:
        """Entries to have room for where ``held`` are: a step further, at most up to the next prune."""
        grown = with_room(held)
        start, end = self.state.outside
        if not self.prunes or not self.budget.checks_steps:
            return grown
        outside = end - start
        event = self.budget.next_event(max(0, held - outside))
        return grown if event is None else min(grown, event + outside)

    def _fits(self, held: int) -> bool:
        """Whether the buffers can go on with ``held`` entries: they are nobody else's, and have the room for
        them and no more.

        Under stock attention they never can, because the queries of the pass are still to attend to what they
        hold.
        """
        if self._keys is None or self._is_shared or not self.state.own_attention:
            return False
        return self._keys.shape[2] == self._room(held)

    def _fill(self, keys: Tensor, values: Tensor, positions: Tensor | None) -> None:
        """Lay entries at the buffers' beginning; they are the entries held from now on."""
        self.held = held = keys.shape[2]
        assert self._keys is not None and self._values is not None
        self._keys[:, :, :held], self._values[:, :, :held] = keys, values
        if self._positions is not None and positions is not None:
            self._positions[:, :, :held] = positions

    def storages(self) -> Iterator[torch.UntypedStorage]:
        """The memory that the layer keeps: buffers with their room, positions, what its policy observes."""
        for tensor in (self._keys, self._values, self._positions, *self._notes.tensors()):
            if tensor is not None:
                yield tensor.untyped_storage()

    def entry_bytes(self) -> int:
        """Bytes of one entry: keys and values of all rows and KV heads; 0 before the first."""
        both = [tensor for tensor in (self._keys, self._values) if tensor is not None]
        return sum(x.shape[0] * x.shape[1] * x.shape[3] * x.element_size() for x in both)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Views of the entries held now, [batch, kv_heads, held, head_dim] each."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        return keys, values

    def stored_positions(self) -> Tensor:
        """Absolute positions of the entries held now,
        [batch, kv_heads, held], ascending where the policy is temporal."""
        if self._positions is None:
            assert self._keys is not None
            return torch.arange(self.held, device=self._keys.device, dtype=torch.int32).expand(
                *self._keys.shape[:2], -1
            )
        return self._positions[:, :, : self.held]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the new entries and return all for this pass's attention; under stock attention also prune
        what is stored.

        key_states, value_states: [batch, kv_heads, q, head_dim] -> [batch, kv_heads, held + q, head_dim]
        each. Raises ValueError for a batch of another size and for tokens that nobody announced,
        WrongUseError where the entries of the last pass were never attended to.
        """
        self.check_attended()
        new = key_states.shape[2]
        self.state.architecture.check_length(self.seen + new)
        if not self.state.own_attention:
            check_stock_attention(self.state, new, has_dropped=self.seen != self.held)
        is_checked = self.state.is_checked(self.seen, new)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._append(key_states, value_states)

        keys, values = self.stored()
        if self.state.own_attention:
            self._is_checked = is_checked
            return self.marked(keys), values
        if is_checked:
            self._prune_if_due()
        return keys, values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, new = key_states.shape[0], key_states.shape[2]
        if batch != self.batch_size:
            raise ValueError(
                f"the cache holds {self.batch_size} texts and {batch} came: it was used for another batch; "
                "call its reset() first"
            )
        assert self._keys is not None and self._values is not None
        if self._is_shared or self.held + new > self._keys.shape[2]:
            entries = (*self.stored(), None if self._positions is None else self.stored_positions())
            self._reserve(*entries[:2], self._room(self.held + new))
            self._fill(*entries)

        assert self._keys is not None and self._values is not None
        end = self.held + new
        self._keys[:, :, self.held : end], self._values[:, :, self.held : end] = key_states, value_states
        if self._positions is not None:
            self._positions[:, :, self.held : end] = torch.arange(
                self.seen, self.seen + new, device=self.device
            )
        self.held = self.met = end
        self.seen += new

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """The queries of the entries that ``update`` just took:
        attends, lets the policy observe, then prunes where due.

        query: [batch, heads, q, head_dim] -> [batch, q, heads, head_dim].
        """
        self.clear_mark()
        keys, values = self.stored()
        self._scale = scale
        out = self._notes.attend(Look(query=query, keys=keys, values=values, scale=scale))

        if self._is_checked:
            self._prune_if_due()
        return out.transpose(1, 2)

    def _prune_if_due(self) -> None:
        """Drop entries down to the budget where this layer prunes and its threshold is reached."""
        if not (self.prunes and self.budget.is_due(self._counted())):
            return

        with self.state.stopwatch:
            positions = self.stored_positions()
            keys, values = self.stored()
            counted = self._counted()
            policy = self.state.policy
            keep = self.budget.kept(counted) + self.held - counted

            scores = scores_of(policy, self._view(keep))
            index, tied = chosen(policy, scores, positions, keep, self._protected(positions))
            del scores  # before what stays is copied
            kept_positions = positions.gather(2, index)
            kept = (*kept_entries(keys, values, index, self.state.rotary, self.held, keep), kept_positions)
            self._notes.keep(index)

            if not self._fits(keep):
                self._reserve(keys, values, self._room(keep))
            self._fill(*kept)
            self.record.add(kept_positions, self.seen, tied)

    def _counted(self) -> int:
        """Entries that thresholds and budgets speak of."""
        start, end = self.state.outside
        return self.held - (min(end, self.seen) - start if start < self.seen else 0)

    def _view(self, keep: int) -> CacheView:
        keys, values = self.stored()
        return view_of(
            keys=keys,
            values=lambda: values,
            positions=self.stored_positions(),
            seen=self.seen,
            keep=keep,
            layer=self.index,
            seed=self.state.settings.seed,
            row_ids=self.state.rows(keys.shape[0], keys.device),
            scale=self._scale,
            observed=self._notes.observed(self.state.policy.observes),
        )

    def _protected(self, positions: Tensor) -> Tensor | None:
        settings = self.state.settings
        start, end = self.state.outside
        if not settings.protects and start == end:
            return None
        return protected_entries(
            positions, self.seen, settings.protect_sink, settings.protect_recent, (start, end)
        )

    def get_seq_length(self) -> int:
        """Tokens seen. The cache itself answers for the position of the next token."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen after the next pass, offset): as long as the caller's attention mask, so that one
        without padding is recognised as such and no mask is made; what a pruned layer holds is never masked.
        """
        return self.seen + query_length, 0

    def reset(self) -> None:
        self._forget()
