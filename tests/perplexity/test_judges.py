"""A second, independent judge: nothing is ever removed; a mask per layer and head over the full cache hides
what was dropped.

It shares no cache, attention or selection code with the product. It runs the whole prefix anew for each
token, takes queries and keys from the attention call, and decides by hand, in plain Python, what each policy
keeps.
"""

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface

from tests.support.tiny import ARCHITECTURES, tiny_model
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies.budget import kept_count
from workers.policies.settings import PruneSettings

MODELS = {name: tiny_model(name) for name in ARCHITECTURES}


def rounded(value):
    """Twelve significant bits, by arithmetic instead of bit masks."""
    if value == 0:
        return 0.0
    mantissa, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return float(torch.floor(mantissa * 4096 + 0.5) / 4096 * 2.0**exponent)


class Layer:
    """What one layer saw and what is still visible, per KV head."""

    def __init__(self, heads):
        self.heads = heads
        self.alive = [[] for _ in range(heads)]
        self.mass = [{} for _ in range(heads)]
        self.visible = []  # per step, per head

    def observe(self, query, key, chance):
        """query [heads, t, d], key [kv_heads, t, d], chance [heads, t, t] of the whole prefix."""
        self.query, self.key, self.chance = query, key, chance

    def ranks(self, policy, step, keep):
        """Per head: entry -> sorting key, the lowest stays."""
        group, t = self.query.shape[0] // self.heads, step + 1
        if policy == "tova":
            shared = {p: rounded(float(self.chance[:, step, p].mean())) for p in self.alive[0]}
            return [{p: (-shared[p], p) for p in self.alive[0]}] * self.heads
        found = []
        for head, entries in enumerate(self.alive):
            queries = self.query[head * group : (head + 1) * group]
            if policy == "knorm":
                found.append({p: (rounded(float(self.key[head, p].norm())), p) for p in entries})
            elif policy == "h2o":
                newest = entries[len(entries) - keep // 2 :]
                found.append({p: (p not in newest, -rounded(self.mass[head][p]), p) for p in entries})
            elif policy == "snapkv":
                mass = [0.0] * len(entries)
                first = max(0, t - 32)
                for at in range(first, t):
                    sees = [p for p in entries if p <= at]
                    logits = queries[:, at] @ self.key[head][sees].T * self.query.shape[-1] ** -0.5
                    for i, weight in enumerate(logits.softmax(-1).mean(0).tolist()):
                        mass[i] += weight / (t - first)
                padded = [0.0, 0.0, *mass, 0.0, 0.0]
                pooled = [rounded(sum(padded[i : i + 5]) / 5) for i in range(len(entries))]
                found.append(
                    {p: (0, -p, 0) if p >= t - 32 else (1, -pooled[i], p) for i, p in enumerate(entries)}
                )
        return found

    def step(self, step, cell, prunes):
        group = self.query.shape[0] // self.heads
        for head in range(self.heads):
            for p in self.alive[head]:
                given = float(self.chance[head * group : (head + 1) * group, step, p].sum())
                self.mass[head][p] = self.mass[head].get(p, 0.0) + given
        held = len(self.alive[0])
        keep = kept_count(cell.keep_ratio, held)
        if prunes and held >= cell.prune_after and keep < held:
            ranks = self.ranks(cell.policy, step, keep)
            self.alive = [sorted(sorted(rank, key=rank.__getitem__)[:keep]) for rank in ranks]


def masked_full_cache(model, tokens, cell):
    """NLL of each token of tokens [1, length]."""
    heads = getattr(model.config, "num_key_value_heads", 4)
    layers = [Layer(heads) for _ in model.base_model.layers]

    def judge(module, query, key, value, attention_mask, scaling=None, **_):
        layer, group, t = layers[module.layer_idx], query.shape[1] // heads, query.shape[2]
        hidden = torch.ones(query.shape[1], t, t, dtype=torch.bool)
        for at, per_head in enumerate(layer.visible):
            for head, entries in enumerate(per_head):
                hidden[head * group : (head + 1) * group, at, entries] = False
        logits = query[0] @ key[0].repeat_interleave(group, 0).transpose(1, 2) * scaling
        chance = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        layer.observe(query[0], key[0], chance)
        return (chance @ value[0].repeat_interleave(group, 0)).transpose(0, 1)[None], None

    AttentionInterface.register("judge", judge)
    model.set_attn_implementation("judge")
    nll = []
    try:
        with torch.inference_mode():
            for step in range(tokens.shape[1] - 1):
                for layer in layers:
                    for entries in layer.alive:
                        entries.append(step)
                    layer.visible.append([list(entries) for entries in layer.alive])
                logits = model(tokens[:, : step + 1], use_cache=False).logits[0, -1].float()
                nll.append(functional.cross_entropy(logits[None], tokens[:, step + 1]))
                for i, layer in enumerate(layers):
                    layer.step(step, cell, i not in cell.skip_layers)
    finally:
        model.set_attn_implementation("kvsweep")
    return torch.stack(nll)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("policy", "ratio", "after"),
    [("knorm", 0.7, 12), ("h2o", 0.7, 12), ("tova", 0.7, 12), ("snapkv", 0.9, 40)],
)
@pytest.mark.parametrize("skip", [(), (0,)])
def test_masked_full_cache_gives_the_same_logits(architecture, policy, ratio, after, skip):
    """Distinct tokens, so that no two norms are near each other."""
    model = MODELS[architecture]
    tokens = torch.randperm(97, generator=torch.Generator().manual_seed(5))[None, :60]
    cell = PruneSettings(policy, ratio, after, skip)
    expected = masked_full_cache(model, tokens, cell)
    _, (result,) = evaluate(model, tokens, [cell], [0])
    assert result.validity.prune_events >= 4
    assert torch.allclose(result.nll[0], expected, atol=2e-5)
    assert torch.allclose(evaluate_reference(model, tokens, cell, [0]).nll[0], expected, atol=2e-5)
