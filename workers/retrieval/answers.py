"""Answers to questions through pruned caches:
one dense pass over the prompts of a batch, shared by all cells and questions.

The answer is fed token by token, as in generation. Each question goes through twice at the same time: with
the right answer's tokens, for its NLL, and with the model's own, for its text. Where ``question_pruned``, the
question goes through with the context and a check follows both; the first token of the answer is then
predicted before anything is dropped. Otherwise the context is pruned before the question is known (the
protocol of kvpress), and the question's entries are neither dropped nor counted.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.cache.prefill import Prefill
from workers.cache.scoring import NOT_FINITE, OutputLayer, check_chosen
from workers.generation.decoding import forward
from workers.messages.out_of_memory import is_out_of_memory, without_frames
from workers.messages.work import RetrievalWork
from workers.policies.own_policies import find_policy
from workers.policies.settings import PruneSettings
from workers.retrieval.answer_attention import answer_attention
from workers.texts.questions import Question

AnswerRows = list[dict[str, Any]]


@dataclass(frozen=True)
class AnswersWatch:
    """Who is told of answers while they are made; by default nobody. Cells are told by index."""

    worked: Callable[[int, int], None] = lambda questions, cell: None
    """Of questions that are done, and the cell; -1 for the prompts' own pass."""
    answered: Callable[[int, AnswerRows], None] = lambda cell, rows: None
    """Of a cell's rows of a batch of questions."""


RETAINED = ("answer_position_retained", "answer_retained_weighted", "answer_retained_least")
"""The columns of what was held of an answer, in the order of ``_Answers._retained``."""


@dataclass(frozen=True)
class Batch:
    """Prompts of one length, and the questions about them."""

    prompts: list[list[int]]
    questions: list[Question]
    prompt_of: list[int]
    """Of each question, which prompt it goes with."""

    @property
    def row_ids(self) -> list[int]:
        """What names the prompts for the ``random`` policy: the index of their questions."""
        return [self.questions[self.prompt_of.index(prompt)].index for prompt in range(len(self.prompts))]


@torch.inference_mode()
def answers(
    model: nn.Module,
    device: torch.device,
    cells: Sequence[PruneSettings],
    work: RetrievalWork,
    size: int,
    watch: AnswersWatch = AnswersWatch(),
) -> list[AnswerRows | Exception]:
    """Each cell's rows, one per question in their order, or what made it fail;
    ``size``: questions at a time, at most.

    Raises ValueError for an output layer whose likelihoods cannot be told.
    """
    OutputLayer.of(model)
    results: list[AnswerRows | Exception] = [[] for _ in cells]
    for i, cell in enumerate(cells):
        try:
            find_policy(cell.policy)
        except ValueError as error:
            results[i] = error

    batches = question_batches(work.questions, work.question_pruned, size)
    halves: deque[Batch] = deque()
    while (batch := halves.popleft() if halves else next(batches, None)) is not None:
        going = [i for i, rows in enumerate(results) if not isinstance(rows, Exception)]
        try:
            prefill, weights = _prefilled(
                model, device, batch, {cells[i].policy for i in going}, work.question_pruned
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch.questions) == 1:
                raise
            half = (len(batch.questions) + 1) // 2
            halves.extendleft(reversed([*question_batches(batch.questions, work.question_pruned, half)]))
            continue

        watch.worked(len(batch.questions), -1)
        for i in going:
            try:
                of_batch = _Answers(model, prefill, cells[i], batch, work.question_pruned, weights).rows()
            except Exception as error:
                results[i] = without_frames(error)  # a cell that fails takes no other down
            else:
                rows = results[i]
                assert isinstance(rows, list)
                told = [
                    _described(asked, work) | row
                    for asked, row in zip(batch.questions, of_batch, strict=True)
                ]
                rows += told
                watch.answered(i, told)
            watch.worked(len(batch.questions), i)
        del prefill, weights  # before the next batch's are made

    order = {_asked(_described(question, work)): place for place, question in enumerate(work.questions)}
    for rows in results:
        if not isinstance(rows, Exception):
            rows.sort(key=lambda row: order[_asked(row)])
    return results


