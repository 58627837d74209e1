"""Batch layers in which entries never move: a dropped entry's place is where the next token of its row and
head is written.

For cells that drop an entry or a few at every step, moving all the others closer together would cost more
than the model. Each head has its own free places, so what a query may see follows from the positions stored
beside the entries. Entries are not in temporal order here; ties are still broken by position, and policies
that look at neighbouring entries do not use it. What the layers of a batch do before and after a pass they do
together, in one set of operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from workers.cache.batch.cell_batch import BatchLayer
from workers.cache.batch.pass_plan import Pass
from workers.cache.layer_record import retained
from workers.cache.notes import Observed
from workers.policies.cache_view import view_of
from workers.policies.policy_calls import scores_of
from workers.policies.selection import NOT_HELD, are_tied, order_by_score, take_entries

FREE = 2**31 - 1
"""Position of a place that holds nothing: later than any query, so no query sees it."""


class SlotLayer(BatchLayer):
    """``BatchLayer`` whose places ``SlotStore`` manages."""

    place: Tensor
    """[tokens * kv_heads], index of each new entry among all places of the layer."""
    mask: Tensor

    def store(self, plan: Pass, key_states: Tensor, value_states: Tensor) -> None:
        """Write each token where its row and head has room:
        key_states, value_states [tokens, kv_heads, head_dim]."""
        for entries, new in ((self.keys, key_states), (self.values, value_states)):
            entries.view(-1, entries.shape[3]).index_copy_(0, self.place, new.reshape(-1, entries.shape[3]))

    def visible(self, plan: Pass) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of all places, and the mask [rows, kv_heads, widest, room]."""
        return self.keys, self.values, self.mask

    def prune(self, plan: Pass) -> None:
        """``SlotStore.end`` does it for all layers."""


