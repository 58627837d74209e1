"""Batched answers with a shared prefill = each question alone through a cache of its own; what is dropped,
what is kept out."""

import dataclasses
from weakref import WeakSet

import pytest
import torch
from torch.nn import functional

from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.prefill import Prefill
from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import forward
from workers.messages.work import RetrievalWork
from workers.policies.settings import PruneSettings
from workers.retrieval import answers as module
from workers.retrieval.answer_attention import answer_attention
from workers.retrieval.answers import RETAINED, answers, question_batches
from workers.texts.questions import Question

CPU = torch.device("cpu")
CELLS = [
    PruneSettings("dense"),
    PruneSettings("knorm", 0.5, 8),
    PruneSettings("random", 0.3, 20),
    PruneSettings("snapkv", 0.7, 8, (1,)),
    PruneSettings("h2o", 0.5, 16, schedule="prefill_once"),
    PruneSettings("tova", 0.5, 44),
    PruneSettings("knorm", 0.5, 500),
    PruneSettings("recent", 0.6, 8, (), 2, 3),
]


def questions(lengths=((30, 10), (34, 6), (30, 10)), answer=(3, 2, 4)):
    """Documents of their own, but for the last question, which asks about the first one's."""
    made = []
    for i, (size, asked) in enumerate(lengths):
        context, question = (
            repetitive_tokens(1, size, seed=i)[0].tolist(),
            repetitive_tokens(1, asked, seed=50 + i)[0].tolist(),
        )
        ids = list(range(1 + i, 1 + i + answer[i]))
        made.append(Question("needle", 40, 3, 1, 0.5, i, context, question, ids, "123", ((4 + i, 9 + i),)))
    first = made[0]
    return (
        *made,
        dataclasses.replace(
            first, depth=0.9, question_ids=first.question_ids[::-1], answer_spans=((20, 24),)
        ),
    )


@torch.inference_mode()
def alone(model, settings, question, question_pruned):
    """The definition: one question, one token per pass, no prefill shared."""
    ids = question.prompt_ids if question_pruned else question.context_ids
    row = [question.index]

    def start():
        cache = PrunedCache(model.config, settings, row_ids=row)
        logits = forward(model, torch.tensor([ids]), cache)
        if not question_pruned:
            cache.begin_outside(len(question.question_ids))
            logits = forward(model, torch.tensor([question.question_ids]), cache)
        return cache, logits

    cache, logits = start()
    answer = [int(logits.argmax())]
    while len(answer) < len(question.answer_ids):
        logits = forward(model, torch.tensor([answer[-1:]]), cache)
        answer.append(int(logits.argmax()))
    events = cache.validity().prune_events
    while len(answer) < max(len(question.answer_ids), 4):  # a space and three digits
        answer.append(int(forward(model, torch.tensor([answer[-1:]]), cache).argmax()))
    (cache, logits), nll = start(), 0.0
    for i, token in enumerate(question.answer_ids):
        nll -= float(functional.log_softmax(logits.float(), -1)[0, token])
        if i + 1 < len(question.answer_ids):
            logits = forward(model, torch.tensor([[token]]), cache)
    return answer, nll, events


def test_a_cells_cache_is_gone_before_the_next_ones_is_made(monkeypatch):
    """The dense cell's is the largest, and the first."""
    made, alive = Prefill.cache, WeakSet()

    def noted(self, settings, row_ids):
        assert not len(alive)
        cache = made(self, settings, row_ids)
        alive.add(cache)
        return cache

    monkeypatch.setattr(Prefill, "cache", noted)
    found = answers(tiny_model("llama"), CPU, CELLS, RetrievalWork(questions(), False), 16)
    assert not any(isinstance(rows, Exception) for rows in found)


@pytest.mark.parametrize("question_pruned", [True, False])
@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_in_company_as_alone(architecture, size, question_pruned):
    model, asked = tiny_model(architecture), questions()
    found = answers(model, CPU, CELLS, RetrievalWork(asked, question_pruned), size)
    differ = set()
    for settings, rows in zip(CELLS, found, strict=True):
        assert not isinstance(rows, Exception), rows
        assert [(row["question_index"], row["depth"]) for row in rows] == [
            (0, 0.5),
            (1, 0.5),
            (2, 0.5),
            (0, 0.9),
        ]
        for question, row in zip(asked, rows, strict=True):
            answer, nll, events = alone(model, settings, question, question_pruned)
            assert (row["own_tokens"], row["prune_events"]) == (answer, events)
            answer = answer[: len(question.answer_ids)]
            assert row["answer"] == answer
            assert row["answer_nll"] == pytest.approx(nll, abs=2e-4)
            assert (
                row["correct"] == (answer == question.answer_ids)
                and row["question_pruned"] == question_pruned
            )
            differ.add(round(row["answer_nll"], 2))
    assert len(differ) > 12, "cells and questions differ, so agreement says something"


