"""Timed greedy decoding: cells take turns in rounds, in one unit that has its machine to itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cells.beginning import beginning, first_ids
from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.model_size import shape_of, weight_bytes
from pipeline.cells.planned_budget import PlannedBudget, decoded_budget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import Resolved
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks.task import Task, TextNeed
from workers.corpora import Tokens
from workers.footprint.prompts import generation_bytes
from workers.messages.work import GenerationWork
from workers.models.model_files import ModelFacts

RUN_SECONDS = 0.25
"""Of a timed run beside its passes: memory given back, garbage collected, prunes, clocks (the default
sweep)."""
WORK_KEYS = ("new_tokens", "repeats", "max_repeats", "interval_width", "warmup", "protocol")
"""The settings that a worker is sent as they are."""


class Generation(Task):
    """Time to the first token, time per output token, memory, and the text that came out."""

    name = "generation"
    block = "generation"
    timed = True
    at_least = True

    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        """Once for each protocol, length of prompts and batch size."""
        asked = spec.generation
        if asked is None:
            return
        common = asked.model_dump(
            exclude={"protocol", "prompt_tokens", "batch_sizes", *CellFilter.model_fields}
        )
        for protocol, prompt, batch in itertools.product(
            asked.protocol, asked.prompt_tokens, asked.batch_sizes
        ):
            yield {"protocol": protocol, "prompt_tokens": prompt, "batch_size": batch, **common}

    def lengths(self, spec: SweepSpec) -> list[tuple[str, int]]:
        asked = spec.generation
        if asked is None:
            return []
        return [
            ("generation.prompt_tokens + new_tokens", prompt + asked.new_tokens)
            for prompt in asked.prompt_tokens
        ]

    def text_needs(self, spec: SweepSpec, tokens: Tokens, bos: bool) -> list[TextNeed]:
        asked = spec.generation
        if asked is None:
            return []
        longest, batch = max(asked.prompt_tokens) - bos, max(asked.batch_sizes)
        return [TextNeed("the largest batch of the longest prompts", longest, batch, all_apart=True)]

    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        return settings["prompt_tokens"]

    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        return settings["prompt_tokens"] + settings["new_tokens"]

    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        prompt = settings["prompt_tokens"]
        return prompt if cell.schedule == "prefill_once" else prompt + settings["new_tokens"] - 2

    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        settings = settings_of(cell)
        passes = settings["new_tokens"] - 1
        return decoded_budget(cell, [settings["prompt_tokens"]], looks=passes, passes=passes)

    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        return settings_of(cell)["repeats"]

    def notes(self, spec: SweepSpec, cells: Sequence[Cell]) -> list[str]:
        silent = [cell for cell in cells if not prunes_while_decoding(cell)]
        notes = [_silent_note(silent)] if silent else []
        if spec.generation and "report_2025" in spec.generation.protocol:
            notes.append(
                "generation.protocol report_2025 times wrongly on purpose: no speed is concluded from it"
            )
        return notes

    def units(self, cells: list[Cell], resolved: Resolved, rates: Rates, before: int) -> list[PlannedUnit]:
        """One: all cells of a timed comparison take turns."""
        return [PlannedUnit(self.name, tuple(cells))]

    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        """Of all rounds, in each of which the dense cell runs twice."""
        settings = settings_of(unit.cells[0])
        batch = settings["batch_size"]
        prompt = batch * settings["prompt_tokens"] * rates.token
        step = rates.single_pass + batch * rates.token
        one = prompt + settings["new_tokens"] * step

        rounds = settings["max_repeats"] + settings["warmup"]
        return (len(unit.cells) + 1) * rounds * (one + RUN_SECONDS)

    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        first, settings = cells[0], settings_of(cells[0])
        prompt, new = settings["prompt_tokens"], settings["new_tokens"]
        shape, weights = shape_of(facts, first), weight_bytes(facts, first)
        return prompt + new, generation_bytes(shape, prompt, settings["batch_size"], new, cells, weights)

    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> GenerationWork:
        first, settings = unit.cells[0], settings_of(unit.cells[0])
        length = settings["prompt_tokens"]
        tokens = resolved.tokens[first.model, first.dataset]
        texts = tokens.prompts(length - len(first_ids(first)), settings["batch_size"])
        prompts = tuple(tuple(beginning(first, text, length).tolist()) for text in texts)
        return GenerationWork(prompts, **{key: settings[key] for key in WORK_KEYS}, seed=first.seed)


def prunes_while_decoding(cell: Cell) -> bool:
    """Whether a timed cell that is checked at every step drops anything after its prompt, so that its time
    per token tells of it.

    True of all other timed cells: what ``prefill_once`` and
    cells that never prune do while decoding is said elsewhere.
    """
    settings = settings_of(cell)
    if cell.prune_after is None or not cell.budget.checks_steps:
        return True
    prompt, new = settings["prompt_tokens"], settings["new_tokens"]
    first = cell.budget.next_event(0)
    if first is None or first > prompt + new - 2:  # it never prunes
        return True
    held = cell.budget.kept(prompt)
    event = cell.budget.next_event(held)
    return event is not None and event - held <= new - 1


def _silent_note(cells: Sequence[Cell]) -> str:
    """Of timed cells that prune their prompt and nothing after it."""
    first, settings = cells[0], settings_of(cells[0])
    return (
        f"{len(cells)} generation cells never prune while decoding: their time per token says what a smaller "
        f"cache saves, and nothing of what pruning costs (keep_ratio {first.keep_ratio:g}, "
        f"prune_after {first.prune_after}, prompt of {settings['prompt_tokens']}, "
        f"{settings['new_tokens']} new tokens); ask for more new tokens, "
        "a higher keep_ratio or a lower prune_after"
    )
