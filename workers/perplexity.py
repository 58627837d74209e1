"""Sliding perplexity through a pruned cache: exact event-driven evaluation, and the one-token-per-pass reference.

The reference *defines* the numbers: one forward pass per token, a prune check after each. Between two prune events nothing is
dropped, so the tokens up to the next event go through in one pass with the same result; the tokens before the first event
are the same for every cell and go through once, after which each cell goes on from a fork of that cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.budget import Schedule, event_schedule
from workers.pruned_cache import PrunedCache, Validity
from workers.settings import PruneSettings

LOGIT_BYTES = 64 * 2**20
"""Logits are made in slices of at most this size: a window of a 50k vocabulary is never materialised."""


@dataclass
class CellScores:
    """What one cell did on a batch of windows; lists have one entry per window."""

    nll: Tensor
    """[windows, length - 1] float32 on the CPU: NLL of tokens 1..length-1 in nats."""
    correct: Tensor
    """[windows, length - 1] bool on the CPU: the token had the highest logit."""
    schedule: Schedule
    pruned_layers: tuple[bool, ...]
    kv_bytes_per_entry: int
    """Bytes of one entry of one layer: keys and values of all its KV heads."""
    validity: Validity
    forward_passes: int
    """Passes made for this cell alone; tokens it shares with the dense cell are not counted."""
    seconds: float
    """Wall time of those passes, for cost estimates only."""

    def entries_mean(self) -> float:
        """Entries held after a step, averaged over steps and layers."""
        return self._over_layers(self.schedule.mean) / len(self.pruned_layers)

    def entries_peak(self) -> int:
        """Most entries any layer stored at once."""
        return self.schedule.peak if all(self.pruned_layers) else self.schedule.steps

    def entries_final(self) -> list[int]:
        """Entries each layer held after the last step."""
        return [self.schedule.final if prunes else self.schedule.steps for prunes in self.pruned_layers]

    def kv_bytes_mean(self) -> float:
        """Bytes of keys and values of all layers, averaged over the steps."""
        return self._over_layers(self.schedule.mean) * self.kv_bytes_per_entry

    def kv_bytes_peak(self) -> int:
        """Most bytes of keys and values stored at once over all layers, before a prune."""
        schedule, skipped = self.schedule, len(self.pruned_layers) - sum(self.pruned_layers)
        points = [(seen, before) for seen, before, _ in schedule.events] + [(schedule.steps, schedule.final)]
        return max(held * sum(self.pruned_layers) + seen * skipped for seen, held in points) * self.kv_bytes_per_entry

    def _over_layers(self, pruned: float) -> float:
        full = (self.schedule.steps + 1) / 2
        return sum(pruned if prunes else full for prunes in self.pruned_layers)


class _Run:
    """One cache being fed: its tokens' NLLs, passes and seconds so far."""

    def __init__(self, model: nn.Module, tokens: Tensor, cache: PrunedCache) -> None:
        self.model, self.tokens, self.cache = model, tokens, cache
        self.nll = torch.zeros(tokens.shape[0], tokens.shape[1] - 1, device=tokens.device)
        self.correct = torch.zeros_like(self.nll, dtype=torch.bool)
        self.passes, self.seconds = 0, 0.0

    def feed(self, start: int, end: int) -> None:
        """One forward pass over tokens [start, end); scores the tokens that they predict."""
        begin = time.perf_counter()
        first = self.cache.next_position()
        hidden = self.model.base_model(  # pyright: ignore[reportCallIssue]
            input_ids=self.tokens[:, start:end],
            position_ids=torch.arange(first, first + end - start, device=self.tokens.device)[None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.nll[:, start:end], self.correct[:, start:end] = score(self.model, hidden, self.tokens[:, start + 1 : end + 1])
        self.passes += 1
        self.seconds += time.perf_counter() - begin

    def result(self, schedule: Schedule) -> CellScores:
        """The scores, after a check that the cache did what the schedule says. Raises RuntimeError where it did not."""
        cache = self.cache
        prunes = tuple(cache.settings.prunes(i) for i in range(len(cache.layers)))
        wanted = [schedule.final if p else schedule.steps for p in prunes]
        held = [layer.held for layer in cache.pruned_layers]
        if held != wanted:
            raise RuntimeError(
                f"the cache holds {held} entries per layer where its schedule says {wanted}: this is a bug, report it"
            )
        layer = cache.pruned_layers[0]
        assert layer.keys is not None and layer.values is not None
        entry = layer.keys.shape[1] * (layer.keys.shape[3] + layer.values.shape[3]) * layer.keys.element_size()
        nll = self.nll.cpu()
        if not bool(torch.isfinite(nll).all()):
            raise FloatingPointError("the model gave NaN or infinite logits; try dtype float32")
        return CellScores(nll, self.correct.cpu(), schedule, prunes, entry, cache.validity(), self.passes, self.seconds)


def score(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL in nats (float32) and top-1 hits of ``targets``: hidden [batch, q, width], targets [batch, q] -> [batch, q] each."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    nll = torch.empty(len(wanted), device=hidden.device)
    correct = torch.empty(len(wanted), dtype=torch.bool, device=hidden.device)
    rows = max(1, LOGIT_BYTES // (4 * head.weight.shape[0]))
    for start in range(0, len(wanted), rows):
        part = slice(start, start + rows)
        logits = head(flat[part]).float()
        picked = logits.gather(1, wanted[part, None])[:, 0]
        nll[part] = logits.logsumexp(1) - picked
        correct[part] = logits.argmax(1) == wanted[part]
    return nll.view(targets.shape), correct.view(targets.shape)


@torch.inference_mode()
def evaluate(
    model: nn.Module, tokens: Tensor, cells: Sequence[PruneSettings], row_ids: Sequence[int]
) -> tuple[CellScores, list[CellScores | Exception | None]]:
    """The dense cell and every cell of ``cells`` on a batch of windows, exactly as the reference would score them.

    tokens: [windows, length] ids; row_ids: [windows], the windows' starts. A cell that never prunes on this length is None: it
    *is* the dense cell. A cell that fails is its exception and takes no other down; a failure of the dense pass is raised:
    RuntimeError where a cache departs from its schedule, FloatingPointError for NaN logits.
    """
    steps = tokens.shape[1] - 1
    schedules = [schedule_of(cell, steps) for cell in cells]
    forks = sorted({first for s in schedules if (first := s.first_event) is not None})
    results: list[CellScores | Exception | None] = [None] * len(cells)
    dense = _Run(model, tokens, PrunedCache(model.config, PruneSettings("dense"), row_ids=row_ids))  # pyright: ignore[reportArgumentType]
    fed = 0
    for point in [*forks, steps]:
        if point > fed:
            dense.feed(fed, point)
            fed = point
        for i, schedule in enumerate(schedules):
            if schedule.first_event == point:
                try:
                    results[i] = _continue(dense, cells[i], schedule)
                except Exception as error:
                    results[i] = error
    return dense.result(event_schedule(1.0, 1, steps)), results


def schedule_of(cell: PruneSettings, steps: int) -> Schedule:
    """The event schedule of a cell's pruning layers over ``steps`` steps."""
    ratio = cell.keep_ratio if cell.policy != "dense" else 1.0
    return event_schedule(ratio, cell.prune_after, steps)


def _continue(dense: _Run, cell: PruneSettings, schedule: Schedule) -> CellScores:
    """Fork the dense run at the cell's first event and feed the rest, one pass per event."""
    begin = time.perf_counter()
    run = _Run(dense.model, dense.tokens, dense.cache.fork(cell))
    run.seconds = time.perf_counter() - begin
    fed = schedule.events[0][0]
    run.nll[:, :fed], run.correct[:, :fed] = dense.nll[:, :fed], dense.correct[:, :fed]
    for point in [*(seen for seen, _, _ in schedule.events[1:]), schedule.steps]:
        if point > fed:
            run.feed(fed, point)
            fed = point
    return run.result(schedule)


@torch.inference_mode()
def evaluate_reference(model: nn.Module, tokens: Tensor, cell: PruneSettings, row_ids: Sequence[int]) -> CellScores:
    """The protocol that defines the numbers: one forward pass per token, a prune check after each. Slow; for judging."""
    run = _Run(model, tokens, PrunedCache(model.config, cell, row_ids=row_ids))  # pyright: ignore[reportArgumentType]
    for step in range(tokens.shape[1] - 1):
        run.feed(step, step + 1)
    return run.result(schedule_of(cell, tokens.shape[1] - 1))
