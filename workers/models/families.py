"""Families of transformers by what their code does that no config.json tells, and what it assumes where a key
is left out.

``tests/models/test_architecture_files.py`` goes over all families of the installed transformers, so a new one
is noticed.
"""

from __future__ import annotations

from typing import Any

OWN_CODE = frozenset({
    "big_bird", "bloom", "codegen", "cpmant", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj",
    "megatron-bert", "mpt", "mvp", "got_ocr2", "openai-gpt", "prophetnet", "reformer", "rembert", "roformer",
    "trocr", "xglm", "xlm", "xlnet",
})  # fmt: skip
"""Attention in code of their own, which no attention function by name replaces."""

LATENTS = frozenset({
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note",
    "dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "hy_v4", "kimi_linear", "longcat_flash", "minicpm3",
    "youtu",
})  # fmt: skip
"""Multi-head latent attention."""

NO_KEYS = frozenset({
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "inkling2_text",
    "inkling_text", "jamba", "kimi_linear", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h",
    "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp",
    "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya",
})  # fmt: skip
"""Layers that keep a state instead of keys: state space, linear attention, recurrence, convolution."""

CACHE_THROWN_AWAY = frozenset({"phi3", "phimoe", "phi4_multimodal"})
"""``generate`` begins anew without a cache behind the length from which the rotary frequencies change."""

SHARED_KEYS = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
"""Layers that read the keys of another layer or model."""

SINKS = frozenset({
    "deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "inkling2_text",
    "mimo_v2_flash",
})  # fmt: skip
"""A logit learned for each head stands beside the keys in the softmax."""

SPARSE = frozenset(
    {"axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"}
)
"""An indexer chooses the keys that a query attends to."""

OTHER_ATTENTION = {
    "blt": "attends over bytes and over patches of bytes, with several caches",
    "diffllama": "subtracts one attention from another (differential attention)",
    "doge": "adds a mask that it learned to its attention (dynamic mask attention)",
    "jetmoe": "repeats its keys for every expert after they were cached",
    "git": "makes a mask of its own for the image before its text",
    "inkling_text": "adds a bias learned for each distance to its attention",
}
"""Attention that is not the softmax of queries and cached keys."""

OUTPUT_HEADS = frozenset({
    "bert", "camembert", "data2vec-text", "electra", "ernie", "modernbert-decoder", "roberta",
    "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Further layers between the last hidden state and the output embeddings."""

ENCODERS = frozenset({
    "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "roberta",
    "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Attention in both directions unless ``is_decoder`` is true."""

COUPLED = frozenset({
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen",
    "musicgen_melody", "mvp", "pegasus", "plbart", "prophetnet", "whisper",
})  # fmt: skip
"""Decoders that are made to read an encoder, whatever ``is_encoder_decoder`` says."""

WHOLE_WINDOW = frozenset(
    {"mistral", "ministral3", "mixtral", "olmoe", "phi3", "phi4_multimodal", "phimoe", "starcoder2"}
)
"""``sliding_window`` holds for all layers; ``layer_types`` and ``use_sliding_window`` are not read."""

_WINDOWS = {
    "afmoe": 1024, "beam": 512, "cohere2": 4096, "cohere2_moe": 4096, "cwm": 8192, "dots3_note": 512,
    "dots3_note_text": 512, "exaone4": 4096, "exaone_moe": 4096, "flint": 513, "gemma2": 4096, "gemma3": 4096,
    "gemma3_text": 4096, "gemma3n": 512, "gemma3n_text": 512, "gemma4": 512, "gemma4_text": 512,
    "gemma4_unified": 1024, "gemma4_unified_text": 1024, "gpt_oss": 128, "granite_swa": 128,
    "granitemoe_swa": 128, "kolibri1": 513, "lfm3": 256, "mimo_v2_flash": 129, "ministral": 4096,
    "mistral": 4096, "modernbert-decoder": 64, "moshi": 3000, "olmo3": 4096, "vaultgemma": 4096,
}  # fmt: skip
_SHAPES: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (
    (("gemma3", "gemma3_text"), (26, 8, 4, 256, 2304, 131072, 262208)),
    (("llama4", "llama4_text"), (48, 40, 8, 128, 5120, 131072, 202048)),
)
"""Of models that also see:
their files say of the language model only what differs from these (``SHAPE_KEYS``)."""
SHAPE_KEYS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "max_position_embeddings", "vocab_size",
)  # fmt: skip
_ASSUMED: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("emu3_text_model",),
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_size": 4096,
            "max_position_embeddings": 9216,
            "vocab_size": 184622,
        },
    ),
    (("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"), {"use_sliding_window": False}),
    (("cohere", "cohere2", "cohere2_moe"), {"logit_scale": 0.0625}),
    (("gemma3n", "gemma3n_text"), {"num_kv_shared_layers": 15}),
    (
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        {"head_dim": 256, "global_head_dim": 512},
    ),
    (
        ("llama4", "llama4_text"),
        {"attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192},
    ),
    (("mllama", "mllama_text_model"), {"cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38)}),
)
DEFAULTS: dict[str, dict[str, Any]] = {kind: {"sliding_window": window} for kind, window in _WINDOWS.items()}
"""What transformers assumes where a config.json leaves a key out that counts here."""
for _kinds, _settings in (
    *_ASSUMED,
    *((kinds, dict(zip(SHAPE_KEYS, shape, strict=True))) for kinds, shape in _SHAPES),
):
    for _kind in _kinds:
        DEFAULTS[_kind] = DEFAULTS.get(_kind, {}) | _settings