def test_an_answer_that_greedy_decoding_gives_is_correct():
    model, question = tiny_model("llama"), questions()[0]
    ((row, *_),) = answers(model, CPU, [PruneSettings("knorm", 0.5, 8)], RetrievalWork((question,), True), 4)
    again = dataclasses.replace(question, answer_ids=row["answer"])
    ((row, *_),) = answers(model, CPU, [PruneSettings("knorm", 0.5, 8)], RetrievalWork((again,), True), 4)
    assert row["correct"] and row["answer"] == again.answer_ids


def test_what_is_left_of_the_fact_and_of_the_cache_is_told():
    question = questions()[0]
    cells = [
        PruneSettings("dense"),
        PruneSettings("recent", 0.5, 8),
        PruneSettings("streaming", 0.5, 8, (0,)),
    ]
    cells.append(PruneSettings("recent", 0.5, 8, schedule="prefill_once"))
    rows = [rows[0] for rows in answers(tiny_model("llama"), CPU, cells, RetrievalWork((question,), True), 4)]
    retained = [row["answer_position_retained"] for row in rows]
    assert retained == pytest.approx([1.0, 0.0, 1 / 3, 0.0])  # layer 0 of three keeps everything
    twice = dataclasses.replace(question, answer_spans=((4, 9), (35, 38)))
    ((row,),) = answers(tiny_model("llama"), CPU, cells[1:2], RetrievalWork((twice,), True), 4)
    assert row["answer_position_retained"] == 1.0, "the copy that is held counts"
    held = [row["cache_tokens_mean"] for row in rows]
    assert held[0] == pytest.approx((40 + 41 + 42) / 3)
    assert (
        held[1] == pytest.approx((20 + 11 + 6) / 3) and rows[1]["prune_events"] == 3
    )  # 20, then half of 21, half of 12
    assert held[3] == pytest.approx((20 + 21 + 22) / 3) and rows[3]["prune_events"] == 1


def test_what_is_held_is_read_off_where_the_answer_goes_wrong_or_else_at_its_end():
    """The newest half of 40, of 21, of 12 entries: positions 20 on, 30 on, 36 on; the answer stands at 35 to
    37."""
    model, cell = tiny_model("llama"), PruneSettings("recent", 0.5, 8)
    question = dataclasses.replace(questions()[0], answer_spans=((35, 38),))
    ((wrong,),) = answers(model, CPU, [cell], RetrievalWork((question,), True), 4)
    assert wrong["answer"][0] != question.answer_ids[0] and wrong["answer_position_retained"] == 1.0
    right = dataclasses.replace(question, answer_ids=wrong["answer"])
    later = dataclasses.replace(
        right, answer_ids=[*right.answer_ids[:1], 1 + right.answer_ids[1], right.answer_ids[2]]
    )
    ((end, middle),) = answers(model, CPU, [cell], RetrievalWork((right, later), True), 4)
    assert end["correct"] and end["answer_position_retained"] == pytest.approx(2 / 3)
    assert not middle["correct"] and middle["answer_position_retained"] == 1.0


def test_a_question_kept_out_is_neither_counted_nor_dropped():
    question = dataclasses.replace(
        questions()[0], expected="12"
    )  # whose text needs no further token than the answer
    kept = []

    class Watched(PrunedCache):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.cache.prefill.PrunedCache", Watched)
        (rows,) = answers(
            tiny_model("llama"), CPU, [PruneSettings("knorm", 0.5, 8)], RetrievalWork((question,), False), 4
        )
    positions = kept[-1].pruned_layers[0].stored_positions()
    span = (positions >= 30) & (positions < 40)
    assert span.sum(-1).eq(10).all(), "every token of the question, in every head"
    # 30 -> 15 before the question; half of 16, then half of 9 while answering; the question's ten beside them
    assert positions.shape[2] == 5 + 10 and rows[0]["prune_events"] == 3
    assert rows[0]["cache_tokens_mean"] == pytest.approx((25 + 18 + 15) / 3)


def test_questions_about_one_document_share_its_pass_only_where_it_is_pruned_without_them(monkeypatch):
    asked = questions()
    together = (asked[0], asked[3], asked[2])
    assert [len(batch.prompts) for batch in question_batches(together, False, 16)] == [2]
    assert [len(batch.prompts) for batch in question_batches(together, True, 16)] == [3]
    assert [batch.prompt_of for batch in question_batches(together, False, 2)] == [[0, 0], [0]]
    assert sorted(len(batch.prompts[0]) for batch in question_batches(asked, False, 16)) == [30, 34]


def test_the_prompts_of_a_batch_are_put_together_when_its_turn_comes(monkeypatch):
    """Each question's prompt is a list of its own, so all at once would be as long as all contexts."""
    order, put_together = [], module.question_batches

    def noted(*arguments):
        for batch in put_together(*arguments):
            order.append("prompts")
            yield batch

    class Watched(module.Prefill):
        def __init__(self, *arguments, **options):
            order.append("pass")
            super().__init__(*arguments, **options)

    monkeypatch.setattr(module, "question_batches", noted)
    monkeypatch.setattr(module, "Prefill", Watched)
    answers(tiny_model("llama"), CPU, CELLS[:1], RetrievalWork(questions(), True), 1)
    assert order == ["prompts", "pass"] * len(questions())


