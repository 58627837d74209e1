"""What a long window takes grows with its length, not with its square: no mask and no probabilities of
queries x entries."""

import pytest
import torch

from benchmarks.long_windows import peaks_of
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache import attention as attentions
from workers.cache.attention import Scale, attention, forget_masks, probe


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["knorm", "h2o"])
def test_a_window_of_twice_the_length_takes_twice_the_memory(policy):
    """Whole masks of them are four times as large: 64 and 256 MiB each, and as much again as probabilities of
    each head."""
    shorter, longer = peaks_of(policy, 4096, 8192)
    assert longer < 2.6 * shorter and longer < 2**29


def test_attention_in_parts_is_that_of_one_mask(monkeypatch):
    """The judge is the whole mask, and attention written out."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(2, heads, n, 16, generator=generator) for heads, n in ((4, 37), (2, 90), (2, 90))
    )
    scale = Scale(0.25, None)
    whole, mass = attention(query, keys, values, scale), probe(query, keys, values, scale)[1]
    monkeypatch.setattr(attentions, "MASK_PLACES", 90 * 8)
    parts = attention(query, keys, values, scale)

    shown = torch.arange(90) <= torch.arange(37)[:, None] + 53
    logits = 0.25 * query.unflatten(1, (2, 2)) @ keys[:, :, None].transpose(3, 4)
    chance = logits.masked_fill(~shown, -torch.inf).softmax(-1)
    assert torch.allclose(parts, (chance @ values[:, :, None]).flatten(1, 2), atol=1e-6)
    assert torch.allclose(parts, whole, atol=1e-6) and torch.allclose(mass, chance.sum((2, 3)), atol=1e-5)


def test_masks_are_given_back():
    forget_masks()
    attentions._open_then_causal(3, 2**21, torch.device("cpu"))
    assert not attentions._remembered_mask.cache_info().currsize, "a large one is not kept at all"
    attentions._open_then_causal(3, 9, torch.device("cpu"))
    assert attentions._remembered_mask.cache_info().currsize
    forget_masks()
    assert not attentions._remembered_mask.cache_info().currsize


def test_no_mask_is_larger_than_said(monkeypatch):
    made, real = [], torch.ones

    def noted(*sizes, **options):
        made.append(sizes)
        return real(*sizes, **options)

    forget_masks()
    monkeypatch.setattr(torch, "ones", noted)
    monkeypatch.setattr(attentions, "MASK_PLACES", 500)
    from workers.perplexity.evaluation import evaluate
    from workers.policies.settings import PruneSettings

    model, tokens = tiny_model("llama"), repetitive_tokens(2, 400)
    monkeypatch.setattr("workers.perplexity.cell_group.SHORT_PASS_TOKENS", 0)
    evaluate(model, tokens, [PruneSettings("knorm", 0.5, 100), PruneSettings("h2o", 0.5, 100)], [0, 1])
    forget_masks()
    masks = [sizes for sizes in made if len(sizes) == 2 and all(isinstance(size, int) for size in sizes)]
    assert masks and all(a * b <= 500 for a, b in masks)
