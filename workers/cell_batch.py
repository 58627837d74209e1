"""The cache of many cells on the same windows in one forward pass, each cell at its own point of the text.

A row is one window of one cell. A pass brings every row the tokens up to its cell's next prune event; they travel packed, as
one sequence, through everything that works token by token, and are laid out row by row, padded, for attention alone. After
it, every row drops what its cell's schedule says. No two rows touch, so the figures are those of each cell alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workers.attending_layer import AttendingLayer
from workers.attention import attention, probe
from workers.attention_weights import Scale, of_values, weights
from workers.eviction import CacheView
from workers.footprint import OBSERVED_QUERIES, WEIGHT_BYTES
from workers.layer_record import RECENT, retained
from workers.pass_plan import Pass, PassState, Track
from workers.policy_calls import scores_of
from workers.rotary import places_closed
from workers.selection import select, select_ragged, take_entries
from workers.shared_prefix import PrefixLayer


class BatchLayer(AttendingLayer):
    """One layer's entries of all rows: [rows, kv_heads, room, head_dim], each row filled from the left."""

    keys: Tensor
    values: Tensor

    def __init__(self, index: int, state: PassState, prefix: PrefixLayer, tracks: Sequence[Track], prunes: bool) -> None:
        """Fork the prefix for each cell at its first event, and prune there."""
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.index, self.state, self.prunes, self.scale = index, state, prunes, prefix.scale
        self.temporal = tracks[0].policy.temporal
        windows, heads, steps = prefix.keys.shape[:3]
        self.room = max(max(t.schedule.peak, t.held) for t in tracks) if prunes else steps
        rows = windows * len(tracks)
        self.keys = prefix.keys.new_zeros(rows, heads, self.room, prefix.keys.shape[3])  # pyright: ignore
        self.values = prefix.values.new_zeros(rows, heads, self.room, prefix.values.shape[3])  # pyright: ignore
        self.dtype, self.device, self.is_initialized = prefix.keys.dtype, prefix.keys.device, True
        self.positions = torch.zeros(rows, heads, self.room, dtype=torch.int32, device=self.device) if prunes else None
        self.sums = torch.zeros(3, rows, heads, device=self.device)
        observes = tracks[0].policy.observes if prunes else "nothing"
        self.queries = self.mass = None
        self.weights: Tensor | None = None
        """Attention of the last queries of the pass at hand, where policies asked for it and it was made."""
        if observes == "queries":
            shape = next(iter(prefix.queries.values())).shape
            self.queries = prefix.keys.new_zeros(rows, shape[1], OBSERVED_QUERIES, shape[3])
        if observes == "mass":
            self.mass = torch.zeros(rows, heads, self.room, device=self.device)
        for i, track in enumerate(tracks):
            self._fork(slice(i * windows, (i + 1) * windows), prefix, track)

    def _fork(self, rows: slice, prefix: PrefixLayer, track: Track) -> None:
        assert prefix.keys is not None and prefix.values is not None
        point = track.seen
        keys, values = prefix.keys[:, :, :point], prefix.values[:, :, :point]
        if not self.prunes:
            self.keys[rows, :, :point], self.values[rows, :, :point] = keys, values
            return
        queries, mass = prefix.queries.get(point), prefix.mass.get(point)
        positions = torch.arange(point, dtype=torch.int32, device=self.device).expand(*keys.shape[:2], -1)
        numbers = (point, track.held, self.index, track.settings.seed)
        seen, keep, layer, seed = (torch.full((1, 1, 1), x, device=self.device) for x in numbers)
        view = CacheView(
            keys, positions, seen, keep, layer, seed, self.state.row_ids[rows, None, None], queries, mass,
            *prefix.scale,
        )  # fmt: skip
        protected = None
        if track.settings.protect_sink or track.settings.protect_recent:
            protected = (positions < track.settings.protect_sink) | (positions >= point - track.settings.protect_recent)
        index, tied = select(scores_of(track.policy, view), track.held, protected, None if self.temporal else positions)
        kept = positions.gather(2, index)
        kept_keys = take_entries(keys, index)
        if self.state.rotary is not None:
            kept_keys = self.state.rotary.turn(kept_keys, places_closed(index, point, track.held))
        self.keys[rows, :, : track.held] = kept_keys
        self.values[rows, :, : track.held] = take_entries(values, index)
        assert self.positions is not None
        self.positions[rows, :, : track.held] = kept
        if self.mass is not None and mass is not None:
            self.mass[rows, :, : track.held] = mass.gather(2, index)
        if self.queries is not None and queries is not None:
            self.queries[rows, :, OBSERVED_QUERIES - queries.shape[2] :] = queries
        self.sums[:, rows] = torch.stack([*retained(kept, point), tied.float()])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the fork brought shapes and types."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the packed entries [1, kv_heads, tokens, head_dim] of the pass to their rows."""
        self.check_attended()
        self.seen = self.state.current.most_seen
        self.store(self.state.current, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        return self.marked(key_states), value_states

    def store(self, plan: Pass, key_states: Tensor, value_states: Tensor) -> None:
        """Write each token behind its row's entries: key_states, value_states [tokens, kv_heads, head_dim]."""
        layout = plan.pruned if self.prunes else plan.full
        if layout.mask is None:  # each row has as many entries and brings as many tokens
            new = slice(layout.entries - plan.widest, layout.entries)
            self.keys[:, :, new], self.values[:, :, new] = plan.by_row(key_states), plan.by_row(value_states)
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
        """query: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]; drops afterwards what the plan says."""
        self.clear_mark()
        plan = self.state.current
        laid_out = plan.laid_out(query)
        if self.queries is not None:
            self.queries = plan.last_queries(self.queries, laid_out)
        out = self._attended(plan, laid_out, scale)
        if self.prunes and any(plan.is_due):
            self.prune(plan)
        self.weights = None
        return plan.packed(out)

    def _attended(self, plan: Pass, query: Tensor, scale: Scale) -> Tensor:
        """query [rows, heads, widest, head_dim] -> the same shape; notes the attention that the cells' policies look at."""
        keys, values, mask = self.visible(plan)
        if self.mass is not None:
            place = torch.arange(plan.widest, device=self.device)
            out, mass = probe(query, keys, values, scale, mask, None if plan.is_even else place < plan.count_rows[:, None])
            self.mass[:, :, : keys.shape[2]] += mass
            return out
        if self.queries is None or self.positions is None:
            return attention(query, keys, values, scale, mask)
        asked = max(track.policy.looks_back for track in plan.tracks)
        if not self._is_asked_of_all(plan, asked):
            return attention(query, keys, values, scale, mask)

        positions = self.positions[:, :, : keys.shape[2]]
        self.weights = weights(self.queries[:, :, -asked:], keys, scale, positions, plan.seen_rows[:, None, None])
        return of_values(self.weights[:, :, :, -plan.widest :], values)

    def _is_asked_of_all(self, plan: Pass, asked: int) -> bool:
        """Whether policies ask what every query of this pass attends to: then that is made once, and attends."""
        assert self.queries is not None
        size = 4 * len(plan.seen_rows) * self.queries.shape[1] * asked * plan.pruned.entries
        is_whole = plan.pruned.mask is None and min(track.target for track in plan.tracks) >= asked
        return is_whole and any(plan.is_due) and plan.widest <= asked and size <= WEIGHT_BYTES

    def prune(self, plan: Pass) -> None:
        """Move what stays of each row to its left, in temporal order, or best first where the cells' policy is not temporal."""
        entries = plan.pruned.entries
        assert self.positions is not None
        keys, values, positions = (x[:, :, :entries] for x in (self.keys, self.values, self.positions))
        scores, protected = self.scores(plan, keys, positions), plan.protected(positions)
        places = None if self.temporal else positions
        if plan.keep is not None:
            index, tied = select(scores, plan.keep, protected, places)
        else:
            index, tied = select_ragged(
                scores, plan.keep_rows, plan.pruned.lengths, plan.widest_keep, protected, places, plan.narrowest_keep
            )
        kept, width = positions.gather(2, index), index.shape[2]
        kept_keys = take_entries(keys, index)
        if self.state.rotary is not None:
            before, after = (numbers[:, None, None] for numbers in (plan.pruned.lengths, plan.keep_rows))
            kept_keys = self.state.rotary.turn(kept_keys, places_closed(index, before, after))
        self.keys[:, :, :width], self.values[:, :, :width] = kept_keys, take_entries(values, index)
        self.positions[:, :, :width] = kept
        stays = torch.arange(width, device=self.device) < plan.keep_rows[:, None, None]
        if self.mass is not None:
            mass = self.mass[:, :, :entries].gather(2, index)
            self.mass.zero_()
            self.mass[:, :, :width] = mass.masked_fill(~stays, 0.0)
        recent = (kept >= (plan.seen_rows - RECENT)[:, None, None]) & stays
        recent = recent.sum(-1) / plan.seen_rows[:, None].clamp(max=RECENT)
        sink = ((kept == 0) & stays).any(-1)
        self.sums += torch.stack([recent, sink.float(), tied.float()]) * plan.due_rows

    def scores(self, plan: Pass, keys: Tensor, positions: Tensor) -> Tensor:
        """Scores of all rows: a policy at a time where entries score alone, else a cell at a time without its padding.

        A policy of a user's own is called for the cells that prune now and for no others.
        """
        tracks, windows, parts, first = plan.tracks, plan.windows, [], 0
        while first < len(tracks):
            policy, last = tracks[first].policy, first + 1
            whole = policy.entrywise and policy.own
            while whole and last < len(tracks) and tracks[last].policy is policy:
                last += 1
            rows = slice(first * windows, last * windows)
            if not (policy.own or plan.is_due[first]):
                parts.append(torch.zeros(positions[rows].shape, device=self.device))
                first = last
                continue
            n = keys.shape[2] if whole else tracks[first].held + int(plan.counts[first])
            queries = None if self.queries is None else self.queries[rows, :, -min(OBSERVED_QUERIES, tracks[first].target) :]
            seen, keep, seed, ids = (
                x[rows, None, None] for x in (plan.seen_rows, plan.keep_rows, plan.seeds, self.state.row_ids)
            )
            mass = None if self.mass is None else self.mass[rows, :, :n]
            made = None if self.weights is None else self.weights[rows]
            view = CacheView(
                keys[rows, :, :n], positions[rows, :, :n], seen, keep, torch.full_like(seed, self.index), seed, ids, queries,
                mass, *self.scale, made,
            )  # fmt: skip
            parts.append(torch.nn.functional.pad(scores_of(policy, view), (0, keys.shape[2] - n)))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone; the cells of the others are done."""
        self.sums = self.sums[:, rows]
        for name in ("keys", "values", "positions", "queries", "mass"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[rows])

    def get_seq_length(self) -> int:
        """Not a length: rows are at different points, and the caller gives positions."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the packed tokens."""
        return query_length, 0
