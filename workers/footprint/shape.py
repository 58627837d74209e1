"""A model and a cell as far as bytes go: widths, what a token takes on its way and in a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workers.models.model_settings import count_of, hidden_width, inner_width
from workers.policies.budget import Budget
from workers.policies.eviction import POLICIES
from workers.policies.observation import NOTHING, Anything, Observation
from workers.policies.skip_rule import Skip

AT_ONCE_BYTES = 2 * 2**30
"""What goes through a model together takes so much beside the weights,
or is one window, cell, question or context.

Of SmolLM2 135M that is 16 windows of 1,024 tokens and three cells of half of them: more at a time is no
faster on a CPU, whose caches are full with less, shows nothing of how far a unit is for longer, and keeps a
second worker off a machine of 8 GB."""
MAX_AT_ONCE = 16
"""Windows, questions and contexts that go through together at most."""
PROBABILITY_BYTES = 64 * 2**20
"""Where probabilities are needed themselves they are made for so many queries at a time."""
ROOM_STEP, ROOM_SHARE = 32, 16
"""A buffer has room for so many entries, or for one more of every so many, beyond what it holds when it is
made: appending copies what is held once in so many passes, and the room costs a sixteenth at most."""


class Prunes(Protocol):
    """What of a cell says how much it keeps: cells of a grid have it, and ``PruneSettings``."""

    @property
    def policy(self) -> str:
        """Its name."""
        ...

    @property
    def skip_layers(self) -> Skip:
        """Layers that never prune, or the rule that will choose them."""
        ...

    @property
    def budget(self) -> Budget:
        """How many entries the others hold."""
        ...


@dataclass(frozen=True)
class Shape:
    """A model as far as bytes go: ``width`` bytes a number, on a kind of device ("cpu", "cuda", "mps")."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    """Width of the layers' middle, where a token is widest."""
    vocabulary: int
    width: int
    device: str = "cpu"

    @classmethod
    def of(cls, text: Mapping[str, Any], width: int, device: str) -> Shape:
        """From a language model's settings (config.json).
        Raises ValueError where they are no whole numbers."""
        layers = count_of(text, "num_hidden_layers", "n_layer", "n_layers") or 1
        heads = count_of(text, "num_attention_heads", "n_head", "n_heads") or 1
        hidden = hidden_width(text) or heads
        head_dim = count_of(text, "head_dim") or max(1, hidden // heads)
        kv_heads = count_of(text, "num_key_value_heads") or heads
        vocabulary = count_of(text, "vocab_size") or 0
        return cls(
            layers, heads, kv_heads, head_dim, hidden, inner_width(text, hidden), vocabulary, width, device
        )

    @property
    def parameters(self) -> int:
        """Roughly, from the widths alone:
        layers of attention and a gated middle, and embeddings that are shared."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.vocabulary * self.hidden

    @property
    def entry(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.width

    @property
    def cached(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * self.entry

    @property
    def passing(self) -> int:
        """What one token takes on its way through a layer at most, its hidden state included.

        In the middle its widest state three times (one factor, the other, their product); in attention
        queries and keys with what turning them takes; in 16 bits three copies in float32 where it is
        normalised.
        """
        middle = (2 * self.hidden + 3 * self.inner) * self.width
        normal = 2 * self.hidden * self.width + 3 * 4 * self.hidden
        return max(middle, self.attending, normal)

    @property
    def attending(self) -> int:
        """The part of it in attention."""
        return (2 * self.hidden + (5 * self.heads + 4 * self.kv_heads) * self.head_dim) * self.width

    @property
    def scoring(self) -> int:
        """Tiles of logits, of the output layer and of hidden states in float32."""
        rows, columns = tile_of(self.device)
        columns = min(columns, self.vocabulary) if self.vocabulary else columns
        return 4 * (4 * rows * columns + columns * self.hidden + 3 * rows * self.hidden)

    def probing(self, rows: int, entries: int) -> int:
        """Probabilities of as many queries of a layer over so many entries, slice by slice, three slices at a
        time, and keys in float32 where they are not."""
        of_a_query = 4 * rows * self.heads * entries
        return 3 * max(of_a_query, min(PROBABILITY_BYTES, of_a_query * entries)) + self.keys_in_float32(
            rows, entries
        )

    def keys_in_float32(self, rows: int, entries: int) -> int:
        """Copies of a layer's keys that probabilities are made of; none where they are in float32 already."""
        return 4 * rows * entries * self.kv_heads * self.head_dim if self.width < 4 else 0

    def pass_over(self, rows: int, length: int, *, probed: bool) -> int:
        """A dense pass over prompts without their cache;
        ``probed``: one that notes what each entry is attended to."""
        tokens = rows * length
        probing = tokens * self.attending + self.probing(rows, length) if probed else 0
        return max(tokens * self.passing, probing)

    def observing(self, observed: Observation, rows: int, entries: int) -> int:
        """What a cache keeps of what its policy observes, in all layers."""
        return self.layers * rows * (entries * observed.of_entry(self) + observed.of_row(self))


def tile_of(device: str) -> tuple[int, int]:
    """Tokens and words whose logits exist at one time on such a device:
    on a CPU as many as its cache holds."""
    return (1024, 2048) if device == "cpu" else (8192, 8192)


def observation_of(policy: str) -> Observation:
    """What is noted for a policy; for a user's own, of which only its code tells, what takes most."""
    if ":" in policy:
        return Anything()
    return POLICIES[policy].observes if policy in POLICIES else NOTHING


def with_room(entries: int) -> int:
    """Entries that a growing buffer has room for when it holds so many."""
    return entries + max(ROOM_STEP, entries // ROOM_SHARE)
