"""What becomes of a worker's rows before they are stored."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.tasks import TASKS
from tests.conftest import save_byte_tokenizer
from workers.texts.text_tokens import open_tokenizer


@pytest.fixture
def told(tmp_path):
    """The row of an answer by its own tokens and how many of them are shown, and the tokenizer."""
    file = tmp_path / "tokenizer.json"
    save_byte_tokenizer(file)
    facts: Any = SimpleNamespace(tokenizer_file=str(file))

    def row(own: list[int], first: int) -> dict[str, Any]:
        answer = {"expected": "123", "answer": own[:first], "own_tokens": own, "correct": False}
        return TASKS["retrieval"].as_stored([answer], facts)[0]

    return row, open_tokenizer(str(file)).ids


def test_an_answer_in_other_pieces_is_right_as_text(told):
    """The right answer has two tokens in some tokenizer; this one needs five, of which the row shows two."""
    row, ids = told
    assert row(ids(" 1-23"), 2) == {"expected": "123", "answer": "1", "correct": False, "correct_text": True}
    assert not row(ids(" 132 "), 2)["correct_text"]


def test_what_stands_behind_the_end_of_a_text_is_none_of_the_answer(told):
    row, ids = told
    assert not row([*ids(" 12"), 256, *ids("3")], 2)["correct_text"]
    assert row([*ids(" 123"), 256], 2)["correct_text"]
