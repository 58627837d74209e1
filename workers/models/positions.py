"""How a model tells positions apart, from its configuration, and which share of a head it turns for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workers.models.model_json import shown
from workers.models.model_settings import count_of, share_of, table_of

LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "openai-gpt", "biogpt")
"""Model types with one learned vector per position: past the last there is none."""
ALIBI = ("bloom", "mpt")
"""Model types that always add a penalty for distance to the logits; ``falcon`` says in its configuration
whether it does."""
ROTARY_SHARES = {
    "llama": 1.0, "falcon": 1.0, "gpt_neox": 0.25, "stablelm": 0.25, "qwen3_next": 0.25, "phi": 0.5,
    "persimmon": 0.5, "nemotron": 0.5, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "gemma3_text": 1.0,
}  # fmt: skip
"""Share of the head dimension that is rotated where a configuration leaves it to the type's default;
all of it elsewhere."""
PLAIN_ROTARY = ("gpt_neox", "llama", "mistral", "qwen2")
"""Model types whose keys are turned half against half by one set of frequencies,
unless their rope_type says otherwise."""
ROTARY_KEYS = (
    "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
    "rotary_dim",
)  # fmt: skip
"""Keys of which rotary models, of one version of transformers or another, have one at least."""


@dataclass(frozen=True)
class Positions:
    """How a model tells positions apart."""

    kind: Literal["rotary", "learned", "alibi", "unknown"]
    share: float | None = None
    """Of the head dimension that is rotated; None where nothing is, or where layers differ."""


def positions_of(config: Mapping[str, Any], head_dim: int) -> Positions:
    """How the model of a config.json tells positions apart; ``unknown`` where it does not say and the type is
    not known here."""
    kind = config.get("model_type")
    if kind in LEARNED_POSITIONS:
        return Positions("learned")
    if kind in ALIBI or config.get("alibi"):
        return Positions("alibi")
    if kind in ROTARY_SHARES or any(config.get(key) is not None for key in ROTARY_KEYS):
        return Positions("rotary", _rotated_share(config, head_dim))
    return Positions("unknown")


def _rotated_share(config: Mapping[str, Any], head_dim: int) -> float | None:
    """From ``rope_parameters``, one for all layers or one for each kind of layer; in older files, from keys
    of their own."""
    parameters = table_of(config, "rope_parameters")
    by_layer = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    shares = {
        share_of(value, "partial_rotary_factor") or _older_share(config, head_dim) for value in by_layer
    }
    return shares.pop() if len(shares) == 1 else None


def _older_share(config: Mapping[str, Any], head_dim: int) -> float:
    for key in ("partial_rotary_factor", "rotary_pct"):
        if config.get(key) is not None:
            return float(share_of(config, key) or 0.0)
    if config.get("rotary_dim"):
        return _part("rotary_dim", count_of(config, "rotary_dim"), head_dim)
    turned, plain = count_of(config, "qk_rope_head_dim"), count_of(config, "qk_nope_head_dim")
    if turned and plain:  # latent attention: a part with positions, one without
        return turned / (turned + plain)
    return ROTARY_SHARES.get(config.get("model_type", ""), 1.0)


def _part(name: str, count: int | None, whole: int) -> float:
    if count is None or count > whole:
        raise ValueError(f"{name} is {shown(count)}, more than the {whole} of a head")
    return count / whole
