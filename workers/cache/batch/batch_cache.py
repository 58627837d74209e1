"""The Hugging Face Cache of many cells in one forward pass: it chooses how each layer stores its entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from workers.cache.attention import PACKED_OFFSET
from workers.cache.batch.cell_batch import BatchLayer
from workers.cache.batch.pass_plan import Pass, PassState, Track
from workers.cache.batch.slot_layer import SlotLayer, SlotStore
from workers.cache.rotary import Rotary
from workers.cache.shared_prefix import PrefixLayer


class BatchCache(Cache):
    """The layers of a batch of cells that skip the same layers, observe the same things and order entries in
    the same way.

    ``short_passes``: the cells drop so few entries at a time that moving the others would cost more than
    masks per head.
    """

    def __init__(
        self,
        prefix: Sequence[PrefixLayer],
        tracks: Sequence[Track],
        row_ids: Sequence[int],
        short_passes: bool,
        config: PretrainedConfig,
    ) -> None:
        """Raises ValueError where the cells' policy rolls and the model's rotation is not a plain one."""
        device = prefix[0].device
        self.state = PassState(torch.tensor(list(row_ids) * len(tracks), device=device))
        prunes = tracks[0].settings.prunes
        self.state.rotary = Rotary.of(config) if tracks[0].policy.rolls else None
        in_slots = short_passes and all(track.policy.in_slots for track in tracks)
        super().__init__(
            layers=[
                (SlotLayer if in_slots and prunes(i) else BatchLayer)(i, self.state, layer, tracks, prunes(i))
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

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """None that would hold for all rows."""
        return PACKED_OFFSET

    def begin(self, plan: Pass) -> None:
        """Make the layers ready for this pass."""
        self.state.plan = plan
        if self._store:
            self._store.begin(plan)

    def end(self) -> None:
        """After a pass. Raises WrongUseError where a layer's new entries were not attended to."""
        for layer in self.batch_layers:
            layer.check_attended()
        if self._store:
            self._store.end(self.state.current)

    def drop_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` alone; the cells of the others are done."""
        self.state.row_ids = self.state.row_ids[rows]
        if self._store:
            self._store.drop_rows(rows)
        for layer in self.batch_layers:
            if not isinstance(layer, SlotLayer):
                layer.drop_rows(rows)
