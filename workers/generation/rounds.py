"""Fair turns: every compared cell runs once per round,
in seeded random order, until the ratios are known well enough.

The dense cell runs twice per round. Its second run is the control: A against A, by the same arithmetic as
every comparison.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import binom
from torch import Tensor, nn

from workers.generation.decoding import GenerationRun, generate
from workers.machine.clock import Clock
from workers.messages.out_of_memory import without_frames
from workers.messages.work import GenerationWork
from workers.policies.settings import PruneSettings

REPORTED_TTFT_SHARE = 0.1
"""``report_2025``: the baseline's TTFT was taken to be this share of its whole time."""


@dataclass(frozen=True)
class Timed:
    """One run and its turn."""

    cell: int
    """Index of the cell."""
    repeat: int
    place: int
    """Place in its round."""
    control: bool
    run: GenerationRun


def round_orders(runs: int, rounds: int, seed: int) -> list[list[int]]:
    """For each round, the seeded random order in which the compared runs take their turns."""
    rng = random.Random(f"kvsweep/rounds/{seed}")
    return [rng.sample(range(runs), runs) for _ in range(rounds)]


@dataclass
class Rounds:
    """All runs, and the cells that failed, by index, with what was raised. A failed cell has no runs."""

    runs: list[Timed] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)

    def fail(self, cell: int, error: Exception) -> None:
        """Note that a cell failed; what it gave before is no measurement of it."""
        self.failed[cell] = without_frames(error)
        self.runs = [timed for timed in self.runs if timed.cell != cell]


def timed_rounds(
    model: nn.Module,
    prompts: Tensor,
    cells: Sequence[PruneSettings],
    work: GenerationWork,
    worked: Callable[[float, int], None] = lambda rounds, cell: None,
) -> Rounds:
    """All cells' runs behind ``work.warmup`` rounds that are thrown away; prompts: [batch, q] on the device.

    At least ``work.repeats`` rounds; more until every ratio of time per output token to the dense cell has an
    interval narrower than ``work.interval_width``, at most ``work.max_repeats``. A cell that fails has no
    further turns and takes no other down; what the dense cell raises is raised, for there is nothing to
    compare with. ``worked`` is told, between two runs, of the share of a round that is done, and of the cell.
    """
    clock = Clock(prompts.device)
    dense = next((i for i, cell in enumerate(cells) if cell.policy == "dense"), None)
    turns = [(i, False) for i in range(len(cells))] + ([(dense, True)] if dense is not None else [])
    found = Rounds()

    for number, order in enumerate(round_orders(len(turns), work.warmup + work.max_repeats, work.seed)):
        repeat = number - work.warmup
        for place, turn in enumerate(order):
            cell, control = turns[turn]
            run = _turn(model, prompts, cells, cell, work, clock, found)
            if repeat >= 0 and run is not None:
                found.runs.append(Timed(cell, repeat, place, control, run))
            worked(1 / len(turns), cell)
        if repeat + 1 >= work.repeats and (
            dense is None or widest_interval(found.runs, dense) <= work.interval_width
        ):
            break
    return found


def _turn(
    model: nn.Module,
    prompts: Tensor,
    cells: Sequence[PruneSettings],
    cell: int,
    work: GenerationWork,
    clock: Clock,
    rounds: Rounds,
) -> GenerationRun | None:
    """One run; None for a cell that failed. Raises what the dense cell raises."""
    if cell in rounds.failed:
        return None

    try:
        return generate(model, prompts, cells[cell], work.new_tokens, clock)
    except Exception as error:
        if cells[cell].policy == "dense":
            raise
        rounds.fail(cell, error)
        return None


def widest_interval(runs: Sequence[Timed], dense: int) -> float:
    """The widest 95 % interval of a median ratio of TPOT to the dense run of the round; 0 without a ratio.

    Between two order statistics, as the report forms it; infinite where rounds are too few for one.
    """
    tpot = {(t.cell, t.control, t.repeat): t.run.tpot_seconds or 0.0 for t in runs}
    rounds = 1 + max(t.repeat for t in runs)
    base = np.array([tpot[dense, False, r] for r in range(rounds)])
    others = {(t.cell, t.control) for t in runs} - {(dense, False)}

    rank = int(binom.ppf(0.025, rounds, 0.5))
    if rank < 1:
        return float("inf") if others else 0.0
    widest = 0.0
    for cell, control in others:
        ratios = np.sort(np.array([tpot[cell, control, r] for r in range(rounds)]) / base)
        widest = max(widest, float(ratios[-rank] - ratios[rank - 1]))
    return widest


def rounds_as_reported(
    model: nn.Module, prompts: Tensor, cells: Sequence[PruneSettings], work: GenerationWork
) -> Rounds:
    """The protocol ``report_2025``, wrong on purpose: no warm-up, baseline first, cells one after the other,
    and the baseline's TTFT a guess.
    """
    order = sorted(range(len(cells)), key=lambda i: cells[i].policy != "dense")
    clock = Clock(prompts.device)
    rounds = Rounds()

    for place, cell in enumerate(order):
        for repeat in range(work.repeats):
            run = _turn(model, prompts, cells, cell, work, clock, rounds)
            if run is None:
                break
            if cells[cell].policy == "dense":
                run = replace(run, ttft_seconds=REPORTED_TTFT_SHARE * run.total_seconds)
            rounds.runs.append(Timed(cell, repeat, place, False, run))
    return rounds
