"""The Hugging Face Cache of many cells in one forward pass: it chooses how each layer stores its entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from workers.cell_batch import BatchLayer
from workers.pass_plan import Pass, Track
from workers.shared_prefix import PrefixLayer
from workers.slot_layer import SlotLayer, SlotStore


class BatchCache(Cache):
    """The layers of a batch of cells that skip the same layers, observe the same things and order entries in the same way.

    ``short_passes``: the cells drop so few entries at a time that moving the others would cost more than masks per head. The
    entries of a policy that is not temporal are moved nevertheless: that they lie in another order is what it is run for.
    """

    def __init__(
        self, prefix: Sequence[PrefixLayer], tracks: Sequence[Track], row_ids: Sequence[int], short_passes: bool
    ) -> None:
        device = prefix[0].device
        self.row_ids = torch.tensor(list(row_ids) * len(tracks), device=device)
        self.current: Pass = None  # pyright: ignore[reportAttributeAccessIssue]
        prunes = tracks[0].settings.prunes
        in_slots = short_passes and all(t.policy.entrywise and t.policy.temporal for t in tracks)
        super().__init__(
            layers=[
                (SlotLayer if in_slots and prunes(i) else BatchLayer)(i, self, layer, tracks, prunes(i))
                for i, layer in enumerate(prefix)
            ]
        )

        slots = [layer for layer in self.layers if isinstance(layer, SlotLayer)]
        held = torch.tensor([track.held for track in tracks for _ in row_ids], device=device)
        self._store = SlotStore(slots, held) if slots else None

    @property
    def batch_layers(self) -> list[BatchLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    def begin(self, plan: Pass) -> None:
        """Before a pass."""
        self.current = plan
        if self._store:
            self._store.begin(plan)

    def end(self) -> None:
        """After a pass."""
        if self._store:
            self._store.end(self.current)

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone; the cells of the others are done."""
        self.row_ids = self.row_ids[rows]
        if self._store:
            self._store.drop_rows(rows)
        for layer in self.batch_layers:
            if not isinstance(layer, SlotLayer):
                layer.drop_rows(rows)
