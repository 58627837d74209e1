"""One forward pass of many cells:
where each cell is, which tokens go through, where they are stored, what is kept after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from workers.cache.prune_step import protected_entries
from workers.cache.rotary import Rotary
from workers.policies.budget import Schedule
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings


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
        self.tracks = list(tracks)
        self.windows = windows
        self.device = device
        counts = np.array([track.target - track.seen for track in tracks])
        seen = np.array([track.seen for track in tracks])
        held = np.array([track.held for track in tracks])
        lost = np.array([track.settings.position_mode == "cache_length" for track in tracks])

        per_row = counts.repeat(windows)
        rows = np.arange(len(per_row)).repeat(per_row)
        offset = np.arange(len(rows)) - (per_row.cumsum() - per_row).repeat(per_row)
        cell = rows // windows

        self.counts = counts
        self.widest = int(counts.max())
        self.is_even = bool((counts == counts[0]).all())
        self.window, self.step = self._tensor(np.stack([rows % windows, seen[cell] + offset]))
        self.positions = self._tensor((np.where(lost, held, seen)[cell] + offset)[None])
        self.true_positions = self.step.to(torch.int32)
        self.rows = self._tensor(rows)
        self.offset = self._tensor(offset)
        self._held, self._seen = held, seen
        self._cell, self._offset = cell, offset

        queries = self._per_row(seen)[:, None] + torch.arange(self.widest, device=device)
        self.query_positions = queries.to(torch.int32)
        self._cuts(seen + counts)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _per_row(self, values: Sequence[int] | np.ndarray) -> Tensor:
        return self._tensor(np.asarray(values, dtype=np.int64).repeat(self.windows))

    @cached_property
    def pruned(self) -> Layout:
        """Of the layers that prune."""
        return self._layout(self._held, self._held[self._cell] + self._offset)

    @cached_property
    def full(self) -> Layout:
        """Of the layers that are skipped."""
        return self._layout(self._seen, self._seen[self._cell] + self._offset)

    def _layout(self, before: np.ndarray, slots: np.ndarray) -> Layout:
        after = before + self.counts
        entries = int(after.max())
        mask = None
        if not self.is_even or not bool((before == before[0]).all()):
            last = self._per_row(before)[:, None] + torch.arange(self.widest, device=self.device)
            hidden = torch.arange(entries, device=self.device) > last[..., None]
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None]
        return Layout(self._tensor(slots), self._per_row(after), entries, mask)

    def _cuts(self, seen_after: np.ndarray) -> None:
        """What each row keeps, and the per-row numbers that policies see."""
        keep = [track.kept_next for track in self.tracks]
        self.is_due = [track.event < track.schedule.count for track in self.tracks]
        same = len(set(keep)) == 1 and self.is_even and len(set(self._held)) == 1
        self.keep = keep[0] if same else None
        self.widest_keep = max(keep)
        self.narrowest_keep = min(keep)
        self.most_seen = int(seen_after.max())

        self.count_rows = self._per_row(self.counts)
        self.keep_rows = self._per_row(keep)
        self.seen_rows = self._per_row(seen_after)
        self.due_rows = self._per_row(self.is_due).float()[:, None]
        self.seeds = self._per_row([track.settings.seed for track in self.tracks])

        sinks = [track.settings.protect_sink for track in self.tracks]
        recents = [track.settings.protect_recent for track in self.tracks]
        self._protects = any(sinks) or any(recents)
        self._sink_rows = self._per_row(sinks)
        self._recent_rows = self._per_row(recents)

    def protected(self, positions: Tensor) -> Tensor | None:
        """positions [rows, kv_heads, n] -> bool, what is never dropped; None where no cell protects any."""
        if not self._protects:
            return None
        seen, sink, recent = (
            rows[:, None, None] for rows in (self.seen_rows, self._sink_rows, self._recent_rows)
        )
        return protected_entries(positions, seen, sink, recent)

    def laid_out(self, packed: Tensor) -> Tensor:
        """packed [1, heads, tokens, width] -> [rows, heads, widest, width], zeros behind shorter rows."""
        heads = packed.shape[1]
        width = packed.shape[3]
        rows = len(self.keep_rows)
        tokens = packed[0].transpose(0, 1)
        if self.is_even:
            return tokens.reshape(rows, self.widest, heads, width).transpose(1, 2)
        out = tokens.new_zeros(rows, self.widest, heads, width)
        out[self.rows, self.offset] = tokens
        return out.transpose(1, 2)

    def by_row(self, packed: Tensor) -> Tensor:
        """packed [tokens, kv_heads, width], of rows that bring as many -> [rows, kv_heads, widest, width]."""
        return packed.unflatten(0, (-1, self.widest)).transpose(1, 2)

    @cached_property
    def asked_of_all(self) -> int:
        """How many of the last queries policies ask about behind this pass, where every row has as many, the
        pass's own are among them and no row is padded; else 0."""
        asked = max(track.policy.observes.amount for track in self.tracks)
        if not any(self.is_due) or self.widest > asked or min(track.target for track in self.tracks) < asked:
            return 0
        return asked if self.pruned.mask is None else 0

    def packed(self, laid_out: Tensor) -> Tensor:
        """The way back, as attention functions return it:
        [rows, heads, widest, width] -> [1, tokens, heads, width]."""
        by_row = laid_out.transpose(1, 2)
        return by_row.flatten(0, 1)[None] if self.is_even else by_row[self.rows, self.offset][None]


@dataclass
class PassState:
    """What the layers of a batch share.
    They hold this and not their cache, which is freed as soon as nobody holds it."""

    row_ids: Tensor
    """[rows], what names the rows' texts."""
    plan: Pass | None = None
    rotary: Rotary | None = None
    """How keys are turned, for cells whose policy rolls."""

    @property
    def current(self) -> Pass:
        """The pass that is going through."""
        assert self.plan is not None, "a pass of the batch has to be begun first"
        return self.plan
