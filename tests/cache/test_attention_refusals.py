"""Whatever a model gives its attention or its mask is applied or refused by name; nothing is left out
silently."""

import pytest
import torch
import transformers
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from tests.support.architectures import GROUPED, SHAPE, VOCABULARY
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache import attention
from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.loaded.self_check import check
from workers.models.model_files import ModelError
from workers.policies.settings import PruneSettings

TOKENS = repetitive_tokens(1, 24)


@pytest.fixture
def model():
    return tiny_model("llama")


def attend(model, **keywords):
    module, query, state = model.model.layers[0].self_attn, torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    return attention.attend(module, query, state, state, **{"attention_mask": None, **keywords})


@pytest.mark.parametrize(
    "name",
    [
        "position_bias",
        "s_aux",
        "sinks",
        "indices",
        "block_indices",
        "cu_seq_lens_q",
        "max_length_k",
        "head_mask",
        "seq_idx",
        "of_2027",
    ],
)
def test_a_keyword_that_is_not_known_is_refused_by_its_name(model, name):
    with pytest.raises(ValueError, match=rf"LlamaAttention gives its attention {name}, which"):
        attend(model, **{name: torch.ones(4)})
    with pytest.raises(ValueError, match=name):
        attend(model, **{name: 3})
    attend(model, **{name: None})


def test_keywords_that_change_nothing_are_taken(model):
    plain = attend(
        model.train(False), position_ids=torch.arange(6)[None], use_cache=True, output_attentions=False
    )
    assert plain[0].shape == (1, 6, 4, 8)
    with pytest.raises(ValueError, match="output_attentions"):
        attend(model, output_attentions=True)


def test_a_mask_of_the_models_own_is_refused(model):
    with pytest.raises(ValueError, match="attention_mask"):
        attend(model, attention_mask=torch.zeros(1, 1, 6, 6))


@pytest.mark.parametrize("where", ["keyword", "module"])
def test_attention_in_both_directions_is_refused(model, where):
    keywords = {"is_causal": False} if where == "keyword" else {}
    if where == "module":
        model.model.layers[0].self_attn.is_causal = False
    with pytest.raises(ValueError, match="is_causal"):
        attend(model, **keywords)


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_mask_in_four_dimensions_given_by_the_caller_is_refused(model, with_cache):
    mask = torch.zeros(1, 1, 24, 24).masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    mask[..., 5] = -torch.inf
    cache = PrunedCache(model.config, keep_ratio=0.5, prune_after=8) if with_cache else None
    with pytest.raises(ValueError, match="attention_mask"):
        model(TOKENS, attention_mask=mask, past_key_values=cache)


def test_packed_texts_are_refused(model):
    """Positions that begin anew in the middle of a pass: transformers masks the texts from each other."""
    plain, packed = torch.arange(24), torch.cat([torch.arange(12), torch.arange(12)])
    with pytest.raises(ValueError, match="packed texts"):
        model(TOKENS, position_ids=packed[None], use_cache=False)
    with pytest.raises(ValueError, match="packed texts"):
        model(repetitive_tokens(2, 24), position_ids=torch.stack([plain, packed]), use_cache=False)
    model(repetitive_tokens(2, 24), position_ids=torch.stack([plain, plain]), use_cache=False)


@pytest.mark.parametrize("name", ["or_mask_function", "and_mask_function"])
def test_functions_laid_over_a_mask_are_refused(model, name):
    options = {name: lambda batch, head, query, entry: entry == query}
    with pytest.raises(ValueError, match="hides or shows"):
        create_causal_mask(model.config, torch.zeros(1, 6, 32), None, None, **options)


def test_blocks_that_see_themselves_whole_are_refused(model):
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1]])
    with pytest.raises(ValueError, match="hides or shows"):
        create_causal_mask(model.config, torch.zeros(1, 6, 32), None, None, block_sequence_ids=blocks)


def test_a_mask_without_a_future_is_refused(model):
    with pytest.raises(ValueError, match="both directions"):
        create_bidirectional_mask(model.config, torch.zeros(1, 6, 32), None)


def test_a_sliding_mask_is_taken_up_to_its_window(model):
    model.config.sliding_window = 16
    assert create_sliding_window_causal_mask(model.config, torch.zeros(1, 16, 32), None, None) is None
    with pytest.raises(ValueError, match="last 16 tokens only"):
        create_sliding_window_causal_mask(model.config, torch.zeros(1, 17, 32), None, None)


def test_keywords_of_a_mask_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="of_2027"):
        attention.check_mask(q_length=4, kv_length=4, mask_function=lambda *_: True, of_2027=1)


def doge():
    """A model whose attention hides entries by a mask that it computes from the values, beyond
    ``keep_window_size``."""
    torch.manual_seed(0)
    config = transformers.DogeConfig(**SHAPE, **GROUPED, keep_window_size=16)
    return transformers.DogeForCausalLM(config).eval().requires_grad_(False)


def test_a_model_that_masks_by_itself_is_refused_wherever_it_is_used():
    with pytest.raises(ModelError, match=r"attention_mask|mask"):
        check(doge(), "doge", "float32")
    model = doge()
    model.set_attn_implementation(attention.NAME)
    with pytest.raises(ValueError, match="mask"):
        Prefill(model, TOKENS, ["knorm"])
    with pytest.raises(ValueError, match="mask"):
        model.generate(
            TOKENS, past_key_values=PrunedCache(model.config, PruneSettings("knorm", 0.5, 8)), pad_token_id=2
        )
    assert model.config.vocab_size == VOCABULARY
