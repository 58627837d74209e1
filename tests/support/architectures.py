"""Small randomly initialised models of many architectures, at a scale of weights at which attention
matters."""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Architecture:
    """How to make one, and why it is refused if it is."""

    name: str
    family: str
    """Prefix of the transformers classes."""
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    """A word of the reason for which it is refused when a run is planned; empty where it is exact."""
    shape: dict[str, Any] = field(default_factory=lambda: SHAPE)
    limit: int | None = None
    """Texts of at most so many tokens are exact, longer ones are refused when a run is planned."""
    made: bool = True
    """Whether a small instance is made, which loading has to refuse as well where planning does."""


EXPERTS = {"num_experts_per_tok": 2}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
ORIGINAL = {"original_max_position_embeddings": 32}


def scaled(kind: str, **options: float) -> dict[str, Any]:
    """Rotary frequencies for twice the length."""
    return {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **options}


BLOOM_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ARCHITECTURES = (
    Architecture("GPT-NeoX (partial rotary, parallel residual)", "GPTNeoX"),
    Architecture("Llama, all heads their own keys", "Llama"),
    Architecture("Llama, grouped-query", "Llama", GROUPED),
    Architecture(
        "Mistral, sliding window longer than the text",
        "Mistral",
        {**GROUPED, "sliding_window": 128},
        limit=128,
    ),
    Architecture(
        "Mistral, sliding window shorter than the text",
        "Mistral",
        {**GROUPED, "sliding_window": 16},
        "last 16 tokens",
        limit=16,
    ),
    Architecture("Mistral without sliding window", "Mistral", {**GROUPED, "sliding_window": None}),
    Architecture("Qwen2", "Qwen2", GROUPED),
    Architecture("Qwen3 (norm of queries and keys)", "Qwen3", GROUPED),
    Architecture(
        "Gemma 2 (soft-capped logits, alternating windows longer than the text)",
        "Gemma2",
        {
            **GROUPED,
            "sliding_window": 128,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        limit=128,
    ),
    Architecture(
        "Gemma 2, windows shorter than the text",
        "Gemma2",
        {**GROUPED, "sliding_window": 16},
        "last 16 tokens",
        limit=16,
    ),
    Architecture(
        "Gemma 3 (two rotary bases, windows longer than the text)",
        "Gemma3",
        {**GROUPED, "sliding_window": 128},
        limit=128,
    ),
    Architecture("Phi-3", "Phi3", {"num_key_value_heads": 2}),
    Architecture("OLMo 2 (norm after attention)", "Olmo2", GROUPED),
    Architecture("GPT-2 (learned positions)", "GPT2"),
    Architecture("OPT (learned positions)", "OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Architecture("Falcon", "Falcon", {}, "its own code"),
    Architecture("Bloom (ALiBi)", "Bloom", {}, "its own code", BLOOM_SHAPE),
    Architecture(
        "MPT (ALiBi)",
        "Mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2},
        "its own code",
        {"vocab_size": VOCABULARY, "max_seq_len": 256},
    ),
    Architecture(
        "Phi-3 with LongRoPE",
        "Phi3",
        {"num_key_value_heads": 2, "original_max_position_embeddings": 64, "rope_parameters": LONG_ROPE},
        limit=64,
    ),
    Architecture(
        "Llama with dynamic NTK scaling",
        "Llama",
        {**GROUPED, "rope_parameters": scaled("dynamic")},
        limit=256,
    ),
    Architecture("Llama with linear scaling", "Llama", {**GROUPED, "rope_parameters": scaled("linear")}),
    Architecture("Llama with YaRN", "Llama", {**GROUPED, "rope_parameters": scaled("yarn", **ORIGINAL)}),
    Architecture(
        "Llama 3 (frequencies scaled by band)",
        "Llama",
        {
            **GROUPED,
            "rope_parameters": scaled("llama3", **ORIGINAL, low_freq_factor=1.0, high_freq_factor=4.0),
        },
    ),
    Architecture(
        "Llama 4 (chunks longer than the text)",
        "Llama4",
        {
            **GROUPED,
            **EXPERTS,
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 128,
        },
        limit=128,
    ),
    Architecture(
        "Llama 4, attention scaled by the cache's length",
        "Llama4",
        {
            **GROUPED,
            **EXPERTS,
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 128,
            "no_rope_layers": [1, 0],
            "floor_scale": 61,
            "attn_scale": 0.5,
        },
        limit=60,
    ),
    Architecture("Mixtral (experts)", "Mixtral", {**GROUPED, **EXPERTS, "num_local_experts": 4}),
    Architecture(
        "Qwen2-MoE",
        "Qwen2Moe",
        {
            "num_key_value_heads": 2,
            **EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    Architecture(
        "Qwen3-MoE", "Qwen3Moe", {**GROUPED, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}
    ),
    Architecture(
        "Cohere without a scale of its logits", "Cohere", {"num_key_value_heads": 2, "logit_scale": 1.0}
    ),
    Architecture("Granite without a scale of its logits", "Granite", {"num_key_value_heads": 2}),
    Architecture(
        "Gemma 3n without shared layers",
        "Gemma3n",
        {
            **GROUPED,
            "num_kv_shared_layers": 0,
            "sliding_window": 128,
            "intermediate_size": [64, 64],
            "activation_sparsity_pattern": [0.0, 0.0],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        limit=128,
    ),
    Architecture(
        "Gemma 4, heads of one width, no shared layers",
        "Gemma4",
        {
            **GROUPED,
            "global_head_dim": 8,
            "sliding_window": 128,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        limit=128,
    ),
    Architecture("StableLM (a part of the head rotated)", "StableLm", {"num_key_value_heads": 2}),
    Architecture("Starcoder2", "Starcoder2", {"num_key_value_heads": 2, "sliding_window": None}),
    Architecture("GLM", "Glm", GROUPED),
    Architecture("OLMo", "Olmo", {"num_key_value_heads": 2}),
    Architecture("OLMo 3", "Olmo3", {"num_key_value_heads": 2, "sliding_window": 128}, limit=128),
    Architecture("Phi (parallel residual)", "Phi", {"num_key_value_heads": 2}),
    Architecture("Persimmon", "Persimmon"),
    Architecture("Nemotron", "Nemotron", GROUPED),
    Architecture("SmolLM3", "SmolLM3", {"num_key_value_heads": 2}),
    Architecture("ERNIE 4.5", "Ernie4_5", GROUPED),
    Architecture("EXAONE 4", "Exaone4", {"num_key_value_heads": 2, "sliding_window": 128}, limit=128),
    Architecture("Helium", "Helium", GROUPED),
    Architecture("Seed-OSS", "SeedOss", GROUPED),
    Architecture("GPT-BigCode (one key head, learned positions)", "GPTBigCode"),
    Architecture("Cohere", "Cohere", {"num_key_value_heads": 2}, "logit_scale 0.0625"),
    Architecture("Cohere 2", "Cohere2", {"num_key_value_heads": 2}, "logit_scale 0.0625"),
    Architecture(
        "Granite with a scale of its logits",
        "Granite",
        {"num_key_value_heads": 2, "logits_scaling": 8.0},
        "logits_scaling 8",
    ),
    Architecture("Gemma 3n", "Gemma3n", {}, "num_kv_shared_layers 15", {}, made=False),
    Architecture("Gemma 4", "Gemma4", {}, "head_dim 256, 512", {}, made=False),
    Architecture(
        "Gemma 4 with shared layers",
        "Gemma4",
        {"num_kv_shared_layers": 10},
        "num_kv_shared_layers 10",
        {},
        made=False,
    ),
    Architecture("DeepSeek V2", "DeepseekV2", {}, "compressed latents", {}, made=False),
    Architecture("DeepSeek V3", "DeepseekV3", {}, "compressed latents", {}, made=False),
    Architecture("DeepSeek V3.2", "DeepseekV32", {}, "indexed_attention", {}, made=False),
    Architecture("Doge", "Doge", {}, "dynamic mask attention", {}, made=False),
    Architecture("gpt-oss", "GptOss", {}, "sinks learned per head", {}, made=False),
    Architecture("Qwen3-Next", "Qwen3Next", {}, "linear_attention", {}, made=False),
    Architecture("RecurrentGemma", "RecurrentGemma", {}, "recurrent", {}, made=False),
    Architecture("Falcon-H1", "FalconH1", {}, "running state", {}, made=False),
    Architecture("Bamba", "Bamba", {}, "running state", {}, made=False),
    Architecture("DiffLlama", "DiffLlama", {}, "differential attention", {}, made=False),
    Architecture("GPT-J", "GPTJ", {"rotary_dim": 4}, "its own code", BLOOM_SHAPE),
    Architecture(
        "GPT-Neo",
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        "its own code",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 1},
    ),
    Architecture(
        "CodeGen",
        "CodeGen",
        {"rotary_dim": 4, "n_embd": 32},
        "its own code",
        {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
    ),
)
TEXT_CONFIGS = ("Gemma3", "Gemma3n", "Gemma4", "Llama4")
"""Families that also see or hear: the configuration of their language model has a name of its own."""


def configuration(architecture: Architecture) -> Any:
    """The transformers configuration."""
    suffix = "TextConfig" if architecture.family in TEXT_CONFIGS else "Config"
    return getattr(transformers, architecture.family + suffix)(
        **{**architecture.shape, **architecture.options}
    )


def make(architecture: Architecture) -> Any:
    """The model in evaluation mode under stock attention."""
    torch.manual_seed(0)
    lm = {"GPT2": "GPT2LMHeadModel"}.get(architecture.family, architecture.family + "ForCausalLM")
    model = getattr(transformers, lm)(configuration(architecture))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.25)
    return model.eval().requires_grad_(False)
