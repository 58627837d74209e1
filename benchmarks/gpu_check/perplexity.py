"""Seconds of the large model's perplexity, beside its dense floor and one token per pass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.cells_alone import dense_passes
from benchmarks.gpu_check.journal import GROWTH, Journal
from benchmarks.gpu_check.memory import Taken
from benchmarks.gpu_check.models import weight_bytes, windows_of
from benchmarks.gpu_check.sizes import RATIOS, Sizes
from workers.cache.attention import NAME as OWN_ATTENTION
from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import perplexity_bytes, windows_at_once
from workers.footprint.worker import with_slack
from workers.machine.clock import Clock
from workers.machine.peak_memory import PeakMemory
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference, schedule_of
from workers.policies.settings import PruneSettings


@dataclass
class _Evaluations:
    """What is timed, on windows of one length at a time, and what it took."""

    journal: Journal
    sizes: Sizes
    model: Any
    ids: Tensor
    cells: list[PruneSettings]
    clock: Clock
    ours: dict[int, float] = field(default_factory=dict)
    """Seconds of kvsweep by length, of which the others are told as multiples."""
    taken: list[Taken] = field(default_factory=list)

    def kvsweep(self, length: int, windows: int) -> None:
        """All cells and all windows."""
        model, cells = self.model, self.cells
        tokens, peaks = windows_of(self.ids, windows, length, model.device), PeakMemory(model.device)
        peaks.start()
        begin = self.clock()
        _, outcomes = evaluate(model, tokens, cells, [length * i for i in range(windows)])
        self.ours[length] = self.clock() - begin
        peak, method = peaks.result()
        self._say(length, windows, "kvsweep", self.ours[length])

        needed = perplexity_bytes(shape_of(model), length, windows, cells)
        planned = weight_bytes(model) + with_slack(needed)
        self.taken.append(Taken(f"perplexity, {windows} windows of {length}", planned, peak, method))
        for cell, outcome in zip(cells, outcomes, strict=True):
            if not isinstance(outcome, CellScores):
                what = f"{length} tokens, keep_ratio {cell.keep_ratio:g}"
                self.journal.fail(f"{what}: was not measured ({outcome})")

    def floor(self, length: int, windows: int) -> None:
        """Stock dense passes over what each cell cannot share."""
        events = (schedule_of(cell, length - 1).first_event for cell in self.cells)
        firsts = [first for first in events if first is not None]
        tokens = windows_of(self.ids, windows, length, self.model.device)
        self.model.set_attn_implementation("sdpa")
        try:
            begin = self.clock()
            dense_passes(self.model, tokens, firsts)
            self._say(length, windows, "dense floor", self.clock() - begin)
        finally:
            self.model.set_attn_implementation(OWN_ATTENTION)

    def one_by_one(self, length: int, windows: int) -> None:
        """One token per pass, multiplied up from its first tokens."""
        fed = self.sizes.reference_tokens
        tokens = windows_of(self.ids, 1, fed + 1, self.model.device)
        begin = self.clock()
        evaluate_reference(self.model, tokens, self.cells[0], [0])
        seconds = self.clock() - begin
        self._say(length, windows, "one token per pass", seconds * self._scored(length, windows) / fed)

    def _scored(self, length: int, windows: int) -> int:
        return windows * (length - 1) * (1 + len(self.cells))

    def _say(self, length: int, windows: int, what: str, seconds: float) -> None:
        speed = self._scored(length, windows) / seconds
        line = f"{length:6} {windows:7}  {what:18} {seconds:9.2f} {speed:16.0f}"
        self.journal.say(f"{line} {seconds / self.ours[length]:13.2f}")


def perplexity(journal: Journal, sizes: Sizes, model: Any, ids: Tensor) -> list[Taken]:
    """Seconds of all cells, of the dense floor, and of one token per pass."""
    cells = [PruneSettings("knorm", ratio, sizes.prune_after) for ratio in (0.9, *RATIOS[1:])]
    ratios = ", ".join(f"{cell.keep_ratio:g}" for cell in cells)
    journal.begin(
        "perplexity",
        f"the 1B shape, dense and knorm at {ratios}, prune_after {sizes.prune_after}; one token per pass: "
        f"from its first {sizes.reference_tokens} tokens, which are its cheapest\n"
        "tokens windows  what                 seconds  scored tokens/s  over kvsweep",
    )
    timed = _Evaluations(journal, sizes, model, ids, cells, Clock(model.device))
    expected = dict.fromkeys((timed.kvsweep, timed.floor, timed.one_by_one), 0.0)
    for length in sizes.window_lengths:
        windows = min(sizes.windows, windows_at_once(shape_of(model), length))
        for work in expected:
            what, do = f"{work.__name__}, {length} tokens", functools.partial(work, length, windows)
            seconds = journal.attempt(what, do, expected[work])
            expected[work] = GROWTH * seconds
            if length not in timed.ours:
                break  # the others are told as multiples of it
    return timed.taken
