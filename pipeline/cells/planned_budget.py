"""What a cell's cache will hold, from integers alone: the prunes of a layer, and the realised budget."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cells.cell import Cell


@dataclass(frozen=True)
class PlannedBudget:
    """Of a layer that prunes: how often it does, and how much it holds as a share of what a dense one
    does."""

    events: int
    share: float

    def over_layers(self, layers: int, skipped: int) -> float:
        """The share of the whole cache; layers that are skipped hold everything."""
        return (self.share * (layers - skipped) + skipped) / layers


def decoded_budget(cell: Cell, prompts: list[int], looks: int, passes: int) -> PlannedBudget:
    """Of prompts of these lengths, each through in one pass with one check at its end, and of the tokens
    decoded after them.

    Over what ``looks`` looks at the cache find, the first behind the prompt's check and one behind each of
    the single tokens that follow; prunes of the prompt and of ``passes`` such tokens.
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
