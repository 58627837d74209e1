"""Lengths and models that cannot be measured are refused before anything starts, by every way in."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import kvsweep
from workers.cache.scoring import OutputLayer, next_logits
from workers.loaded.load import load
from workers.models.architecture import Limit
from workers.models.model_files import ModelError, find_model

DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "max_position_embeddings": 128,
}


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """``model(key=value, ...)``: a folder whose config.json says so."""

    def make(**keys: object) -> Path:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_model_dir, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))
        return folder

    return make


@pytest.fixture
def faults_of(sweep_file):
    def faults(folder: Path, **keys: str | None) -> list[str]:
        try:
            make_plan(load_spec(str(sweep_file(models=f"[{folder}]", **keys))))
        except SweepError as error:
            return list(error.faults)
        return []

    return faults


TASKS = {
    "perplexity.window": {"perplexity": "{window: 200, stride: 200, windows: 2}"},
    "generation.prompt_tokens + new_tokens": {
        "perplexity": None,
        "generation": "{prompt_tokens: [150], new_tokens: 50}",
    },
    "retrieval.context_tokens": {"perplexity": None, "retrieval": "{context_tokens: [240], questions: 1}"},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("beyond", ["false", "true"])
@pytest.mark.parametrize(
    ("keys", "tokens", "why"),
    [
        (
            DYNAMIC,
            128,
            "a longer text changes its rotary frequencies for all of its tokens (rope_type dynamic)",
        ),
        (
            {"sliding_window": 100},
            100,
            "some of its layers attend to the last 100 tokens only (sliding_window)",
        ),
        ({"attention_chunk_size": 64}, 64, "some of its layers attend within chunks of 64 tokens only"),
    ],
    ids=["rope", "sliding", "chunks"],
)
def test_a_text_beyond_a_limit_is_refused_for_every_task_whatever_is_allowed(
    task, beyond, keys, tokens, why, model, faults_of
):
    (fault,) = faults_of(model(**keys), allow_beyond_context=beyond, **TASKS[task])
    assert (
        fault.startswith(task) and f"is longer than the {tokens} tokens up to which" in fault and why in fault
    )


def test_a_text_as_long_as_the_limit_is_planned(model, faults_of):
    at = {"perplexity": "{window: 128, stride: 128, windows: 2}"}
    assert faults_of(model(**DYNAMIC), **at) == []
    assert len(faults_of(model(**DYNAMIC), perplexity="{window: 129, stride: 129, windows: 2}")) == 1


def test_a_model_that_cannot_be_measured_is_refused_in_one_line_with_every_reason(
    model, sweep_file, tmp_path
):
    folder = model(kv_lora_rank=8, logit_scale=0.5)
    before = sorted(tmp_path.rglob("*"))
    done = kvsweep("plan", sweep_file(models=f"[{folder}]"), folder=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if str(folder) in line]
    assert "compressed latents (multi-head latent attention, kv_lora_rank 8)" in line
    assert "; it scales its logits (logit_scale 0.5)" in line
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "sweep.yaml"]


def test_a_model_without_attention_is_refused_in_words(model, faults_of):
    """Its config.json has no heads, which would otherwise be the complaint."""
    folder = model()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 32})
    )
    (fault,) = faults_of(folder)
    assert "some or all of its layers (mamba) keep a running state instead of keys and values" in fault


def test_a_refused_model_is_not_loaded_either(model):
    with pytest.raises(ModelError, match="kv_lora_rank 8"):
        load(find_model(str(model(kv_lora_rank=8))), "float32", torch.device("cpu"))


def test_the_longest_text_is_the_least_of_context_and_limits(model):
    assert find_model(str(model())).longest(2048) == 256
    assert find_model(str(model(sliding_window=100))).longest(2048) == 100
    assert find_model(str(model(sliding_window=1000))).longest(2048) == 256
    assert find_model(str(model(sliding_window=1000, max_position_embeddings=None))).longest(2048) == 1000
    assert find_model(str(model(max_position_embeddings=None))).longest(2048) == 2048


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 97,
}


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_logits_that_a_model_scales_are_refused_wherever_they_are_made(scaling):
    """The judge: logits of the stock model, which divides what its output layer gives."""
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, num_key_value_heads=2, logits_scaling=scaling)).eval()
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        hidden, expected = model.model(tokens).last_hidden_state[:, -1], model(tokens).logits[:, -1]
        if scaling == 1.0:
            assert torch.allclose(next_logits(model, hidden), expected)
            assert OutputLayer.of(model).softcap is None
            return
    with pytest.raises(ValueError, match=r"logits_scaling 8\.0"):
        next_logits(model, hidden)
    with pytest.raises(ValueError, match=r"logits_scaling 8\.0"):
        OutputLayer.of(model)


def test_what_may_go_through_is_one_less_where_the_last_token_is_only_predicted():
    """Phi-3 and its kin: a text of 64 tokens feeds 63 of them, and so do the windows of the harness."""
    facts = replace(
        find_model("reference-neox"), context=128, limits=(Limit(64, "its frequencies change", True),)
    )
    assert facts.longest(2048) == 63 and not facts.limit_exceeded(64) and facts.limit_exceeded(65)
    assert replace(facts, limits=(Limit(64, "it slides"),)).longest(2048) == 64
