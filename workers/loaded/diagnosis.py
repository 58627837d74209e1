"""Whether key norm and attention go together in a model: what ``knorm`` presupposes of it, in one dense pass
over a text.

Devoto et al. 2024 (arXiv 2406.11430) keep the keys of lowest norm, because in the models that they looked at
those get most attention, and leave alone the layers in which that does not hold. Here this is a figure of
every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from workers.cache.attention import probabilities
from workers.cache.scoring import NOT_FINITE, body_of
from workers.cache.shared_prefix import PrefixLayer, SharedPrefix
from workers.corpora import Corpus, read_text, tokenize
from workers.models.bos import bos_token
from workers.models.model_files import ModelFacts
from workers.policies.attention_weights import Scale
from workers.policies.cache_view import round_significant

FIXED_TEXT, FIXED_TOKENS, FIXED_CHARACTERS = "pydocs", 1024, 32_768
"""What a model is diagnosed on for ``auto:k`` and for the column ``norm_attention``,
whatever a cell's own data are."""
SHORTEST_RANKED = 8
"""Tokens of a text of which ranks say anything at all."""
DECIMALS = 3
"""Correlations are rounded to so many before layers are ranked, so that two machines skip the same ones."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer: figures per KV head, in the order of the heads."""

    correlations: tuple[float, ...]
    """Spearman's rank correlation of key norm and attention received, in [-1, 1]. Positive: high norms get
    much attention, against what ``knorm`` presupposes."""
    losses: tuple[float, ...]
    """Attention lost by dropping in the order of the norms, beyond what dropping in the order of attention
    loses: see ``attention_loss``."""

    @property
    def correlation(self) -> float:
        """Mean over KV heads."""
        return sum(self.correlations) / len(self.correlations)

    @property
    def loss(self) -> float:
        """Mean over KV heads."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Diagnosis:
    """Every layer of a model on one text of ``tokens`` tokens."""

    tokens: int
    layers: tuple[LayerDiagnosis, ...]

    @property
    def rounded(self) -> list[float]:
        """Each layer's correlation as layers are ranked by it."""
        # + 0.0 turns -0.0 into 0.0
        return [round(layer.correlation, DECIMALS) + 0.0 for layer in self.layers]

    def worst(self, count: int) -> tuple[int, ...]:
        """The ``count`` layers where the correlation is greatest, ascending; of equal ones the lower."""
        rounded = self.rounded
        return tuple(sorted(sorted(range(len(rounded)), key=lambda layer: -rounded[layer])[:count]))


@torch.inference_mode()
def diagnose(model: nn.Module, tokens: Tensor) -> Diagnosis:
    """One dense pass over tokens [length] of a model under our attention.

    Of entry j of n (n - 1 of them, for nobody sees the last but itself) the norm is that of its key as
    cached, in float32. The attention that it receives is the mean over the queries j+1 .. n-1, which are all
    that see it but its own token, and over the query heads that share its KV head: a mean and not a sum, so
    that early entries are not favoured by being seen longer. Both are rounded as scores of policies are
    (``round_significant``); equal ones share the mean of their ranks. A head whose norms or whose attention
    are all equal has correlation 0.

    Raises ValueError for a text of fewer than 8 tokens and for a model that cannot be measured, WrongUseError
    for one that does not attend through its cache, FloatingPointError for NaN.
    """
    length = tokens.shape[0]
    if length < SHORTEST_RANKED:
        raise ValueError(
            f"a text of {length} tokens tells nothing of ranks; at least {SHORTEST_RANKED} are needed"
        )

    cache = _Watching(model.config)  # pyright: ignore[reportArgumentType]
    positions = torch.arange(length, device=tokens.device)[None]
    body_of(model)(input_ids=tokens[None], position_ids=positions, past_key_values=cache, use_cache=True)
    cache.check_complete(length)
    return Diagnosis(length, tuple(layer.found() for layer in cache.layers))


class _WatchedLayer(PrefixLayer):
    """Computes its figures while it attends, and holds no entries afterwards:
    memory is that of one layer's attention."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._found: LayerDiagnosis | None = None

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """As the dense pass; notes the layer's figures."""
        out = super().attend(query, scale)
        assert self.keys is not None
        norms = round_significant(torch.linalg.vector_norm(self.keys, dim=-1, dtype=torch.float32))[0, :, :-1]
        received = round_significant(attention_received(query, self.keys, scale))[0, :, :-1]
        if not bool((norms.isfinite() & received.isfinite()).all()):
            raise FloatingPointError(f"layer {self.index}: {NOT_FINITE}")

        self._found = LayerDiagnosis(
            tuple(_correlation(norms, received).tolist()), tuple(attention_loss(norms, received).tolist())
        )
        self.keys = self.values = None
        return out

    def found(self) -> LayerDiagnosis:
        """The layer's figures, which the pass gave."""
        assert self._found is not None
        return self._found


