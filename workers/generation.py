"""Prompt, prune, decode: one loop and one clock for the dense cell and for every compressed one.

The prompt goes through in one pass with one check at its end; then one token per pass. Positions come from the cache
(tokens seen), never from what it holds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.clock import Clock, no_garbage_collection, peak_memory, reset_peak_memory
from workers.pruned_cache import PrunedCache
from workers.settings import PruneSettings


@dataclass(frozen=True)
class GenerationRun:
    """One generation; times in seconds."""

    output_tokens: list[int]
    ttft_seconds: float
    """From the tokenized prompt on the device to the first new token on the host."""
    token_seconds: list[float]
    """Time of each later token, from the token before it."""
    total_seconds: float
    prune_seconds: float | None
    kv_bytes_prompt: int
    kv_bytes_peak: int
    kv_bytes_final: int
    peak_memory_bytes: int | None
    peak_memory_method: str | None
    prune_events: int

    @property
    def tpot_seconds(self) -> float | None:
        """(last - first token time) / (new tokens - 1); None for a single token."""
        return sum(self.token_seconds) / len(self.token_seconds) if self.token_seconds else None


def forward(model: nn.Module, tokens: Tensor, cache: PrunedCache) -> Tensor:
    """Next-token logits [batch, vocabulary] after one pass over ``tokens`` [batch, q]."""
    first = cache.next_position()
    hidden = model.base_model(  # pyright: ignore[reportCallIssue]
        input_ids=tokens,
        position_ids=torch.arange(first, first + tokens.shape[1], device=tokens.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return model.get_output_embeddings()(hidden[:, -1])  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def generate(model: nn.Module, prompt: Tensor, settings: PruneSettings, new_tokens: int, clock: Clock) -> GenerationRun:
    """Greedy decoding of exactly ``new_tokens`` tokens, timed; prompt: [1, q] on the device, q >= 1, new_tokens >= 1."""
    cache = PrunedCache(model.config, settings, row_ids=[0], clock=clock)  # pyright: ignore[reportArgumentType]
    has_peak = reset_peak_memory(prompt.device)
    with no_garbage_collection():
        stamps = [clock()]
        token = forward(model, prompt, cache).argmax(-1, keepdim=True)
        output = [int(token)]
        stamps.append(clock())
        kv_prompt = kv_peak = cache.kv_bytes()
        for _ in range(new_tokens - 1):
            token = forward(model, token, cache).argmax(-1, keepdim=True)
            output.append(int(token))
            stamps.append(clock())
            kv_peak = max(kv_peak, cache.kv_bytes())
    memory, method = peak_memory(prompt.device) if has_peak else (None, None)
    return GenerationRun(
        output_tokens=output,
        ttft_seconds=stamps[1] - stamps[0],
        token_seconds=[b - a for a, b in itertools.pairwise(stamps[1:])],
        total_seconds=stamps[-1] - stamps[0],
        prune_seconds=cache.prune_seconds,
        kv_bytes_prompt=kv_prompt,
        kv_bytes_peak=kv_peak,
        kv_bytes_final=cache.kv_bytes(),
        peak_memory_bytes=memory,
        peak_memory_method=method,
        prune_events=cache.validity().prune_events,
    )


def round_orders(cells: int, rounds: int, seed: int) -> list[list[int]]:
    """For each round, the seeded random order in which the compared cells run."""
    rng = random.Random(f"kvsweep/rounds/{seed}")
    return [rng.sample(range(cells), cells) for _ in range(rounds)]


def interleaved(
    model: nn.Module, prompt: Tensor, cells: Sequence[PruneSettings], new_tokens: int, repeats: int, warmup: int, seed: int
) -> list[list[tuple[int, GenerationRun]]]:
    """Every cell once per round, in seeded random order, after ``warmup`` rounds that are thrown away.

    Returns for each cell its runs, one per round, each with its place in the round.
    """
    clock = Clock(prompt.device)
    runs: list[list[tuple[int, GenerationRun]]] = [[] for _ in cells]
    for number, order in enumerate(round_orders(len(cells), warmup + repeats, seed)):
        for place, cell in enumerate(order):
            run = generate(model, prompt, cells[cell], new_tokens, clock)
            if number >= warmup:
                runs[cell].append((place, run))
    return runs
