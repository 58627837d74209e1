"""The cache of many cells on the same windows in one forward pass, each cell at its own point of the text.

A row is one window of one cell. A pass brings every row the tokens up to its cell's next prune event; they travel packed, as
one sequence, through everything that works token by token, and are laid out row by row, padded, for attention alone. After
it, every row drops what its cell's schedule says. No two rows touch, so the figures are those of each cell alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from workers.attention import LAYER, Scale, attention, probe
from workers.budget import Schedule
from workers.eviction import OBSERVED_QUERIES, CacheView, Policy, select, select_ragged, take_entries
from workers.pruned_layer import RECENT
from workers.settings import PruneSettings
from workers.shared_prefix import PrefixLayer


@dataclass
class Track:
    """One cell of a batch and where it is."""

    index: int
    settings: PruneSettings
    schedule: Schedule
    policy: Policy
    seen: int
    held: int
    """Entries that each pruning layer holds now."""
    event: int = 1
    """Index of the next event; the first one happens when the cell leaves the shared prefix."""

    @property
    def target(self) -> int:
        """Tokens seen at the next event, or at the end."""
        events = self.schedule.events
        return events[self.event][0] if self.event < len(events) else self.schedule.steps

    @property
    def kept_next(self) -> int:
        """Entries that stay after the next event; all where there is none."""
        events = self.schedule.events
        return events[self.event][2] if self.event < len(events) else self.held + self.target - self.seen

    def advance(self) -> None:
        """After the pass to ``target``."""
        self.seen, self.held, self.event = self.target, self.kept_next, self.event + 1


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a pass go in layers that hold the same number of entries."""

    slots: Tensor
    """[tokens], place in its row's buffer."""
    lengths: Tensor
    """[rows], entries after the pass."""
    entries: int
    """The longest row."""
    mask: Tensor | None
    """[rows, 1, widest, entries] float, or None where each row is open then causal without padding."""


class Pass:
    """One forward pass: which tokens, at which positions, to which rows."""

    def __init__(self, tracks: Sequence[Track], windows: int, device: torch.device) -> None:
        self.tracks, self.windows, self.device = list(tracks), windows, device
        counts = np.array([track.target - track.seen for track in tracks])
        seen, held = (np.array([getattr(track, name) for track in tracks]) for name in ("seen", "held"))
        per_row = counts.repeat(windows)
        rows = np.arange(len(per_row)).repeat(per_row)
        offset = np.arange(len(rows)) - (per_row.cumsum() - per_row).repeat(per_row)
        cell = rows // windows
        lost = np.array([t.settings.position_mode == "cache_length" for t in tracks])
        self.counts, self.widest, self.is_even = counts, int(counts.max()), bool((counts == counts[0]).all())
        self.tokens_at = self._tensor(np.stack([rows % windows, seen[cell] + offset]))
        self.positions = self._tensor((np.where(lost, held, seen)[cell] + offset)[None])
        self.true_positions = self.tokens_at[1].to(torch.int32)
        self.rows, self.offset = self._tensor(rows), self._tensor(offset)
        self.pruned = self._layout(held, held[cell] + offset)
        self.full = self._layout(seen, seen[cell] + offset)
        self._cuts(seen + counts)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _per_row(self, values: Sequence[int] | np.ndarray) -> Tensor:
        return self._tensor(np.asarray(values, dtype=np.int64).repeat(self.windows))

    def _layout(self, before: np.ndarray, slots: np.ndarray) -> Layout:
        after = before + self.counts
        entries, mask = int(after.max()), None
        if not self.is_even or not bool((before == before[0]).all()):
            last = self._per_row(before)[:, None] + torch.arange(self.widest, device=self.device)
            hidden = torch.arange(entries, device=self.device) > last[..., None]
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None]
        return Layout(self._tensor(slots), self._per_row(after), entries, mask)

    def _cuts(self, seen_after: np.ndarray) -> None:
        """What each row keeps, and the per-row numbers that policies see."""
        keep = [track.kept_next for track in self.tracks]
        self.is_due = [track.event < len(track.schedule.events) for track in self.tracks]
        same = len(set(keep)) == 1 and self.pruned.mask is None
        self.keep = keep[0] if same else None
        self.per_row_counts = self._per_row(self.counts)
        self.widest_keep, self.keep_rows = max(keep), self._per_row(keep)
        self.seen_rows, self.most_seen = self._per_row(seen_after), int(seen_after.max())
        self.due_rows = self._per_row(self.is_due).float()[:, None]
        self.seeds = self._per_row([track.settings.seed for track in self.tracks])
        sinks, recents = ([getattr(t.settings, name) for t in self.tracks] for name in ("protect_sink", "protect_recent"))
        self.protects = any(sinks) or any(recents)
        self.sink_rows, self.recent_rows = self._per_row(sinks), self._per_row(recents)

    def laid_out(self, packed: Tensor) -> Tensor:
        """packed [1, heads, tokens, width] -> [rows, heads, widest, width], zeros behind shorter rows."""
        heads, width, rows = packed.shape[1], packed.shape[3], len(self.keep_rows)
        tokens = packed[0].transpose(0, 1)
        if self.is_even:
            return tokens.reshape(rows, self.widest, heads, width).transpose(1, 2)
        out = tokens.new_zeros(rows, self.widest, heads, width)
        out[self.rows, self.offset] = tokens
        return out.transpose(1, 2)

    def packed(self, laid_out: Tensor) -> Tensor:
        """The way back, as attention functions return it: [rows, heads, widest, width] -> [1, tokens, heads, width]."""
        by_row = laid_out.transpose(1, 2)
        return by_row.flatten(0, 1)[None] if self.is_even else by_row[self.rows, self.offset][None]


