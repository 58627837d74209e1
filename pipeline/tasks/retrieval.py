"""Passkey and needle questions: a unit asks some cells about
some documents of one kind and length, each at every depth."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import polars as pl

from pipeline.cells import questions
from pipeline.cells.beginning import first_ids
from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.model_size import shape_of
from pipeline.cells.planned_budget import PlannedBudget, decoded_budget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import Resolved
from pipeline.cells.unit_sizes import check_units, evenly, in_batches, longest_seconds, most
from pipeline.store.run_store import RunStore
from pipeline.store.schema import ROW_KEYS, answer_room
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks.stored_rows import StoredRows
from pipeline.tasks.task import Task, TextNeed
from workers.corpora import Tokens
from workers.footprint.prompts import retrieval_bytes
from workers.footprint.shape import MAX_AT_ONCE
from workers.messages.work import RetrievalWork
from workers.models.model_files import ModelFacts
from workers.texts.questions import QUESTION_TOKENS, Question, build_questions, filler_tokens, says
from workers.texts.text_tokens import open_tokenizer

MOST_ASKED_CELLS = 32
"""Of a unit."""
ASKED_TOKENS = 16
"""Of a question, where only its seconds are estimated."""


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents [first, end) of a kind and length that a unit asks about, each at every depth."""

    kind: str
    context_tokens: int
    first: int
    end: int

    def keys(self) -> Iterable[str]:
        """All of it."""
        return (f"{self.kind} {self.context_tokens} {self.first} {self.end}",)

    @property
    def words(self) -> str:
        """Kind and length."""
        return f"{self.kind} {self.context_tokens}"


class Retrieval(Task):
    """Whether a cell answers what the full cache answers, by kind of text, length and depth."""

    name = "retrieval"
    block = "retrieval"

    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        """Once for each ``question_pruned``."""
        if spec.retrieval:
            common = spec.retrieval.model_dump(exclude=set(CellFilter.model_fields))
            for pruned in spec.retrieval.question_pruned:
                yield common | {"question_pruned": pruned}

    def lengths(self, spec: SweepSpec) -> list[tuple[str, int]]:
        asked = spec.retrieval
        if asked is None:
            return []
        room = answer_room(asked.digits)
        return [
            (f"retrieval.context_tokens + {room} for the answer", length + room)
            for length in asked.context_tokens
        ]

    def model_faults(self, spec: SweepSpec, facts: ModelFacts, bos: int | None) -> Iterable[str]:
        return questions.faults(spec.retrieval, facts, bos) if spec.retrieval else ()

    def text_needs(self, spec: SweepSpec, tokens: Tokens, bos: bool) -> list[TextNeed]:
        """None: a filler is begun again at its end, so any text is long enough. It is read here."""
        if spec.retrieval:
            tokens.filler(filler_tokens(spec.retrieval.context_tokens))
        return []

    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        """A context that is pruned without its question is shorter by that."""
        apart = 0 if settings["question_pruned"] else QUESTION_TOKENS
        return max(1, min(settings["context_tokens"]) - apart)

    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        return max(settings["context_tokens"]) + answer_room(settings["digits"])

    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        decoded = 0 if cell.schedule == "prefill_once" else answer_room(settings["digits"]) - 2
        return max(settings["context_tokens"]) + decoded

    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        """A question that is kept out of pruning changes the share by little."""
        settings = settings_of(cell)
        tokens = max(settings["digits"])  # of the answer, one for a digit
        return decoded_budget(cell, settings["context_tokens"], looks=tokens, passes=tokens - 1)

    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        settings = settings_of(cell)
        return len(settings["kinds"]) * len(settings["context_tokens"]) * questions_expected(cell)

    def units(
        self, cells: list[Cell], resolved: Resolved, rates: Rates, before: int
    ) -> Iterator[PlannedUnit]:
        settings = settings_of(cells[0])
        documents = documents_expected(cells[0])
        for kind, length in itertools.product(settings["kinds"], settings["context_tokens"]):
            for batch, stretches in _about(rates, cells, length, documents):
                before += len(stretches)
                check_units(before, f"{documents:,} documents to ask about", "retrieval.questions")
                for stretch in stretches:
                    yield PlannedUnit(self.name, batch, Documents(kind, length, stretch.start, stretch.stop))

    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        return retrieval_seconds(unit.cells, rates, _part_of(unit).context_tokens, self.texts_at_once(unit))

    def texts_at_once(self, unit: PlannedUnit) -> int:
        asked = _part_of(unit)
        return (asked.end - asked.first) * len(settings_of(unit.cells[0])["depths"])

    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        length = max(settings_of(cells[0])["context_tokens"])
        return length, retrieval_bytes(shape_of(facts, cells[0]), length, texts, cells)

    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> RetrievalWork:
        return RetrievalWork(questions_of(resolved, unit), settings_of(unit.cells[0])["question_pruned"])

    def stored_rows(self, store: RunStore, cells: Sequence[Cell], resolved: Resolved) -> StoredRows:
        return _StoredAnswers(store, cells)

    def as_stored(self, rows: list[dict[str, Any]], facts: ModelFacts) -> list[dict[str, Any]]:
        """With answers as text, and whether that is right; a worker gives ids."""
        tokenizer = open_tokenizer(facts.tokenizer_file)
        told = []
        for row in rows:
            own = {name: value for name, value in row.items() if name != "own_tokens"}
            said = tokenizer.text_before_end(row["own_tokens"])
            own["answer"] = tokenizer.text(row["answer"]).strip()
            own["correct_text"] = says(said, row["expected"])
            told.append(own)
        return told


