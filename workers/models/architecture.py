"""What a config.json tells before loading: why a model cannot be measured, or up to what length it can.

A setting decides where there is one; the family (``workers.models.families``) decides where its code does
what no setting tells. Reasons are clauses that go behind the model's name. What is not known here is found by
the self-check when the model is loaded. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workers.models import families
from workers.models.model_json import one_line, shown
from workers.models.model_settings import (
    Settings,
    count_of,
    kind_of,
    layer_types,
    number_of,
    table_of,
    text_settings,
    window_of,
)

FULL, SLIDING, CHUNKED = ("full_attention", "attention"), "sliding_attention", "chunked_attention"
"""Values of ``layer_types`` for layers that keep a key for every token;
the last two attend to some of them only."""
LOGIT_SCALES = (
    "logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier", "output_multiplier",
)  # fmt: skip
"""Factors between the last hidden state and the logits."""


@dataclass(frozen=True)
class Limit:
    """A length up to which a text is measured as the model's own code would."""

    tokens: int
    why: str
    """A clause that stands alone."""
    last_is_predicted: bool = False
    """Whether the last of so many tokens may be predicted but not be fed:
    ``generate`` throws the cache away behind it."""

    @property
    def fed(self) -> int:
        """Tokens that may go through the model."""
        return self.tokens - self.last_is_predicted


@dataclass(frozen=True)
class Architecture:
    """What planning has to know."""

    refusals: tuple[str, ...]
    """Why the model cannot be measured at all; empty where it can."""
    limits: tuple[Limit, ...]

    def check_length(self, fed: int) -> None:
        """Raises ValueError for texts of so many tokens that the model treats them in another way."""
        for limit in self.limits:
            if fed > limit.fed:
                raise ValueError(
                    f"{fed} tokens are more than the {limit.fed} that can go through this model exactly: "
                    f"{limit.why}; use shorter texts"
                )


def usable(config: Any) -> Architecture:
    """Of a transformers configuration.
    Raises ValueError where its model cannot be measured, with the reason."""
    architecture = read_architecture(config.to_dict())
    if architecture.refusals:
        raise ValueError(f"this model cannot be measured through a pruned cache: {architecture.refusals[0]}")
    return architecture


def read_architecture(config: Settings) -> Architecture:
    """Decide by the content of a config.json. Raises ValueError for a setting of the wrong type."""
    text = text_settings(config)
    refusals = [reason for rule in RULES for reason in rule(text)]
    if text is not config:  # a model that also sees or hears has settings beside those of its language model
        rules = (_quantised,) if refusals else RULES
        refusals += [reason for rule in rules for reason in rule(config)]
    return Architecture(tuple(dict.fromkeys(refusals)), (*_attention_limits(text), *_rotary_limits(text)))


def _layers(text: Settings) -> Iterator[str]:
    """Layers that keep something else than keys of their own."""
    name, kinds = layer_types(text)
    other = [kind for kind in kinds if kind not in (*FULL, SLIDING, CHUNKED)]
    if other:
        yield (
            f"not every layer of it attends to cached keys and values ({name} has {', '.join(other)}), and "
            "only such layers can be pruned"
        )
    elif _convolutions(text) or (kind_of(text) in families.NO_KEYS and not kinds):
        yield (
            f"some or all of its layers ({kind_of(text)}) keep a running state instead of keys and values, "
            "which cannot be pruned"
        )


def _convolutions(text: Settings) -> bool:
    """Whether an older file of LFM2 lists fewer layers with attention than there are layers."""
    attending = text.get("full_attn_idxs")
    return isinstance(attending, list) and len(attending) < (count_of(text, "num_hidden_layers") or 0)


