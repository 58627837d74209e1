"""Event-driven = reference = masked full cache, token by token; dense = the stock model."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.budget import kept_count
from workers.eviction import POLICIES
from workers.perplexity import evaluate, evaluate_reference
from workers.settings import PruneSettings

MODELS = {name: tiny_model(name) for name in ARCHITECTURES}
TOLERANCE = 2e-5

cells = st.builds(
    PruneSettings,
    policy=st.sampled_from(sorted(POLICIES)),
    keep_ratio=st.sampled_from([0.98, 0.95, 0.9, 0.7, 0.5, 0.3]),
    prune_after=st.sampled_from([1, 7, 16, 30, 70, 500]),
    skip_layers=st.sampled_from([(), (0,), (1, 2), (0, 1, 2)]),
    protect_sink=st.sampled_from([0, 1, 2]),
    protect_recent=st.sampled_from([0, 3]),
    seed=st.integers(0, 3),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_cell_is_the_stock_model(architecture):
    tokens = repetitive_tokens(2, 60)
    dense, _ = evaluate(MODELS[architecture], tokens, [], [0, 60])
    stock = tiny_model(architecture, "sdpa")
    with torch.inference_mode():
        logits = stock(tokens).logits[:, :-1].float()
    expected = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, -1)
    assert torch.allclose(dense.nll, expected, atol=TOLERANCE)
    assert torch.equal(dense.correct, logits.argmax(-1) == tokens[:, 1:])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ARCHITECTURES), st.lists(cells, min_size=1, max_size=3), st.integers(2, 90), st.integers(1, 2))
def test_event_driven_equals_one_token_per_pass(architecture, many, length, rows):
    model, tokens = MODELS[architecture], repetitive_tokens(rows, length, seed=length)
    starts = [i * length for i in range(rows)]
    dense, results = evaluate(model, tokens, many, starts)
    for cell, result in zip(many, results, strict=True):
        got = dense if result is None else result
        assert not isinstance(got, Exception), got
        reference = evaluate_reference(model, tokens, cell, starts)
        if cell.skip_layers != (0, 1, 2):
            assert got.schedule.events == reference.schedule.events
        assert torch.allclose(got.nll, reference.nll, atol=TOLERANCE)
        if result is not None:
            assert got.validity.prune_events == reference.validity.prune_events
            assert got.validity.recent_retained == pytest.approx(reference.validity.recent_retained)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forked_cell_equals_the_cell_run_alone(architecture):
    tokens = repetitive_tokens(2, 80)
    many = [PruneSettings("knorm", ratio, after) for ratio in (0.9, 0.5) for after in (8, 40)]
    _, together = evaluate(MODELS[architecture], tokens, many, [0, 80])
    for cell, result in zip(many, together, strict=True):
        _, (alone,) = evaluate(MODELS[architecture], tokens, [cell], [0, 80])
        assert torch.allclose(result.nll, alone.nll, atol=TOLERANCE)
        assert result.validity == alone.validity


def masked_full_cache(model, tokens, cell):
    """The independent judge: nothing is ever removed; a mask per layer and head hides what the policy dropped.

    One token per pass over the whole prefix, keys taken by hand from the attention call: shares no cache code with the product.
    """
    layers, length = len(model.base_model.layers), tokens.shape[1]
    heads_kv = model.config.num_key_value_heads if hasattr(model.config, "num_key_value_heads") else 4
    alive = [[[] for _ in range(heads_kv)] for _ in range(layers)]
    nll = []
    from transformers import AttentionInterface

    keys_of: dict[int, torch.Tensor] = {}

    def judge(module, query, key, value, attention_mask, scaling=None, **_):
        group = query.shape[1] // key.shape[1]
        keys_of[module.layer_idx] = key[0]
        scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
        rows = scores.shape[2]
        hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1).expand(query.shape[1], -1, -1).clone()
        for step, kept in enumerate(visible[module.layer_idx]):
            for head in range(heads_kv):
                mask = torch.ones(rows, dtype=torch.bool)
                mask[kept[head]] = False
                hidden[head * group : (head + 1) * group, step] |= mask
        out = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value.repeat_interleave(group, 1)
        return out.transpose(1, 2), None

    AttentionInterface.register("judge", judge)
    visible = [[] for _ in range(layers)]
    model.set_attn_implementation("judge")
    try:
        with torch.inference_mode():
            for step in range(length - 1):
                for layer in range(layers):
                    for head in range(heads_kv):
                        alive[layer][head].append(step)
                    visible[layer].append([list(entries) for entries in alive[layer]])
                logits = model(tokens[:, : step + 1], use_cache=False).logits[0, -1].float()
                nll.append(functional.cross_entropy(logits[None], tokens[:, step + 1]))
                for layer in range(layers):
                    entries = alive[layer][0]
                    keep = kept_count(cell.keep_ratio, len(entries))
                    if layer in cell.skip_layers or len(entries) < cell.prune_after or keep == len(entries):
                        continue
                    for head in range(heads_kv):
                        norms = {p: float(f"{keys_of[layer][head, p].norm():.4g}") for p in alive[layer][head]}
                        best = sorted(alive[layer][head], key=lambda p: (norms[p], p))[:keep]
                        alive[layer][head] = sorted(best)
    finally:
        model.set_attn_implementation("kvsweep")
    return torch.stack(nll)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("skip", [(), (0,)])
def test_masked_full_cache_gives_the_same_logits(architecture, skip):
    """Distinct tokens, so that no two norms are near each other and the judge's own rounding chooses alike."""
    model = MODELS[architecture]
    tokens = torch.randperm(97, generator=torch.Generator().manual_seed(5))[None, :40]
    cell = PruneSettings("knorm", 0.7, 12, skip)
    _, (result,) = evaluate(model, tokens, [cell], [0])
    assert result.validity.prune_events > 5
    assert torch.allclose(result.nll[0], masked_full_cache(model, tokens, cell), atol=TOLERANCE)


