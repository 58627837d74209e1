"""Finding and loading models: facts without torch, the self-check, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tests.tiny import tiny_model
from workers import attention
from workers.model_files import EMBEDDED_NAMES, ModelError, find_model
from workers.models import check, load


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
    monkeypatch.setattr(attention, "_open_then_causal", lambda q, n, device: torch.ones(q, n, dtype=torch.bool))
    with pytest.raises(ModelError, match="self-check failed"):
        check(model, "broken", "float32")


def test_sliding_window_layers_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sliding"):
        load(find_model(str(saved)), "float32", torch.device("cpu"))


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
