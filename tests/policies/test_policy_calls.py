"""Other people's score functions run in our process: they change nothing but their own cell, and what they
return is checked."""

import asyncio
import random

import numpy as np
import pytest
import torch

from tests.support.spy_policy import Spy
from tests.support.thinned import thinned
from tests.support.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.cache.notes import MassNotes, Notes, QueryNotes, notes_of
from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import generate
from workers.machine.clock import Clock
from workers.messages.work import RetrievalWork
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies import eviction
from workers.policies.eviction import ALWAYS, POLICIES
from workers.policies.observation import NOTHING, LastQueries, Mass, Nothing
from workers.policies.own_policies import find_policy
from workers.policies.policy import Policy
from workers.policies.policy_files import PolicyError
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question

TOKENS = repetitive_tokens(2, 80)
CPU = torch.device("cpu")


def newest(view):
    return view.positions.float()


def with_policy(monkeypatch, score, **options):
    """``recent`` is this policy from now on, as a user's own."""
    monkeypatch.setitem(eviction._OWN, "recent", Policy(score, name="module:score", **options))


WRONG = {
    "none": (lambda view: None, "returned NoneType"),
    "numpy": (lambda view: newest(view).numpy(), "returned ndarray"),
    "one short": (lambda view: newest(view)[..., :-1], r"of shape \[2, 2, 29\].*\[2, 2, 30\]"),
    "broadcast": (lambda view: torch.zeros(1), r"of shape \[1\]"),
    "integers": (lambda view: view.positions, "in int32; return scores.float"),
    "half": (lambda view: view.keys.norm(dim=-1).half(), "in float16"),
    "double": (lambda view: view.keys.norm(dim=-1).double(), "in float64"),
    "nan": (lambda view: newest(view) * torch.nan, "NaN or infinite"),
    "one nan": (lambda view: newest(view).index_fill(2, torch.tensor(3), torch.nan), "NaN or infinite"),
    "inf": (lambda view: torch.where(view.positions < 4, torch.inf, newest(view)), "ALWAYS is the score"),
    "meta": (lambda view: newest(view).to("meta"), "on meta"),
    "exit": (lambda view: (_ for _ in ()).throw(SystemExit(3)), r"ended the process \(SystemExit 3\)"),
    "cancelled": (
        lambda view: (_ for _ in ()).throw(asyncio.CancelledError("x")),
        r"ended the process \(CancelledError x\)",
    ),
    "base": (
        lambda view: (_ for _ in ()).throw(BaseException("y")),
        r"ended the process \(BaseException y\)",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("prune_after", [30, 70], ids=["slots", "long passes"])
def test_wrong_scores_fail_their_cell_alone_and_name_the_policy(kind, prune_after, monkeypatch):
    score, words = WRONG[kind]
    with_policy(monkeypatch, score, entrywise=True)
    model = tiny_model("llama")
    cells = [PruneSettings("recent", 0.5, 30), PruneSettings("knorm", 0.5, prune_after)]
    _, (failed, other) = evaluate(model, TOKENS, cells, [0, 80])
    assert isinstance(failed, PolicyError) and "module:score" in str(failed)
    with pytest.raises(PolicyError, match=words):
        evaluate_reference(model, TOKENS, cells[0], [0, 80])
    assert isinstance(other, CellScores)


@pytest.mark.parametrize("kind", ["nan", "exit"])
def test_wrong_scores_fail_in_generation_and_retrieval_too(kind, monkeypatch):
    with_policy(monkeypatch, WRONG[kind][0])
    model, cell = tiny_model("llama"), PruneSettings("recent", 0.5, 30)
    with pytest.raises(PolicyError):
        generate(model, TOKENS, cell, 4, Clock(CPU))
    prefill = Prefill(model, TOKENS, ["recent"])
    with pytest.raises(PolicyError):
        prefill.cache(cell, [0, 1])


def zeroes_keys(view):
    scores = newest(view)
    view.keys.zero_()
    view.positions.fill_(3)
    view.keep.zero_()
    view.seen.zero_()
    return scores


def zeroes_queries(view):
    scores = newest(view)
    view.queries.zero_()
    view.keys.zero_()
    return scores


def zeroes_mass(view):
    scores = newest(view)
    view.mass.zero_()
    return scores


def zeroes_values(view):
    scores = newest(view)
    view.values.zero_()
    return scores


@pytest.mark.parametrize("architecture", thinned(ARCHITECTURES, 1))
@pytest.mark.parametrize(
    ("score", "observes", "entrywise"),
    [
        (zeroes_keys, NOTHING, True),
        (zeroes_values, NOTHING, True),
        (zeroes_keys, NOTHING, False),
        (zeroes_values, NOTHING, False),
        (zeroes_queries, LastQueries(), False),
        (zeroes_mass, Mass(), False),
    ],
)
@pytest.mark.parametrize(
    ("ratio", "prune_after"), [(0.9, 20), (0.5, 60)], ids=["short passes", "long passes"]
)
def test_a_policy_that_writes_into_its_view_changes_nothing(
    architecture, score, observes, entrywise, ratio, prune_after, monkeypatch
):
    model, beside = tiny_model(architecture), PruneSettings("knorm", ratio, prune_after)
    expected = evaluate(model, TOKENS, [PruneSettings("recent", ratio, prune_after), beside], [0, 80])[1]
    with_policy(monkeypatch, score, observes=observes, entrywise=entrywise)
    cell = PruneSettings("recent", ratio, prune_after)
    found = evaluate(model, TOKENS, [cell, beside], [0, 80])[1]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.nll, other.nll, atol=1e-5)
    assert torch.allclose(evaluate_reference(model, TOKENS, cell, [0, 80]).nll, expected[0].nll, atol=2e-5)


SETTINGS = [[(0.9, 20), (0.8, 30), (0.5, 24)], [(0.9, 20)], [(0.5, 60), (0.3, 50)], [(0.5, 60)]]
"""(keep_ratio, prune_after) of cells that go through together."""


@pytest.mark.parametrize(
    ("observes", "entrywise"), [(NOTHING, False), (NOTHING, True), (LastQueries(), False), (Mass(), False)]
)
@pytest.mark.parametrize("cells", thinned(SETTINGS, 1))
def test_every_view_keeps_what_the_contract_promises(observes, entrywise, cells, monkeypatch):
    """In slots, in long passes of one cell and of several, at forks, in prefill and while decoding."""
    model = tiny_model("llama")
    spy = Spy(tiny_model("llama", "sdpa"), TOKENS, {0: 0, 80: 1})
    with_policy(monkeypatch, spy, observes=observes, entrywise=entrywise)
    settings = [PruneSettings("recent", ratio, after) for ratio, after in cells]
    _, found = evaluate(model, TOKENS, settings, [0, 80])
    assert [type(each) for each in found] == [CellScores] * len(cells)
    asked, judged = spy.views, spy.judged
    evaluate_reference(model, TOKENS[:1], settings[0], [0])
    spy.places = {0: 0, 1: 1}
    run = generate(model, TOKENS, settings[0], 12, Clock(CPU))
    assert run.prune_events and spy.views > asked > 0 and spy.judged > judged > 0

    asked, judged = spy.views, spy.judged
    cache = Prefill(model, TOKENS, [settings[0].policy]).cache(settings[0], [0, 1])
    assert cache.events and spy.views > asked and spy.judged > judged, (
        "a prompt's cache that was forked from a dense pass"
    )

    asked, judged = spy.views, spy.judged
    cache = PrunedCache(model.config, settings[0])
    model.generate(
        TOKENS,
        past_key_values=cache,
        max_new_tokens=40,
        do_sample=False,
        attention_mask=torch.ones_like(TOKENS),
    )
    assert cache.events and spy.views > asked and spy.judged > judged, "transformers' own loop"


def test_each_policy_sees_as_many_queries_as_it_asks_for_whatever_others_ask_for(monkeypatch):
    """Two own ones in the same passes, at the first event and at later ones, and each beside its
    reference."""
    seen = {4: set(), 60: set()}

    def looks(count):
        def score(view):
            seen[count].add(view.queries.shape[2])
            return view.attention(view.queries.shape[2]).mean((2, 3))

        return score

    model = tiny_model("llama")
    for name, count in (("recent", 4), ("streaming", 60)):
        own = Policy(looks(count), LastQueries(count), name=f"module:looks_{count}")
        monkeypatch.setitem(eviction._OWN, name, own)
    cells = [PruneSettings("recent", 0.9, 66), PruneSettings("streaming", 0.9, 62)]
    found = evaluate(model, TOKENS, cells, [0, 80])[1]
    for cell, one in zip(cells, found, strict=True):
        assert torch.allclose(one.nll, evaluate_reference(model, TOKENS, cell, [0, 80]).nll, atol=2e-5)
    assert seen == {4: {4}, 60: {60}}


@pytest.mark.parametrize("observes", [Nothing(), LastQueries(3), Mass()])
def test_a_layer_has_notes_of_each_kind_of_observation(observes):
    assert (
        type(notes_of(observes))
        is {"nothing": Notes, "queries": QueryNotes, "mass": MassNotes}[observes.kind]
    )


def test_an_observation_of_which_no_notes_are_kept_is_an_error_and_not_nothing():
    class Differences(Nothing):
        kind = "differences"

    with pytest.raises(KeyError, match="differences"):
        notes_of(Differences())


def test_a_policy_may_observe_more_queries_than_ours_do(monkeypatch):
    """64 of them, beside a cell that asks for one, whose figures stay."""
    seen = []

    def far(view):
        seen.append(view.queries.shape[2])
        return view.attention(64).mean((2, 3))

    model, beside = tiny_model("llama"), PruneSettings("tova", 0.5, 70)
    alone = evaluate(model, TOKENS, [beside], [0, 80])[1][0]
    with_policy(monkeypatch, far, observes=LastQueries(64))
    cell = PruneSettings("recent", 0.5, 70)
    found = evaluate(model, TOKENS, [cell, beside], [0, 80])[1]
    assert set(seen) == {64}
    assert torch.allclose(found[1].nll, alone.nll, atol=1e-5)
    assert torch.allclose(found[0].nll, evaluate_reference(model, TOKENS, cell, [0, 80]).nll, atol=2e-5)


@pytest.mark.parametrize("prune_after", [20, 60])
def test_scores_of_an_entrywise_policy_reach_the_entries_that_they_are_of(prune_after, monkeypatch):
    """A user's ``knorm`` is kvsweep's, whatever the order in which the entries lie in memory."""
    model = tiny_model("neox")
    expected = evaluate(model, TOKENS, [PruneSettings("knorm", 0.9, prune_after)], [0, 80])[1][0]
    with_policy(monkeypatch, eviction.knorm, entrywise=True)
    found = evaluate(model, TOKENS, [PruneSettings("recent", 0.9, prune_after)], [0, 80])[1][0]
    assert torch.allclose(found.nll, expected.nll, atol=1e-5)


def disturbs(view):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autocast("cpu").__enter__()
    torch.backends.cuda.enable_math_sdp(False)
    torch.set_default_device("meta")
    torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    return newest(view).requires_grad_()


def state():
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cuda.math_sdp_enabled(),
        torch.get_default_device(),
        dict(torch.nn.modules.module._global_forward_hooks),
    )


