"""Variants that follow the authors' own code, held to plain re-implementations over the stock model."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache, GPT2Config

from pipeline.planning.cell_reach import planned_budget
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.stock_loop import rounded
from tests.support.thinned import thinned
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.pruned_cache import PrunedCache
from workers.cache.rotary import Rotary
from workers.generation.decoding import forward
from workers.loaded.diagnosis import fixed_text
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies.settings import PruneSettings

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

    Attention of the last 32 queries, summed; over the prefix alone the maximum of seven neighbours; capacity
    - 32 of the prefix and the window itself.
    """
    out, n, found = (
        stock(input_ids=ids, past_key_values=DynamicCache(), output_attentions=True),
        ids.shape[1],
        [],
    )
    heads = (
        stock.config.get_text_config().to_dict().get("num_key_value_heads")
        or stock.config.num_attention_heads
    )
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


@pytest.mark.parametrize("name", thinned(MODELS, 1))
def test_snapkv_max7_after_a_prompt_keeps_what_the_authors_configuration_keeps(name):
    facts = find_model(name)
    model: Any = load(facts, "float32", CPU)
    ids = prompt_of(name, 160)
    cache = PrunedCache(model.config, PruneSettings("snapkv_max7", 0.5, 1, schedule="prefill_once"))
    with torch.inference_mode():
        forward(model, ids, cache)
    held = [layer.stored_positions()[0].tolist() for layer in cache.pruned_layers]
    assert held == snapkv_choice(stock_of(name), ids, 80)


