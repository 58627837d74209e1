"""Prompt, prune, decode: one loop and one clock for the dense cell and for every compressed one.

The prompt goes through in one pass with one check at its end; then one token per pass. Positions come from
the cache (tokens seen), never from what it holds. What is only bookkeeping happens between the stamps, not
under them.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import body_of, check_chosen, next_logits, own_logits
from workers.machine.clock import Clock, Stopwatch, no_garbage_collection
from workers.machine.peak_memory import PeakMemory
from workers.policies.settings import PruneSettings


@dataclass(frozen=True)
class GenerationRun:
    """One generation of a batch; times in seconds, bytes over the whole batch."""

    output_tokens: list[list[int]]
    """[batch][new tokens]."""
    ttft_seconds: float
    """From the tokenized prompts on the device to the first new tokens on the host."""
    prompt_prune_seconds: float
    """The part of TTFT in which the prompt's cache was pruned; the rest is prefill."""
    token_seconds: list[float]
    """Time of each later step, of all rows at once."""
    total_seconds: float
    """First token and all others."""
    prune_steps: list[int]
    """Indices into ``token_seconds`` of the steps that pruned."""
    prune_seconds: float
    """Of all prunes, the prompt's included."""
    kv_bytes_prompt: int
    kv_bytes_peak: int
    """The most keys and values stored at once: just before a prune, all layers counted as they stand then."""
    kv_bytes_final: int
    kv_bytes_allocated_peak: int
    """The most memory that the cache kept between two passes:
    buffers with their room, positions, what its policy observes."""
    kv_bytes_allocated_final: int
    kv_bytes_step_mean: float
    """Bytes of keys and values that a decoding step read, on average."""
    peak_memory_bytes: int | None
    peak_memory_method: str | None
    prune_events: int

    @property
    def tpot_seconds(self) -> float | None:
        """(last - first token time) / (new tokens - 1); None for a single token."""
        return statistics.fmean(self.token_seconds) if self.token_seconds else None


def forward(model: nn.Module, tokens: Tensor, cache: PrunedCache) -> Tensor:
    """Next-token logits [batch, vocabulary], float32 at least, after one pass over ``tokens`` [batch, q]."""
    hidden = body_of(model)(**cache.inputs(tokens)).last_hidden_state
    return next_logits(model, hidden[:, -1])


@dataclass
class _Steps:
    """What is noted of each pass, the prompt's first; bytes over the whole batch."""

    seconds: list[float] = field(default_factory=list)
    kv_bytes: list[int] = field(default_factory=list)
    """Stored behind the pass and its prune."""
    kv_bytes_met: list[int] = field(default_factory=list)
    """Stored just before its prune."""
    bytes_allocated: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    """Prunes so far, of all layers."""

    def note(self, seconds: float, cache: PrunedCache) -> None:
        """Of a pass that took so long and left the cache as it is."""
        self.seconds.append(seconds)
        self.events.append(cache.events)
        self.kv_bytes.append(cache.kv_bytes())
        self.kv_bytes_met.append(cache.kv_bytes_met())
        self.bytes_allocated.append(cache.bytes_allocated())

    def that_pruned(self) -> list[int]:
        """The decoding steps that did; the one behind the prompt is 0."""
        return [i for i, (before, after) in enumerate(itertools.pairwise(self.events)) if after > before]


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Tensor, settings: PruneSettings, new_tokens: int, clock: Clock
) -> GenerationRun:
    """Greedy decoding of exactly ``new_tokens`` tokens, timed; prompts: [batch, q] on the device, q >= 1,
    new_tokens >= 1.

    Raises FloatingPointError where a token was chosen among NaN or infinite logits.
    """
    watch = Stopwatch(clock)
    memory = PeakMemory(prompts.device)
    body = body_of(model)
    cache = PrunedCache(
        model.config,  # pyright: ignore[reportArgumentType]
        settings,
        prompt_tokens=prompts.shape[1],
        row_ids=list(range(prompts.shape[0])),
        stopwatch=watch,
    )
    steps = _Steps()
    prompt_prune = 0.0
    output: list[list[int]] = []
    highest: list[Tensor] = []

    with no_garbage_collection():
        memory.start()  # after the collection, which gives back what the run before left
        token = prompts
        for step in range(new_tokens):
            begin = clock()
            logits = own_logits(model, body(**cache.inputs(token)).last_hidden_state[:, -1])
            best, token = logits.max(-1, keepdim=True)
            del logits  # the next step's peak of memory is its own
            output.append(token[:, 0].tolist())
            seconds = clock() - begin

            steps.note(seconds, cache)
            highest.append(best)
            memory.sample()
            if step == 0:
                prompt_prune = watch.seconds()

    check_chosen(torch.cat(highest))
    return _run_of(steps, output, prompt_prune, watch.seconds(), memory, cache)


def _run_of(
    steps: _Steps,
    output: list[list[int]],
    prompt_prune: float,
    prune_seconds: float,
    memory: PeakMemory,
    cache: PrunedCache,
) -> GenerationRun:
    """output: [new tokens][batch]."""
    peak, method = memory.result()
    kv_bytes = steps.kv_bytes

    return GenerationRun(
        output_tokens=[list(row) for row in zip(*output, strict=True)],
        ttft_seconds=steps.seconds[0],
        prompt_prune_seconds=prompt_prune,
        token_seconds=steps.seconds[1:],
        total_seconds=sum(steps.seconds),
        prune_steps=steps.that_pruned(),
        prune_seconds=prune_seconds,
        kv_bytes_prompt=kv_bytes[0],
        kv_bytes_peak=max(steps.kv_bytes_met),
        kv_bytes_final=kv_bytes[-1],
        kv_bytes_allocated_peak=max(steps.bytes_allocated),
        kv_bytes_allocated_final=steps.bytes_allocated[-1],
        kv_bytes_step_mean=statistics.fmean(kv_bytes[:-1] or kv_bytes),
        peak_memory_bytes=peak,
        peak_memory_method=method,
        prune_events=cache.validity().prune_events,
    )
