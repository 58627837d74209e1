"""What a cell's cache will hold, from integers alone: the prunes of a layer, and the realised budget.

Perplexity feeds one token after the other. A prompt goes through in one pass with one check at its end, then come the decoded
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cell import Cell, settings_of
from pipeline.seconds import schedule_of


@dataclass(frozen=True)
class PlannedBudget:
    """Of a layer that prunes: how often it does, and how much it holds as a share of what a dense one does."""

    events: int
    share: float

    def over_layers(self, layers: int, skipped: int) -> float:
        """The share of the whole cache; layers that are skipped hold everything."""
        return (self.share * (layers - skipped) + skipped) / layers


def planned_budget(cell: Cell) -> PlannedBudget | None:
    """None for tasks of the harness, whose texts only running them tells."""
    settings = settings_of(cell)
    if cell.task == "perplexity":
        steps, first_scored = settings["window"] - 1, max(1, settings["window"] - settings["stride"])
        schedule = schedule_of(cell, steps)
        return PlannedBudget(schedule.count, schedule.mean(first_scored) / ((steps + first_scored) / 2))
    if cell.task == "generation":
        passes = settings["new_tokens"] - 1
        return _decoded(cell, [settings["prompt_tokens"]], passes, passes)
    if cell.task == "retrieval":  # a question that is kept out of pruning changes the share by little
        tokens = max(settings["digits"])  # of the answer, one for a digit
        return _decoded(cell, settings["context_tokens"], tokens, tokens - 1)
    return None


def _decoded(cell: Cell, prompts: list[int], looks: int, passes: int) -> PlannedBudget:
    """Over prompts of these lengths: what ``looks`` looks at the cache find, the first behind the prompt's check and one behind
    each of the single tokens that follow; prunes of the prompt and of ``passes`` such tokens.
    """
    events = held_sum = dense_sum = 0
    for prompt in prompts:
        held, own_events = _checked(cell, prompt)
        for step in range(looks):
            held_sum, dense_sum = held_sum + held, dense_sum + prompt + step
            held, more = _checked(cell, held + 1) if cell.budget.checks_steps else (held + 1, 0)
            own_events += more if step < passes else 0
        events = max(events, own_events)
    return PlannedBudget(events, held_sum / dense_sum)


def _checked(cell: Cell, entries: int) -> tuple[int, int]:
    """What a check leaves of ``entries``, and whether it dropped anything."""
    left = cell.budget.kept(entries)
    return left, int(left < entries)