class _Watching(SharedPrefix):
    """The cache of the pass."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.layers = [_WatchedLayer(i) for i in range(len(self.layers))]


def attention_received(query: Tensor, keys: Tensor, scale: Scale) -> Tensor:
    """[batch, kv_heads, n] mean attention of each entry from the later queries; 0 for the last: it has none.

    query [batch, heads, n, head_dim], keys [batch, kv_heads, n, head_dim], of one whole text. In float32.
    """
    total = torch.zeros(keys.shape[:3], device=keys.device)
    for first, chance in probabilities(query, keys, scale, None):
        heads = chance.mean(2)  # [batch, kv_heads, some queries, n], over the group
        total += heads.sum(2)
        own = slice(first, first + heads.shape[2])
        total[..., own] -= heads[..., own].diagonal(dim1=2, dim2=3)  # what each query gives its own entry

    later = torch.arange(keys.shape[2] - 1, -1, -1, device=keys.device)
    return (total / later.clamp(min=1)).clamp(min=0.0) * (later > 0)


def attention_loss(norms: Tensor, received: Tensor) -> Tensor:
    """[heads] what dropping the highest norms first loses beyond dropping what gets least attention; norms,
    received [heads, n].

    The ALR of Devoto et al. 2024 (arXiv 2406.11430), there a sum over how many entries are dropped. Here it
    is the mean over that number, and attention is a share of the head's whole: 0 where norms order entries as
    attention does, at most 1. Of equal norms the earlier entry is kept, as by ``knorm``.
    """
    shares = (received.double() / received.double().sum(-1, keepdim=True)).nan_to_num()
    newest_first = norms.flip(-1).argsort(dim=-1, stable=True, descending=True)
    lost = shares.gather(-1, norms.shape[-1] - 1 - newest_first).cumsum(-1)
    least = shares.sort(dim=-1).values.cumsum(-1)
    return (lost - least).mean(-1)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """[heads] Spearman's rank correlation of values [heads, n] each; 0 where either is all equal."""
    a, b = (ranks - ranks.mean(-1, keepdim=True) for ranks in (_ranks(one), _ranks(other)))
    spread = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(spread > 0, (a * b).sum(-1) / spread.clamp(min=1e-300), 0.0)


def _ranks(values: Tensor) -> Tensor:
    """[heads, n] float64 ranks from 0; equal values share the mean of theirs."""
    ordered = values.sort(dim=-1).values
    first = torch.searchsorted(ordered, values.contiguous())
    last = torch.searchsorted(ordered, values.contiguous(), right=True) - 1
    return (first + last).double() / 2


_fixed: dict[tuple[str, str, str], Diagnosis] = {}
"""By revision, dtype and kind of device."""


def fixed_diagnosis(model: nn.Module, facts: ModelFacts) -> Diagnosis:
    """The model on the fixed text: one property of its revision and dtype. Made once in a process.

    Raises what ``fixed_text`` and ``diagnose`` raise.
    """
    weight = next(model.parameters())
    key = (facts.revision, str(weight.dtype), weight.device.type)
    if key not in _fixed:
        _fixed[key] = diagnose(model, torch.from_numpy(fixed_text(facts)).to(weight.device))
    return _fixed[key]


def fixed_text(facts: ModelFacts) -> np.ndarray:
    """The first 1,024 tokens of pydocs, or as many as the model takes, int64: BOS first where its own
    tokenizer puts it there.

    Pydocs comes with Python and is the same wherever Python's version is. Raises ModelError or CorpusError
    where the tokenizer cannot be used.
    """
    start = bos_token(facts, "auto")
    text = Corpus(FIXED_TEXT, read_text(FIXED_TEXT).text[:FIXED_CHARACTERS])
    ids = tokenize(text, facts.tokenizer_file).ids
    return opening(ids, start, min(FIXED_TOKENS, facts.longest(FIXED_TOKENS)))


def opening(ids: Sequence[int] | np.ndarray, bos: int | None, length: int) -> np.ndarray:
    """[length] int64 positions of a text whose tokens are ``ids``, BOS among them where there is one; fewer
    of a short text."""
    start: list[Any] = [] if bos is None else [bos]
    return np.concatenate(
        [np.asarray(start, dtype=np.int64), np.asarray(ids[: length - len(start)], dtype=np.int64)]
    )
