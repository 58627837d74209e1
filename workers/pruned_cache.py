"""A Hugging Face Cache whose layers prune themselves; owns positions, records what was dropped.

Drop-in: ``model.generate(..., past_key_values=PrunedCache(model.config, keep_ratio=0.9, prune_after=512))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from workers.attention import NAME as OWN_ATTENTION
from workers.cell_scores import Validity
from workers.eviction import find_policy
from workers.pruned_layer import PrunedLayer
from workers.settings import PruneSettings


class PrunedCache(Cache):
    """KV cache that prunes by ``PruneSettings``; see the module's and the layer's docstring.

    ``row_ids`` names the texts of the batch for the ``random`` policy. ``stopwatch``, where given, is entered around every
    prune; without it nothing is measured.
    """

    def __init__(
        self, config: PretrainedConfig, settings: PruneSettings | None = None, *, row_ids: Sequence[int] | None = None,
        stopwatch: AbstractContextManager[Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """``options`` are the fields of PruneSettings, for use without one. Raises ValueError for a layer out of range."""
        self.config = config
        options["skip_layers"] = tuple(options.get("skip_layers", ()))
        self.settings = settings or PruneSettings(**options)
        count = config.get_text_config().num_hidden_layers
        if any(layer >= count for layer in self.settings.skip_layers):
            raise ValueError(f"skip_layers {list(self.settings.skip_layers)}: the model has layers 0..{count - 1}")
        self.policy = find_policy(self.settings.policy)
        self.row_ids, self.stopwatch = row_ids, stopwatch or nullcontext()
        self._rows: Tensor | None = None
        self.outside: tuple[int, int] = (0, 0)
        """Positions [start, end) that are kept out of pruning: neither dropped nor counted, and no check ends the pass that
        brings the last of them. For the question to a context that is pruned before it is known."""
        self._pruning = [i for i in range(count) if self.settings.prunes(i)]
        super().__init__(layers=[PrunedLayer(i, self) for i in range(count)])

    @property
    def own_attention(self) -> bool:
        """Whether the model calls our attention function, which prunes after attending."""
        return self.config._attn_implementation == OWN_ATTENTION

    @property
    def pruned_layers(self) -> list[PrunedLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """[batch] ids of the texts in the batch."""
        if self._rows is None or self._rows.shape[0] != batch:
            self._rows = torch.tensor(list(self.row_ids) if self.row_ids is not None else list(range(batch)), device=device)
        return self._rows

    def take_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone; a row may come more than once."""
        keys = self.pruned_layers[0].stored()[0]
        names = self.rows(keys.shape[0], keys.device).tolist()
        self.row_ids = [names[row] for row in rows]
        self._rows = None
        for layer in self.pruned_layers:
            layer.take_rows(rows)

    def next_position(self) -> int:
        """Position id of the next token: tokens seen; entries held by a pruning layer under ``cache_length``."""
        layers = self.pruned_layers
        if self.settings.position_mode == "cache_length" and self._pruning:
            return layers[self._pruning[0]].held
        return layers[0].seen

    @property
    def events(self) -> int:
        """Prunes so far, of all layers."""
        return sum(layer.record.events for layer in self.pruned_layers)

    def check_attention(self, new: int, layer: PrunedLayer) -> None:
        """Refuse stock attention where its mask, made once for all layers, would be wrong. Raises ValueError."""
        if self.own_attention:
            return
        name, remedy = self.config._attn_implementation, f"call model.set_attn_implementation({OWN_ATTENTION!r}) first"
        if self._pruning and self.policy.observes != "nothing":
            raise ValueError(f"policy {self.settings.policy!r} observes queries, and attention {name!r} shows none; {remedy}")
        stock_is_right = (layer.seen == layer.held and not self._pruning) or layer.seen == 0 or (name == "sdpa" and new == 1)
        if not stock_is_right:
            raise ValueError(f"attention {name!r} cannot take {new} tokens after pruning (its mask is for one length); {remedy}")

    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now, by tensor sizes (per KV head, never expanded to query heads)."""
        total = 0
        for layer in self.pruned_layers:
            if layer.is_initialized:
                keys, values = layer.stored()
                total += keys.numel() * keys.element_size() + values.numel() * values.element_size()
        return total

    def validity(self) -> Validity:
        """What was dropped so far, averaged over events, layers and heads for each batch row (synchronises)."""
        records = [r for layer in self.pruned_layers if (r := layer.record).events]
        if not records:
            return Validity(0)
        events = sum(r.events for r in records)

        def mean(name: str) -> list[float]:
            return (torch.stack([getattr(r, name) for r in records]).sum(0).mean(-1) / events).tolist()

        return Validity(max(r.events for r in records), mean("recent"), mean("sink"), mean("ties"))
