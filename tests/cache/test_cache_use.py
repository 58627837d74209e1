"""A cache that a model or a script uses in another way than it must be used says so, instead of giving wrong
figures."""

import copy
import gc
import math
import weakref

import pytest
import torch
import transformers
from transformers import DynamicCache

from tests.support.architectures import ARCHITECTURES as ARCHITECTURE_LIST
from tests.support.architectures import Architecture, make
from tests.support.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.cache import attention
from workers.cache.attending_layer import WrongUseError
from workers.cache.batch.batch_cache import BatchCache
from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import forward
from workers.perplexity.evaluation import _tracks
from workers.policies.settings import PruneSettings

GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
PROMPT = repetitive_tokens(1, 40)


def pruned(model, **options):
    return PrunedCache(model.config, **{"keep_ratio": 0.5, "prune_after": 8, **options})


def test_keys_that_the_model_copies_before_attending_are_noticed_in_the_same_pass(monkeypatch):
    model = tiny_model("llama")
    cache = pruned(model)
    update = cache.update

    def copied(*arguments, **options):
        keys, values = update(*arguments, **options)
        return keys.clone(), values

    monkeypatch.setattr(cache, "update", copied)
    with pytest.raises(WrongUseError, match="copies its keys"):
        model(PROMPT, past_key_values=cache)


def test_a_configuration_that_names_another_attention_than_the_model_calls_is_noticed():
    model = tiny_model("llama", "sdpa")
    config = copy.deepcopy(model.config)
    config._attn_implementation = attention.NAME
    cache = PrunedCache(config, keep_ratio=0.5, prune_after=8)
    model(PROMPT, past_key_values=cache)
    with pytest.raises(WrongUseError, match="configuration names"):
        _ = cache.events
    with pytest.raises(WrongUseError, match="configuration names"):
        model(PROMPT[:, :1], past_key_values=cache)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copied_cache_goes_on_as_the_original_does_whatever_attention_is_chosen_later(architecture):
    model = tiny_model(architecture, "sdpa")
    cache = pruned(model)
    with torch.inference_mode():
        model(PROMPT, past_key_values=cache)
        twin = copy.deepcopy(cache)
        assert twin.state is not cache.state and twin.pruned_layers[0].state is twin.state
        model.set_attn_implementation(attention.NAME)
        one, other = (forward(model, PROMPT[:, :1], each) for each in (cache, twin))
    assert torch.equal(one, other)
    assert cache.events == twin.events > 3


def test_keys_of_a_layer_are_attended_to_once():
    model = tiny_model("llama")
    cache = pruned(model)
    module = model.model.layers[0].self_attn
    state = torch.randn(1, 2, 20, 8)
    keys, values = cache.update(state, state, 0)
    query = torch.randn(1, 4, 20, 8)
    attention.attend(module, query, keys, values, None)
    with pytest.raises(WrongUseError, match="read other layers' keys"):
        attention.attend(module, query, keys, values, None)


@pytest.mark.parametrize("implementation", ["kvsweep", "sdpa"])
def test_generate_without_use_cache_is_refused(implementation):
    model = tiny_model("llama", implementation)
    with pytest.raises(ValueError, match=r"reset|cannot take 41 tokens"):
        model.generate(PROMPT, past_key_values=pruned(model), use_cache=False, **GREEDY)