def test_a_cell_that_never_prunes_is_the_dense_cell():
    _, results = evaluate(
        MODELS["neox"], repetitive_tokens(1, 30), [PruneSettings("knorm", 0.5, 30), PruneSettings("dense")], [0]
    )
    assert results == [None, None]


def test_positions_from_the_pruned_length_are_another_number():
    """The classic bug, reproducible on purpose, and the same whether or not layer 0 is skipped by others' code."""
    tokens = repetitive_tokens(1, 80)
    for skip in ((), (0,)):
        true, bug = (PruneSettings("knorm", 0.5, 16, skip, position_mode=mode) for mode in ("absolute", "cache_length"))
        _, (right, wrong) = evaluate(MODELS["llama"], tokens, [true, bug], [0])
        assert (right.nll - wrong.nll).abs().max() > 0.01


def test_passes_are_prune_events_not_tokens():
    _, (result,) = evaluate(MODELS["neox"], repetitive_tokens(1, 201), [PruneSettings("knorm", 0.5, 64)], [0])
    assert result.validity.prune_events == 5
    assert result.forward_passes == 5


def test_figures_of_a_cell_are_what_its_cache_held():
    tokens = repetitive_tokens(2, 100)
    cell = PruneSettings("knorm", 0.5, 20, (1,))
    dense, (result,) = evaluate(MODELS["llama"], tokens, [cell], [0, 100])
    assert result.entries_final() == [result.schedule.final, 99, result.schedule.final]
    assert dense.entries_mean() == 50.0
    assert result.kv_bytes_per_entry == 2 * 2 * 8 * 4  # keys and values, 2 KV heads (not 4 query heads), head_dim 8, float32
    assert dense.kv_bytes_peak() == 99 * 3 * result.kv_bytes_per_entry
    assert result.kv_bytes_peak() < dense.kv_bytes_peak()


def test_a_failing_cell_takes_no_other_down(monkeypatch):
    from workers import perplexity

    right = perplexity._continue

    def sometimes(dense, cell, schedule):
        if cell.policy == "random":
            raise FloatingPointError("NaN")
        return right(dense, cell, schedule)

    monkeypatch.setattr(perplexity, "_continue", sometimes)
    many = [PruneSettings("random", 0.5, 8), PruneSettings("knorm", 0.5, 8)]
    _, (bad, good) = evaluate(MODELS["neox"], repetitive_tokens(1, 40), many, [0])
    assert isinstance(bad, FloatingPointError)
    assert good.validity.prune_events > 0


def test_nan_logits_are_an_error_not_a_number():
    broken = tiny_model("neox", seed=3)
    broken.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate(broken, repetitive_tokens(1, 20), [], [0])