def _asked(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a question from the others of its unit."""
    return tuple(
        row[name] for name in ("kind", "context_tokens", "digits", "distractors", "depth", "question_index")
    )


def question_batches(questions: Sequence[Question], question_pruned: bool, size: int) -> Iterator[Batch]:
    """Questions whose prompts, and whose own tokens where they go alone, are as many.

    Neighbours about one document share its pass where they go through behind it.
    """

    def shape(question: Question) -> tuple[int, int]:
        context, question_tokens = len(question.context_ids), len(question.question_ids)
        return (context + question_tokens, 0) if question_pruned else (context, question_tokens)

    for _, group in itertools.groupby(sorted(questions, key=shape), key=shape):
        members = list(group)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            prompts = []
            prompt_of = []
            for question in part:
                if question_pruned or not prompts or prompts[-1] != question.context_ids:
                    prompts.append(question.prompt_ids if question_pruned else question.context_ids)
                prompt_of.append(len(prompts) - 1)
            yield Batch(prompts, part, prompt_of)


def _prefilled(
    model: nn.Module, device: torch.device, batch: Batch, policies: set[str], question_pruned: bool
) -> tuple[Prefill, Tensor]:
    """The pass over a batch's prompts, and what of its attention the answers have (``answer_attention``)."""
    prefill = Prefill(model, torch.tensor(batch.prompts, device=device), policies)
    return prefill, answer_attention(model, prefill.prefix, batch.questions, batch.prompt_of, question_pruned)


def _described(question: Question, work: RetrievalWork) -> dict[str, Any]:
    """The columns that say what was asked."""
    return {
        "kind": question.kind,
        "context_tokens": question.context_tokens,
        "digits": question.digits,
        "distractors": question.distractors,
        "depth": question.depth,
        "question_index": question.index,
        "question_pruned": work.question_pruned,
        "expected": question.expected,
        "answer_tokens": len(question.answer_ids),
    }


class _Answers:
    """One cell's answers to the questions of a batch. Its cache ends with it: the next cell's is made where
    nothing is left."""

    def __init__(
        self,
        model: nn.Module,
        prefill: Prefill,
        cell: PruneSettings,
        batch: Batch,
        question_pruned: bool,
        weights: Tensor,
    ) -> None:
        """weights: [layers, questions, kv_heads], of ``answer_attention``."""
        self.model = model
        self.questions = batch.questions
        device = prefill.logits.device
        rows = [*batch.prompt_of, *batch.prompt_of]
        self.cache = prefill.cache(cell, batch.row_ids)
        self.cache.take_rows(rows)

        self.longest = max(len(question.answer_ids) for question in self.questions)
        padded = [
            question.answer_ids + [0] * (self.longest - len(question.answer_ids))
            for question in self.questions
        ]
        self.right = torch.tensor(padded, device=device)
        copies = max(len(question.answer_spans) for question in self.questions)
        spans = [(question.answer_spans * copies)[:copies] for question in self.questions]
        # starts, ends; [copies, questions, 1, 1] each
        self.spans = torch.tensor(spans).permute(2, 1, 0)[..., None, None]

        self.weights = weights
        self.held: list[float] = []
        self.events: list[int] = []
        self.retained: list[Tensor] = []

        self.logits = prefill.logits[rows]
        if not question_pruned:
            ids = torch.tensor([question.question_ids for question in self.questions], device=device)
            self.cache.begin_outside(ids.shape[1])
            self.logits = forward(model, ids.repeat(2, 1), self.cache)

    def _shares(self) -> Tensor:
        """[layers, questions, kv_heads], the share of each answer's positions that a head holds in the row
        with the right tokens.

        Where the document says the answer several times, it is that of the copy which the head holds best.
        """
        first, last = self.spans
        shares = []
        for layer in self.cache.pruned_layers:
            positions = layer.stored_positions()[: len(self.questions)].cpu()
            counts = torch.stack(
                [((positions >= a) & (positions < b)).sum(2) for a, b in zip(first, last, strict=True)]
            )
            shares.append((counts / (last - first)[..., 0]).amax(0))
        return torch.stack(shares)

    def _retained(self) -> Tensor:
        """[3, questions]: what is held of each answer now, over layers and heads alike; by the dense cell's
        attention to it; in the head that holds least among those that have an equal part of that attention or
        more.
        """
        shares = self._shares()
        weights = self.weights
        alike = shares.mean((0, 2))
        total = weights.sum((0, 2))
        weighted = torch.where(total > 0, (weights * shares).sum((0, 2)) / total, alike)
        reads = weights >= weights.mean((0, 2))[:, None]
        least = shares.masked_fill(~reads, 1.0).amin((0, 2))
        return torch.stack([alike, weighted, least])

    def rows(self) -> AnswerRows:
        """Decode and score. Raises FloatingPointError for NaN logits."""
        count = len(self.questions)
        nll = []
        given = []
        missed = []
        for step in range(self.longest):
            self.held.append(
                sum(layer.held for layer in self.cache.pruned_layers) / len(self.cache.pruned_layers)
            )
            self.events.append(max(layer.record.events for layer in self.cache.pruned_layers))
            changed = not self.retained or self.events[-1] > self.events[-2]
            self.retained.append(self._retained() if changed else self.retained[-1])
            highest, chosen = self.logits[count:].max(-1)
            check_chosen(highest)
            wanted = self.right[:, step]
            nll.append(nn.functional.cross_entropy(self.logits[:count].float(), wanted, reduction="none"))
            given.append(chosen)
            missed.append(self.logits[:count].argmax(-1) != wanted)
            if step + 1 < self.longest:
                self.logits = forward(self.model, torch.cat([wanted, chosen])[:, None], self.cache)

        further = max(question.text_tokens for question in self.questions) - self.longest
        if further > 0:
            # the model's own tokens until each answer's text can be complete: no figure sees them
            self.cache.take_rows(range(count, 2 * count))
        for _ in range(further):
            given.append(forward(self.model, given[-1][:, None], self.cache).argmax(-1))

        losses = torch.stack(nll, 1).cpu()
        texts = torch.stack(given, 1).tolist()
        wrong = torch.stack(missed, 1).tolist()
        rows = []
        for i, question in enumerate(self.questions):
            length = len(question.answer_ids)
            loss = float(losses[i, :length].double().sum())
            if not loss < float("inf"):
                raise FloatingPointError(NOT_FINITE)
            answer = texts[i][:length]
            rows.append(
                {
                    "answer": answer,
                    "own_tokens": texts[i][: question.text_tokens],
                    "correct": answer == question.answer_ids,
                    "answer_nll": loss,
                    "prune_events": self.events[length - 1],
                    **dict(
                        zip(
                            RETAINED,
                            self.retained[[*wrong[i][: length - 1], True].index(True)][:, i].tolist(),
                            strict=True,
                        )
                    ),
                    "cache_tokens_mean": sum(self.held[:length]) / length,
                }
            )
        return rows