def test_what_is_global_is_put_back_also_where_the_policy_fails(monkeypatch):
    model = tiny_model("llama")
    before = state()
    with_policy(monkeypatch, disturbs)
    evaluate(model, TOKENS, [PruneSettings("recent", 0.5, 30)], [0, 80])
    assert state() == before

    def disturbs_and_fails(view):
        disturbs(view)
        raise ZeroDivisionError

    with_policy(monkeypatch, disturbs_and_fails)
    _, (failed,) = evaluate(model, TOKENS, [PruneSettings("recent", 0.5, 30)], [0, 80])
    assert isinstance(failed, ZeroDivisionError) and state() == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            (
                "import torch\ntorch.set_default_dtype(torch.float64)\ndef score(view): return"
                " view.positions.float()"
            ),
            None,
        ),
        ("raise SystemExit(4)\ndef score(view): ...", "SystemExit: 4"),
        ("1 / 0\ndef score(view): ...", "ZeroDivisionError"),
        ("score = 3", "is a int; it must be a function"),
    ],
)
def test_a_module_that_misbehaves_as_it_is_imported_is_refused_or_leaves_no_trace(
    body, words, tmp_path, monkeypatch
):
    name = f"odd_policy_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    before = state()
    if words is None:
        assert find_policy(f"{name}:score").name == f"{name}:score"
    else:
        with pytest.raises(PolicyError, match=words):
            find_policy(f"{name}:score")
    assert state() == before


def test_the_table_of_policies_is_for_reading():
    with pytest.raises(AttributeError):
        POLICIES.clear()
    with pytest.raises(TypeError):
        POLICIES["knorm"] = POLICIES["recent"]
    assert pytest.approx(3.4e38, rel=0.01) == ALWAYS


def test_a_policy_that_is_not_there_fails_its_cells_alone_in_retrieval():
    prompt = TOKENS[0, :30].tolist()
    question = Question("passkey", 40, 3, 0, 0.1, 0, prompt, prompt[:10], [1, 2, 3], "123", ((4, 9),))
    cells = [PruneSettings("nowhere:score", 0.5, 8), PruneSettings("knorm", 0.5, 8)]
    failed, rows = answers(tiny_model("llama"), CPU, cells, RetrievalWork((question,), True), 8)
    assert isinstance(failed, PolicyError) and len(rows) == 1
