"""Answers of a task's requests are taken for the very same requests alone, and what is taken is not
computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from tests.support.leaks import nothing_stays
from workers.cache.scoring import body_of
from workers.harness.scores import ContinuationScore, Pair, score_continuations
from workers.harness.texts import Decoding, Generated, Writer
from workers.messages.kept_answers import AnswerBook, KeptAnswers
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")
PRUNED = PruneSettings("h2o", 0.5, 16, skip_layers=(0,))
PAIRS: list[Pair] = [
    (list(range(1, 31)), [5, 6, 7]),
    (list(range(2, 32)), [9]),
    (list(range(3, 33)), [8, 1, 4, 2]),
    (list(range(40, 60)), [3, 2]),
    (list(range(40, 60)), [7, 7, 7]),
]
"""In batches of two contexts three go through: two contexts of 30 tokens, the third, and one of 20 with two
continuations."""
BATCHES = 3


@contextmanager
def passes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Tokens of each forward pass."""
    seen: list[int] = []
    handle = body_of(model).register_forward_hook(
        lambda module, arguments, given, output: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def stored(answers: list[KeptAnswers]) -> list[KeptAnswers]:
    """As a file gives them back."""
    return [KeptAnswers(**json.loads(json.dumps(vars(each)))) for each in answers]


def scores(model, pairs=PAIRS, known=(), cell="cell", made_with="", size=2):
    """Scores, what was told, and the tokens of each pass."""
    told: list[KeptAnswers] = []
    book = AnswerBook(cell, made_with, known, told.append)
    with passes(model) as seen:
        return score_continuations(model, PRUNED, pairs, CPU, size, book=book), told, seen


@pytest.fixture(scope="module")
def whole(model):
    """Scores of all pairs, what was told of them, and the passes that they took."""
    return scores(model)


def test_a_book_changes_nothing_and_tells_of_each_batch_once(model, whole):
    found, told, seen = whole
    assert found == score_continuations(model, PRUNED, PAIRS, CPU, 2)
    assert [len(each.answers) for each in told] == [2, 1, 2] and len({each.asked for each in told}) == BATCHES
    assert sum(count >= 20 for count in seen) == BATCHES, "each batch's contexts go through once"
    assert found[0].counts.prune_events and found[0].counts.cache_tokens % 1, "numbers that are no whole ones"


@pytest.mark.parametrize("first", range(BATCHES + 1))
def test_what_is_known_is_not_computed_and_all_has_the_bits_of_an_undisturbed_run(model, whole, first):
    expected, told, all_passes = whole
    found, new, seen = scores(model, known=stored(told[:first]))
    assert found == expected
    assert new == told[first:] and seen == all_passes[len(all_passes) - len(seen) :]
    assert (len(seen) < len(all_passes)) == (first > 0) and bool(seen) == (first < BATCHES)


def swapped(place: int, pair: Pair) -> list[Pair]:
    return [pair if i == place else own for i, own in enumerate(PAIRS)]


OTHERS: dict[str, dict[str, Any]] = {
    "a text": {"pairs": swapped(0, (list(range(101, 131)), [5, 6, 7]))},
    "a context length": {"pairs": swapped(0, (list(range(1, 30)), [5, 6, 7]))},
    "a continuation": {"pairs": swapped(0, (list(range(1, 31)), [5, 6, 8]))},
    "its company": {"pairs": swapped(1, (list(range(102, 132)), [9]))},
    "a batch's size": {"size": 3},
    "a place in the list": {"pairs": [([1, 2], [3]), *PAIRS]},
    "a cell": {"cell": "another"},
    "a device": {"made_with": "another"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_answers_of_another_request_are_not_taken(model, whole, what):
    """All batches are known but for the difference; the first is the one that differs."""
    _, told, _ = whole
    expected, expected_told, _ = scores(model, **OTHERS[what])
    found, new, seen = scores(model, known=stored(told), **OTHERS[what])
    assert found == expected
    assert new[0] == expected_told[0] and seen


COUNTS = [0, 1, 1, 0, 1.0]
BROKEN: dict[str, Any] = {
    "no list": 3, "empty": [], "text": ["-0.1", True, COUNTS], "a whole number": [-1, True, COUNTS],
    "NaN": [float("nan"), True, COUNTS], "no truth": [-0.1, 1, COUNTS], "no counts": [-0.1, True, None],
    "few counts": [-0.1, True, [0, 1]], "half a prune": [-0.1, True, [0, 0.5, 1, 0, 1.0]],
    "below 0": [-0.1, True, [0, -1, 1, 0, 1.0]], "endless prunes": [-0.1, True, [0, 10**400, 1, 0, 1.0]],
    "no entries": [-0.1, True, [0, 1, 1, 0, None]], "huge entries": [-0.1, True, [0, 1, 1, 0, 10**400]],
    "endless entries": [-0.1, True, [0, 1, 1, 0, float("inf")]],
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_can_be_no_score_is_computed(model, whole, what):
    expected, told, _ = whole
    known = [replace(told[0], answers=[told[0].answers[0], BROKEN[what]]), *told[1:]]
    found, new, _ = scores(model, known=known)
    assert found == expected and new == told[:1]


def test_too_few_answers_are_none(model, whole):
    expected, told, _ = whole
    found, new, _ = scores(model, known=[replace(told[0], answers=told[0].answers[:1])])
    assert found == expected and new == told


def test_of_a_batch_that_memory_holds_in_halves_alone_the_halves_are_known(model, whole, monkeypatch):
    import workers.harness.rows as rows

    def small(model, prompts, policies):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("no")
        return real(model, prompts, policies)

    real = rows.Prefill
    monkeypatch.setattr(rows, "Prefill", small)
    expected, told, _ = scores(model)
    found, new, seen = scores(model, known=stored(told))
    assert found == expected and new == [] and seen == [] and len(told) == BATCHES + 1


GREEDY, SAMPLED = Decoding(("e",), 6), Decoding((), 5, temperature=0.8, top_k=20)


def texts(model, tokenizer, decoding, known=(), contexts=None, cell="cell"):
    told: list[KeptAnswers] = []
    writer = Writer(model, tokenizer, PRUNED, CPU)
    book = AnswerBook(cell, "", known, told.append)
    with passes(model) as seen:
        return writer.write(contexts or [pair[0] for pair in PAIRS], decoding, 2, book=book), told, seen


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_texts_are_known_with_all_their_draws(model, pruned_model, decoding):
    tokenizer = pruned_model(PRUNED).tokenizer
    expected, told, all_passes = texts(model, tokenizer, decoding)
    assert [len(each.answers) for each in told] == [2, 1, 2]
    for first in range(BATCHES + 1):
        found, new, seen = texts(model, tokenizer, decoding, stored(told[:first]))
        assert found == expected and new == told[first:]
        assert len(seen) < len(all_passes) or not first
    others = [
        replace(decoding, max_tokens=4),
        replace(decoding, until=("q",)),
        replace(decoding, temperature=0.5),
    ]
    for other in others:
        assert texts(model, tokenizer, other, stored(told))[1] == texts(model, tokenizer, other)[1]
    assert len(texts(model, tokenizer, decoding, stored(told), cell="another")[1]) == BATCHES
    longer = [[9, *pair[0]] for pair in PAIRS]
    assert len(texts(model, tokenizer, decoding, stored(told), longer)[1]) == BATCHES


NO_TEXTS = [3, [], [[], COUNTS], [["a"], COUNTS], [[10**400], COUNTS], [[-1], COUNTS], [[1], 3]]


@pytest.mark.parametrize("value", NO_TEXTS, ids=range(len(NO_TEXTS)))
def test_what_can_be_no_text_is_computed(model, pruned_model, value):
    tokenizer = pruned_model(PRUNED).tokenizer
    expected, told, _ = texts(model, tokenizer, GREEDY)
    found, new, _ = texts(model, tokenizer, GREEDY, [replace(told[0], answers=[value, value]), *told[1:]])
    assert found == expected and new == told[:1]


def test_a_score_is_no_text_though_its_name_were_the_same():
    with pytest.raises(ValueError, match="no generated text"):
        Generated.of_plain(ContinuationScore.of_plain([-0.5, True, COUNTS]).plain())


def test_known_answers_leave_no_tensor_behind(model, whole, monkeypatch):
    with nothing_stays(monkeypatch):
        scores(model, known=stored(whole[1][:1]))