class SlotStore:
    """The places of all pruning layers of a batch:
    tensors [layers, rows, kv_heads, ...], of which the layers hold views."""

    def __init__(self, layers: Sequence[SlotLayer], held: Tensor) -> None:
        """held: [rows], entries of each row; they are in the first places."""
        self.layers = layers
        self.device = layers[0].device
        self.keys = _joined(layers, "keys")
        self.values = _joined(layers, "values")
        self.positions = _joined(layers, "positions")
        self.sums = torch.stack([layer.sums for layer in layers], 1)
        self.heads = torch.arange(self.positions.shape[2], device=self.device)
        self.room = self.positions.shape[3]

        kind = self.keys.dtype
        self.shown, self.hidden = torch.tensor([0.0, -torch.inf], dtype=kind, device=self.device)
        self.mask_room = torch.empty(0, dtype=kind, device=self.device)

        held = held[:, None, None]
        self.positions.masked_fill_(torch.arange(self.room, device=self.device) >= held, FREE)
        free = (held + torch.arange(self.room - int(held.min()), device=self.device)).clamp_(
            max=self.room - 1
        )
        self.free = free.expand(len(layers), -1, len(self.heads), -1)
        self._bind()

    def _bind(self) -> None:
        for i, layer in enumerate(self.layers):
            layer.keys, layer.values, layer.positions = self.keys[i], self.values[i], self.positions[i]
            layer.sums = self.sums[:, i]

    def begin(self, plan: Pass) -> None:
        """Give every token of the pass its place in every layer and head, and every query what it may see."""
        places = self.free[:, plan.rows, :, plan.offset].transpose(0, 1)  # [layers, tokens, kv_heads]
        layer_of = torch.arange(len(self.layers), device=self.device)[:, None, None]
        rows = plan.rows[:, None]
        self.positions[layer_of, rows, self.heads, places] = plan.true_positions[:, None]
        flat = ((rows * len(self.heads) + self.heads) * self.room + places).flatten(1)
        masks = self._masks(plan)
        for i, layer in enumerate(self.layers):
            layer.place, layer.mask = flat[i], masks[i]

    def _masks(self, plan: Pass) -> Tensor:
        """[layers, rows, kv_heads, widest, room], -inf where a place is free or later than the query; in
        memory kept for it."""
        shape = (*self.positions.shape[:3], plan.widest, self.room)
        size = math.prod(shape)
        if self.mask_room.numel() < size:
            self.mask_room = torch.empty(size, dtype=self.keys.dtype, device=self.device)
        masks = self.mask_room[:size].view(shape)
        visible = self.positions[:, :, :, None] <= plan.query_positions[:, None, :, None]
        return torch.where(visible, self.shown, self.hidden, out=masks)

    def end(self, plan: Pass) -> None:
        """Free the places of what is dropped: all but the best ``keep`` of each row and head."""
        if not any(plan.is_due):
            return
        order = order_by_score(self._scores(plan), self.positions, plan.protected(self.positions))
        order = order.masked_fill_(self.positions == FREE, NOT_HELD)

        spare = self.room - plan.keep_rows[:, None, None]
        worst, self.free = order.topk(
            min(self.room - plan.narrowest_keep + 1, self.room), dim=-1, largest=False
        )
        cut = spare.expand(*worst.shape[:3], 1)
        best_dropped = worst.gather(-1, (cut - 1).clamp(min=0))
        worst_kept = worst.gather(-1, cut.clamp(max=worst.shape[3] - 1))
        tied = are_tied(best_dropped, worst_kept)[..., 0]

        goes = torch.arange(worst.shape[3], device=self.device) < spare
        self.positions.scatter_(3, self.free, self.positions.gather(3, self.free).masked_fill_(goes, FREE))
        left = retained(self.positions, plan.seen_rows[:, None, None], self.positions != FREE)
        self.sums += torch.stack([*left, tied.float()]) * plan.due_rows

    def _scores(self, plan: Pass) -> Tensor:
        """[layers, rows, kv_heads, room], a policy at a time; of users' own, a cell at a time."""
        windows, count = plan.windows, len(self.layers)
        row_ids = self.layers[0].state.row_ids
        index = torch.tensor([layer.index for layer in self.layers], device=self.device)
        parts = []
        first = 0
        while first < len(plan.tracks):
            policy = plan.tracks[first].policy
            last = first + 1
            if not policy.own:
                parts.append(self._foreign_scores(plan, first))
                first = last
                continue
            while last < len(plan.tracks) and plan.tracks[last].policy is policy:
                last += 1

            rows = slice(first * windows, last * windows)
            keys, positions = self.keys[:, rows].flatten(0, 1), self.positions[:, rows].flatten(0, 1)
            seen, keep, seed, ids = (
                x[rows].repeat(count) for x in (plan.seen_rows, plan.keep_rows, plan.seeds, row_ids)
            )
            view = view_of(
                keys=keys,
                values=partial(_cut, self.values, rows),
                positions=positions,
                seen=seen,
                keep=keep,
                layer=index.repeat_interleave(rows.stop - rows.start),
                seed=seed,
                row_ids=ids,
                scale=self.layers[0].scale,
                observed=Observed(),
            )
            scores = scores_of(policy, view)

            parts.append(scores.unflatten(0, (count, -1)))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _foreign_scores(self, plan: Pass, place: int) -> Tensor:
        """[layers, windows, kv_heads, room] of one cell's policy, a user's own, which sees its entries alone
        and in order."""
        track = plan.tracks[place]
        windows = plan.windows
        count = len(self.layers)
        rows = slice(place * windows, (place + 1) * windows)
        positions = self.positions[:, rows].flatten(0, 1)
        scores = torch.zeros(positions.shape, device=self.device)

        if plan.is_due[place]:
            order = positions.argsort(-1)[..., : track.held + int(plan.counts[place])]
            keys = take_entries(self.keys[:, rows].flatten(0, 1), order)
            row_ids = self.layers[0].state.row_ids
            seen, keep, seed, ids = (
                x[rows].repeat(count) for x in (plan.seen_rows, plan.keep_rows, plan.seeds, row_ids)
            )
            index = torch.tensor([layer.index for layer in self.layers], device=self.device)
            view = view_of(
                keys=keys,
                values=lambda: take_entries(_cut(self.values, rows), order),
                positions=positions.gather(-1, order),
                seen=seen,
                keep=keep,
                layer=index.repeat_interleave(windows),
                seed=seed,
                row_ids=ids,
                scale=self.layers[0].scale,
                observed=Observed(),
            )
            scores.scatter_(-1, order, scores_of(track.policy, view))
        return scores.unflatten(0, (count, -1))

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone."""
        # one after the other, and bound at once, so that no two are there twice
        self.keys = self.keys[:, rows]
        self._bind()
        self.values = self.values[:, rows]
        self._bind()
        self.positions = self.positions[:, rows]
        self._bind()

        self.free = self.free[:, rows]
        self.sums = self.sums[:, :, rows]
        self._bind()


def _cut(values: Tensor, rows: slice) -> Tensor:
    """[layers * some rows, kv_heads, room, head_dim] of values [layers, rows, kv_heads, room, head_dim]."""
    return values[:, rows].flatten(0, 1)


def _joined(layers: Sequence[SlotLayer], name: str) -> Tensor:
    """[layers, ...], a tensor of each layer; the layer's own is given up as soon as it is copied."""
    first = getattr(layers[0], name)
    whole = first.new_empty(len(layers), *first.shape)
    for i, layer in enumerate(layers):
        whole[i] = getattr(layer, name)
        setattr(layer, name, whole[i])
    return whole