def test_a_batch_that_memory_cannot_hold_is_halved(monkeypatch):
    sizes, whole = [], module.Prefill

    def tight(model, prompts, policies):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, policies)

    model, work = tiny_model("llama"), RetrievalWork(questions(), True)
    (expected,) = answers(model, CPU, CELLS[1:2], work, 16)
    monkeypatch.setattr(module, "Prefill", tight)
    (rows,) = answers(model, CPU, CELLS[1:2], work, 16)
    assert [row["answer"] for row in rows] == [row["answer"] for row in expected] and max(sizes) > 1


def test_logits_that_are_no_numbers_fail_the_cell(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(
        module, "forward", lambda model, tokens, cache: torch.full((len(tokens), 64), torch.nan)
    )
    (error,) = answers(model, CPU, CELLS[1:2], RetrievalWork(questions(), True), 16)
    assert isinstance(error, FloatingPointError)


def stock_attention(model, question):
    """[layers, kv_heads] by transformers' own eager attention over context, question and right answer, in
    plain Python."""
    ids = question.prompt_ids + question.answer_ids[:-1]
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            layers = model(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        model.set_attn_implementation("kvsweep")
    group = model.config.num_attention_heads // getattr(
        model.config, "num_key_value_heads", model.config.num_attention_heads
    )
    places = [i for start, end in question.answer_spans for i in range(start, end)]
    asking = range(len(question.prompt_ids) - 1, len(ids))
    table = []
    for chance in layers:
        heads = [sum(float(head[q, p]) for q in asking for p in places) / len(asking) for head in chance[0]]
        table.append([sum(heads[i : i + group]) for i in range(0, len(heads), group)])
    return table


@pytest.mark.parametrize("question_pruned", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_attention_to_an_answer_is_the_stock_models(architecture, question_pruned):
    model, asked = tiny_model(architecture), questions()
    twice = dataclasses.replace(asked[0], answer_spans=((4, 9), (20, 22)))
    for batch in question_batches([*asked, twice], question_pruned, 16):
        prefill = Prefill(model, torch.tensor(batch.prompts), {"dense"})
        found = answer_attention(model, prefill.prefix, batch.questions, batch.prompt_of, question_pruned)
        for i, question in enumerate(batch.questions):
            assert torch.allclose(found[:, i], torch.tensor(stock_attention(model, question)), atol=1e-5)
        assert found.std() > 0.01, "heads differ, so agreement says something"


@pytest.mark.parametrize("question_pruned", [True, False])
def test_an_answer_is_held_as_far_as_the_heads_that_read_it_hold_it(question_pruned):
    """From the stock model's attention and the positions that a cache of its own holds when the first token
    goes wrong."""
    model, cell = tiny_model("llama"), PruneSettings("knorm", 0.6, 8, (1,))
    asked = dataclasses.replace(questions()[0], answer_ids=[96, 95, 94])  # never what the model says first
    ((row,),) = answers(model, CPU, [cell], RetrievalWork((asked,), question_pruned), 4)
    cache = PrunedCache(model.config, cell, row_ids=[0])
    with torch.inference_mode():
        forward(model, torch.tensor([asked.prompt_ids if question_pruned else asked.context_ids]), cache)
    assert row["answer"][0] != 96

    weights, (start, end) = stock_attention(model, asked), asked.answer_spans[0]
    held = [
        [sum(start <= p < end for p in head) / (end - start) for head in layer.stored_positions()[0].tolist()]
        for layer in cache.pruned_layers
    ]
    pairs = [(w, h) for layer in range(3) for w, h in zip(weights[layer], held[layer], strict=True)]
    mean = sum(w for w, _ in pairs) / len(pairs)
    assert row["answer_retained_weighted"] == pytest.approx(
        sum(w * h for w, h in pairs) / sum(w for w, _ in pairs), abs=1e-5
    )
    assert row["answer_retained_least"] == pytest.approx(min(h for w, h in pairs if w >= mean))
    assert row["answer_position_retained"] == pytest.approx(sum(h for _, h in pairs) / len(pairs))
    assert len({round(row[name], 3) for name in RETAINED}) == 3


def test_the_dense_cells_attention_is_looked_at_once_for_all_cells(monkeypatch):
    calls, real = [], module.answer_attention
    monkeypatch.setattr(module, "answer_attention", lambda *a: (calls.append(1), real(*a))[1])
    found = answers(tiny_model("llama"), CPU, CELLS, RetrievalWork(questions()[:1], False), 16)
    assert len(calls) == 1
    assert (found[0][0]["answer_retained_weighted"], found[0][0]["answer_retained_least"]) == (
        1.0,
        1.0,
    ), "dense holds all"
