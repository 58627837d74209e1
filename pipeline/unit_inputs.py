"""A planned unit -> what its worker is sent: settings of its cells and the token ids of their texts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pipeline.cell import PRUNED_BY, Cell, settings_of
from pipeline.cutting import PlannedUnit
from pipeline.plan import Plan
from workers.check_text import TEXTS
from workers.kept_answers import KeptAnswers
from workers.retrieval import Question, build_questions, filler_tokens
from workers.settings import PruneSettings
from workers.text_tokens import open_tokenizer
from workers.work import GenerationWork, HarnessWork, PerplexityWork, RetrievalWork, UnitCell, Work, WorkUnit


def work_unit(
    plan: Plan, unit: PlannedUnit, complete: frozenset[str] = frozenset(), answers: tuple[KeptAnswers, ...] = ()
) -> WorkUnit:  # fmt: skip
    """A planned unit with the token ids that its worker needs.

    ``complete``: cells of which nothing is asked; ``answers``: what is known of the others.
    """
    first = unit.cells[0]
    cells = tuple(UnitCell(cell.cell_id, prune_settings(cell)) for cell in unit.cells)
    model = plan.resolved.models[first.model]
    return WorkUnit(
        unit.unit_id, unit.task, model, first.device, first.dtype, cells, _work(plan, unit), complete=complete, answers=answers
    )


def prune_settings(cell: Cell) -> PruneSettings:
    """What the cache needs to know of a cell."""
    asked: dict[str, Any] = dict(zip(PRUNED_BY, cell.pruning, strict=True))
    asked["prune_after"] = cell.prune_after or 1  # None in the dense cell, which never prunes
    return PruneSettings(**asked, seed=cell.seed)


def _work(plan: Plan, unit: PlannedUnit) -> Work:
    first = unit.cells[0]
    settings = settings_of(first)
    if unit.task == "tasks":
        assert plan.spec.lm_eval is not None
        own = plan.spec.lm_eval.include_path  # absolute, for a worker may stand elsewhere
        own = own and os.path.abspath(os.path.expanduser(own))
        return HarnessWork(first.dataset, settings["limit"], settings["num_fewshot"], own, plan.spec.bos)
    tokens = plan.resolved.tokens[first.model, first.dataset]
    if unit.task == "perplexity":
        ids, checked = (
            np.stack([beginning(first, tokens.held(w, w.length), w.length) for w in windows])
            for windows in (unit.windows, plan.windows(first)[:TEXTS])
        )
        documents = tuple(tokens.document_of(w) for w in unit.windows)
        return PerplexityWork(unit.windows, ids, documents, settings["stride"], checked)
    if unit.task == "generation":
        length, batch = settings["prompt_tokens"], settings["batch_size"]
        own_tokens = length - len(_start(first))
        texts = tokens.prompts(own_tokens, batch)
        prompts = tuple(tuple(beginning(first, text, length).tolist()) for text in texts)
        names = ("new_tokens", "repeats", "max_repeats", "interval_width", "warmup", "protocol")
        return GenerationWork(prompts, **{name: settings[name] for name in names}, seed=first.seed)
    return RetrievalWork(questions_of(plan, unit), settings["question_pruned"])


def beginning(cell: Cell, ids: np.ndarray, length: int) -> np.ndarray:
    """``length`` positions of a text whose tokens are ``ids``, BOS among them where the cell's texts begin with one."""
    start = np.asarray(_start(cell), dtype=ids.dtype)
    return np.concatenate([start, ids[: length - len(start)]])


def _start(cell: Cell) -> list[int]:
    return [] if cell.bos is None else [cell.bos]


def questions_of(plan: Plan, unit: PlannedUnit) -> tuple[Question, ...]:
    """What every cell of a retrieval unit is asked, in its model's tokens."""
    first = unit.cells[0]
    settings, asked = settings_of(first), unit.asked
    assert asked is not None
    tokens = plan.resolved.tokens[first.model, first.dataset]
    filler = tokens.filler(filler_tokens(settings["context_tokens"]))
    encode = open_tokenizer(plan.resolved.models[first.model].tokenizer_file).inside
    axes = (settings["depths"], settings["digits"], settings["distractors"], settings["questions"])
    documents = range(asked.first, asked.end)
    return tuple(build_questions(encode, asked.kind, asked.context_tokens, *axes, first.seed, filler, _start(first), documents))
