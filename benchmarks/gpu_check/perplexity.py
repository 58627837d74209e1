"""Seconds of the large model's perplexity, beside its dense floor and one token per pass."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from benchmarks.cells_alone import dense_passes
from benchmarks.gpu_check.journal import GROWTH, Journal
from benchmarks.gpu_check.memory import Taken
from benchmarks.gpu_check.models import weight_bytes, windows_of
from benchmarks.gpu_check.sizes import RATIOS, Sizes
from workers.attention import NAME as OWN_ATTENTION
from workers.cell_scores import CellScores
from workers.clock import Clock
from workers.footprint import perplexity_bytes, windows_at_once, with_slack
from workers.model_shape import shape_of
from workers.peak_memory import PeakMemory
from workers.perplexity import evaluate, evaluate_reference, schedule_of
from workers.settings import PruneSettings


def perplexity(journal: Journal, sizes: Sizes, model: Any, ids: Tensor) -> list[Taken]:
    """Seconds of all cells, of the dense floor, and of one token per pass, multiplied up from its first tokens."""
    cells = [PruneSettings("knorm", ratio, sizes.prune_after) for ratio in (0.9, *RATIOS[1:])]
    ratios = ", ".join(f"{cell.keep_ratio:g}" for cell in cells)
    journal.begin(
        "perplexity",
        f"the 1B shape, dense and knorm at {ratios}, prune_after {sizes.prune_after}; one token per pass: from its first "
        f"{sizes.reference_tokens} tokens, which are its cheapest\n"
        "tokens windows  what                 seconds  scored tokens/s  over kvsweep",
    )
    device, shape, clock, taken = model.device, shape_of(model), Clock(model.device), []
    ours: dict[int, float] = {}

    def said(length: int, windows: int, what: str, seconds: float) -> None:
        scored = windows * (length - 1) * (1 + len(cells))
        line = f"{length:6} {windows:7}  {what:18} {seconds:9.2f} {scored / seconds:16.0f}"
        journal.say(f"{line} {seconds / ours[length]:13.2f}")

    def kvsweep(length: int, windows: int) -> None:
        tokens, peaks = windows_of(ids, windows, length, device), PeakMemory(device)
        peaks.start()
        begin = clock()
        _, outcomes = evaluate(model, tokens, cells, [length * i for i in range(windows)])
        ours[length] = clock() - begin
        peak, method = peaks.result()
        said(length, windows, "kvsweep", ours[length])
        planned = weight_bytes(model) + with_slack(perplexity_bytes(shape, length, windows, cells))
        taken.append(Taken(f"perplexity, {windows} windows of {length}", planned, peak, method))
        for cell, outcome in zip(cells, outcomes, strict=True):
            if not isinstance(outcome, CellScores):
                journal.fail(f"{length} tokens, keep_ratio {cell.keep_ratio:g}: was not measured ({outcome})")

    def floor(length: int, windows: int) -> None:
        firsts = [first for cell in cells if (first := schedule_of(cell, length - 1).first_event) is not None]
        tokens = windows_of(ids, windows, length, device)
        model.set_attn_implementation("sdpa")
        try:
            begin = clock()
            dense_passes(model, tokens, firsts)
            said(length, windows, "dense floor", clock() - begin)
        finally:
            model.set_attn_implementation(OWN_ATTENTION)

    def one_by_one(length: int, windows: int) -> None:
        tokens = windows_of(ids, 1, sizes.reference_tokens + 1, device)
        begin = clock()
        evaluate_reference(model, tokens, cells[0], [0])
        times = windows * (length - 1) * (1 + len(cells)) / sizes.reference_tokens
        said(length, windows, "one token per pass", (clock() - begin) * times)

    expected = dict.fromkeys((kvsweep, floor, one_by_one), 0.0)
    for length in sizes.window_lengths:
        windows = min(sizes.windows, windows_at_once(shape, length))
        for work in expected:
            what, do = f"{work.__name__}, {length} tokens", functools.partial(work, length, windows)
            seconds = journal.attempt(what, do, expected[work])
            expected[work] = GROWTH * seconds
            if length not in ours:
                break  # the others are told as multiples of it
    return taken
