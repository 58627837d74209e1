"""GGUF files made up for tests: a small Llama by the gguf package's own writer, and headers byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HEADS, KV_HEADS, WIDTH, INNER, CONTEXT = 2, 4, 2, 32, 64, 512
"""Of the model: rows of 32 numbers, which are one block of Q8_0."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save_plain(folder: Path) -> None:
    """A random model and its tokenizer as an ordinary folder: bytes, one merge, an end of text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "Ġt"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=257,
        eos_token_id=257,
        initializer_range=0.4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_gguf(
    file: Path,
    plain: Path,
    kind: str = "F32",
    leave_out: str = "",
    more: dict[str, np.ndarray] | None = None,
    **entries: Any,
) -> Path:
    """The same model in llama.cpp's format, by what its converter does; ``entries`` replace or add (None:
    leave out)."""
    import gguf
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    writer = gguf.GGUFWriter(file, "llama")
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(i) for i in range(258)]
    told: dict[str, Any] = {
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 8,
        "llama.vocab_size": 258,
        "general.file_type": {"F32": 0, "Q8_0": 7}[kind],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["Ġ t"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
    } | entries
    for name, value in told.items():
        if value is not None:
            _add(writer, name, value)

    for name, weights in load_file(plain / "model.safetensors").items():
        named, stored = _named(name), weights
        if named.endswith(("attn_q.weight", "attn_k.weight")):
            stored = _turned(weights, HEADS if "attn_q" in named else KV_HEADS)
        if named == leave_out:
            continue
        if kind != "F32" and stored.ndim == 2:
            packed = gguf.quants.quantize(stored, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(named, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(named, np.ascontiguousarray(stored))
    for name, weights in (more or {}).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _named(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    whole |= {"lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _turned(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head in the order of ggml's rotation: first and second halves in turn."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def text(value: str | bytes) -> bytes:
    """As a header has it: its length before it."""
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def entry(name: str, value: str | int | bytes) -> bytes:
    """A name and a text or a number; bytes as they are, kind and all."""
    if isinstance(value, bytes):
        return text(name) + value
    return text(name) + (
        struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    )


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a header says of a tensor."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    *entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    """A whole header."""
    number, many = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", version, number, many) + b"".join(entries) + b"".join(tensors)
