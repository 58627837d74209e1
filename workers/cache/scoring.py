"""Hidden states -> what is kept of their logits: NLL, hits, and how far they are from the dense cell's.

No [tokens, vocabulary] tensor is ever held: logits are made tile by tile and summed up at once. The KL
divergence to the dense cell needs no distribution of it either. With p the dense cell's distribution and W, b
the output layer,

    KL = sum p log p - sum p (W h + b) + log-sum-exp(W h + b),    sum p (W h + b) = (sum p W) h + sum p b,

and sum p log p is the same of the dense cell's own h less its log-sum-exp, so b falls out and one vector per
token, the output embedding expected under p, stands for the whole distribution.

Whatever the model's dtype, hidden states and output weights are float32 at least before they are multiplied:
a logit of 20 in bfloat16 is known to 0.06, which is more than most differences that are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.footprint.shape import tile_of
from workers.models.architecture import LOGIT_SCALES

NOT_FINITE = "the model gave NaN or infinite logits; try dtype float32"


@dataclass(frozen=True)
class Twin:
    """What is kept of a dense cell's distributions, [..., width] or [...] for tokens [...]."""

    hidden: Tensor | None
    """Where logits are capped, hence not linear, they are made again for every comparison."""
    expected: Tensor | None
    """Elsewhere: output embeddings expected under the distributions, float32."""
    constant: Tensor
    """sum p log p - sum p b, float32; where logits are capped, sum p log p."""
    total: Tensor
    """Log-sum-exp of the logits, float32."""
    top: Tensor
    """The most likely token."""

    def at(self, *index: Tensor) -> Twin:
        """The same for some tokens."""
        hidden, expected = (None if x is None else x[index] for x in (self.hidden, self.expected))
        return Twin(hidden, expected, self.constant[index], self.total[index], self.top[index])

    @staticmethod
    def joined(parts: Sequence[Twin], shape: torch.Size) -> Twin:
        """Of tokens [n] each, one after the other, to tokens of this shape."""
        hidden = _joined([part.hidden for part in parts])
        expected = _joined([part.expected for part in parts])
        return Twin(
            hidden=None if hidden is None else hidden.unflatten(0, shape),
            expected=None if expected is None else expected.unflatten(0, shape),
            constant=torch.cat([part.constant for part in parts]).unflatten(0, shape),
            total=torch.cat([part.total for part in parts]).unflatten(0, shape),
            top=torch.cat([part.top for part in parts]).unflatten(0, shape),
        )


@dataclass(frozen=True)
class Scored:
    """Of each target: NLL in nats (float32), whether it had the highest logit, and both against the dense
    twin where given."""

    nll: Tensor
    correct: Tensor
    kl: Tensor | None
    agreed: Tensor | None

    @staticmethod
    def joined(parts: Sequence[Scored], dim: int = 0) -> Scored:
        """One after the other."""
        return Scored(
            nll=torch.cat([part.nll for part in parts], dim),
            correct=torch.cat([part.correct for part in parts], dim),
            kl=_joined([part.kl for part in parts], dim),
            agreed=_joined([part.agreed for part in parts], dim),
        )


def _joined(parts: Sequence[Tensor | None], dim: int = 0) -> Tensor | None:
    """One after the other; None where they are."""
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim) if there else None


def tile_size(device: torch.device) -> tuple[int, int]:
    """Tokens and words whose logits exist at one time: on a CPU as many as its cache holds."""
    return tile_of(device.type)


@dataclass(frozen=True)
class OutputLayer:
    """A model's output layer by tiles of words."""

    head: nn.Linear
    softcap: float | None

    @classmethod
    def of(cls, model: nn.Module) -> OutputLayer:
        """Raises ValueError for an output layer that is not linear or whose logits are scaled."""
        head = model.get_output_embeddings()  # pyright: ignore
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"models whose output layer is a {type(head).__name__}, not a linear one, are not supported"
            )
        return cls(head, softcap_of(model))

    def tiles(self, device: torch.device) -> list[slice]:
        """Words in parts."""
        columns = tile_size(device)[1]
        return [slice(first, first + columns) for first in range(0, self.head.out_features, columns)]

    def logits(self, hidden: Tensor, tile: slice) -> Tensor:
        """hidden [rows, width] -> [rows, words] in float32, multiplied in float32 at least."""
        bias = None if self.head.bias is None else upcast(self.head.bias[tile])
        with whole_products():
            logits = functional.linear(upcast(hidden), upcast(self.head.weight[tile]), bias).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def upcast(values: Tensor) -> Tensor:
    """The same numbers in float32, or in what is wider already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def whole_products() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the process allows: no TF32, no bfloat16 inside."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def softcap_of(model: nn.Module) -> float | None:
    """At what value the model caps its logits, if it does. Raises ValueError where it also scales them."""
    config = model.config.get_text_config()  # pyright: ignore
    for name in LOGIT_SCALES:
        if getattr(config, name, None) not in (None, 1):
            raise ValueError(
                f"models that scale their logits ({name} {getattr(config, name)}) are not supported"
            )
    return getattr(config, "final_logit_softcapping", None)


def body_of(model: nn.Module) -> nn.Module:
    """The model without its output layer;
    Llama 4 names a ``base_model`` that it has not, and keeps it as ``model``."""
    return model.model if model.base_model is model else model.base_model  # pyright: ignore


def next_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of the tokens that follow, float32 at least: hidden [batch, width] -> [batch, vocabulary],
    capped as the model caps.

    For whatever is scored. Raises ValueError for a model that scales its logits, and in 16 bits for an output
    layer that is not linear.
    """
    if hidden.dtype.itemsize >= 4:
        with whole_products():
            return own_logits(model, hidden)
    layer = OutputLayer.of(model)
    return torch.cat([layer.logits(hidden, tile) for tile in layer.tiles(hidden.device)], 1)


