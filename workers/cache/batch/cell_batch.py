"""The cache of many cells on the same windows in one forward pass, each cell at its own point of the text.

A row is one window of one cell. A pass brings every row the tokens up to its cell's next prune event; they
travel packed, as one sequence, through everything that works token by token, and are laid out row by row,
padded, for attention alone. After it, every row drops what its cell's schedule says. No two rows touch, so
the figures are those of each cell alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workers.cache.attending_layer import AttendingLayer
from workers.cache.batch.pass_plan import Pass, PassState, Track
from workers.cache.layer_record import retained
from workers.cache.notes import Look, Notes, notes_of
from workers.cache.prune_step import chosen, kept_entries, protected_entries
from workers.cache.shared_prefix import PrefixLayer
from workers.policies.attention_weights import Scale
from workers.policies.cache_view import view_of
from workers.policies.observation import widest
from workers.policies.policy_calls import scores_of
from workers.policies.selection import select, select_ragged


class BatchLayer(AttendingLayer):
    """One layer's entries of all rows: [rows, kv_heads, room, head_dim], each row filled from the left."""

    keys: Tensor
    values: Tensor

    def __init__(
        self, index: int, state: PassState, prefix: PrefixLayer, tracks: Sequence[Track], prunes: bool
    ) -> None:
        """Fork the prefix for each cell at its first event, and prune there."""
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.index = index
        self.state = state
        self.prunes = prunes
        self.scale = prefix.scale
        self.temporal = tracks[0].policy.temporal

        windows, heads, steps = prefix.keys.shape[:3]
        rows = windows * len(tracks)
        self.room = max(max(track.schedule.peak, track.held) for track in tracks) if prunes else steps
        self.keys = prefix.keys.new_zeros(rows, heads, self.room, prefix.keys.shape[3])
        self.values = prefix.values.new_zeros(rows, heads, self.room, prefix.values.shape[3])
        self.dtype = prefix.keys.dtype
        self.device = prefix.keys.device
        self.is_initialized = True
        self.positions: Tensor | None = None
        if prunes:
            self.positions = torch.zeros(rows, heads, self.room, dtype=torch.int32, device=self.device)
        self.sums = torch.zeros(3, rows, heads, device=self.device)

        (observes,) = widest(track.policy.observes for track in tracks).values()
        self.notes = notes_of(observes) if prunes else Notes()
        self.notes.reserve(rows, self.room, prefix.keys, prefix.heads)
        for i, track in enumerate(tracks):
            self._fork(slice(i * windows, (i + 1) * windows), prefix, track)

    def _fork(self, rows: slice, prefix: PrefixLayer, track: Track) -> None:
        assert prefix.keys is not None and prefix.values is not None
        point = track.seen
        keys, values = prefix.keys[:, :, :point], prefix.values[:, :, :point]
        if not self.prunes:
            self.keys[rows, :, :point], self.values[rows, :, :point] = keys, values
            return

        observes = track.policy.observes
        notes = notes_of(observes)
        noted = prefix.noted(observes, point)
        if noted is not None:
            notes.take_up(noted)
        positions = torch.arange(point, dtype=torch.int32, device=self.device).expand(*keys.shape[:2], -1)
        view = view_of(
            keys=keys,
            values=lambda: values,
            positions=positions,
            seen=point,
            keep=track.held,
            layer=self.index,
            seed=track.settings.seed,
            row_ids=self.state.row_ids[rows],
            scale=prefix.scale,
            observed=notes.observed(observes),
        )
        settings = track.settings
        protected = None
        if settings.protects:
            protected = protected_entries(positions, point, settings.protect_sink, settings.protect_recent)

        scores = scores_of(track.policy, view)
        index, tied = chosen(track.policy, scores, positions, track.held, protected)
        kept = positions.gather(2, index)
        kept_keys, kept_values = kept_entries(keys, values, index, self.state.rotary, point, track.held)

        self.keys[rows, :, : track.held] = kept_keys
        self.values[rows, :, : track.held] = kept_values
        assert self.positions is not None
        self.positions[rows, :, : track.held] = kept
        if noted is not None:
            self.notes.fork(rows, noted, index)
        self.sums[:, rows] = torch.stack([*retained(kept, point), tied.float()])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the fork brought shapes and types."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the packed entries [1, kv_heads, tokens, head_dim] of the pass to their rows."""
        self.check_attended()
        self.seen = self.state.current.most_seen
        self.store(self.state.current, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        return self.marked(key_states), value_states

    def store(self, plan: Pass, key_states: Tensor, value_states: Tensor) -> None:
        """Write each token behind its row's entries; key_states, value_states [tokens, kv_heads, head_dim]"""
        layout = plan.pruned if self.prunes else plan.full
        if layout.mask is None:  # each row has as many entries and brings as many tokens
            new = slice(layout.entries - plan.widest, layout.entries)
            self.keys[:, :, new] = plan.by_row(key_states)
            self.values[:, :, new] = plan.by_row(value_states)
            if self.positions is not None:
                self.positions[:, :, new] = plan.true_positions.view(-1, 1, plan.widest)
            return

        slots = layout.slots
        self.keys[plan.rows, :, slots] = key_states
        self.values[plan.rows, :, slots] = value_states
        if self.positions is not None:
            self.positions[plan.rows, :, slots] = plan.true_positions[:, None]

    def visible(self, plan: Pass) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of the entries, and the mask where rows are of unequal length."""
        layout = plan.pruned if self.prunes else plan.full
        return self.keys[:, :, : layout.entries], self.values[:, :, : layout.entries], layout.mask

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """query: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim];
        drops afterwards what the plan says."""
        self.clear_mark()
        plan = self.state.current
        out = self.notes.attend(self._look(plan, plan.laid_out(query), scale))
        if self.prunes and any(plan.is_due):
            self.prune(plan)
        return plan.packed(out)

    def _look(self, plan: Pass, query: Tensor, scale: Scale) -> Look:
        """The pass as it is in this layer; query [rows, heads, widest, head_dim]."""
        keys, values, mask = self.visible(plan)
        counts = None if plan.is_even else plan.count_rows

        if not self.prunes or self.positions is None:
            return Look(query=query, keys=keys, values=values, scale=scale, mask=mask, counts=counts)
        return Look(
            query=query,
            keys=keys,
            values=values,
            scale=scale,
            mask=mask,
            counts=counts,
            asked=plan.asked_of_all,
            positions=self.positions[:, :, : keys.shape[2]],
            seen=plan.seen_rows,
        )

    def prune(self, plan: Pass) -> None:
        """Move what stays of each row to its left, in temporal order, or best first where the cells' policy
        is not temporal."""
        entries = plan.pruned.entries
        assert self.positions is not None
        keys, values, positions = (x[:, :, :entries] for x in (self.keys, self.values, self.positions))
        scores = self.scores(plan, keys, values, positions)
        protected = plan.protected(positions)
        places = None if self.temporal else positions
        if plan.keep is not None:
            index, tied = select(scores, plan.keep, protected, places)
        else:
            index, tied = select_ragged(
                scores,
                plan.keep_rows,
                plan.pruned.lengths,
                plan.widest_keep,
                protected,
                places,
                plan.narrowest_keep,
            )

        kept = positions.gather(2, index)
        width = index.shape[2]
        before, after = (numbers[:, None, None] for numbers in (plan.pruned.lengths, plan.keep_rows))
        kept_keys, kept_values = kept_entries(keys, values, index, self.state.rotary, before, after)
        self.keys[:, :, :width] = kept_keys
        self.values[:, :, :width] = kept_values
        self.positions[:, :, :width] = kept

        stays = torch.arange(width, device=self.device) < plan.keep_rows[:, None, None]
        self.notes.keep(index, stays)
        left = retained(kept, plan.seen_rows[:, None, None], stays)
        self.sums += torch.stack([*left, tied.float()]) * plan.due_rows

    def scores(self, plan: Pass, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Scores of all rows:
        a policy at a time where entries score alone, else a cell at a time without its padding.

        A policy of a user's own is called for the cells that prune now and for no others.
        """
        tracks, windows = plan.tracks, plan.windows
        parts = []
        first = 0
        while first < len(tracks):
            policy = tracks[first].policy
            last = first + 1
            whole = policy.entrywise and policy.own
            while whole and last < len(tracks) and tracks[last].policy is policy:
                last += 1
            rows = slice(first * windows, last * windows)
            if not (policy.own or plan.is_due[first]):
                parts.append(torch.zeros(positions[rows].shape, device=self.device))
                first = last
                continue

            n = keys.shape[2] if whole else tracks[first].held + int(plan.counts[first])
            view = view_of(
                keys=keys[rows, :, :n],
                values=partial(_cut, values, rows, n),
                positions=positions[rows, :, :n],
                seen=plan.seen_rows[rows],
                keep=plan.keep_rows[rows],
                layer=self.index,
                seed=plan.seeds[rows],
                row_ids=self.state.row_ids[rows],
                scale=self.scale,
                observed=self.notes.observed(policy.observes, rows, n, tracks[first].target),
            )
            parts.append(torch.nn.functional.pad(scores_of(policy, view), (0, keys.shape[2] - n)))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone; the cells of the others are done."""
        self.sums = self.sums[:, rows]
        self.keys = self.keys[rows]  # pyright: ignore[reportIncompatibleVariableOverride]
        self.values = self.values[rows]  # pyright: ignore[reportIncompatibleVariableOverride]
        self.positions = None if self.positions is None else self.positions[rows]
        self.notes.take_rows(rows)

    def get_seq_length(self) -> int:
        """Not a length: rows are at different points, and the caller gives positions."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the packed tokens."""
        return query_length, 0


def _cut(values: Tensor, rows: slice, entries: int) -> Tensor:
    """The first entries of some rows."""
    return values[rows, :, :entries]
