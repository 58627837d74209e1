"""Variants that follow the authors' own code, held to plain re-implementations over the stock model."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tests.stock_loop import rounded
from workers.diagnosis import fixed_text
from workers.generation import forward
from workers.model_files import find_model
from workers.models import load
from workers.pruned_cache import PrunedCache
from workers.settings import PruneSettings

CPU = torch.device("cpu")
MODELS = ("reference-neox", "reference-llama")


def stock_of(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        find_model(name).source, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def prompt_of(name: str, length: int) -> torch.Tensor:
    return torch.from_numpy(fixed_text(find_model(name)))[None, :length]


@torch.inference_mode()
def snapkv_choice(stock: Any, ids: torch.Tensor, capacity: int) -> list[list[list[int]]]:
    """Per layer and KV head, what the authors' configuration "w32, k7, maxpool" keeps, in plain Python.

    Attention of the last 32 queries, summed; over the prefix alone the maximum of seven neighbours; capacity - 32 of the
    prefix and the window itself.
    """
    out, n, found = stock(input_ids=ids, past_key_values=DynamicCache(), output_attentions=True), ids.shape[1], []
    heads = stock.config.get_text_config().to_dict().get("num_key_value_heads") or stock.config.num_attention_heads
    for weights in out.attentions:
        group, own = weights.shape[1] // heads, []
        for head in range(heads):
            mean = weights[0, head * group : (head + 1) * group, -32:, :].mean((0, 1))
            prefix = mean[: n - 32].tolist()
            pooled = [max(prefix[max(0, j - 3) : j + 4]) for j in range(n - 32)]
            scores = rounded(torch.tensor(pooled)).tolist()
            best = sorted(range(n - 32), key=lambda j: (-scores[j], j))[: capacity - 32]
            own.append([*sorted(best), *range(n - 32, n)])
        found.append(own)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_snapkv_max7_after_a_prompt_keeps_what_the_authors_configuration_keeps(name):
    facts = find_model(name)
    model, ids = load(facts, "float32", CPU), prompt_of(name, 160)
    cache = PrunedCache(model.config, PruneSettings("snapkv_max7", 0.5, 1, schedule="prefill_once"))
    with torch.inference_mode():
        forward(model, ids, cache)
    held = [layer.stored_positions()[0].tolist() for layer in cache.pruned_layers]
    assert held == snapkv_choice(stock_of(name), ids, 80)
