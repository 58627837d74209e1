"""How a GGUF file's tokenizer cuts texts and begins them, as llama.cpp takes the words that the file has for
it. No torch.

Source: src/llama-vocab.cpp in the repository of llama.cpp (``tokenizer_pre``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BPE, SENTENCEPIECE = "gpt2", "llama"
"""``tokenizer.ggml.model``."""
DIGITS_APART = ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b")
"""Cut digit by digit, and then as GPT-2 does;
transformers' loader knows the second step alone, and joins " 4" otherwise."""
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")
WHOLE_WORDS = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
)
"""A piece that is a token is one, whatever merges would make of it; and texts begin with BOS where the file
does not say."""
OTHERS = (
    "dbrx",
    "smaug-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "f2llmv2",
    "megrez",
    "gpt-4o",
    "llama4",
    "kanana2",
)
"""Of which transformers knows the expression that cuts."""
PRE_TOKENIZERS = (*DIGITS_APART, *AS_GPT2, *WHOLE_WORDS, *OTHERS)
"""``tokenizer.ggml.pre`` whose tokens are the model's own after conversion."""


def bos_of(entries: Mapping[str, Any]) -> int | None:
    """The id that each text begins with, by the file's own word, or where it has none as llama.cpp does; None
    for no id."""
    kind, cut = entries.get("tokenizer.ggml.model"), entries.get("tokenizer.ggml.pre")
    begins = entries.get("tokenizer.ggml.add_bos_token", kind == SENTENCEPIECE or cut in WHOLE_WORDS)
    return entries.get("tokenizer.ggml.bos_token_id") if begins else None
