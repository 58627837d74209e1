"""The dense pass over a batch of windows, from which every cell goes on at its first prune event.

Nothing is dropped before a cell's first event, so its cache there is the first entries of the dense one.
Policies that observe queries need more than keys: the last queries, or the attention given so far, *as of
that event*; the dense pass notes them at the points asked for. The pass itself is the same whatever cells go
on from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, PretrainedConfig

from workers.cache.attending_layer import AttendingLayer, WrongUseError
from workers.cache.attention import attention
from workers.cache.notes import notes_of
from workers.models.architecture import usable
from workers.policies.attention_weights import Scale
from workers.policies.observation import Observation, widest


class PrefixLayer(AttendingLayer):
    """All keys and values of one layer, [windows, kv_heads, steps, head_dim],
    and what policies observe at some points."""

    def __init__(
        self, index: int, points: Sequence[int] = (), observations: Iterable[Observation] = ()
    ) -> None:
        """``points``, ascending: tokens seen when something is noted of the ``observations``."""
        super().__init__()
        self.index = index
        self.points = points
        self.seen = 0
        self.heads = 0
        self.scale = Scale(1.0, None)
        self._notes = {kind: notes_of(each) for kind, each in widest(observations).items()}
        self._noted: dict[str, dict[int, Tensor]] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the one pass brings everything."""
        self.dtype = key_states.dtype
        self.device = key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of the one pass. Raises RuntimeError on a second."""
        if self.is_initialized:
            raise RuntimeError("the shared prefix is computed in one pass")
        self.lazy_initialization(key_states, value_states)
        self.keys = key_states
        self.values = value_states
        self.seen = key_states.shape[2]
        return self.marked(key_states), value_states

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """Causal attention; notes at the points what policies observe."""
        self.clear_mark()
        assert self.keys is not None and self.values is not None
        self.scale = scale
        self.heads = query.shape[1]
        self._noted = {
            kind: notes.noted(query, self.keys, scale, self.points) for kind, notes in self._notes.items()
        }
        return attention(query, self.keys, self.values, scale).transpose(1, 2)

    def noted(self, observation: Observation, point: int) -> Tensor | None:
        """What was noted for an observation by the time that ``point`` tokens were seen;
        None where there is nothing."""
        return self._noted.get(observation.kind, {}).get(point)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen after the pass, offset)."""
        return self.seen + query_length, 0


class SharedPrefix(Cache):
    """The cache of the dense pass;
    ``points``: tokens seen at the first events of the cells that have ``observations``."""

    def __init__(
        self, config: PretrainedConfig, points: Sequence[int] = (), observations: Sequence[Observation] = ()
    ) -> None:
        """Raises ValueError for a model that cannot be measured, with the reason."""
        self.architecture = usable(config)
        count = config.get_text_config().num_hidden_layers
        wanted = sorted(set(points))
        super().__init__(layers=[PrefixLayer(i, wanted, observations) for i in range(count)])

    @property
    def prefix_layers(self) -> list[PrefixLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    def check_complete(self, tokens: int) -> None:
        """Raises WrongUseError where the model did not give every layer the ``tokens`` of the pass,
        or attended elsewhere.

        ValueError for texts so long that the model treats their tokens in another way.
        """
        self.architecture.check_length(tokens)
        for layer in self.prefix_layers:
            layer.check_attended()
            if layer.seen != tokens:
                raise WrongUseError(
                    f"the model gave layer {layer.index} of the cache {layer.seen} of {tokens} tokens: it "
                    "does not use its cache, or not in every layer, so nothing of it could be pruned"
                )
