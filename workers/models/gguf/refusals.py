"""Why a GGUF file cannot become a model here, by its header alone:
clauses to go behind its name. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from workers.models.gguf.header import GgufHeader
from workers.models.gguf.tokenizer_kinds import BPE, PRE_TOKENIZERS, SENTENCEPIECE
from workers.models.model_json import shown

ARCHITECTURES = (
    "llama", "mistral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "stablelm",
    "gpt2", "starcoder2", "nemotron",
)  # fmt: skip
"""Those that transformers' loader reads and a pruned cache can be put into."""
MOST_LAYERS, MOST_EXPERTS = 1_000, 1_024


def refusals(header: GgufHeader) -> Iterator[str]:
    """Every reason; none where it can be converted."""
    kind = header.entries.get("general.type", "model")
    parts = header.entries.get("split.count", 1)

    if kind != "model" or header.architecture == "clip":
        yield f"it holds no language model but {shown(kind if kind != 'model' else header.architecture)}"
    elif parts != 1:
        yield f"it is one of {shown(parts)} parts of a model; put them together with llama-gguf-split --merge"
    elif header.architecture not in ARCHITECTURES:
        yield (
            f"its architecture, {shown(header.architecture)}, is not one that is read from GGUF files here "
            f"({', '.join(ARCHITECTURES)}); take the model's folder of safetensors"
        )
    elif not header.tensors:
        yield "it holds a vocabulary and no weights"
    else:
        yield from _shape(header)
        yield from _rotary(header)
        yield from _tokenizer(header)


def _shape(header: GgufHeader) -> Iterator[str]:
    """Settings that are not of these tensors: a loader would make room for whatever they say."""
    numbers = {
        int(name.split(".")[1])
        for name in header.tensors
        if name.startswith("blk.") and name.split(".")[1].isdecimal()
    }
    layers = header.of_model("block_count")
    if layers != len(numbers) or numbers != set(range(len(numbers))) or len(numbers) > MOST_LAYERS:
        yield f"it says {shown(layers)} layers (block_count), and its tensors are of {len(numbers):,}"
    experts = header.of_model("expert_count")
    if experts is not None and (type(experts) is not int or not 0 <= experts <= MOST_EXPERTS):
        yield f"it says {shown(experts)} experts (expert_count)"

    embedding = header.tensors.get("token_embd.weight")
    width = header.of_model("embedding_length")
    words = header.entries.get("tokenizer.ggml.tokens")
    if embedding is None or len(embedding.shape) != 2:
        yield "it holds no embedding of its tokens (token_embd.weight)"
    elif embedding.shape[0] != width or type(words) is not int or words > embedding.shape[1]:
        yield (
            f"it says embeddings of {shown(width)} numbers for {shown(words)} tokens, and token_embd.weight "
            f"has the shape {shown(embedding.shape)}"
        )


def _rotary(header: GgufHeader) -> Iterator[str]:
    """Scaled frequencies, which transformers' loader leaves out: the model would be another one, and nothing
    would say so."""
    scaling = header.of_model("rope.scaling.type")
    tensors = [name for name in header.tensors if name.startswith("rope_f")]
    if scaling not in (None, "none") or tensors:
        what = f"rope.scaling.type {shown(scaling)}" if scaling not in (None, "none") else tensors[0]
        yield (
            f"its rotary frequencies are scaled ({what}), which transformers leaves out; take the model's "
            "folder of safetensors"
        )


def _tokenizer(header: GgufHeader) -> Iterator[str]:
    kind = header.entries.get("tokenizer.ggml.model")
    cut = header.entries.get("tokenizer.ggml.pre", "default")
    if kind not in (BPE, SENTENCEPIECE):
        yield (
            f"its tokenizer is of the kind {shown(kind)}; {BPE} (of bytes) and {SENTENCEPIECE} "
            "(SentencePiece) can be read"
        )
    elif kind == BPE and cut not in PRE_TOKENIZERS:
        yield (
            f"its tokenizer cuts texts in the way {shown(cut)} (tokenizer.ggml.pre), which is not known "
            "here, so tokens would not be the model's own"
        )
    elif kind == BPE and type(header.entries.get("tokenizer.ggml.merges")) is not int:
        yield "its tokenizer has no merges (tokenizer.ggml.merges)"

    begin = header.entries.get("tokenizer.ggml.bos_token_id")
    if header.entries.get("tokenizer.ggml.add_bos_token") and begin is None:
        yield "its texts begin with BOS (add_bos_token), and it does not say which token that is"
