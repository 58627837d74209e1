"""What a long window takes grows with its length, not with its square: no mask and no probabilities of queries x entries."""

import json
import subprocess
import sys

import pytest
import torch

from tests.tiny import repetitive_tokens, tiny_model
from workers import attention as attentions
from workers.attention import Scale, attention, forget_masks, probe

CHILD = """
import sys
import torch
from tests.tiny import repetitive_tokens, tiny_model
from workers.peak_memory import PeakMemory, resident_bytes
from workers.perplexity import evaluate
from workers.settings import PruneSettings

policy, model, peaks = sys.argv[1], tiny_model("llama"), []
model.config.max_position_embeddings = 2**16
for length in map(int, sys.argv[2:]):
    cells = [PruneSettings(policy, 0.5, length * part // 16) for part in range(3, 15)]
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    before = resident_bytes()
    dense, found = evaluate(model, repetitive_tokens(1, length), cells, [0])
    assert not any(isinstance(each, Exception) for each in found), found
    peaks.append(memory.result()[0] - before)
print(peaks)
"""


def peaks_of(policy: str, *lengths: int) -> list[int]:
    """Peak bytes of a window with 12 thresholds, in a process of their own."""
    command = [sys.executable, "-c", CHILD, policy, *map(str, lengths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["knorm", "h2o"])
def test_a_window_of_32768_tokens_takes_eight_times_one_of_4096(policy):
    peaks = peaks_of(policy, 4096, 8192, 16384, 32768)
    print(policy, [f"{peak / 2**20:.0f} MiB" for peak in peaks])
    growth = [b / a for a, b in zip(peaks, peaks[1:], strict=False)]
    assert max(growth) < 2.6 and peaks[-1] < 1.1 * 2**30


def test_attention_in_parts_is_that_of_one_mask(monkeypatch):
    """The judge is the whole mask, and attention written out."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, heads, n, 16, generator=generator) for heads, n in ((4, 37), (2, 90), (2, 90)))
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
    attentions._open_then_causal(3, 9, torch.device("cpu"))
    assert attentions._open_then_causal.cache_info().currsize
    forget_masks()
    assert not attentions._open_then_causal.cache_info().currsize


def test_no_mask_is_larger_than_said(monkeypatch):
    made, real = [], torch.ones

    def noted(*sizes, **options):
        made.append(sizes)
        return real(*sizes, **options)

    forget_masks()
    monkeypatch.setattr(torch, "ones", noted)
    monkeypatch.setattr(attentions, "MASK_PLACES", 500)
    from workers.perplexity import evaluate
    from workers.settings import PruneSettings

    model, tokens = tiny_model("llama"), repetitive_tokens(2, 400)
    monkeypatch.setattr("workers.perplexity.SHORT_PASS_TOKENS", 0)
    evaluate(model, tokens, [PruneSettings("knorm", 0.5, 100), PruneSettings("h2o", 0.5, 100)], [0, 1])
    forget_masks()
    masks = [sizes for sizes in made if len(sizes) == 2 and all(isinstance(size, int) for size in sizes)]
    assert masks and all(a * b <= 500 for a, b in masks)
