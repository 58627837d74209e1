"""Key norm against attention: the figures by another road, layers chosen by them, and what the command
says."""

import json
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from pipeline.cli import main
from tests.support.stock_loop import rounded
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.loaded import diagnosis
from workers.loaded.diagnosis import (
    Diagnosis,
    LayerDiagnosis,
    attention_loss,
    diagnose,
    fixed_diagnosis,
    fixed_text,
)
from workers.loaded.load import load
from workers.models.model_files import find_model

MODELS = ("reference-neox", "reference-llama")


def ranks(values: list[float]) -> list[float]:
    """Ranks from 0 in plain Python; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def spearman(one: list[float], other: list[float]) -> float:
    a, b = ranks(one), ranks(other)
    mean = (len(a) - 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return product / spread**0.5


@torch.inference_mode()
def stock_figures(model: Any, ids: torch.Tensor) -> list[list[tuple[list[float], list[float]]]]:
    """Per layer and KV head: norms of the stock cache's keys, and what each entry gets of the later queries'
    attention."""
    cache = DynamicCache()
    out = model(input_ids=ids[None], past_key_values=cache, use_cache=True, output_attentions=True)
    n, found = len(ids), []
    layers: Any = cache.layers
    for layer, weights in zip(layers, out.attentions, strict=True):
        heads = layer.keys.shape[1]
        group = weights.shape[1] // heads
        own = []
        for head in range(heads):
            shared = weights[0, head * group : (head + 1) * group].double().mean(0)
            got = torch.tensor([float(shared[j + 1 :, j].mean()) for j in range(n - 1)])
            own.append((rounded(layer.keys[0, head, :-1].norm(dim=-1)).tolist(), rounded(got).tolist()))
        found.append(own)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_correlations_and_losses_are_those_of_the_stock_model_in_plain_python(name):
    facts = find_model(name)
    ids = torch.from_numpy(fixed_text(facts))[:160]
    found = diagnose(load(facts, "float32", torch.device("cpu")), ids)
    stock = AutoModelForCausalLM.from_pretrained(
        facts.source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for layer, heads in zip(found.layers, stock_figures(stock, ids), strict=True):
        assert layer.correlations == pytest.approx([spearman(*head) for head in heads], abs=2e-4)
        assert layer.losses == pytest.approx([plain_loss(*head) for head in heads], abs=2e-4)
    assert any(layer.correlation > 0.2 for layer in found.layers)


def plain_loss(norms: list[float], received: list[float]) -> float:
    """Devoto et al.: attention that goes with the m entries of highest norm, less that of the m least
    attended to, over all m."""
    total, count = sum(received), len(norms)
    by_norm = sorted(range(count), key=lambda j: (-norms[j], -j))
    least = sorted(received)
    gaps = [sum(received[j] for j in by_norm[:m]) - sum(least[:m]) for m in range(1, count + 1)]
    return sum(gaps) / count / total


def test_the_sign_says_whether_high_norms_get_much_attention():
    norms = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert diagnosis._correlation(norms, norms * 2).item() == pytest.approx(1)
    assert diagnosis._correlation(norms, -norms).item() == pytest.approx(-1)
    assert diagnosis._correlation(norms, torch.ones(1, 4)).item() == 0
    assert attention_loss(norms, norms.flip(-1)).item() == 0
    assert attention_loss(norms, norms).item() > 0.2


def test_equal_norms_share_their_rank():
    assert diagnosis._ranks(torch.tensor([[2.0, 1.0, 2.0, 3.0, 2.0]])).tolist() == [[2.0, 0.0, 2.0, 4.0, 2.0]]


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_attention_made_in_slices_is_the_same(architecture, monkeypatch):
    model, ids = tiny_model(architecture), repetitive_tokens(1, 60)[0]
    whole = diagnose(model, ids)
    monkeypatch.setattr(
        "workers.cache.attention.PROBABILITY_BYTES", 4 * 4 * 60 * 7
    )  # seven queries at a time
    for one, other in zip(whole.layers, diagnose(model, ids).layers, strict=True):
        assert one.correlations == pytest.approx(other.correlations, abs=1e-3)


def of(*correlations: float) -> Diagnosis:
    return Diagnosis(9, tuple(LayerDiagnosis((value,), (0.0,)) for value in correlations))


def test_the_worst_layers_are_those_of_greatest_correlation_and_ties_go_to_the_lower():
    found = of(0.1, 0.5001, -0.2, 0.4999, 0.3)
    assert [found.worst(k) for k in (1, 2, 3, 5)] == [(1,), (1, 3), (1, 3, 4), (0, 1, 2, 3, 4)]
    assert found.rounded == [0.1, 0.5, -0.2, 0.5, 0.3]


def test_a_text_too_short_to_rank_is_refused():
    with pytest.raises(ValueError, match="at least 8"):
        diagnose(tiny_model("llama"), repetitive_tokens(1, 7)[0])


def test_what_is_not_a_number_is_an_error():
    model: Any = tiny_model("llama")
    model.model.layers[1].self_attn.k_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer 1"):
        diagnose(model, repetitive_tokens(1, 20)[0])


def test_a_model_is_diagnosed_once(monkeypatch):
    facts = find_model("reference-neox")
    model = load(facts, "float32", torch.device("cpu"))
    calls = []
    monkeypatch.setattr(diagnosis, "_fixed", {})
    monkeypatch.setattr(diagnosis, "diagnose", lambda *given: calls.append(given) or of(0.1))
    assert fixed_diagnosis(model, facts) is fixed_diagnosis(model, facts)
    assert len(calls) == 1


def run(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left, patch("sys.argv", ["kvsweep", "diagnose", *words]):
        main()
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_the_command_shows_every_layer_and_says_what_it_means(capsys):
    code, out, _ = run(capsys, "reference-neox", "--device", "cpu", "--tokens", "64", "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["tokens"] == 64 and len(found["layers"]) == 6
    assert sorted(layer["rank"] for layer in found["layers"]) == [1, 2, 3, 4, 5, 6]
    worst = max(found["layers"], key=lambda layer: layer["correlation"])
    assert worst["rank"] == 1 and found["skipped_first"][0] == worst["layer"]
    assert "first 1,024 tokens of pydocs" in found["sentence"]

    code, out, _ = run(capsys, "reference-neox", "--device", "cpu", "--tokens", "64")
    assert code == 0 and "go together" in out and f"layers {worst['layer']}, " in out
    assert f"{worst['correlation']:+.3f}" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "model 'nowhere'"),
        (["reference-neox", "--tokens", "2049"], "--tokens: 2049 is longer than the context"),
        (["reference-neox", "--dataset", "text:/no/such"], "--dataset: dataset 'text:/no/such'"),
        (["{name: reference-neox, revision: main}"], "revision 'main' is for models of a hub"),
        (["{name:"], "is no model"),
        (["{nome: x}"], "unknown key"),
        (["reference-neox", "--tokens", "7"], "Invalid value"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(capsys, monkeypatch, words, said):
    monkeypatch.setattr("workers.loaded.load.load", lambda *_: pytest.fail("a model was loaded"))
    code, out, err = run(capsys, *words)
    assert code == 2 and said in err and not out and "Traceback" not in err