class BatchLayer(CacheLayerMixin):
    """One layer's entries of all rows: [rows, kv_heads, room, head_dim], each row filled from the left."""

    is_sliding = False
    is_compileable = False

    def __init__(self, index: int, owner: BatchCache, prefix: PrefixLayer, tracks: Sequence[Track], prunes: bool) -> None:
        """Fork the prefix for each cell at its first event, and prune there."""
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.index, self.owner, self.prunes, self.scale = index, owner, prunes, prefix.scale
        windows, heads, steps = prefix.keys.shape[:3]
        self.room = max(max(t.schedule.peak, t.held) for t in tracks) if prunes else steps
        rows = windows * len(tracks)
        self.keys = prefix.keys.new_zeros(rows, heads, self.room, prefix.keys.shape[3])
        self.values = prefix.values.new_zeros(rows, heads, self.room, prefix.values.shape[3])
        self.dtype, self.device, self.is_initialized = prefix.keys.dtype, prefix.keys.device, True
        self.positions = torch.zeros(rows, heads, self.room, dtype=torch.int32, device=self.device) if prunes else None
        self.sums = torch.zeros(3, rows, heads, device=self.device)
        observes = tracks[0].policy.observes if prunes else "nothing"
        self.queries = self.mass = None
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
        scalars = [torch.full((1, 1, 1), x, device=self.device) for x in (point, track.held, track.settings.seed)]
        view = CacheView(
            keys, positions, scalars[0], scalars[1], self.index, scalars[2], self.owner.row_ids[rows, None, None], queries, mass,
            *prefix.scale,
        )  # fmt: skip
        protected = None
        if track.settings.protect_sink or track.settings.protect_recent:
            protected = (positions < track.settings.protect_sink) | (positions >= point - track.settings.protect_recent)
        index, tied = select(track.policy.score(view), track.held, protected)
        kept = positions.gather(2, index)
        self.keys[rows, :, : track.held] = take_entries(keys, index)
        self.values[rows, :, : track.held] = take_entries(values, index)
        assert self.positions is not None
        self.positions[rows, :, : track.held] = kept
        if self.mass is not None and mass is not None:
            self.mass[rows, :, : track.held] = mass.gather(2, index)
        if self.queries is not None and queries is not None:
            self.queries[rows, :, OBSERVED_QUERIES - queries.shape[2] :] = queries
        self.sums[0, rows] = (kept >= point - RECENT).float().sum(-1) / min(RECENT, point)
        self.sums[1, rows] = (kept[..., 0] == 0).float()
        self.sums[2, rows] = tied.float()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the fork brought shapes and types."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the packed entries [1, kv_heads, tokens, head_dim] of the pass to their rows."""
        plan = self.owner.current
        layout = plan.pruned if self.prunes else plan.full
        self.keys[plan.rows, :, layout.slots] = key_states[0].transpose(0, 1)
        self.values[plan.rows, :, layout.slots] = value_states[0].transpose(0, 1)
        if self.positions is not None:
            self.positions[plan.rows, :, layout.slots] = plan.true_positions[:, None]
        setattr(key_states, LAYER, self)
        return key_states, value_states

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """query: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]; drops afterwards what the plan says."""
        plan = self.owner.current
        layout = plan.pruned if self.prunes else plan.full
        keys, values = self.keys[:, :, : layout.entries], self.values[:, :, : layout.entries]
        laid_out = plan.laid_out(query)
        if self.mass is not None:
            counted = torch.arange(plan.widest, device=self.device) < plan.per_row_counts[:, None]
            out, mass = probe(laid_out, keys, values, scale, layout.mask, counted)
            self.mass[:, :, : layout.entries] += mass
        else:
            out = attention(laid_out, keys, values, scale, layout.mask)
        if self.queries is not None:
            both = torch.cat([self.queries, laid_out], 2)
            last = plan.per_row_counts[:, None] + torch.arange(OBSERVED_QUERIES, device=self.device)
            self.queries = both.gather(2, last[:, None, :, None].expand(-1, both.shape[1], -1, both.shape[3]))
        if self.prunes and any(plan.is_due):
            self._prune(plan)
        return plan.packed(out)

    def _prune(self, plan: Pass) -> None:
        entries = plan.pruned.entries
        assert self.positions is not None
        keys, values, positions = (x[:, :, :entries] for x in (self.keys, self.values, self.positions))
        protected = None
        if plan.protects:
            protected = positions < plan.sink_rows[:, None, None]
            protected |= positions >= (plan.seen_rows - plan.recent_rows)[:, None, None]
        scores = self._scores(plan, keys, positions)
        if plan.keep is not None:
            index, tied = select(scores, plan.keep, protected)
        else:
            index, tied = select_ragged(scores, plan.keep_rows, plan.pruned.lengths, plan.widest_keep, protected)
        kept, width = positions.gather(2, index), index.shape[2]
        self.keys[:, :, :width], self.values[:, :, :width] = take_entries(keys, index), take_entries(values, index)
        self.positions[:, :, :width] = kept
        if self.mass is not None:
            mass = self.mass[:, :, :entries].gather(2, index)
            self.mass.zero_()
            self.mass[:, :, :width] = mass.masked_fill(
                torch.arange(width, device=self.device) >= plan.keep_rows[:, None, None], 0.0
            )
        seen = plan.seen_rows[:, None, None]
        recent = (kept >= seen - RECENT) & (torch.arange(width, device=self.device) < plan.keep_rows[:, None, None])
        shares = torch.stack([recent.sum(-1) / seen[..., 0].clamp(max=RECENT), (kept[..., 0] == 0).float(), tied.float()])
        self.sums += shares * plan.due_rows

    def _scores(self, plan: Pass, keys: Tensor, positions: Tensor) -> Tensor:
        """Scores of all rows: a policy at a time where entries score alone, else a cell at a time without its padding."""
        tracks, windows, parts, first = plan.tracks, plan.windows, [], 0
        while first < len(tracks):
            policy, last = tracks[first].policy, first + 1
            while policy.entrywise and last < len(tracks) and tracks[last].policy is policy:
                last += 1
            rows = slice(first * windows, last * windows)
            n = keys.shape[2] if policy.entrywise else tracks[first].held + int(plan.counts[first])
            queries = None if self.queries is None else self.queries[rows, :, -min(OBSERVED_QUERIES, tracks[first].target) :]
            view = CacheView(
                keys[rows, :, :n], positions[rows, :, :n], plan.seen_rows[rows, None, None], plan.keep_rows[rows, None, None],
                self.index, plan.seeds[rows, None, None], self.owner.row_ids[rows, None, None], queries,
                None if self.mass is None else self.mass[rows, :, :n], self.scale.scaling, self.scale.softcap,
            )  # fmt: skip
            parts.append(torch.nn.functional.pad(policy.score(view), (0, keys.shape[2] - n)))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone; the cells of the others are done."""
        self.keys, self.values, self.sums = self.keys[rows], self.values[rows], self.sums[:, rows]
        for name in ("positions", "queries", "mass"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[rows])

    @property
    def seen(self) -> int:
        """Tokens that the row furthest on has seen."""
        return self.owner.current.most_seen

    def get_seq_length(self) -> int:
        """Not a length: rows are at different points, and the caller gives positions."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the packed tokens."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class BatchCache(Cache):
    """The layers of a batch of cells that skip the same layers and observe the same things."""

    def __init__(self, prefix: Sequence[PrefixLayer], tracks: Sequence[Track], row_ids: Sequence[int]) -> None:
        device = prefix[0].device
        self.row_ids = torch.tensor(list(row_ids) * len(tracks), device=device)
        self.current: Pass = None  # pyright: ignore[reportAttributeAccessIssue]
        prunes = tracks[0].settings.prunes
        super().__init__(layers=[BatchLayer(i, self, layer, tracks, prunes(i)) for i, layer in enumerate(prefix)])

    @property
    def batch_layers(self) -> list[BatchLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone."""
        self.row_ids = self.row_ids[rows]
        for layer in self.batch_layers:
            layer.drop_rows(rows)
