"""Weights in the dtype of their file are mapped from it: workers of a node share one copy in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import save_byte_tokenizer
from tests.support.command import ROOT

pytestmark = pytest.mark.slow

LOADS = """\
import gc, json, sys
import psutil, torch
import transformers.models.llama.modeling_llama
from workers.models.model_files import find_model
from workers.loaded.load import load
torch.set_num_threads(1)
before = psutil.Process().memory_full_info()
model = load(find_model(sys.argv[1]), "float32", torch.device("cpu"))
model(torch.arange(64)[None])
gc.collect()
print("loaded", flush=True)
sys.stdin.readline()
after = psutil.Process().memory_full_info()
print(json.dumps({"rss": after.rss - before.rss, "uss": after.uss - before.uss}), flush=True)
sys.stdin.readline()
"""
"""Loads as a worker does, and says how much its memory has grown, while the others of its kind live: all of
it, its own alone."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """18 million random weights, 72 MB in float32, and a tokenizer."""
    folder = tmp_path_factory.mktemp("large") / "model"
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=256,
    )
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(folder)
    save_byte_tokenizer(folder / "tokenizer.json")
    return folder


def grown(folder: Path, many: int = 2) -> list[dict[str, int]]:
    """What each of ``many`` processes that have the model loaded at the same time says."""
    command, environment = [sys.executable, "-c", LOADS, str(folder)], os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(many)
    ]
    try:
        pipes = [(process.stdin, process.stdout) for process in started]
        assert all(stdout and stdout.readline() == "loaded\n" for _, stdout in pipes)
        found = []
        for stdin, stdout in pipes:
            assert stdin and stdout
            stdin.write("measure\n")
            stdin.flush()
            found.append(json.loads(stdout.readline()))
        return found
    finally:
        for process in started:
            process.communicate(timeout=30)


def test_workers_of_a_node_share_the_weights(model):
    size = (model / "model.safetensors").stat().st_size
    assert size > 60e6
    for one in grown(model):
        assert one["rss"] > 0.9 * size, "all weights are in memory"
        assert one["uss"] < 0.5 * size, "and hardly any of them for this worker alone"


def test_weights_of_another_dtype_are_converted_by_each_worker_for_itself(model, tmp_path):
    """Which also shows that the measure can tell: a model that is to be shared is saved in the dtype of the
    sweep."""
    other = tmp_path / "bfloat16"
    size = (model / "model.safetensors").stat().st_size
    LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(other)
    save_byte_tokenizer(other / "tokenizer.json")
    assert all(one["uss"] > 0.9 * size for one in grown(other))
