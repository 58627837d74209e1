"""What a cell's evaluation gives: NLL per token, what its cache held, how much was really compressed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.cache.validity import Validity
from workers.policies.budget import Schedule


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
    """Passes in which this cell took part; tokens it shares with the dense cell are not counted."""
    seconds: float
    """Its share, by tokens, of the wall time of those passes; for cost estimates only."""
    kl: Tensor | None = None
    """[windows, length - 1] float32 on the CPU: KL divergence from the dense cell's distribution of each
    token, in nats; None where there was no dense cell beside it. A difference of sums: right to about 1e-5,
    and perhaps as little below 0."""
    agreed: Tensor | None = None
    """[windows, length - 1] bool on the CPU: the dense cell held the same token most likely."""

    def entries_mean(self, first_scored: int = 1) -> float:
        """Entries held after a step, averaged over layers and the steps that predict scored tokens."""
        return self._over_layers(first_scored) / len(self.pruned_layers)

    def entries_peak(self) -> int:
        """Most entries any layer stored at once."""
        return self.schedule.peak if all(self.pruned_layers) else self.schedule.steps

    def entries_final(self) -> list[int]:
        """Entries each layer held after the last step."""
        return [self.schedule.final if prunes else self.schedule.steps for prunes in self.pruned_layers]

    def kv_bytes_mean(self, first_scored: int = 1) -> float:
        """Bytes of keys and values of all layers, averaged over the steps that predict scored tokens."""
        return self._over_layers(first_scored) * self.kv_bytes_per_entry

    def kv_bytes_peak(self) -> int:
        """Most bytes of keys and values stored at once over all layers, before a prune."""
        schedule = self.schedule
        skipped = len(self.pruned_layers) - sum(self.pruned_layers)
        points = [(seen, before) for seen, before, _ in schedule.events] + [(schedule.steps, schedule.final)]
        return (
            max(held * sum(self.pruned_layers) + seen * skipped for seen, held in points)
            * self.kv_bytes_per_entry
        )

    def _over_layers(self, first_scored: int) -> float:
        pruned, full = self.schedule.mean(first_scored), (self.schedule.steps + first_scored) / 2
        return sum(pruned if prunes else full for prunes in self.pruned_layers)
