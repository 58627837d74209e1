"""How much of a text a cell reads, and whether its cache is ever pruned on the way: integers that are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cell import Cell, settings_of
from pipeline.schema import answer_room
from workers.retrieval import QUESTION_TOKENS


def prompt_tokens(cell: Cell) -> int:
    """Tokens that go through before the first check: the (shortest) prompt, or one step of perplexity."""
    settings = settings_of(cell)
    if cell.task == "generation":
        return settings["prompt_tokens"]
    if cell.task == "retrieval":  # a context that is pruned without its question is shorter by that
        return max(1, min(settings["context_tokens"]) - (0 if settings["question_pruned"] else QUESTION_TOKENS))
    return 1


def tokens_read(cell: Cell) -> int:
    """The most tokens of one text that the cell's model sees at once; 0 where the harness cuts its texts to fit."""
    settings = settings_of(cell)
    if cell.task == "perplexity":
        return settings["window"]
    if cell.task == "generation":
        return settings["prompt_tokens"] + settings["new_tokens"]
    return max(settings["context_tokens"]) + answer_room(settings["digits"]) if cell.task == "retrieval" else 0


def never_prunes(cell: Cell, settings: Mapping[str, Any]) -> bool:
    """Whether a compressed cell is certain never to score or decode a token with anything dropped."""
    if cell.prune_after is None:
        return False
    first = cell.budget.next_event(0)
    if cell.task == "perplexity":  # what the last step leaves, no token sees
        return first is None or first >= settings["window"] - 1
    if cell.task == "generation":
        prompt = settings["prompt_tokens"]
        last = prompt if cell.schedule == "prefill_once" else prompt + settings["new_tokens"] - 2
        return first is None or first > last
    if cell.task == "tasks":
        return False  # only its texts can tell
    decoded = 0 if cell.schedule == "prefill_once" else answer_room(settings["digits"]) - 2
    return first is None or first > max(settings["context_tokens"]) + decoded


def prunes_while_decoding(cell: Cell) -> bool:
    """Whether a timed cell that is checked at every step drops anything after its prompt, so that its time per token tells of it.

    True of all other cells: what ``prefill_once`` and cells that never prune do while decoding is said elsewhere.
    """
    settings = settings_of(cell)
    if cell.task != "generation" or cell.prune_after is None or never_prunes(cell, settings):
        return True
    if not cell.budget.checks_steps:
        return True
    held = cell.budget.kept(settings["prompt_tokens"])
    event = cell.budget.next_event(held)
    return event is not None and event - held <= settings["new_tokens"] - 1
