"""Small randomly initialised models of many architectures, at a scale of weights at which attention matters."""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Architecture:
    """How to make one, and why it is refused if it is."""

    name: str
    family: str
    """Prefix of the transformers classes."""
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    """A word of the reason for which loading or evaluating it is refused; empty where it is exact."""
    shape: dict[str, Any] = field(default_factory=lambda: SHAPE)


BLOOM_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
ARCHITECTURES = (
    Architecture("GPT-NeoX (partial rotary, parallel residual)", "GPTNeoX"),
    Architecture("Llama, all heads their own keys", "Llama"),
    Architecture("Llama, grouped-query", "Llama", GROUPED),
    Architecture("Mistral, sliding window longer than the text", "Mistral", {**GROUPED, "sliding_window": 128}),
    Architecture("Mistral, sliding window shorter than the text", "Mistral", {**GROUPED, "sliding_window": 16}, "last 16 tokens"),
    Architecture("Mistral without sliding window", "Mistral", {**GROUPED, "sliding_window": None}),
    Architecture("Qwen2", "Qwen2", GROUPED),
    Architecture("Qwen3 (norm of queries and keys)", "Qwen3", GROUPED),
    Architecture("Gemma 2 (soft-capped logits, alternating windows longer than the text)", "Gemma2", {
        **GROUPED, "sliding_window": 128, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0}),
    Architecture("Gemma 2, windows shorter than the text", "Gemma2", {**GROUPED, "sliding_window": 16}, "last 16 tokens"),
    Architecture("Gemma 3 (two rotary bases, windows longer than the text)", "Gemma3", {**GROUPED, "sliding_window": 128}),
    Architecture("Phi-3", "Phi3", {"num_key_value_heads": 2}),
    Architecture("OLMo 2 (norm after attention)", "Olmo2", GROUPED),
    Architecture("GPT-2 (learned positions)", "GPT2"),
    Architecture("OPT (learned positions)", "OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Architecture("Falcon", "Falcon", {}, "its own code"),
    Architecture("Bloom (ALiBi)", "Bloom", {}, "its own code", BLOOM_SHAPE),
    Architecture("MPT (ALiBi)", "Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}, "its own code", {
        "vocab_size": VOCABULARY, "max_seq_len": 256}),
)  # fmt: skip


def configuration(architecture: Architecture) -> Any:
    """The transformers configuration."""
    suffix = "TextConfig" if architecture.family == "Gemma3" else "Config"
    return getattr(transformers, architecture.family + suffix)(**architecture.shape, **architecture.options)


def make(architecture: Architecture) -> Any:
    """The model in evaluation mode under stock attention."""
    torch.manual_seed(0)
    lm = {"GPT2": "GPT2LMHeadModel"}.get(architecture.family, architecture.family + "ForCausalLM")
    model = getattr(transformers, lm)(configuration(architecture))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.25)
    return model.eval().requires_grad_(False)
