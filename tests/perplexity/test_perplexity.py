"""Event-driven = reference = masked full cache, token by token; dense = the stock model."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.support.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.cache.attention import attention
from workers.cache.batch.cell_batch import BatchLayer
from workers.cache.batch.pass_plan import Pass
from workers.cache.notes import QueryNotes
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies import eviction
from workers.policies.cache_view import round_significant
from workers.policies.eviction import POLICIES
from workers.policies.observation import OBSERVED_QUERIES
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings

MODELS = {name: tiny_model(name) for name in ARCHITECTURES}
TOLERANCE = 2e-5


def settings_of(policy: str, position_mode: str, **others: Any) -> PruneSettings:
    """Settings that are allowed: a policy that places its keys itself has no other positions."""
    return PruneSettings(
        policy, position_mode="absolute" if policy == "streaming_rolled" else position_mode, **others
    )


cells = st.builds(
    settings_of,
    policy=st.sampled_from(sorted(POLICIES)),
    keep_ratio=st.sampled_from([0.98, 0.95, 0.9, 0.7, 0.5, 0.3]),
    prune_after=st.sampled_from([1, 7, 16, 30, 70, 500]),
    skip_layers=st.sampled_from([(), (0,), (1, 2), (0, 1, 2)]),
    protect_sink=st.sampled_from([0, 1, 2]),
    protect_recent=st.sampled_from([0, 3]),
    schedule=st.sampled_from(["every_step", "every_step", "constant"]),
    position_mode=st.sampled_from(["absolute", "absolute", "cache_length"]),
    seed=st.integers(0, 3),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_cell_is_the_stock_model(architecture):
    tokens = repetitive_tokens(2, 60)
    dense, _ = evaluate(MODELS[architecture], tokens, [], [0, 60])
    stock = tiny_model(architecture, "sdpa")
    with torch.inference_mode():
        logits = stock(tokens).logits[:, :-1].float()
    expected = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        2, -1
    )
    assert torch.allclose(dense.nll, expected, atol=TOLERANCE)
    assert torch.equal(dense.correct, logits.argmax(-1) == tokens[:, 1:])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(ARCHITECTURES),
    st.lists(cells, min_size=1, max_size=3),
    st.integers(2, 90),
    st.integers(1, 2),
)
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


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(ARCHITECTURES),
    cells.filter(lambda cell: cell.policy != "h2o"),
    st.integers(2, 70),
    st.integers(0, 9),
)
def test_shuffled_entries_give_the_same_nll(architecture, cell, length, seed):
    """The same kept entries in another order at every step: attention is a sum over a set, so nothing else
    can matter."""
    model, tokens = MODELS[architecture], repetitive_tokens(1, length, seed=length)
    straight = evaluate_reference(model, tokens, cell, [0])
    generator = torch.Generator().manual_seed(seed)

    def shuffled(query, keys, values, scale, mask=None, values_too=True):
        order = torch.rand(keys.shape[:3], generator=generator).argsort(-1)[..., None].expand_as(keys)
        return attention(
            query, keys.gather(2, order), values.gather(2, order) if values_too else values, scale, mask
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.cache.notes.attention", shuffled)
        assert torch.allclose(evaluate_reference(model, tokens, cell, [0]).nll, straight.nll, atol=TOLERANCE)
        if length > 20:  # the shuffle is real: keys that lose their values show
            patch.setattr("workers.cache.notes.attention", partial(shuffled, values_too=False))
            assert not torch.allclose(
                evaluate_reference(model, tokens, cell, [0]).nll, straight.nll, atol=0.01
            )


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.sampled_from(ARCHITECTURES), cells, st.integers(2, 90), st.integers(1, 2))
def test_entries_stored_by_norm_give_the_figures_of_those_in_temporal_order(architecture, cell, length, rows):
    """Same kept entries, so the order in which a script stored them explains nothing; also beside other cells
    in one call."""
    model, tokens = MODELS[architecture], repetitive_tokens(rows, length, seed=length)
    starts = [i * length for i in range(rows)]
    many = [
        replace(cell, policy=policy) for policy in ("knorm_sorted", "knorm", "knorm_high", "knorm_sorted")
    ]
    many[-1] = replace(many[-1], keep_ratio=0.6)
    _, (by_norm, temporal, *_) = evaluate(model, tokens, many, starts)
    if temporal is None:
        assert by_norm is None
        return
    reference = evaluate_reference(model, tokens, many[0], starts)
    for other in (temporal, reference):
        assert torch.allclose(by_norm.nll, other.nll, atol=1e-4)
        assert torch.equal(by_norm.correct, other.correct)
        for figure in ("recent_retained", "sink_retained", "score_ties"):
            assert getattr(by_norm.validity, figure) == pytest.approx(getattr(other.validity, figure))


@pytest.mark.parametrize("short", [0, 512])
def test_entries_of_a_policy_that_is_not_temporal_really_lie_best_first(short, monkeypatch):
    """In short passes too, where the entries of other policies would stay where they are."""
    monkeypatch.setattr("workers.perplexity.cell_group.SHORT_PASS_TOKENS", short)
    fork, prune, kept = BatchLayer._fork, BatchLayer.prune, []

    def note(layer, row, keep):
        kept.append(
            (layer.temporal, layer.positions[row, :, :keep].clone(), layer.keys[row, :, :keep].clone())
        )

    def forked(self, rows, prefix, track):
        fork(self, rows, prefix, track)
        for row in range(rows.start, rows.stop):
            note(self, row, track.held)

    def pruned(self, plan):
        prune(self, plan)
        for row, keep in enumerate(plan.keep_rows.tolist()):
            note(self, row, keep)

    monkeypatch.setattr(BatchLayer, "_fork", forked)
    monkeypatch.setattr(BatchLayer, "prune", pruned)
    many = [
        PruneSettings(policy, ratio, 30)
        for policy in ("knorm_sorted", "h2o", "knorm")
        for ratio in (0.9, 0.5)
    ]
    evaluate(MODELS["llama"], repetitive_tokens(2, 120), many, [0, 120])
    ascending = [(temporal, bool((positions.diff() > 0).all())) for temporal, positions, _ in kept]
    assert set(ascending) == {(True, True), (False, False)}
    for temporal, _, keys in kept:
        if not temporal:
            assert bool((round_significant(keys.norm(dim=-1)).diff() >= 0).all())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forked_cell_equals_the_cell_run_alone(architecture):
    tokens = repetitive_tokens(2, 80)
    many = [PruneSettings("knorm", ratio, after) for ratio in (0.9, 0.5) for after in (8, 40)]
    _, together = evaluate(MODELS[architecture], tokens, many, [0, 80])
    for cell, result in zip(many, together, strict=True):
        _, (alone,) = evaluate(MODELS[architecture], tokens, [cell], [0, 80])
        assert torch.allclose(result.nll, alone.nll, atol=TOLERANCE)
        assert result.validity == alone.validity


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(ARCHITECTURES),
    st.lists(cells, min_size=2, max_size=6, unique=True),
    st.randoms(),
    st.integers(30, 90),
)
def test_order_and_company_of_cells_and_windows_change_nothing(architecture, many, rng, length):
    """Cells share passes and windows share a batch; each must come out as if it were alone."""
    model, tokens = MODELS[architecture], repetitive_tokens(3, length, seed=length)
    starts = [0, length, 2 * length]
    _, together = evaluate(model, tokens, many, starts)
    order = rng.sample(range(len(many)), len(many))
    for row in range(3):
        _, alone = evaluate(model, tokens[row : row + 1], [many[i] for i in order], starts[row : row + 1])
        for i, got in zip(order, alone, strict=True):
            assert (together[i] is None) == (got is None)
            if got is not None:
                assert not isinstance(got, Exception)
                assert torch.allclose(together[i].nll[row], got.nll[0], atol=TOLERANCE)
                assert together[i].forward_passes == got.forward_passes


def test_a_cell_that_skips_every_layer_is_the_dense_cell():
    _, results = evaluate(
        MODELS["neox"], repetitive_tokens(1, 40), [PruneSettings("knorm", 0.5, 8, (0, 1, 2))], [0]
    )
    assert results == [None]


@pytest.mark.parametrize("policy", ["knorm", "h2o", "tova"])
def test_cells_too_many_for_the_memory_go_through_in_parts(policy, monkeypatch):
    monkeypatch.setattr("workers.footprint.perplexity.AT_ONCE_BYTES", 1)
    tokens = repetitive_tokens(2, 60)
    many = [PruneSettings(policy, ratio, 16) for ratio in (0.9, 0.5, 0.3)]
    _, parts = evaluate(MODELS["llama"], tokens, many, [0, 60])
    monkeypatch.undo()
    _, whole = evaluate(MODELS["llama"], tokens, many, [0, 60])
    for a, b in zip(parts, whole, strict=True):
        assert torch.allclose(a.nll, b.nll, atol=TOLERANCE)
        assert a.validity == b.validity


def test_long_passes_move_entries_and_short_ones_do_not_with_the_same_result(monkeypatch):
    tokens = repetitive_tokens(2, 120)
    many = [PruneSettings("knorm", ratio, 30, protect_recent=2) for ratio in (0.9, 0.5)]
    _, short = evaluate(MODELS["llama"], tokens, many, [0, 120])
    monkeypatch.setattr("workers.perplexity.cell_group.SHORT_PASS_TOKENS", 0)
    _, long = evaluate(MODELS["llama"], tokens, many, [0, 120])
    for a, b in zip(short, long, strict=True):
        assert torch.allclose(a.nll, b.nll, atol=TOLERANCE)
        assert a.validity.recent_retained == pytest.approx(b.validity.recent_retained)
        assert a.validity.sink_retained == pytest.approx(b.validity.sink_retained)
        assert a.validity.score_ties == pytest.approx(b.validity.score_ties)


def test_no_mask_over_packed_rows_is_made_where_entries_stay_in_their_places(monkeypatch):
    """Such layers have masks of their own; one of rows x queries x entries would be for nobody."""
    monkeypatch.setattr(Pass, "_layout", lambda *_: pytest.fail("a layout that nobody reads was made"))
    cells = [PruneSettings("knorm", ratio, 8) for ratio in (0.5, 0.9)]
    _, outcomes = evaluate(tiny_model("llama"), repetitive_tokens(2, 40), cells, [0, 1])
    assert [type(each) for each in outcomes] == [CellScores] * len(cells)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_that_policies_ask_for_attends_too_with_the_same_result(architecture, monkeypatch):
    """Where a pass brings no more queries than its cell's policy asks for: of snapkv so at 0.95, of tova and
    at 0.3 never."""
    model, tokens, made = MODELS[architecture], repetitive_tokens(2, 180), []
    many = [
        PruneSettings(policy, ratio, 60)
        for policy, ratio in (("snapkv", 0.95), ("snapkv", 0.3), ("tova", 0.95))
    ]
    attend = QueryNotes.attend

    def noted(notes, look):
        out = attend(notes, look)
        made.append(notes._weights is not None)
        return out

    monkeypatch.setattr(QueryNotes, "attend", noted)
    together, is_made = [], []
    for cell in many:
        made.clear()
        together.append(evaluate(model, tokens, [cell], [0, 180])[1][0])
        is_made.append(sum(made))
    assert is_made[0] > 50 and is_made[1:] == [0, 0]
    monkeypatch.setattr("workers.cache.notes.WEIGHT_BYTES", 0)
    for cell, result in zip(many, together, strict=True):
        _, (apart,) = evaluate(model, tokens, [cell], [0, 180])
        assert torch.allclose(result.nll, apart.nll, atol=TOLERANCE)
        assert result.validity == apart.validity
    assert not any(made[-50:])


def test_of_the_queries_of_a_pass_only_those_that_policies_look_at_are_kept(monkeypatch):
    """A view of all of them would keep as many as a pass brings, in every layer."""
    prune, held = BatchLayer.prune, []

    def noted(layer, plan):
        (queries,) = layer.notes.tensors()
        held.append(queries.untyped_storage().nbytes() / (queries.shape[0] * OBSERVED_QUERIES))
        prune(layer, plan)

    monkeypatch.setattr(BatchLayer, "prune", noted)
    evaluate(MODELS["llama"], repetitive_tokens(1, 400), [PruneSettings("snapkv", 0.5, 128)], [0])
    heads, head_dim = MODELS["llama"].config.num_attention_heads, MODELS["llama"].config.head_dim
    assert set(held) == {4 * heads * head_dim}


def test_a_cell_that_never_prunes_is_the_dense_cell():
    _, results = evaluate(
        MODELS["neox"],
        repetitive_tokens(1, 30),
        [PruneSettings("knorm", 0.5, 30), PruneSettings("dense")],
        [0],
    )
    assert results == [None, None]


def test_positions_from_the_pruned_length_are_another_number():
    """The classic bug, reproducible on purpose, and the same whether or not layer 0 is skipped by others'
    code."""
    tokens = repetitive_tokens(1, 80)
    for skip in ((), (0,)):
        true, bug = (
            PruneSettings("knorm", 0.5, 16, skip, position_mode=mode) for mode in ("absolute", "cache_length")
        )
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
    assert (
        result.kv_bytes_per_entry == 2 * 2 * 8 * 4
    )  # keys and values, 2 KV heads (not 4 query heads), head_dim 8, float32
    assert dense.kv_bytes_peak() == 99 * 3 * result.kv_bytes_per_entry
    assert result.kv_bytes_peak() < dense.kv_bytes_peak()


def test_a_failing_cell_takes_no_other_down(monkeypatch):
    """Also when it shares its passes with the others."""

    def score(view):
        if int(view.seen.max()) > 20:
            raise FloatingPointError("score of nothing")
        return view.positions.float()

    monkeypatch.setitem(eviction._OWN, "recent", Policy(score, entrywise=True))
    many = [
        PruneSettings("recent", 0.5, 8),
        PruneSettings("knorm", 0.5, 8),
        PruneSettings("streaming", 0.5, 8),
    ]
    tokens = repetitive_tokens(1, 40)
    _, (bad, *good) = evaluate(MODELS["neox"], tokens, many, [0])
    assert isinstance(bad, FloatingPointError)
    _, (alone,) = evaluate(MODELS["neox"], tokens, many[1:2], [0])
    assert torch.allclose(good[0].nll, alone.nll, atol=TOLERANCE)
    assert good[1].validity.prune_events == alone.validity.prune_events > 0


def test_nan_logits_are_an_error_not_a_number():
    broken = tiny_model("neox", seed=3)
    broken.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate(broken, repetitive_tokens(1, 20), [], [0])
