"""Finding and loading models: facts without torch, the self-check, refusals."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tests.tiny import tiny_model
from workers import attention, self_check
from workers.model_files import EMBEDDED_NAMES, ModelError, find_model
from workers.models import load
from workers.self_check import check


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama", "sdpa").save_pretrained(folder)
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


def test_facts_come_from_the_files(saved):
    facts = find_model(str(saved))
    assert (facts.layers, facts.context, facts.kv_heads, facts.head_dim, facts.architecture) == (3, 512, 2, 8, "llama")
    assert facts.revision.startswith("sha256:")


def test_revision_follows_weights_tokenizer_and_configuration(saved):
    before = find_model(str(saved)).revision
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    changed = find_model(str(saved)).revision
    Tokenizer(models.BPE(vocab={"b": 0}, merges=[])).save(str(saved / "tokenizer.json"))
    assert len({before, changed, find_model(str(saved)).revision}) == 3


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_by_what_is_missing(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(ModelError, match=r"safetensors|missing"):
        find_model(str(saved))


def test_an_unknown_name_says_what_is_allowed_and_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        find_model("nobody/no-such-model")
    assert all(name in str(caught.value) for name in EMBEDDED_NAMES)
    assert "path" in str(caught.value)


def test_a_loaded_model_is_checked_and_frozen(saved):
    model = load(find_model(str(saved)), "float32", torch.device("cpu"))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_wrong_attention_fails_the_self_check(monkeypatch):
    """What the check is for: a mask that lets a query see the future."""
    model = tiny_model("neox", "sdpa")
    real = attention.attention
    for module in ("workers.shared_prefix", "workers.pruned_layer", "workers.cell_batch"):
        monkeypatch.setattr(
            f"{module}.attention", lambda q, k, v, scale, mask=None: real(q, k, v, scale, q.new_zeros(1, 1, 1, 1))
        )
    with pytest.raises(ModelError, match="stock model"):
        check(model, "broken", "float32")


def test_a_wrong_pruned_cell_fails_the_self_check(monkeypatch):
    """Positions stored wrongly: the evaluation drops other entries than the reference."""
    monkeypatch.setattr("workers.slot_layer.order_by_score", lambda scores, positions, protected: positions.long() << 24)
    with pytest.raises(ModelError, match="one token per pass"):
        check(tiny_model("neox", "sdpa"), "broken", "float32")


def test_a_check_that_passed_is_remembered_until_something_changes(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(self_check, "check", lambda model, name, dtype: calls.append((name, dtype)))
    cpu = torch.device("cpu")
    model = load(find_model(str(saved)), "float32", cpu)
    again = load(find_model(str(saved)), "float32", cpu)
    load(find_model(str(saved)), "bfloat16", cpu)
    assert [dtype for _, dtype in calls] == ["float32", "bfloat16"]
    assert again.config._attn_implementation == "kvsweep"
    assert type(model) is type(again)


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_embedded_models_load_and_are_small(name):
    facts = find_model(name)
    from workers.model_files import EMBEDDED

    assert sum(path.stat().st_size for path in (EMBEDDED / name).iterdir()) < 16e6
    assert facts.context == 2048
    load(facts, "float32", torch.device("cpu"))


def test_attention_refuses_what_it_does_not_implement():
    query = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match="last 5 tokens"):
        attention.attend(torch.nn.Identity(), query, query, query, None, sliding_window=5)
    with pytest.raises(ValueError, match="s_aux"):
        attention.attend(torch.nn.Identity(), query, query, query, None, s_aux=torch.zeros(2))