def _part_of(unit: PlannedUnit) -> Documents:
    assert isinstance(unit.part, Documents)
    return unit.part


def documents_expected(cell: Cell) -> int:
    """How many documents of each kind and length a cell is asked about, each at every depth."""
    settings = settings_of(cell)
    return settings["questions"] * len(settings["digits"]) * len(settings["distractors"])


def questions_expected(cell: Cell) -> int:
    """How many questions of each kind and length a cell has."""
    return documents_expected(cell) * len(settings_of(cell)["depths"])


def questions_of(resolved: Resolved, unit: PlannedUnit) -> tuple[Question, ...]:
    """What every cell of a unit is asked, in its model's tokens."""
    first = unit.cells[0]
    settings, asked = settings_of(first), _part_of(unit)
    filler = resolved.tokens[first.model, first.dataset].filler(filler_tokens(settings["context_tokens"]))
    encode = open_tokenizer(resolved.models[first.model].tokenizer_file).inside

    axes = (settings["depths"], settings["digits"], settings["distractors"], settings["questions"])
    documents, start = range(asked.first, asked.end), first_ids(first)
    return tuple(
        build_questions(encode, asked.kind, asked.context_tokens, *axes, first.seed, filler, start, documents)
    )


def prompt_seconds(rates: Rates, length: int, questions: int) -> float:
    """Of the dense pass over the prompts of questions."""
    return questions * length * rates.token


def retrieval_seconds(cells: Sequence[Cell], rates: Rates, length: int, questions: int) -> float:
    """Of a unit: the prompts once for all cells, then each cell's answers, and what they fork and prune.

    Each answer goes through twice, with the right tokens and with the model's own, and so does a question
    that is kept out.
    """
    settings = settings_of(cells[0])
    batches = math.ceil(questions / MAX_AT_ONCE)
    answered = max(settings["digits"]) + 1
    is_asked_apart = not settings["question_pruned"]

    tokens = 2 * questions * (answered + ASKED_TOKENS * is_asked_apart)
    passes = batches * (answered + is_asked_apart)
    each = tokens * rates.token + passes * rates.single_pass
    held = 2 * questions * length * sum(cell.keep_ratio for cell in cells)
    return prompt_seconds(rates, length, questions) + len(cells) * each + held * rates.held_token


def _about(
    rates: Rates, cells: list[Cell], length: int, documents: int
) -> Iterator[tuple[tuple[Cell, ...], list[range]]]:
    """Batches of cells, and the stretches of documents of one length about which a unit asks them."""
    depths = len(settings_of(cells[0])["depths"])
    longest = longest_seconds(prompt_seconds(rates, length, depths))

    def seconds(batch: Sequence[Cell], about: int) -> float:
        return retrieval_seconds(batch, rates, length, depths * about)

    size = most(min(len(cells), MOST_ASKED_CELLS), lambda many: seconds(cells[:many], 1), longest)
    for batch in in_batches(cells, size):
        yield batch, evenly(documents, most(documents, partial(seconds, batch)))


class _StoredAnswers:
    """The questions that each cell has answered as bits, by kind and length."""

    def __init__(self, store: RunStore, cells: Sequence[Cell]) -> None:
        self._cells = {cell.cell_id: cell for cell in cells}
        self._asked: dict[tuple[str, str, int], int] = {}
        if not self._cells:
            return
        stored = store.scan(Retrieval.name).filter(pl.col("cell_id").is_in(list(self._cells)))
        for row in stored.select("cell_id", *ROW_KEYS[Retrieval.name]).collect().iter_rows(named=True):
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        number = self._number(row)
        if number is not None:
            place = _place(row)
            self._asked[place] = self._asked.get(place, 0) | 1 << number

    def has_any(self, cell_id: str) -> bool:
        return any(place[0] == cell_id for place in self._asked)

    def is_stored(self, row: dict[str, Any]) -> bool:
        number = self._number(row)
        answered = self._asked.get(_place(row), 0)
        return number is not None and bool(answered >> number & 1)  # a bit for each question that is stored

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        asked = _part_of(unit)
        depths = len(settings_of(cell)["depths"])

        # A document's questions are neighbours: the bits from its first question to its last.
        wanted = (1 << depths * asked.end) - (1 << depths * asked.first)
        answered = self._asked.get((cell.cell_id, asked.kind, asked.context_tokens), 0)
        return bool(wanted & ~answered)

    def _number(self, row: dict[str, Any]) -> int | None:
        """Of a question among those of its kind and length; None for one that the plan does not ask."""
        cell = self._cells.get(row["cell_id"])
        if cell is None:
            return None
        return _numbers(cell.settings).get(tuple(row[key] for key in ROW_KEYS[Retrieval.name][2:]))


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["cell_id"], row["kind"], row["context_tokens"]


@lru_cache(maxsize=64)
def _numbers(settings: str) -> dict[tuple[Any, ...], int]:
    """Of the questions of a kind and length, in the order in which they are built, by what tells them
    apart."""
    axes = json.loads(settings)
    documents = itertools.product(axes["digits"], axes["distractors"], range(axes["questions"]))
    asked = (
        (digits, others, depth, index) for digits, others, index in documents for depth in axes["depths"]
    )
    return {question: number for number, question in enumerate(asked)}