@pytest.mark.parametrize("implementation", ["kvsweep", "sdpa"])
@pytest.mark.parametrize("keep_ratio", [0.5, 1.0])
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 30), (1, 52), (1, 90), (2, 40)], ids=["shorter", "one longer", "longer", "batch"]
)
def test_another_text_without_reset_is_refused_and_with_it_is_as_fresh(
    implementation, keep_ratio, rows, length
):
    model = tiny_model("llama", implementation)
    cache = pruned(model, keep_ratio=keep_ratio)
    model.generate(PROMPT, past_key_values=cache, **GREEDY)
    other = repetitive_tokens(rows, length, seed=5)
    with pytest.raises(ValueError, match=r"reset\(\)"):
        model.generate(other, past_key_values=cache, **GREEDY)

    cache.reset()
    again = model.generate(other, past_key_values=cache, **GREEDY)
    assert torch.equal(
        again, model.generate(other, past_key_values=pruned(model, keep_ratio=keep_ratio), **GREEDY)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("schedule", ["every_step", "prefill_once"])
@pytest.mark.parametrize(
    ("policy", "implementation"),
    [("knorm", "kvsweep"), ("knorm", "sdpa"), ("snapkv", "kvsweep"), ("h2o", "kvsweep")],
)
def test_a_prompt_in_chunks_is_pruned_at_its_end_as_one_in_one_pass(
    architecture, schedule, policy, implementation
):
    model = tiny_model(architecture, implementation)
    options = {"policy": policy, "schedule": schedule}
    whole, chunked = pruned(model, **options), pruned(model, prompt_tokens=40, **options)
    expected = model.generate(PROMPT, past_key_values=whole, **GREEDY)
    assert torch.equal(
        model.generate(PROMPT, past_key_values=chunked, prefill_chunk_size=16, **GREEDY), expected
    )
    assert [layer.held for layer in chunked.pruned_layers] == [layer.held for layer in whole.pruned_layers]
    assert chunked.events == whole.events

    with pytest.raises(ValueError, match="announced"):
        model.generate(
            PROMPT,
            past_key_values=pruned(model, prompt_tokens=30, **options),
            prefill_chunk_size=16,
            **GREEDY,
        )


@pytest.mark.parametrize("implementation", ["kvsweep", "sdpa"])
@pytest.mark.parametrize("schedule", ["every_step", "prefill_once"])
@pytest.mark.parametrize("chunk", [1, 16, 20, 39])
def test_chunks_that_nobody_announced_are_refused_also_where_a_single_token_is_left(
    implementation, schedule, chunk
):
    model = tiny_model("llama", implementation)
    with pytest.raises(ValueError, match="prompt_tokens"):
        model.generate(
            PROMPT, past_key_values=pruned(model, schedule=schedule), prefill_chunk_size=chunk, **GREEDY
        )


@pytest.mark.parametrize("schedule", ["every_step", "prefill_once"])
def test_a_second_turn_is_announced_and_pruned_at_its_end(schedule):
    model = tiny_model("neox")
    cache = pruned(model, schedule=schedule, keep_ratio=0.7)
    text = model.generate(PROMPT, past_key_values=cache, **GREEDY)
    held = cache.pruned_layers[0].held
    turn = torch.cat([text, repetitive_tokens(1, 9, seed=3)], 1)  # the last token of the answer was never fed
    cache.begin_prompt(turn.shape[1] - cache.seen)
    with torch.inference_mode():
        model(turn[:, cache.seen :], past_key_values=cache)
    assert cache.seen == turn.shape[1]
    assert [layer.held for layer in cache.pruned_layers] == [math.ceil(0.7 * (held + 10))] * 3


def test_announcements_that_cannot_be_are_refused():
    model = tiny_model("neox")
    cache = pruned(model)
    with pytest.raises(ValueError, match="at least one token"):
        cache.begin_prompt(0)
    cache.begin_prompt(30)
    with pytest.raises(ValueError, match="30 tokens of what was announced"):
        cache.begin_steps(4)


def test_rows_of_a_prefix_go_on_as_if_each_had_been_alone():
    """What scripts do with a shared prefix: once through, then a batch of questions."""
    model, policy = tiny_model("llama"), {"policy": "random", "keep_ratio": 0.6}
    questions = repetitive_tokens(3, 5, seed=9)
    cache = pruned(model, **policy)
    with torch.inference_mode():
        forward(model, PROMPT, cache)
        cache.batch_repeat_interleave(3)
        assert cache.batch_size == cache.max_batch_size == 3
        cache.begin_prompt(5)
        together = forward(model, questions, cache)
        cache.batch_select_indices(torch.tensor([2, 0]))
        together_after = forward(model, questions[[2, 0], :1], cache)
        for row in range(3):
            own = pruned(model, **policy)
            forward(model, PROMPT, own)
            own.begin_prompt(5)
            assert torch.allclose(forward(model, questions[row : row + 1], own)[0], together[row], atol=1e-5)
            if row != 1:
                alone = forward(model, questions[row : row + 1, :1], own)[0]
                assert torch.allclose(alone, together_after[[2, 0].index(row)], atol=1e-5)


def test_select_indices_takes_a_mask():
    model = tiny_model("llama")
    cache = pruned(model)
    with torch.inference_mode():
        forward(model, repetitive_tokens(3, 20), cache)
    cache.batch_select_indices(torch.tensor([True, False, True]))
    assert cache.batch_size == 2


@pytest.mark.parametrize("policy", ["knorm", "random", "h2o"])
def test_the_best_beam_has_the_likelihood_that_its_own_tokens_have_alone(policy):
    """Beam search reorders rows; what a row holds must follow from its own text, not from the place where it
    lay."""
    model = tiny_model("llama")
    options = {"num_beams": 3, "length_penalty": 0.0, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(
        PROMPT, past_key_values=pruned(model, policy=policy, row_ids=[7, 7, 7]), **options, **GREEDY
    )
    answer, cache = found.sequences[0, 40:], pruned(model, policy=policy, row_ids=[7])
    total, token = 0.0, PROMPT
    with torch.inference_mode():
        for following in answer:
            total += float(forward(model, token, cache).log_softmax(-1)[0, following])
            token = following.view(1, 1)
    assert total == pytest.approx(float(found.sequences_scores[0]), abs=1e-4)


def test_beams_of_a_dense_cache_are_those_of_the_stock_model():
    model = tiny_model("llama", "sdpa")
    stock = model.generate(PROMPT, num_beams=3, **GREEDY)
    model.set_attn_implementation(attention.NAME)
    ours = model.generate(
        PROMPT, num_beams=3, past_key_values=PrunedCache(model.config, PruneSettings("dense")), **GREEDY
    )
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_keys_values_and_bytes_are_those_held_and_nothing_else(keep_ratio):
    model = tiny_model("llama", "sdpa")
    cache, dynamic = pruned(model, keep_ratio=keep_ratio), DynamicCache(config=model.config)
    with torch.inference_mode():
        model(PROMPT, past_key_values=cache)
        model(PROMPT, past_key_values=dynamic)
    kept = [layer.stored_positions().long()[..., None].expand(-1, -1, -1, 8) for layer in cache.pruned_layers]
    held = math.ceil(keep_ratio * 40)
    for (keys, values, _), other, places in zip(cache, dynamic.layers, kept, strict=True):
        assert keys.shape[2] == values.shape[2] == held
        assert torch.allclose(keys, other.keys.gather(2, places), atol=1e-5)
        assert torch.allclose(values, other.values.gather(2, places), atol=1e-5)
    nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert nbytes == cache.nbytes == cache.kv_bytes() == 3 * 2 * (2 * held * 8 * 4)
    assert (
        len(cache) == 3 and cache.get_max_cache_shape() == cache.max_cache_len == cache.get_max_length() == -1
    )


@pytest.mark.parametrize("call", ["crop", "offload", "prefetch"])
def test_what_a_pruned_cache_cannot_do_is_refused_in_a_sentence(call):
    cache = pruned(tiny_model("llama"))
    with pytest.raises(ValueError, match="PrunedCache"):
        getattr(cache, call)(1)


def test_figures_of_a_cache_that_no_model_used_are_refused():
    cache = pruned(tiny_model("llama"))
    assert cache.kv_bytes() == 0
    with pytest.raises(WrongUseError, match="did not use this cache"):
        _ = cache.events
    with pytest.raises(WrongUseError, match="did not use this cache"):
        cache.validity()


def test_a_model_that_leaves_out_layers_of_its_cache_is_noticed():
    model = tiny_model("llama", "sdpa")
    cache = pruned(model)
    state = torch.randn(1, 2, 20, 8)
    cache.update(state, state, 0)
    with pytest.raises(WrongUseError, match=r"layers \[1, 2\]"):
        _ = cache.events


PHI = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def phi():
    """Its rotary frequencies change behind 56 tokens, and ``generate`` then begins anew without the cache."""
    rope = {**PHI, "original_max_position_embeddings": 56}
    options = {"num_key_value_heads": 2, "original_max_position_embeddings": 56, "rope_parameters": rope}
    return make(Architecture("", "Phi3", options))


@pytest.mark.parametrize("implementation", ["kvsweep", "sdpa"])
@pytest.mark.parametrize(("prompt", "new"), [(50, 20), (70, 5), (56, 2), (50, 7)])
def test_a_model_that_throws_its_cache_away_for_long_texts_is_refused_before_it_does(
    implementation, prompt, new
):
    model, tokens, options = phi(), repetitive_tokens(1, prompt), {**GREEDY, "max_new_tokens": new}
    model.set_attn_implementation(implementation)
    with pytest.raises(ValueError, match="prompt_tokens="):
        model.generate(tokens, past_key_values=pruned(model), **options)
    with pytest.raises(ValueError, match="55 that can go through this model exactly"):
        model.generate(tokens, past_key_values=pruned(model, prompt_tokens=prompt), **options)
    with pytest.raises(ValueError, match="55 that can go through"):
        Prefill(model, repetitive_tokens(1, 56), ["knorm"])


def test_shorter_texts_of_such_a_model_are_pruned():
    model = phi()
    model.set_attn_implementation("kvsweep")
    cache = pruned(model, prompt_tokens=50)
    model.generate(repetitive_tokens(1, 50), past_key_values=cache, **{**GREEDY, "max_new_tokens": 6})
    assert cache.seen == 55 and cache.events > 2


def test_a_model_whose_configuration_rules_it_out_is_refused_as_its_cache_is_made():
    config = transformers.RecurrentGemmaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3)
    with pytest.raises(ValueError, match="cannot be measured through a pruned cache: not every layer of it"):
        PrunedCache(config, keep_ratio=0.5)


def test_layers_may_lie_on_several_devices():
    """The meta device stands for a second one: it refuses what mixes it with the CPU."""
    model = tiny_model("llama")
    cache = pruned(model, policy="random")
    for layer, device in zip(cache.pruned_layers, ("cpu", "meta", "cpu"), strict=True):
        state, query = torch.randn(1, 2, 20, 8, device=device), torch.randn(1, 4, 20, 8, device=device)
        layer.update(state, state)
        layer.attend(query, attention.Scale(0.3, None))
        assert (layer.held, layer.stored()[0].device.type) == (10, device)


def test_what_is_kept_out_is_one_stretch_and_a_batch_has_no_size_before_there_is_one():
    model, cache = tiny_model("llama"), pruned(tiny_model("llama"))
    assert cache.batch_size == cache.max_batch_size == -1
    with torch.inference_mode():
        forward(model, PROMPT, cache)
        cache.begin_outside(3)
        forward(model, PROMPT[:, :3], cache)
    with pytest.raises(ValueError, match="positions 40 to 43 are kept out already"):
        cache.begin_outside(2)


def test_row_ids_are_as_many_as_the_texts():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="names 3 texts and the batch has 2"):
        forward(model, repetitive_tokens(2, 20), pruned(model, row_ids=[1, 2, 3]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cache_that_nobody_holds_is_freed_at_once(architecture):
    model = tiny_model(architecture)
    gc.disable()
    try:
        with torch.inference_mode():
            prefill = Prefill(model, PROMPT, ["knorm"])
            cache = prefill.cache(PruneSettings("knorm", 0.5, 8), [0])
            forward(model, PROMPT[:, :1], cache)
        tracks = _tracks(0, PruneSettings("knorm", 0.5, 8), 39, 3)
        batch = BatchCache(prefill.prefix.prefix_layers, tracks, [0], True, model.config)
        held = [weakref.ref(each) for each in (cache, prefill.prefix, batch, cache.pruned_layers[0]._keys)]
        del cache, prefill, batch
        assert [each() for each in held] == [None] * 4
    finally:
        gc.enable()


def test_masks_that_are_kept_take_little_memory():
    attention._remembered_mask.cache_clear()
    for n in range(3000, 3010):
        attention._open_then_causal(n // 2, n, torch.device("cpu"))
        attention._open_then_causal(2, n, torch.device("cpu"))
    kept = attention._remembered_mask.cache_info()
    assert kept.maxsize * attention.MASK_PLACES <= 2**25 and kept.currsize == 8


@pytest.mark.parametrize("implementation", ["kvsweep", "sdpa"])
@pytest.mark.parametrize("prompt", [20, 39])
def test_a_model_that_asks_each_layer_for_its_length_gets_what_that_layer_has_seen(implementation, prompt):
    """Llama 4 scales its attention by it, in each layer, when those before have already taken the pass."""
    (scaled,) = (each for each in ARCHITECTURE_LIST if "scaled by the cache's length" in each.name)
    model, tokens = make(scaled), repetitive_tokens(1, prompt)
    with torch.inference_mode():
        stock = model(tokens, past_key_values=DynamicCache(config=model.config)).logits
        model.set_attn_implementation(implementation)
        cache = PrunedCache(model.config, keep_ratio=1.0)
        assert torch.allclose(model(tokens, past_key_values=cache).logits, stock, atol=1e-5)
    assert [cache.get_seq_length(i) for i in range(2)] == [prompt, prompt]


def test_under_prefill_once_a_prompt_token_by_token_is_announced_or_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="a first pass of one token does not tell"):
        forward(model, PROMPT[:, :1], pruned(model, schedule="prefill_once"))
    options = {"schedule": "prefill_once", "prompt_tokens": 40}
    whole = model.generate(PROMPT, past_key_values=pruned(model, **options), **GREEDY)
    assert torch.equal(
        model.generate(PROMPT, past_key_values=pruned(model, **options), prefill_chunk_size=1, **GREEDY),
        whole,
    )
    assert torch.equal(
        model.generate(PROMPT, past_key_values=pruned(model, **options), prefill_chunk_size=39, **GREEDY),
        whole,
    )
    forward(model, PROMPT[:, :1], PrunedCache(model.config, PruneSettings("dense", schedule="prefill_once")))


CALLS = {
    "activate_past_recording": (),
    "batch_repeat_interleave": (2,),
    "batch_select_indices": (torch.tensor([0]),),
    "crop": (1,),
    "early_initialization": (1, 2, 8, torch.float32, torch.device("cpu")),
    "get_conv_state": (0,),
    "get_mask_sizes": (1, 0),
    "get_max_length": (),
    "get_query_offset": (0,),
    "get_recurrent_state": (0,),
    "get_seq_length": (),
    "has_previous_state": (0,),
    "is_recording_past": (0,),
    "offload": (0,),
    "prefetch": (0,),
    "reorder_cache": (torch.tensor([0]),),
    "reset": (),
    "update_conv_state": (torch.zeros(1), 0),
    "update_indexer": (torch.zeros(1), 0),
    "update_recurrent_state": (torch.zeros(1), 0),
}
"""Arguments of every method of a Hugging Face cache but ``update``."""
REFUSED = {
    "crop",
    "offload",
    "prefetch",
    "get_conv_state",
    "get_recurrent_state",
    "has_previous_state",
    "update_conv_state",
    "update_indexer",
    "update_recurrent_state",
}


def test_every_method_of_a_hugging_face_cache_works_or_is_refused_in_a_sentence():
    names = {name for name in dir(transformers.Cache) if not name.startswith("_")}
    methods = {name for name in names if callable(getattr(transformers.Cache, name))}
    assert methods - {"update"} == set(CALLS), "a new method of transformers: decide what it does here"
    model = tiny_model("llama")
    for name in names - {"update"}:
        cache = pruned(model)
        with torch.inference_mode():
            forward(model, PROMPT, cache)
            if name not in REFUSED:
                value = getattr(cache, name)
                _ = value(*CALLS[name]) if name in methods else value
                continue
            with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
                getattr(cache, name)(*CALLS[name])
