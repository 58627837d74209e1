"""The cache as a drop-in for generate, and what it refuses."""

import itertools

import pytest
import torch

from tests.support.thinned import thinned
from tests.support.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import forward, generate
from workers.loaded.load import load
from workers.machine.clock import Clock
from workers.models.model_files import find_model
from workers.policies.cache_view import round_significant
from workers.policies.settings import PruneSettings

CLOCK = Clock(torch.device("cpu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "kvsweep"])
def test_generate_of_a_stock_model_equals_our_loop(architecture, attention):
    model = tiny_model(architecture, attention)
    prompt = repetitive_tokens(1, 40)
    settings = PruneSettings("knorm", 0.7, 24, (0,))
    out = model.generate(
        prompt,
        past_key_values=PrunedCache(model.config, settings),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
    )
    model.set_attn_implementation("kvsweep")
    assert out[0, 40:].tolist() == generate(model, prompt, settings, 30, CLOCK).output_tokens[0]


@torch.inference_mode()
def decoded_by_our_loop(model, prompt, settings, new_tokens, *, sample):
    """[batch, new_tokens], greedy or drawn from the softmax with torch's generator, as generate draws."""
    cache, token, out = PrunedCache(model.config, settings), prompt, []
    for _ in range(new_tokens):
        logits = forward(model, token, cache)
        token = (
            torch.multinomial(logits.float().softmax(-1), 1) if sample else logits.argmax(-1, keepdim=True)
        )
        out.append(token)
    return torch.cat(out, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "kvsweep"])
@pytest.mark.parametrize("sample", [False, True])
def test_generate_of_a_batch_equals_our_loop_token_for_token(architecture, attention, sample):
    model, prompt, settings = (
        tiny_model(architecture, attention),
        repetitive_tokens(3, 40),
        PruneSettings("knorm", 0.7, 24, (1,)),
    )
    torch.manual_seed(5)
    cache = PrunedCache(model.config, settings)
    out = model.generate(
        prompt, past_key_values=cache, max_new_tokens=30, do_sample=sample, top_k=0, pad_token_id=0
    )
    assert cache.validity().prune_events > 1
    model.set_attn_implementation("kvsweep")
    torch.manual_seed(5)
    assert torch.equal(out[:, 40:], decoded_by_our_loop(model, prompt, settings, 30, sample=sample))


def test_generate_takes_options_by_name_batches_and_sampling():
    model = tiny_model("llama")
    cache = PrunedCache(model.config, keep_ratio=0.5, prune_after=16, skip_layers=[0])
    torch.manual_seed(1)
    out = model.generate(
        repetitive_tokens(3, 20), past_key_values=cache, max_new_tokens=10, do_sample=True, pad_token_id=0
    )
    assert out.shape == (3, 30)
    assert [layer.seen for layer in cache.pruned_layers] == [29] * 3
    assert cache.pruned_layers[0].held == 29
    assert cache.pruned_layers[1].held < 20


def test_dense_cache_gives_the_tokens_of_the_dynamic_cache():
    model = tiny_model("llama", "sdpa")
    prompt = repetitive_tokens(1, 30)
    theirs = model.generate(prompt, max_new_tokens=25, do_sample=False, pad_token_id=0)[0, 30:].tolist()
    model.set_attn_implementation("kvsweep")
    assert generate(model, prompt, PruneSettings("dense"), 25, CLOCK).output_tokens[0] == theirs


def test_positions_are_tokens_seen_whatever_was_dropped():
    model = tiny_model("neox")
    cache = PrunedCache(model.config, PruneSettings("knorm", 0.5, 4))
    tokens = repetitive_tokens(1, 30)
    with torch.inference_mode():
        for step in range(30):
            assert cache.get_seq_length() == step
            forward(model, tokens[:, step : step + 1], cache)
    layer = cache.pruned_layers[0]
    assert layer.held < 8
    assert bool((layer.stored_positions().diff(dim=-1) > 0).all())


def test_order_of_entries_changes_no_result():
    """Attention is a sum over a set: the same kept entries shuffled give the same logits."""
    model = tiny_model("llama")
    tokens = repetitive_tokens(1, 40)
    caches = [PrunedCache(model.config, PruneSettings("knorm", 0.5, 16)) for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            forward(model, tokens[:, :30], cache)
        for layer in caches[1].pruned_layers:
            order = torch.randperm(layer.held)
            for buffer in (layer._keys, layer._values):
                buffer[:, :, : layer.held] = buffer[:, :, : layer.held][:, :, order].clone()
        straight, shuffled = (forward(model, tokens[:, 30:31], cache) for cache in caches)
    assert torch.allclose(straight, shuffled, atol=1e-5)


@pytest.mark.parametrize(
    "options", thinned([{}, {"protect_sink": 2, "protect_recent": 5}, {"schedule": "prefill_once"}], 1)
)
def test_entries_stored_by_norm_give_the_same_text(options):
    """What a published script did when it sorted by norm before it cut: another order, the same entries, the
    same tokens."""
    model, tokens = tiny_model("llama"), repetitive_tokens(2, 60)
    by_norm, temporal = (
        PruneSettings(policy, 0.7, 24, (1,), **options) for policy in ("knorm_sorted", "knorm")
    )
    runs = [generate(model, tokens[:, :40], settings, 30, CLOCK) for settings in (by_norm, temporal)]
    assert runs[0].output_tokens == runs[1].output_tokens
    assert runs[0].prune_events == runs[1].prune_events
    caches = [PrunedCache(model.config, settings) for settings in (by_norm, temporal)]
    with torch.inference_mode():
        for start, end in [(0, 40), *((i, i + 1) for i in range(40, 60))]:
            one, other = (forward(model, tokens[:, start:end], cache) for cache in caches)
            assert torch.allclose(one, other, atol=1e-4)
            for layer, straight in zip(*(cache.pruned_layers for cache in caches), strict=True):
                assert torch.equal(layer.stored_positions().sort().values, straight.stored_positions())
    assert [bool((layer.stored_positions().diff() > 0).all()) for layer in caches[0].pruned_layers] == [
        False,
        True,
        False,
    ]
    assert caches[0].validity().recent_retained == pytest.approx(caches[1].validity().recent_retained)
    assert caches[0].validity().sink_retained == pytest.approx(caches[1].validity().sink_retained)


def test_entries_stored_by_norm_lie_lowest_first_after_a_prune():
    model = tiny_model("neox")
    cache = PrunedCache(model.config, PruneSettings("knorm_sorted", 0.5, 30))
    with torch.inference_mode():
        forward(model, repetitive_tokens(2, 30), cache)
    for layer in cache.pruned_layers:
        assert layer.held == 15
        assert bool((round_significant(layer.stored()[0].norm(dim=-1)).diff() >= 0).all())


def test_prefill_once_prunes_after_the_prompt_only():
    model = tiny_model("neox")
    run = generate(
        model, repetitive_tokens(1, 40), PruneSettings("knorm", 0.5, 8, schedule="prefill_once"), 20, CLOCK
    )
    assert run.prune_events == 1
    entry = 4 * 8 * 2 * 4 * 3
    assert (run.kv_bytes_prompt, run.kv_bytes_final) == (20 * entry, (20 + 19) * entry)


def test_every_step_prunes_while_decoding():
    run = generate(tiny_model("neox"), repetitive_tokens(1, 40), PruneSettings("knorm", 0.5, 24), 20, CLOCK)
    assert run.prune_events > 1
    assert run.kv_bytes_peak == 40 * 4 * 8 * 2 * 4 * 3, "the prompt's, before it was pruned"


@pytest.mark.parametrize(("attention", "second"), [("eager", 1), ("sdpa", 2)])
def test_stock_attention_with_a_wrong_mask_is_refused(attention, second):
    model = tiny_model("neox", attention)
    cache = PrunedCache(model.config, keep_ratio=0.5, prune_after=8)
    with torch.inference_mode():
        model(repetitive_tokens(1, 10), past_key_values=cache)
        with pytest.raises(ValueError, match="set_attn_implementation"):
            model(repetitive_tokens(1, second), past_key_values=cache)


@pytest.mark.parametrize("attention", ["kvsweep", "sdpa", "eager"])
def test_padded_batches_are_refused(attention):
    model = tiny_model("llama", attention)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with pytest.raises(ValueError, match="padded"):
        model.generate(
            repetitive_tokens(2, 12),
            attention_mask=mask,
            max_new_tokens=2,
            pad_token_id=0,
            past_key_values=PrunedCache(model.config, keep_ratio=0.5, prune_after=4),
        )


def test_cropping_is_refused():
    """Assisted generation crops; what was dropped cannot come back."""
    cache = PrunedCache(tiny_model("llama").config, keep_ratio=0.5, prune_after=4)
    forward(tiny_model("llama"), repetitive_tokens(1, 12), cache)
    with pytest.raises(ValueError, match="cropping"):
        cache.crop(6)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"keep_ratio": 1.2}, "keep_ratio"),
        ({"prune_after": 0}, "prune_after"),
        ({"skip_layers": [99]}, "0..2"),
        ({"policy": "best"}, "knorm"),
        ({"schedule": "x"}, "every_step"),
        ({"position_mode": "x"}, "absolute"),
        ({"protect_sink": -1}, "negative"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(options, word):
    with pytest.raises(ValueError, match=word):
        PrunedCache(tiny_model("neox").config, **options)


def fed(model, tokens, settings, decoded):
    """A cache after a prompt and ``decoded`` tokens more; after each pass the entries held, bytes kept and
    bytes met."""
    cache = PrunedCache(model.config, settings)
    held, kept, met = [], [], []
    with torch.inference_mode():
        for first, last in itertools.pairwise([0, *range(tokens.shape[1] - decoded, tokens.shape[1] + 1)]):
            forward(model, tokens[:, first:last], cache)
            held.append([layer.held for layer in cache.pruned_layers])
            kept.append(cache.bytes_allocated())
            met.append(cache.kv_bytes_met())
    return cache, held, kept, met


def own_bytes(cache, entries):
    """What ``entries`` of every layer take as tensors: keys and values of 4 heads of 8 numbers, and a
    position for each head."""
    return sum(entries * 4 * (8 * 2 * 4 + (4 if layer.prunes else 0)) for layer in cache.pruned_layers)


def test_a_pruning_layer_has_room_up_to_its_next_prune_and_no_further():
    """300 entries leave 270, which are pruned next at 280, and so on."""
    cache, held, kept, _ = fed(
        tiny_model("neox"), repetitive_tokens(1, 340), PruneSettings("knorm", 0.9, 280), 40
    )
    assert held[0] == [270] * 3 and held[10] == [252] * 3
    assert kept == [own_bytes(cache, 280)] * 41


@pytest.mark.parametrize(
    "settings",
    [
        PruneSettings("dense"),
        PruneSettings("knorm", 0.9, 9999),
        PruneSettings("knorm", 0.9, 64, schedule="prefill_once"),
    ],
)
def test_what_grows_has_a_sixteenth_of_room_at_most(settings):
    cache, held, kept, _ = fed(tiny_model("neox"), repetitive_tokens(1, 800), settings, 90)
    for (entries, *_), taken in zip(held, kept, strict=True):
        assert own_bytes(cache, entries) <= taken <= own_bytes(cache, entries + max(32, entries // 16))
    assert 2 <= len(set(kept)) <= 4, "what is held is copied once in many passes"


def test_the_bytes_met_are_those_just_before_a_prune():
    model, tokens = tiny_model("neox"), repetitive_tokens(2, 44)
    cache, _, _, met = fed(model, tokens, PruneSettings("knorm", 0.5, 24, (1,)), 4)
    entry = 2 * 4 * 8 * 2 * 4
    assert met == [entry * (3 * 40), *(entry * (2 * (20 + i) + 40 + i) for i in range(1, 5))]
    assert cache.kv_bytes() == entry * (2 * 12 + 44)


def test_memory_that_a_cache_shares_with_a_prefill_counts_whole_and_once():
    model, tokens = tiny_model("llama"), repetitive_tokens(1, 60)
    prefill = Prefill(model, tokens, ["dense", "knorm"])
    cache = prefill.cache(PruneSettings("knorm", 0.5, 100), [0])
    stored = [
        x.untyped_storage() for layer in prefill.prefix.prefix_layers for x in (layer.keys, layer.values)
    ]
    held = {storage.data_ptr(): storage.nbytes() for storage in stored}
    positions = 3 * 60 * 4  # one row of them for all heads, as long as nobody writes
    assert cache.bytes_allocated() == sum(held.values()) + positions
    with torch.inference_mode():
        forward(model, tokens[:, :1], cache)
    assert cache.bytes_allocated() == 3 * (61 + 32) * 2 * (2 * 8 * 4 + 4)


def test_at_nine_tenths_a_pruned_cache_takes_less_memory_than_the_dense_one():
    """Measured on the embedded models, whose positions are a small part of an entry, in the loop that is
    timed."""
    model = load(find_model("reference-llama"), "float32", torch.device("cpu"))
    tokens = repetitive_tokens(1, 600)
    dense, pruned = (
        generate(model, tokens, PruneSettings(policy, 0.9, 512), 12, CLOCK) for policy in ("dense", "knorm")
    )
    assert pruned.kv_bytes_allocated_final < dense.kv_bytes_allocated_final
    assert pruned.kv_bytes_allocated_peak < dense.kv_bytes_allocated_peak
    assert dense.kv_bytes_final <= dense.kv_bytes_allocated_final <= 1.07 * dense.kv_bytes_final
    mass = generate(model, tokens, PruneSettings("h2o", 0.9, 512), 12, CLOCK)
    assert mass.kv_bytes_allocated_final > pruned.kv_bytes_allocated_final, (
        "what a policy observes is memory too"
    )
