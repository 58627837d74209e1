"""Passkey and needle documents: exact lengths, the fact where it was asked for, the same again from the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.retrieval import KINDS, Fact, build_question, hide_facts


def encode(text):
    return list(text.encode())


FILLER = encode("It was a dark and stormy night; the rain fell in torrents. ")


@given(st.sampled_from(KINDS), st.integers(400, 900), st.floats(0, 1), st.integers(0, 5), st.integers(3, 7))
def test_a_question_has_exactly_the_asked_tokens_and_holds_its_answer(kind, length, depth, index, digits):
    question = build_question(encode, kind, length, depth, index, 0, FILLER, digits)
    assert len(question.prompt_ids) == length
    start, end = question.fact_span
    assert question.expected in bytes(question.prompt_ids[start:end]).decode()
    assert bytes(question.answer_ids).decode().strip() == question.expected
    assert len(question.expected) == digits
    assert question == build_question(encode, kind, length, depth, index, 0, FILLER, digits)


def test_depth_moves_the_fact_from_the_start_to_the_end():
    spans = [build_question(encode, "needle", 600, depth, 0, 0, FILLER).fact_span[0] for depth in (0.0, 0.5, 1.0)]
    assert spans[0] < 5 < spans[1] < spans[2]


def test_questions_differ_by_index_and_seed():
    values = {
        build_question(encode, "passkey", 500, 0.5, index, seed, FILLER).expected for index in range(5) for seed in range(2)
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
