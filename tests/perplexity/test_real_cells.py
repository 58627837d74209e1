"""Cells of the default sweep on the reference models at full length: the masked full cache, and the reference
with our cuts."""

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface

from benchmarks.cuts import ROUNDING_STEP, Cuts
from workers.corpora import read_corpus, tokenize
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies import eviction
from workers.policies.eviction import POLICIES
from workers.policies.settings import PruneSettings

WINDOW = 1024
AT_MOST = 1e-4

CELLS = [
    PruneSettings("knorm", 0.95, 32), PruneSettings("knorm", 0.5, 32, (0,)), PruneSettings("knorm", 0.9, 512),
    PruneSettings("knorm", 0.3, 512, (0,)), PruneSettings("knorm", 0.75, 512, position_mode="cache_length"),
    PruneSettings("random", 0.9, 32), PruneSettings("streaming", 0.75, 32), PruneSettings("h2o", 0.9, 512),
    PruneSettings("snapkv", 0.75, 512), PruneSettings("snapkv", 0.95, 512), PruneSettings("tova", 0.9, 512),
]  # fmt: skip


@pytest.fixture(scope="module", params=["reference-neox", "reference-llama"])
def model_and_tokens(request):
    facts = find_model(request.param)
    ids = torch.from_numpy(tokenize(read_corpus("pydocs"), facts.tokenizer_file).ids).long()
    return load(facts, "float32", torch.device("cpu")), ids[5 * WINDOW : 6 * WINDOW][None]


def masked_full_cache(model, tokens, cell, cuts):
    """NLL [length - 1] of one dense pass in which a mask per layer and head hides what ``cuts`` say was
    dropped by then.

    It holds every key and value, and shares no cache and no attention code with the product.
    """
    steps = tokens.shape[1] - 1
    count, heads = (
        model.config.num_hidden_layers,
        getattr(model.config, "num_key_value_heads", model.config.num_attention_heads),
    )
    gone_at = torch.full((count, heads, steps), steps)  # tokens seen when an entry was dropped
    for (_, layer, head, seen), kept in sorted(cuts.kept.items(), key=lambda item: item[0][3]):
        alive = torch.zeros(steps, dtype=torch.bool)
        alive[list(kept)] = True
        alive[seen:] = True
        newly = ~alive & (gone_at[layer, head] == steps)
        gone_at[layer, head][newly] = seen
    query = torch.arange(steps)

    def judge(module, q, k, v, attention_mask, scaling=None, **_):
        group = q.shape[1] // heads
        hidden = (query[:, None] < query) | (query[:, None] >= gone_at[module.layer_idx][:, None])
        logits = q[0].double() @ k[0].double().repeat_interleave(group, 0).transpose(1, 2) * scaling
        chance = logits.masked_fill(hidden.repeat_interleave(group, 0), -torch.inf).softmax(-1)
        return (chance @ v[0].double().repeat_interleave(group, 0)).float().transpose(0, 1)[None], None

    AttentionInterface.register("masked_full_cache", judge)
    model.set_attn_implementation("masked_full_cache")
    try:
        with torch.inference_mode():
            logits = (
                model(tokens[:, :steps], position_ids=positions(cell, steps), use_cache=False)
                .logits[0]
                .float()
            )
    finally:
        model.set_attn_implementation("kvsweep")
    return functional.cross_entropy(logits, tokens[0, 1:], reduction="none")


def positions(cell, steps):
    """[1, steps] position ids: absolute, or what the pruned cache held when the token came."""
    if cell.position_mode == "absolute":
        return torch.arange(steps)[None]
    held, ids = 0, []
    for _ in range(steps):
        ids.append(held)
        held += 1
        keep = -(-round(cell.keep_ratio * 100) * held // 100)
        held = keep if held >= cell.prune_after else held
    return torch.tensor([ids])


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_real_cell_is_right_by_both_judges(model_and_tokens, cell, monkeypatch):
    """Same cuts, same figures; and the reference's own cuts are the same, but for scores within one step of
    rounding."""
    model, tokens = model_and_tokens
    policy, cuts = POLICIES[cell.policy], Cuts()
    monkeypatch.setitem(eviction._OWN, cell.policy, cuts.recording(policy))
    _, (result,) = evaluate(model, tokens, [cell], [0])
    assert result.validity.prune_events > 0
    assert (result.nll[0] - masked_full_cache(model, tokens, cell, cuts)).abs().max() < AT_MOST
    monkeypatch.setitem(eviction._OWN, cell.policy, cuts.imposed(policy))
    reference = evaluate_reference(model, tokens, cell, [0])
    assert (result.nll - reference.nll).abs().max() < AT_MOST
    print(f"{cell}: {cuts.otherwise} of {len(cuts.kept)} cuts otherwise, scores {cuts.largest_gap:.1e} apart")
    assert cuts.otherwise <= len(cuts.kept) // 50
    assert cuts.largest_gap <= ROUNDING_STEP


@pytest.mark.slow
def test_a_wrong_mask_is_noticed(model_and_tokens, monkeypatch):
    """The judge of the judge: entries that one layer kept, hidden from it, show."""
    model, tokens = model_and_tokens
    cell, cuts = PruneSettings("knorm", 0.5, 32), Cuts()
    monkeypatch.setitem(eviction._OWN, "knorm", cuts.recording(POLICIES["knorm"]))
    _, (result,) = evaluate(model, tokens[:, :200], [cell], [0])
    for key in [key for key in cuts.kept if key[1] == 1]:
        cuts.kept[key] = cuts.kept[key][:-2]
    assert (result.nll[0] - masked_full_cache(model, tokens[:, :200], cell, cuts)).abs().max() > 10 * AT_MOST