def own_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """``next_logits`` in the model's dtype, as its own code computes them: for tokens whose choice is timed.

    Raises ValueError for a model that scales its logits.
    """
    softcap = softcap_of(model)
    logits = model.get_output_embeddings()(hidden)  # pyright: ignore[reportCallIssue]
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def check_chosen(highest: Tensor) -> None:
    """The highest logits, among which tokens were chosen: NaN anywhere in a row is its highest.

    Raises FloatingPointError where one is NaN or infinite: the token that was chosen means nothing.
    """
    if not bool(torch.isfinite(highest).all()):
        raise FloatingPointError(NOT_FINITE)


def score(model: nn.Module, hidden: Tensor, targets: Tensor, twin: Twin | None = None) -> Scored:
    """``targets`` under the model's distributions: hidden [batch, q, width], targets [batch, q], twin of
    [batch, q] tokens.

    Of equal logits the first is the top. Raises ValueError for an output layer that is not supported.
    """
    layer = OutputLayer.of(model)
    rows = tile_size(hidden.device)[0]
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    parts = []
    for start in range(0, len(wanted), rows):
        part = torch.arange(start, min(start + rows, len(wanted)), device=hidden.device)
        own = None if twin is None else twin.at(part // hidden.shape[1], part % hidden.shape[1])
        parts.append(_score_rows(layer, flat[start : start + rows], wanted[start : start + rows], own))
    flat_scores = Scored.joined(parts)
    shaped = [None if x is None else x.view(targets.shape) for x in (flat_scores.kl, flat_scores.agreed)]
    return Scored(flat_scores.nll.view(targets.shape), flat_scores.correct.view(targets.shape), *shaped)


def _score_rows(layer: OutputLayer, hidden: Tensor, wanted: Tensor, twin: Twin | None) -> Scored:
    """hidden [rows, width], wanted [rows]: log-sum-exp, largest and wanted logit over tiles of words."""
    total, best, picked = torch.full((3, len(wanted)), -torch.inf, device=hidden.device)
    place = torch.zeros_like(wanted)
    cross = torch.zeros(len(wanted), device=hidden.device)
    for tile in layer.tiles(hidden.device):
        logits = layer.logits(hidden, tile)
        total = torch.logaddexp(total, logits.logsumexp(1))
        top, at = logits.max(1)
        place = torch.where(top > best, at + tile.start, place)
        best = torch.maximum(best, top)
        inside = (wanted >= tile.start) & (wanted < tile.start + logits.shape[1])
        here = logits.gather(1, (wanted - tile.start).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        picked = torch.where(inside, here, picked)

        if twin is not None and twin.hidden is not None:
            cross += (layer.logits(twin.hidden, tile) - twin.total[:, None]).exp_().mul_(logits).sum(1)

    if twin is None:
        return Scored(total - picked, place == wanted, None, None)
    if twin.expected is not None:
        cross = (twin.expected * hidden.float()).sum(1)
    return Scored(total - picked, place == wanted, twin.constant - cross + total, place == twin.top)


def score_dense(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Scored, Twin]:
    """``score`` of the dense cell, and what is kept of its distributions,
    for one more product with the output layer."""
    layer = OutputLayer.of(model)
    rows = tile_size(hidden.device)[0]
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    parts = [_dense_rows(layer, flat[i : i + rows], wanted[i : i + rows]) for i in range(0, len(flat), rows)]
    scored = Scored.joined([part for part, _ in parts])

    shape = targets.shape
    twin = Twin.joined([twin for _, twin in parts], shape)
    return Scored(scored.nll.view(shape), scored.correct.view(shape), None, None), twin


def _dense_rows(layer: OutputLayer, hidden: Tensor, wanted: Tensor) -> tuple[Scored, Twin]:
    """Sums weighted by exp(logit - largest so far), scaled down whenever a larger logit is found."""
    rows = len(hidden)
    device = hidden.device
    best, picked = torch.full((2, rows), -torch.inf, device=device)
    mass, entropy = torch.zeros(2, rows, device=device)
    expected = torch.zeros(hidden.shape, device=device) if layer.softcap is None else None
    top = torch.zeros(rows, dtype=torch.long, device=device)

    for tile in layer.tiles(device):
        logits = layer.logits(hidden, tile)
        largest, at = logits.max(1)
        top = torch.where(largest > best, at + tile.start, top)
        higher = torch.maximum(best, largest)
        scale = (best - higher).exp()
        best = higher

        inside = (wanted >= tile.start) & (wanted < tile.start + logits.shape[1])
        here = logits.gather(1, (wanted - tile.start).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        picked = torch.where(inside, here, picked)

        if expected is None:
            weights = (logits - higher[:, None]).exp_()
            entropy = entropy * scale + (weights * logits).sum(1)
        else:
            weights = logits.sub_(higher[:, None]).exp_()
            with whole_products():
                expected.mul_(scale[:, None]).addmm_(weights, layer.head.weight[tile].float())
        mass = mass * scale + weights.sum(1)

    total = best + mass.log()
    scored = Scored(total - picked, top == wanted, None, None)
    if expected is None:
        return scored, Twin(hidden, None, entropy / mass - total, total, top)
    expected.div_(mass[:, None])
    return scored, Twin(None, expected, (expected * hidden.float()).sum(1) - total, total, top)
