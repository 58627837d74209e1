"""Tokenizers of the kinds that models bring, small and made here: no download."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TRAINING = (
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. The secret"
    " number of Rome is 48213. The grass is green. The sky is blue. The sun is yellow. Here we go. There and"
    " back again. What is the pass key? Remember it. There is important information hidden inside a lot of"
    " irrelevant text. Find it and remember it. You will be asked about it. "
)


def llama2_style() -> Tokenizer:
    """Byte-pair merges with bytes for unknown characters, spaces as "▁", one put before each text, nothing
    that splits it."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *every_byte], show_progress=False)
    trained.train_from_iterator([TRAINING], trainer)

    written = json.loads(trained.to_str())
    written["added_tokens"] = [
        token for token in written["added_tokens"] if token["content"] in special
    ]  # bytes are none
    tokenizer = Tokenizer.from_str(json.dumps(written | {"pre_tokenizer": None}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = begins_with("<s>", tokenizer)
    return tokenizer


def gemma_style() -> Tokenizer:
    """As Gemma has it: nothing put before a text, line breaks as added tokens that are no special ones."""
    tokenizer = llama2_style()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in ("\n", "\n\n", "<table>")])
    return tokenizer


def metaspace_style() -> Tokenizer:
    """The newer form of the Llama 2 tokenizer: the pre-tokenizer puts "▁" before a text, and splits
    nothing."""
    tokenizer = llama2_style()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def byte_style() -> Tokenizer:
    """One token per byte, split as GPT-2 does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def unigram_style() -> Tokenizer:
    """A unigram model whose vocabulary holds the special tokens too, as SentencePiece writes it."""
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in sorted(set(TRAINING + "</>"))),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def begins_with(token: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    """A post-processor that puts one token before every text."""
    special = [(token, tokenizer.token_to_id(token))]
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=special
    )


def saved(tokenizer: Tokenizer, folder: Path) -> str:
    """The path of its tokenizer.json in a folder."""
    file = str(folder / "tokenizer.json")
    tokenizer.save(file)
    return file
