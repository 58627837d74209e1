"""Times of the large model's generation, dense and pruned, and what its cache holds."""

from __future__ import annotations

import functools
import math
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.journal import GROWTH, Journal
from benchmarks.gpu_check.memory import GIB, Taken
from benchmarks.gpu_check.models import weight_bytes, windows_of
from benchmarks.gpu_check.sizes import RATIOS, Sizes
from workers.footprint.model_shape import shape_of
from workers.footprint.prompts import generation_bytes
from workers.footprint.worker import with_slack
from workers.generation.decoding import GenerationRun, generate
from workers.machine.clock import Clock
from workers.policies.budget import kept_count
from workers.policies.settings import PruneSettings


def generation(journal: Journal, sizes: Sizes, model: Any, ids: Tensor) -> list[Taken]:
    """Dense and pruned cells in turns, each round in another order, behind one run that is thrown away."""
    journal.begin(
        "generation",
        f"the 1B shape, {sizes.new_tokens} new tokens, knorm pruned once behind the prompt; "
        f"medians of {sizes.rounds} rounds\n"
        "prompt batch keep_ratio   TTFT ms  TPOT ms  TPOT / dense  KV held MiB  held / dense  peak GiB",
    )
    device, shape, taken = model.device, shape_of(model), []
    clock = Clock(device)

    def one(prompt: int, batch: int) -> None:
        tokens = windows_of(ids, batch, prompt, device)
        cells = {ratio: _timed(ratio, prompt) for ratio in RATIOS}
        planned = generation_bytes(shape, prompt, batch, sizes.new_tokens, list(cells.values()), 0)
        planned = weight_bytes(model) + with_slack(planned)
        if device.type == "cuda" and planned > torch.cuda.mem_get_info(device)[
            0
        ] + torch.cuda.memory_reserved(device):
            journal.leave_out(
                f"{batch} prompts of {prompt} tokens: planned to take {planned / GIB:.1f} GiB, "
                "which are not free"
            )
            return

        generate(model, tokens, cells[1.0], 2, clock)
        runs: dict[float, list[GenerationRun]] = {ratio: [] for ratio in cells}
        for turn in range(sizes.rounds):
            for ratio in RATIOS[turn % len(RATIOS) :] + RATIOS[: turn % len(RATIOS)]:
                runs[ratio].append(generate(model, tokens, cells[ratio], sizes.new_tokens, clock))
        for ratio, own in runs.items():
            _line(journal, prompt, batch, ratio, own, runs[1.0])
            held = batch * shape.cached * kept_count(ratio, prompt)
            if own[0].kv_bytes_prompt != held:
                journal.fail(
                    f"{batch} prompts of {prompt} at {ratio:g} hold {own[0].kv_bytes_prompt} bytes, "
                    f"not {held}"
                )
            what = f"generation, {batch} prompts of {prompt}, keep_ratio {ratio:g}"
            peak = max(
                (run.peak_memory_bytes for run in own if run.peak_memory_bytes is not None), default=None
            )
            taken.append(Taken(what, planned, peak, own[0].peak_memory_method))

    for batch in sizes.batches:
        seconds = 0.0
        for prompt in sizes.prompts:
            do = functools.partial(one, prompt, batch)
            seconds = GROWTH * journal.attempt(f"{batch} prompts of {prompt} tokens", do, seconds)
    return taken


def _timed(ratio: float, prompt: int) -> PruneSettings:
    """A cell that prunes once, behind the prompt."""
    if ratio == 1.0:
        return PruneSettings("dense")
    return PruneSettings("knorm", ratio, prompt, schedule="prefill_once")


def _line(
    journal: Journal,
    prompt: int,
    batch: int,
    ratio: float,
    runs: list[GenerationRun],
    dense: list[GenerationRun],
) -> None:
    """The medians of a cell beside the dense one's, paired by round."""
    ttft, tpot = (
        median(run.ttft_seconds for run in runs),
        median(run.tpot_seconds or math.nan for run in runs),
    )
    over = median(
        (a.tpot_seconds or math.nan) / (b.tpot_seconds or math.nan) for a, b in zip(runs, dense, strict=True)
    )
    held, whole = runs[0].kv_bytes_final, dense[0].kv_bytes_final
    peak = runs[0].peak_memory_bytes
    journal.say(
        f"{prompt:6} {batch:5} {ratio:10g} {1000 * ttft:9.1f} {1000 * tpot:8.2f} {over:13.3f} "
        f"{held / 2**20:12.2f} {held / whole:13.3f} {'-' if peak is None else f'{peak / GIB:.2f}':>9}"
    )
