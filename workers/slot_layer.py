"""A batch layer in which entries never move: a dropped entry's place is where the next token of its row and head is written.

For cells that drop an entry or a few at every step, moving all the others closer together would cost more than the model. Each
head has its own free places, so what a query may see follows from the positions stored beside the entries. Entries are not
in temporal order here; ties are still broken by position, and policies that look at neighbouring entries do not use it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.cell_batch import BatchLayer
from workers.eviction import order_by_score
from workers.pass_plan import Pass
from workers.pruned_layer import RECENT

FREE = 2**31 - 1
"""Position of a place that holds nothing: later than any query, so no query sees it."""


class SlotLayer(BatchLayer):
    """``BatchLayer`` for policies that score each entry alone; see the module."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.positions is not None
        held = self.owner.held_rows()[:, None, None]
        place = torch.arange(self.room, device=self.device)
        self.positions.masked_fill_(place >= held, FREE)
        free = torch.arange(self.room - int(held.min()), device=self.device)
        self.free = (held + free).clamp_(max=self.room - 1).expand(-1, self.positions.shape[1], -1)
        self.heads = torch.arange(self.positions.shape[1], device=self.device)

    def store(self, plan: Pass, key_states: Tensor, value_states: Tensor) -> None:
        """Write each token where its row and head has room: key_states, value_states [tokens, kv_heads, head_dim]."""
        assert self.positions is not None
        place = (plan.rows[:, None], self.heads, self.free[plan.rows, :, plan.offset])
        self.keys[place], self.values[place] = key_states, value_states
        self.positions[place] = plan.true_positions[:, None]

    def visible(self, plan: Pass) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of all places, and the mask [rows, kv_heads, widest, room]."""
        assert self.positions is not None
        hidden = self.positions[:, :, None] > plan.query_positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
        return self.keys, self.values, mask

    def prune(self, plan: Pass) -> None:
        """Free the places of what is dropped: all but the best ``keep`` of each row and head."""
        positions = self.positions
        assert positions is not None
        protected = plan.protected(positions)
        order = order_by_score(self.scores(plan, self.keys, positions), positions, protected)
        order = order.masked_fill_(positions == FREE, -(1 << 62))
        spare = self.room - plan.keep_rows[:, None, None]
        lowest = self.room - plan.narrowest_keep
        worst, self.free = order.topk(min(lowest + 1, self.room), dim=-1, largest=False)
        cut = spare.expand(-1, worst.shape[1], -1)
        best_dropped, worst_kept = worst.gather(-1, (cut - 1).clamp(min=0)), worst.gather(-1, cut.clamp(max=worst.shape[2] - 1))
        tied = ((best_dropped >> 24) == (worst_kept >> 24))[..., 0]
        goes = torch.arange(worst.shape[2], device=self.device) < spare
        positions.scatter_(2, self.free, positions.gather(2, self.free).masked_fill_(goes, FREE))
        near = positions >= (plan.seen_rows - RECENT)[:, None, None]
        recent = (near & (positions != FREE)).sum(-1) / plan.seen_rows[:, None].clamp(max=RECENT)
        self.sums += torch.stack([recent, (positions == 0).any(-1).float(), tied.float()]) * plan.due_rows

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone."""
        super().drop_rows(rows)
        self.free = self.free[rows]
