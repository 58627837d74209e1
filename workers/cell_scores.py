"""What a cell's evaluation gives: NLL per token, what its cache held, how much of it was really compressed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.budget import Schedule


@dataclass(frozen=True)
class Validity:
    """How much of a pass was really compressed; one value per batch row, None where nothing was ever pruned."""

    prune_events: int
    recent_retained: list[float] | None = field(default=None)
    sink_retained: list[float] | None = field(default=None)
    score_ties: list[float] | None = field(default=None)


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


def tile_size(device: torch.device) -> tuple[int, int]:
    """Tokens and words whose logits exist at one time: on a CPU as many as its cache holds."""
    return (1024, 2048) if device.type == "cpu" else (8192, 8192)


def score(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL in nats (float32) and top-1 hits of ``targets``: hidden [batch, q, width], targets [batch, q] -> [batch, q] each.

    Logits are made tile by tile and summed up at once, in float32 at least; of equal logits the first is the top.
    Raises ValueError for an output layer that scales its logits or is not linear.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()  # pyright: ignore
    if getattr(config, "logit_scale", None) not in (None, 1.0):
        raise ValueError(f"models that scale their logits (logit_scale {config.logit_scale}) are not supported")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"models whose output layer is a {type(head).__name__}, not a linear one, are not supported")
    softcap = getattr(config, "final_logit_softcapping", None)
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = tile_size(hidden.device)[0]
    parts = [_score_rows(head, softcap, flat[i : i + rows], wanted[i : i + rows]) for i in range(0, len(wanted), rows)]
    nll, correct = (torch.cat(found) for found in zip(*parts, strict=True))
    return nll.view(targets.shape), correct.view(targets.shape)


def _score_rows(head: nn.Linear, softcap: float | None, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [rows, width], wanted [rows] -> NLL, hits [rows]: log-sum-exp, largest and wanted logit over tiles of words."""
    columns = tile_size(hidden.device)[1]
    total, best, picked = torch.full((3, len(wanted)), -torch.inf, device=hidden.device)
    place = torch.zeros_like(wanted)
    for first in range(0, head.out_features, columns):
        tile = slice(first, first + columns)
        logits = functional.linear(hidden, head.weight[tile], None if head.bias is None else head.bias[tile]).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        total = torch.logaddexp(total, logits.logsumexp(1))
        top, at = logits.max(1)
        place = torch.where(top > best, at + first, place)
        best = torch.maximum(best, top)
        inside = (wanted >= first) & (wanted < first + logits.shape[1])
        here = logits.gather(1, (wanted - first).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        picked = torch.where(inside, here, picked)
    return total - picked, place == wanted
