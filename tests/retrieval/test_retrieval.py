"""Passkey and needle documents: exact lengths, the fact where it was asked for, the same again from the same
seed."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.texts.facts import NAMES, NEEDLE_QUESTION, Fact, answer_spans, fact_text, hide_facts
from workers.texts.questions import (
    KINDS,
    QUESTION_TOKENS,
    build_question,
    build_questions,
    build_shared,
    least_context,
    says,
)


def encode(text):
    return list(text.encode())


FILLER = encode("It was a dark and stormy night; the rain fell in torrents. ")


@given(st.sampled_from(KINDS), st.integers(400, 900), st.floats(0, 1), st.integers(0, 5), st.integers(3, 7))
def test_a_question_has_exactly_the_asked_tokens_and_holds_its_answer(kind, length, depth, index, digits):
    question = build_question(encode, kind, length, depth, index, 0, FILLER, digits)
    assert len(question.prompt_ids) == length
    said = [bytes(question.prompt_ids[start:end]).decode() for start, end in question.answer_spans]
    assert said == [question.expected] * (2 if kind == "passkey" else 1)
    assert bytes(question.answer_ids).decode().strip() == question.expected
    assert len(question.expected) == digits
    assert question == build_question(encode, kind, length, depth, index, 0, FILLER, digits)


def test_depth_moves_the_fact_from_the_start_to_the_end():
    spans = [
        build_question(encode, "needle", 600, depth, 0, 0, FILLER).answer_spans[0][0]
        for depth in (0.0, 0.5, 1.0)
    ]
    assert spans[0] < 50 < spans[1] < spans[2]


def test_questions_differ_by_index_and_seed():
    values = {
        build_question(encode, "passkey", 500, 0.5, index, seed, FILLER).expected
        for index in range(5)
        for seed in range(2)
    }
    assert len(values) == 10


def test_several_facts_keep_their_spans():
    facts = [Fact("Rome", "111", 0.9), Fact("Oslo", "222", 0.1)]
    ids, spans = hide_facts(encode, "needle", facts, 500, FILLER)
    assert len(ids) == 500
    assert spans[1] < spans[0]
    for fact, (start, end) in zip(facts, spans, strict=True):
        assert f"{fact.name} is {fact.value}" in bytes(ids[start:end]).decode()


def test_a_document_too_short_for_its_fact_is_refused():
    with pytest.raises(ValueError, match="no room"):
        build_question(encode, "passkey", 60, 0.5, 0, 0, FILLER)
    with pytest.raises(ValueError, match="passkey, needle"):
        build_question(encode, "haystack", 600, 0.5, 0, 0, FILLER)


SECRETS = re.compile(r"The secret number of (\w+) is (\d+)\.")


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(0, 60), st.integers(2, 12), st.floats(0, 1), st.integers(0, 3))
def test_distractors_are_facts_of_the_same_form_with_names_and_values_of_their_own(
    kind, distractors, digits, depth, index
):
    length = least_context(encode, kind, digits, distractors)
    question = build_question(encode, kind, length, depth, index, 0, FILLER, digits, distractors)
    assert len(question.prompt_ids) == length
    text = bytes(question.context_ids).decode()
    hidden = SECRETS.findall(text)
    names, values = zip(*hidden, strict=True) if hidden else ((), ())
    assert len(set(names)) == len(set(values)) == len(hidden) == distractors + (kind == "needle")
    assert Counter(values)[question.expected] == (kind == "needle")
    assert text.count(f" {question.expected}") == 1 + (kind == "passkey")
    assert {len(value) for value in values} <= {digits}


def test_a_shorter_context_than_the_least_may_not_hold_the_facts():
    least = least_context(encode, "needle", 5, 3)
    for index in range(20):
        build_question(encode, "needle", least, 0.5, index, 0, FILLER, 5, 3)
    with pytest.raises(ValueError, match="no room"):
        build_question(encode, "needle", least // 2, 0.5, 0, 0, FILLER, 5, 3)


@pytest.mark.parametrize("index", range(6))
def test_questions_about_every_depth_ask_about_one_document_where_distractors_allow(index):
    depths = (0.1, 0.5, 0.9)
    found = build_shared(encode, 900, depths, index, 0, FILLER, 5, 4)
    assert [question.depth for question in found] == list(depths)
    assert len({id(question.context_ids) for question in found}) == 1, "one list, so one prefill"
    text = bytes(found[0].context_ids).decode()
    assert len(SECRETS.findall(text)) == 5
    for question in found:
        ((start, end),) = question.answer_spans
        assert (
            len(question.prompt_ids) == 900
            and question.expected == bytes(question.context_ids[start:end]).decode()
        )
        (name,) = re.findall(r"number of (\w+)\?", bytes(question.question_ids).decode())
        assert (name, question.expected) in SECRETS.findall(text)
    assert sorted(question.answer_spans for question in found) == [
        question.answer_spans for question in found
    ]


def test_too_few_distractors_or_a_passkey_make_a_document_for_each_depth():
    assert build_shared(encode, 900, (0.1, 0.5, 0.9), 0, 0, FILLER, 5, 1) is None
    assert build_shared(encode, 900, (0.5,), 0, 0, FILLER, 5, 9) is None
    for kind, others, documents in (("needle", 2, 2), ("needle", 1, 6), ("passkey", 2, 6)):
        asked = list(build_questions(encode, kind, 900, (0.1, 0.5, 0.9), (5,), (others,), 2, 0, FILLER))
        assert len(asked) == 6 and len({tuple(question.context_ids) for question in asked}) == documents
        assert asked == list(
            build_questions(encode, kind, 900, (0.1, 0.5, 0.9), (5,), (others,), 2, 0, FILLER)
        )


def test_a_question_fits_the_room_that_planning_leaves_it():
    assert max(len(encode(NEEDLE_QUESTION.format(name=name))) for name in NAMES) <= QUESTION_TOKENS


def test_the_answers_own_tokens_are_found_where_tokens_cross_its_borders():
    """A tokenizer with tokens such as " 4" and "5." counts them as the answer's."""

    def pairs(text):
        return [hash(text[i : i + 2]) for i in range(0, len(text), 2)]

    fact = Fact("Rome", "48213", 0.5)
    ((start, end),) = answer_spans(pairs, "needle", fact, 100)
    text = fact_text("needle", fact)
    covered = text[2 * (start - 100) : 2 * (end - 100)]
    assert "48213" in covered and len(covered) <= 8


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_before_a_document_is_counted_and_moves_the_answer(kind):
    least = least_context(encode, kind, 5, 1)
    assert least_context(encode, kind, 5, 1, [7, 7]) == least + 2
    plain = build_question(encode, kind, least, 0.0, 0, 0, FILLER, 5, 1)
    begun = build_question(encode, kind, least + 2, 0.0, 0, 0, FILLER, 5, 1, [7, 7])
    assert begun.context_ids[:2] == [7, 7] and len(begun.prompt_ids) == least + 2
    assert [bytes(begun.context_ids[a:b]).decode() for a, b in begun.answer_spans] == [begun.expected] * len(
        plain.answer_spans
    )


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 48213", True),
        (" 48,213.", True),
        ("4 8 2 1 3", True),
        (" 482-13. Remember it. 48213", True),
        ("**48213**", True),
        (" 4821", False),
        (" 48231", False),
        (" 148213", False),
        ("", False),
        ("４８２１３", False),
    ],
)
def test_an_answer_is_right_as_text_where_its_digits_come_in_order(text, right):
    assert says(text, "48213") is right


def test_so_many_tokens_are_read_as_hold_all_digits_in_any_pieces():
    """The byte tokenizer says a space and every digit by themselves, which is the most that one can need."""
    question = build_question(encode, "needle", 300, 0.5, 0, 0, FILLER, 7)
    assert question.text_tokens == len(question.answer_ids) == 8
    assert (
        replace(question, answer_ids=[1, 2]).text_tokens == 8
        and replace(question, answer_ids=[1] * 9).text_tokens == 9
    )