def _keys(text: Settings) -> Iterator[str]:
    """Keys that are not the layer's own, or not stored as keys."""
    rank = count_of(text, "kv_lora_rank")
    if rank is not None or kind_of(text) in families.LATENTS:
        says = f"kv_lora_rank {rank}" if rank is not None else kind_of(text)
        yield (
            f"it stores keys and values as compressed latents (multi-head latent attention, {says}), and "
            "what is measured here is a cache of keys and values"
        )

    shared = number_of(text, "num_kv_shared_layers")
    if shared:
        yield (
            f"its last layers read the keys of earlier layers (num_kv_shared_layers {shared:g}), which prune "
            "for themselves"
        )
    if text.get("use_cla"):
        yield (
            f"some of its layers read the keys of earlier layers (use_cla {shown(text['use_cla'])}), which "
            "prune for themselves"
        )
    if kind_of(text) in families.SHARED_KEYS:
        yield (
            f"its layers read the keys of another model ({kind_of(text)}), and it has none of its own to "
            "prune"
        )


def _widths(text: Settings) -> Iterator[str]:
    """Layers whose keys have another shape than the keys of others, which no cache here holds yet."""
    for key, other in (
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ):
        usual = count_of(text, key)
        globally = count_of(text, other)
        layers = table_of(text, "per_layer_config")
        apart = {count_of(table_of(layers, layer), key) for layer in layers} - {None}
        if "per_layer_config" not in text and globally is not None and len(layer_types(text)[1]) != 1:
            apart = {globally}  # that is how files say it which transformers did not write

        if apart - {usual}:
            listed = ", ".join(str(value) for value in sorted({usual, *apart}, key=str))
            yield (
                f"its layers hold keys of different shapes ({key} {listed}), and one cache cannot hold them "
                "yet"
            )


def _attention(text: Settings) -> Iterator[str]:
    """Attention that ours would not equal."""
    kind = kind_of(text)
    if kind in families.OWN_CODE:
        yield (
            f"it ({kind}) computes attention in its own code instead of calling it by name (transformers' "
            "AttentionInterface), so what a pruned layer holds cannot be attended to; use another "
            "architecture"
        )
    elif text.get("alibi"):
        yield (
            f"it adds a penalty for distance to its attention (alibi {shown(text['alibi'])}), which is not "
            "supported"
        )

    if kind in families.SINKS:
        yield f"its attention has sinks learned per head ({kind}), which are not supported"

    chosen = count_of(text, "index_topk")
    if chosen is not None or kind in families.SPARSE:
        says = f"index_topk {chosen}" if chosen is not None else kind
        yield f"a query attends only to the keys that an indexer chooses ({says}), which is not supported"
    if table_of(text, "sparse_attention_config").get("sparse_attention_freq"):
        yield "a query attends only to blocks of keys (sparse_attention_config), which is not supported"
    if kind in families.OTHER_ATTENTION:
        yield f"it ({kind}) {families.OTHER_ATTENTION[kind]}, which attention over pruned layers does not"


def _direction(settings: Settings) -> Iterator[str]:
    """Models that read a text otherwise than from left to right, or read something else too."""
    both = settings.get("use_bidirectional_attention")
    if both is True or both == "all":
        yield (
            f"its tokens attend to later ones too (use_bidirectional_attention {both!r}), so it predicts no "
            "next token"
        )
    elif settings.get("is_causal") is False:
        yield "its tokens attend to later ones too (is_causal false), so it predicts no next token"
    elif kind_of(settings) in families.ENCODERS:
        yield from _encoder(settings)

    if settings.get("is_encoder_decoder"):
        coupled = settings["is_encoder_decoder"]
        yield (
            f"it is an encoder with a decoder (is_encoder_decoder {shown(coupled)}), not a model of text "
            "alone"
        )
    elif kind_of(settings) in families.COUPLED:
        yield f"it is the decoder of a model with an encoder ({kind_of(settings)}), not a model of text alone"

    for name in ("add_cross_attention", "cross_attention_layers"):
        if settings.get(name):
            yield f"it attends to something else than its text ({name} {shown(settings[name])})"


def _encoder(settings: Settings) -> Iterator[str]:
    if not settings.get("is_decoder"):
        yield (
            f"its tokens attend to later ones too (is_decoder false in {kind_of(settings)}), so it predicts "
            "no next token"
        )


