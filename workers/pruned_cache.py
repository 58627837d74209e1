"""A Hugging Face Cache whose layers prune themselves; owns positions, records what was dropped.

Drop-in: ``model.generate(..., past_key_values=PrunedCache(model.config, keep_ratio=0.9, prune_after=512))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from workers.attention import NAME as OWN_ATTENTION
from workers.budget import is_due, kept_count
from workers.eviction import POLICIES, CacheView, select
from workers.settings import PruneSettings

SLACK = 64
"""Entries a buffer has room for beyond what it holds when it is made, so that appending copies nothing most of the time."""

RECENT = 8
"""``recent_retained`` looks at this many of the last positions."""


@dataclass
class LayerRecord:
    """Sums over a layer's prune events, [batch, kv_heads] each, so that nothing is synchronised while running."""

    events: int = 0
    recent: Tensor | None = None
    sink: Tensor | None = None
    ties: Tensor | None = None

    def add(self, positions: Tensor, seen: int, tied: Tensor) -> None:
        """Count one event: ``positions`` [batch, kv_heads, kept] are what is left of ``seen`` tokens."""
        last = positions[..., -RECENT:]
        recent = (last >= seen - RECENT).float().sum(-1) / min(RECENT, seen)
        sink = (positions[..., 0] == 0).float()
        self.events += 1
        self.recent = recent if self.recent is None else self.recent + recent
        self.sink = sink if self.sink is None else self.sink + sink
        self.ties = tied.float() if self.ties is None else self.ties + tied.float()


class PrunedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers with room to grow; prunes after each pass.

    ``update`` returns what the queries of this pass attend to: everything stored and the new entries. What it *stores* may
    be less: pruning copies the kept entries into a new buffer, so the returned tensors stay whole for the attention.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, index: int, owner: PrunedCache) -> None:
        super().__init__()
        self.index, self.owner = index, owner
        self.held = self.seen = 0
        self.positions: Tensor | None = None
        self.record = LayerRecord()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers of the shape, type and device of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._reserve(key_states, value_states, key_states.shape[2] + SLACK)
        self.is_initialized = True

    def _reserve(self, key_like: Tensor, value_like: Tensor, room: int) -> None:
        batch, heads = key_like.shape[:2]
        self.keys = key_like.new_empty(batch, heads, room, key_like.shape[3])
        self.values = value_like.new_empty(batch, heads, room, value_like.shape[3])
        if self.owner.settings.prunes(self.index):
            self.positions = torch.empty(batch, heads, room, dtype=torch.int32, device=key_like.device)

    def _adopt(self, keys: Tensor, values: Tensor, positions: Tensor | None) -> None:
        """Copy entries into fresh buffers that have room behind them."""
        held = keys.shape[2]
        self._reserve(keys, values, held + max(SLACK, held // 4))
        assert self.keys is not None and self.values is not None
        self.keys[:, :, :held], self.values[:, :, :held] = keys, values
        if self.positions is not None and positions is not None:
            self.positions[:, :, :held] = positions
        self.held = held

    def stored(self) -> tuple[Tensor, Tensor]:
        """Views of the entries held now, [batch, kv_heads, held, head_dim] each."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.held], self.values[:, :, : self.held]

    def stored_positions(self) -> Tensor:
        """Absolute positions of the entries held now, [batch, kv_heads, held], ascending."""
        if self.positions is None:
            assert self.keys is not None
            return torch.arange(self.held, device=self.keys.device, dtype=torch.int32).expand(*self.keys.shape[:2], -1)
        return self.positions[:, :, : self.held]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new entries, return all for this pass's attention, then prune what is stored.

        key_states, value_states: [batch, kv_heads, q, head_dim] -> [batch, kv_heads, held + q, head_dim] each.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        self.owner.check_attention(new, self)
        first_pass = self.seen == 0
        assert self.keys is not None and self.values is not None
        if self.held + new > self.keys.shape[2]:
            self._grow(new)
        end = self.held + new
        self.keys[:, :, self.held : end], self.values[:, :, self.held : end] = key_states, value_states
        if self.positions is not None:
            self.positions[:, :, self.held : end] = torch.arange(self.seen, self.seen + new, device=self.device)
        self.held, self.seen = end, self.seen + new
        keys, values = self.stored()
        if self.owner.settings.schedule == "every_step" or first_pass:
            self.prune_if_due()
        return keys, values

    def _grow(self, new: int) -> None:
        keys, values = self.stored()
        held, positions = self.held, None if self.positions is None else self.stored_positions()
        self._reserve(keys, values, held + new + max(SLACK, held // 4))
        assert self.keys is not None and self.values is not None
        self.keys[:, :, :held], self.values[:, :, :held] = keys, values
        if self.positions is not None and positions is not None:
            self.positions[:, :, :held] = positions

    def prune_if_due(self) -> None:
        """Drop entries down to the budget where this layer prunes and its threshold is reached."""
        settings = self.owner.settings
        if settings.prunes(self.index) and is_due(settings.keep_ratio, settings.prune_after, self.held):
            self.owner.timed_prune(self._prune)

    def _prune(self) -> None:
        settings, positions = self.owner.settings, self.stored_positions()
        keys, values = self.stored()
        row_ids = self.owner.rows(keys.shape[0], keys.device)
        view = CacheView(keys, positions, self.seen, self.index, settings.seed, row_ids)
        index, tied = select(self.owner.score(view), kept_count(settings.keep_ratio, self.held), self._protected(positions))
        rows = index + torch.arange(index.shape[0] * index.shape[1], device=index.device).view(*index.shape[:2], 1) * self.held
        flat, shape = rows.flatten(), index.shape
        kept_positions = positions.gather(2, index)
        self._adopt(
            keys.reshape(-1, keys.shape[3]).index_select(0, flat).view(*shape, -1),
            values.reshape(-1, values.shape[3]).index_select(0, flat).view(*shape, -1),
            kept_positions,
        )
        self.record.add(kept_positions, self.seen, tied)

    def _protected(self, positions: Tensor) -> Tensor | None:
        settings = self.owner.settings
        if not settings.protect_sink and not settings.protect_recent:
            return None
        return (positions < settings.protect_sink) | (positions >= self.seen - settings.protect_recent)

    def get_seq_length(self) -> int:
        """Tokens seen (absolute positions follow from it), or the length held where the classic bug is reproduced."""
        return self.owner.next_position()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen after the next pass, offset): as long as the caller's attention mask, so that one without padding
        is recognised as such and no mask is made; what a pruned layer holds is never masked.
        """
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = self.positions = None
        self.is_initialized, self.held, self.seen, self.record = False, 0, 0, LayerRecord()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search reorders rows; refused rather than half supported."""
        _refuse("beam search")

    def crop(self, *_: Any) -> None:
        """Cropping (assisted generation) cannot bring dropped entries back."""
        _refuse("cropping, which assisted generation needs,")


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"PrunedCache does not support {what} because dropped entries cannot be restored; use greedy or sampling")


@dataclass(frozen=True)
class Validity:
    """How much of a pass was really compressed; one value per batch row, None where nothing was ever pruned."""

    prune_events: int
    recent_retained: list[float] | None = field(default=None)
    sink_retained: list[float] | None = field(default=None)
    score_ties: list[float] | None = field(default=None)


class PrunedCache(Cache):
    """KV cache that prunes by ``PruneSettings``; see the module's and the layer's docstring.

    ``row_ids`` names the texts of the batch for the ``random`` policy. ``clock`` (seconds, device synchronised) is called
    around every prune when given, and ``prune_seconds`` sums the differences; without it nothing is measured.
    """

    def __init__(
        self, config: PretrainedConfig, settings: PruneSettings | None = None, *, row_ids: Sequence[int] | None = None,
        clock: Callable[[], float] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """``options`` are the fields of PruneSettings, for use without one. Raises ValueError for a layer out of range."""
        self.config = config
        options["skip_layers"] = tuple(options.get("skip_layers", ()))
        self.settings = settings or PruneSettings(**options)
        count = config.get_text_config().num_hidden_layers
        if any(layer >= count for layer in self.settings.skip_layers):
            raise ValueError(f"skip_layers {list(self.settings.skip_layers)}: the model has layers 0..{count - 1}")
        self.score = POLICIES.get(self.settings.policy, POLICIES["knorm"])
        self.row_ids, self.clock, self.prune_seconds = row_ids, clock, 0.0
        self._rows: Tensor | None = None
        self._pruning = [i for i in range(count) if self.settings.prunes(i)]
        super().__init__(layers=[PrunedLayer(i, self) for i in range(count)])

    @property
    def pruned_layers(self) -> list[PrunedLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """[batch] ids of the texts in the batch."""
        if self._rows is None or self._rows.shape[0] != batch:
            self._rows = torch.tensor(list(self.row_ids) if self.row_ids is not None else list(range(batch)), device=device)
        return self._rows

    def next_position(self) -> int:
        """Position id of the next token: tokens seen; entries held by a pruning layer under ``cache_length``."""
        layers = self.pruned_layers
        if self.settings.position_mode == "cache_length" and self._pruning:
            return layers[self._pruning[0]].held
        return layers[0].seen

    def timed_prune(self, prune: Callable[[], None]) -> None:
        """Run one layer's prune, under the clock where there is one."""
        if self.clock is None:
            return prune()
        begin = self.clock()
        prune()
        self.prune_seconds += self.clock() - begin

    def check_attention(self, new: int, layer: PrunedLayer) -> None:
        """Refuse stock attention where its mask, made once for all layers, would be wrong. Raises ValueError."""
        name = self.config._attn_implementation
        stock_is_right = (layer.seen == layer.held and not self._pruning) or layer.seen == 0 or (name == "sdpa" and new == 1)
        if name != OWN_ATTENTION and not stock_is_right:
            raise ValueError(
                f"attention {name!r} cannot take {new} tokens after pruning (its mask is made for one length); "
                f"call model.set_attn_implementation({OWN_ATTENTION!r}) first"
            )

    def fork(self, settings: PruneSettings) -> PrunedCache:
        """A cache under other settings that goes on from what this unpruned one holds, pruning at once where due."""
        other = PrunedCache(self.config, settings, row_ids=self.row_ids)
        for mine, theirs in zip(self.pruned_layers, other.pruned_layers, strict=True):
            keys, values = mine.stored()
            theirs.dtype, theirs.device, theirs.seen, theirs.is_initialized = mine.dtype, mine.device, mine.seen, True
            due = settings.prunes(theirs.index) and is_due(settings.keep_ratio, settings.prune_after, mine.held)
            if due:  # pruning copies what it keeps, so the shared entries need no copy of their own
                theirs.keys, theirs.values, theirs.positions, theirs.held = keys, values, mine.stored_positions(), mine.held
                theirs.prune_if_due()
            else:
                theirs._adopt(keys, values, mine.stored_positions())
        return other

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
