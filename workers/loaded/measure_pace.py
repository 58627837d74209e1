"""A few passes of a loaded model, timed: ``python -m workers.loaded.measure_pace`` does it for a plan, which
has no torch.

python -m workers.loaded.measure_pace MODEL REVISION DTYPE DEVICE THREADS
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import forward
from workers.loaded.load import load
from workers.machine.clock import synchronize
from workers.models.model_files import ModelFacts, find_model
from workers.models.pace import Pace, remember, remembered
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings

TOKENS, SINGLE_TOKENS = 256, 4
"""Of the long pass, and passes of one token."""
LONG_SECONDS = 30.0
"""Of a model that one thread would be measured longer with, the pace of several is taken as it is."""
FINE = 1e-3
"""Seconds that a clock has to tell apart."""
ENOUGH_SECONDS = 0.3
"""What takes less is done three times, and the quickest counts."""


def measure(model: nn.Module, device: torch.device) -> Pace:
    """Pace of a model under our attention on its device, with the threads that torch has.

    Several threads that wait for one another are slowed by other programs of the machine many times over, and
    a pace is remembered for long: so none counts that is slower than that of one thread, whose own
    processor's seconds are known.
    """
    pace = _measured(model, device)
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or pace.token_seconds * TOKENS * threads > LONG_SECONDS:
        return pace
    torch.set_num_threads(1)
    try:
        alone = _measured(model, device)
    finally:
        torch.set_num_threads(threads)
    return Pace(min(pace.token_seconds, alone.token_seconds), min(pace.pass_seconds, alone.pass_seconds))


@torch.inference_mode()
def _measured(model: nn.Module, device: torch.device) -> Pace:
    vocabulary = model.get_output_embeddings().weight.shape[0]  # pyright: ignore
    ids = torch.randint(0, vocabulary, (1, TOKENS + 1), generator=torch.Generator().manual_seed(0)).to(device)
    evaluate(model, ids[:, :17], [], [0])  # the first pass pays for what later ones find ready
    token_seconds = _quickest(lambda: evaluate(model, ids, [], [0]), device) / TOKENS

    def single_tokens() -> None:
        cache = PrunedCache(model.config, PruneSettings("dense"))  # pyright: ignore[reportArgumentType]
        for place in range(SINGLE_TOKENS):
            forward(model, ids[:, place : place + 1], cache)

    per_pass = _quickest(single_tokens, device) / SINGLE_TOKENS
    return Pace(token_seconds, max(0.0, per_pass - token_seconds))


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the wall; where one thread computes, its own CPU seconds: other programs that go ahead of it
    do not count."""
    is_alone = (
        device.type == "cpu"
        and torch.get_num_threads() == 1
        and time.get_clock_info("thread_time").resolution < FINE
    )

    clock = time.thread_time if is_alone else time.perf_counter
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < ENOUGH_SECONDS:
        begin = clock()
        work()
        synchronize(device)
        taken.append(clock() - begin)

    return min(taken)


def measure_once(model: nn.Module, facts: ModelFacts, dtype: str, device: torch.device) -> Pace:
    """Measure and remember, unless that was done on this machine before."""
    threads = torch.get_num_threads()
    pace = remembered(facts, dtype, device.type, threads)
    if pace is None:
        pace = measure(model, device)
        remember(pace, facts, dtype, device.type, threads)
    return pace


def main(name: str, revision: str, dtype: str, device: str, threads: str) -> None:
    """Load a model and measure it; what a plan starts (``pipeline/planning/wall_clock.py``)."""
    torch.set_num_threads(int(threads))
    facts = find_model(name, revision or None)
    place = torch.device(device)
    measure_once(load(facts, dtype, place), facts, dtype, place)