def _output(text: Settings) -> Iterator[str]:
    """What stands between the last hidden state and the logits,
    which are made here without the model's own code."""
    for name in LOGIT_SCALES:
        scale = number_of(text, name)
        if scale not in (None, 1):
            yield f"it scales its logits ({name} {scale:g}), which is not supported"
    if kind_of(text) in families.OUTPUT_HEADS:
        yield (
            f"it ({kind_of(text)}) has further layers between the last hidden state and the output layer, "
            "which is not supported"
        )


def _quantised(settings: Settings) -> Iterator[str]:
    for name in ("quantization_config", "compression_config"):
        how = table_of(settings, name)
        if how:
            method = one_line(how.get("quant_method", "no method named"))
            yield f"its weights are quantised ({name}, {method}); take the original weights"


RULES: tuple[Callable[[Settings], Iterator[str]], ...] = (
    _layers,
    _keys,
    _widths,
    _attention,
    _direction,
    _output,
    _quantised,
)


def _attention_limits(text: Settings) -> Iterator[Limit]:
    """Layers that attend to some of the tokens only are full attention up to there."""
    kinds = layer_types(text)[1]
    window = window_of(text, "sliding_window")
    chunk = window_of(text, "attention_chunk_size")
    if window is not None and _slides(text):
        yield Limit(window, f"some of its layers attend to the last {window} tokens only (sliding_window)")

    within = []
    if chunk is not None and (not kinds or CHUNKED in kinds):
        chunked = f"some of its layers attend within chunks of {chunk} tokens only (attention_chunk_size)"
        within.append(Limit(chunk, chunked))
    floor = count_of(text, "floor_scale")
    if floor is not None and text.get("attn_temperature_tuning"):
        # at position p by floor((p + 1) / floor_scale)
        scaled = f"its attention is scaled by the cache's length from {floor} tokens on (floor_scale)"
        within.append(Limit(floor - 1, scaled))
    yield from sorted(within, key=lambda limit: limit.tokens)[:1]


def _slides(text: Settings) -> bool:
    """Whether any layer uses the sliding window that the configuration names."""
    if kind_of(text) in families.WHOLE_WINDOW:
        return True
    if text.get("use_sliding_window") is False:
        return False
    kinds = layer_types(text)[1]
    layers = count_of(text, "num_hidden_layers")
    if kinds:
        return SLIDING in kinds
    first = number_of(text, "max_window_layers") if kind_of(text) in ("qwen2", "qwen3") else None
    return first is None or layers is None or layers > first


def _rotary_limits(text: Settings) -> Iterator[Limit]:
    """Rotary frequencies that the longest position of a pass chooses: one text would differ with the length
    of its passes."""
    name = next((name for name in ("rope_parameters", "rope_scaling") if text.get(name)), "rope_parameters")
    parameters = table_of(text, name)
    by_layer = [value for value in parameters.values() if isinstance(value, Mapping)]
    for each in by_layer or [parameters]:
        kind = each.get("rope_type", each.get("type")) or "default"
        if not isinstance(kind, str):
            raise ValueError(f"rope_type in {name} is {shown(kind)}, not a name")
        if kind not in ("longrope", "su") and "dynamic" not in kind:
            continue

        tokens = count_of(text, "max_position_embeddings")
        if "dynamic" not in kind:
            original = (
                "original_max_position_embeddings"  # where it stands outside, transformers takes that one
            )
            tokens = (None if by_layer else count_of(text, original)) or count_of(each, original) or tokens
        if tokens is None:
            raise ValueError(
                f"{name} has rope_type {kind!r}, and no setting says from which length on its frequencies "
                "change"
            )
        reason = f"a longer text changes its rotary frequencies for all of its tokens (rope_type {kind})"
        yield Limit(tokens, reason, kind_of(text) in families.CACHE_THROWN_AWAY and "dynamic" not in kind)