@torch.inference_mode()
def constant_loop(stock: Any, ids: torch.Tensor, policy: str, most: int) -> tuple[torch.Tensor, list[int]]:
    """NLL of each token and entries held at the end: the policies of the papers in a loop over the stock
    model and its cache.

    One token per pass at its absolute position; after it each layer that holds more than ``most`` entries
    drops one.
    """
    cache: Any = DynamicCache()
    text = stock.config.get_text_config().to_dict()
    heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    positions = [[list[int]() for _ in range(heads)] for _ in range(text["num_hidden_layers"])]
    mass = [[list[float]() for _ in range(heads)] for _ in range(text["num_hidden_layers"])]
    losses = []
    for step in range(ids.shape[1] - 1):
        at = torch.tensor([[step]])
        out = stock(
            input_ids=ids[:, step : step + 1],
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        losses.append(torch.nn.functional.cross_entropy(out.logits[0, -1:], ids[0, step + 1 : step + 2]))
        for number, (layer, weights) in enumerate(zip(cache.layers, out.attentions, strict=True)):
            group = weights.shape[1] // heads
            stays = []
            for head in range(heads):
                own, got = positions[number][head], mass[number][head]
                own.append(step)
                got.append(0.0)
                given = weights[0, head * group : (head + 1) * group, 0]
                for place, value in enumerate(given.sum(0).tolist()):
                    got[place] += value
                everyone = weights[0, :, 0].mean(0)
                scores = {
                    "streaming": [float("inf") if p < 4 else p for p in own],
                    "tova": rounded(everyone).tolist(),
                    "h2o": rounded(torch.tensor(got)).tolist(),
                }[policy]
                if policy == "h2o":  # half of the budget is the newest
                    scores[len(own) - most // 2 :] = [float("inf")] * (most // 2)
                best = sorted(range(len(own)), key=lambda i, scores=scores: (-scores[i], i))
                kept = sorted(best[:most] if len(own) > most else best)
                positions[number][head] = [own[i] for i in kept]
                mass[number][head] = [got[i] for i in kept]
                stays.append(kept)
            index = torch.tensor(stays)[None, :, :, None]
            for name in ("keys", "values"):
                entries = getattr(layer, name)
                setattr(layer, name, entries.gather(2, index.expand(-1, -1, -1, entries.shape[3])))
    return torch.stack(losses), [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("policy", ["h2o", "tova", "streaming"])
@pytest.mark.parametrize("name", thinned(MODELS, 1))
def test_a_constant_budget_is_the_papers_loop_over_the_stock_model(name, policy):
    ids = prompt_of(name, 56)
    cell = PruneSettings(policy, 0.5, 40, schedule="constant")
    expected, held = constant_loop(stock_of(name), ids, policy, 20)
    model = load(find_model(name), "float32", CPU)
    _, (found,) = evaluate(model, ids, [cell], [0])
    assert isinstance(found, CellScores) and found.entries_final() == held == [20] * len(held)
    assert torch.allclose(found.nll[0], expected, atol=1e-4)
    assert torch.allclose(evaluate_reference(model, ids, cell, [0]).nll[0], expected, atol=1e-4)


def test_a_constant_budget_cuts_a_prompt_and_stays_while_decoding():
    model: Any = tiny_model("llama")
    cache = PrunedCache(model.config, PruneSettings("tova", 0.5, 40, schedule="constant", skip_layers=(1,)))
    model.generate(repetitive_tokens(1, 30), past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert [layer.held for layer in cache.pruned_layers] == [20, 35, 20]
    assert [layer.record.events for layer in cache.pruned_layers] == [6, 0, 6]


def test_planning_knows_a_constant_budget(sweep_file):
    blocks = {
        "generation": "{prompt_tokens: [32], new_tokens: 9}",
        "policies": "[streaming]",
        "keep_ratios": "[0.5]",
        "schedules": "[constant]",
        "prune_after": "[16]",
    }
    plan = make_plan(load_spec(str(sweep_file(**blocks))))
    made = {cell.task: planned_budget(cell) for cell in plan.grid.cells if cell.policy == "streaming"}
    assert made["perplexity"] and made["perplexity"].events == 63 - 8
    assert made["perplexity"].share == pytest.approx((sum(range(1, 9)) + 55 * 8) / sum(range(1, 64)))
    assert made["generation"] and made["generation"].events == 9
    assert made["generation"].share == pytest.approx(8 * 8 / sum(range(32, 40)))


@torch.inference_mode()
def streaming_llm(stock: Any, ids: torch.Tensor, most: int) -> torch.Tensor:
    """NLL of each token as StreamingLLM computes it: keys are stored as they are before rotation, and at
    every step keys and query are turned to their positions within the cache; then the first 4 and the newest
    entries stay, ``most`` in all.

    Every token goes in at position 0, where the model's own rotation is none.
    """
    config: Any = stock.config.get_text_config()
    width = config.hidden_size // config.num_attention_heads
    turned = int(width * config.rope_parameters.get("partial_rotary_factor", 1.0))
    theta = config.rope_parameters["rope_theta"]

    def rotated(states: torch.Tensor, first: int) -> torch.Tensor:
        """[1, heads, n, width] at positions from ``first`` on, as complex numbers."""
        half = turned // 2
        at = torch.arange(first, first + states.shape[2], dtype=torch.float64)
        frequencies = torch.tensor([theta ** (-2 * i / turned) for i in range(half)], dtype=torch.float64)
        circle = torch.polar(torch.ones(len(at), half, dtype=torch.float64), at[:, None] * frequencies)
        pairs = torch.complex(states[..., :half].double(), states[..., half:turned].double()) * circle
        return torch.cat([pairs.real.float(), pairs.imag.float(), states[..., turned:]], -1)

    def attend(module, query, key, value, attention_mask, scaling=1.0, **_):
        group, held = query.shape[1] // key.shape[1], key.shape[2]
        keys, values = (x.repeat_interleave(group, 1) for x in (rotated(key, 0), value))
        chance = (rotated(query, held - 1) @ keys.transpose(2, 3) * scaling).softmax(-1)
        return (chance @ values).transpose(1, 2), None

    AttentionInterface.register("streaming_llm", attend)
    stock.set_attn_implementation("streaming_llm")
    cache, losses = DynamicCache(), []
    layers: Any = cache.layers
    for step in range(ids.shape[1] - 1):
        zero = torch.zeros(1, 1, dtype=torch.long)
        out = stock(
            input_ids=ids[:, step : step + 1], position_ids=zero, past_key_values=cache, use_cache=True
        )
        losses.append(torch.nn.functional.cross_entropy(out.logits[0, -1:], ids[0, step + 1 : step + 2]))
        for layer in layers:
            for name in ("keys", "values"):
                entries = getattr(layer, name)
                if entries.shape[2] > most:
                    setattr(layer, name, torch.cat([entries[:, :, :4], entries[:, :, 4 - most :]], 2))
    return torch.stack(losses)


@pytest.mark.parametrize("name", thinned(MODELS, 1))
def test_streaming_rolled_under_a_constant_budget_is_streaming_llm(name):
    ids = prompt_of(name, 72)
    cells = [
        PruneSettings(policy, 0.5, 40, schedule="constant") for policy in ("streaming_rolled", "streaming")
    ]
    expected = streaming_llm(stock_of(name), ids, 20)
    model = load(find_model(name), "float32", CPU)
    _, (rolled, absolute) = evaluate(model, ids, cells, [0])
    assert isinstance(rolled, CellScores) and isinstance(absolute, CellScores)
    assert torch.allclose(rolled.nll[0], expected, atol=1e-4)
    assert torch.allclose(evaluate_reference(model, ids, cells[0], [0]).nll[0], expected, atol=1e-4)
    assert (absolute.nll[0] - expected).abs().max() > 0.01


def test_streaming_rolled_refuses_what_it_cannot_turn(sweep_file, tmp_path):
    model: Any = tiny_model("llama")
    rope = dict(model.config.rope_parameters)
    model.config.rope_parameters = {**rope, "rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match="this model's rotation is dynamic"):
        PrunedCache(model.config, policy="streaming_rolled", keep_ratio=0.5)
    with pytest.raises(ValueError, match="models of type gpt2"):
        PrunedCache(GPT2Config(n_layer=1), policy="streaming_rolled", keep_ratio=0.5)
    with pytest.raises(ValueError, match="use float32"):
        Rotary.of(tiny_model("neox").config).turn(torch.zeros(1, 1, 2, 8).half(), torch.ones(1, 1, 2))
    with pytest.raises(SweepError, match="takes float32 alone"):
        make_plan(load_spec(str(sweep_file(policies="[streaming_rolled]", dtypes="[bfloat16]"))))
    plan = make_plan(
        load_spec(str(sweep_file(policies="[streaming_rolled]", position_modes="[cache_length]")))
    )
    assert any("streaming_rolled" in reason for reason in plan.grid.dropped)
