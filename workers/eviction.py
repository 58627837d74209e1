"""Eviction policies: one score function each, and the selection of what stays, in temporal order but for a control.

Contract: ``score(view) -> [batch, kv_heads, n]`` float32, **higher = kept**, equal scores go to the earlier position. How many
entries are kept is decided in ``budget.py`` alone; what is protected is added in ``select``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from workers.attention_weights import Scale, weights
from workers.footprint import OBSERVED_QUERIES
from workers.policy_files import PATTERN, PolicyError, digest
from workers.process_state import whole_process_state
from workers.settings import POLICY_NAMES

ALWAYS = torch.finfo(torch.float32).max
"""The score of an entry that stays whatever the others' scores are. Scores are finite."""

SIGNIFICANT_BITS: dict[torch.dtype, int] = {torch.float32: 12, torch.float16: 11, torch.bfloat16: 10}
"""Of a score, by the dtype of the keys that it was computed from; in others as in float32.

In 16 bits the keys' own rounding moves a norm by 1e-4 (float16) to 1e-3 (bfloat16) of its value. With more bits it chooses among
repetitions of a token, with fewer norms tie that differ: these numbers drop most of what float32 drops (``benchmarks.rounding``).
"""

POOLING = 5
"""Neighbouring entries over which ``snapkv`` pools: the default of its authors' code."""

MAX_POOLING = 7
"""The same of ``snapkv_max7``: what its authors' benchmark is configured with."""


@dataclass(frozen=True)
class CacheView:
    """What a policy sees of one layer at a prune event: the entries held, in temporal order, the newest one last.

    After a policy that is not ``temporal`` they lie in the order in which it left them. The tensors are the policy's own copies.
    """

    keys: Tensor
    """[batch, kv_heads, n, head_dim], rotated as cached."""
    positions: Tensor
    """[batch, kv_heads, n], absolute positions of the entries."""
    seen: Tensor
    """[batch, 1, 1], tokens seen so far."""
    keep: Tensor
    """[batch, 1, 1], how many entries will stay."""
    layer: Tensor
    """[batch, 1, 1], index of the layer."""
    seed: Tensor
    """[batch, 1, 1], the cell's seed."""
    row_ids: Tensor
    """[batch, 1, 1], what tells one text from another whatever the batch (perplexity: the window's start)."""
    queries: Tensor | None = None
    """[batch, heads, w, head_dim], the last w = min(32, seen) queries, rotated, oldest first; for policies that observe them."""
    mass: Tensor | None = None
    """[batch, kv_heads, n], attention that each entry got from all queries so far, summed over the head's group."""
    scaling: float = 1.0
    softcap: float | None = None
    weights: Tensor | None = None
    """[batch, kv_heads, group, w, n], attention of some of the last queries where the pass itself made it."""

    def attention(self, last: int) -> Tensor:
        """Attention of the last queries over the entries held now: [batch, kv_heads, group, w, n], w = min(last, seen)."""
        assert self.queries is not None
        queries = self.queries[:, :, -last:]
        if self.weights is not None and self.weights.shape[3] >= queries.shape[2]:
            return self.weights[:, :, :, -queries.shape[2] :]
        return weights(queries, self.keys, Scale(self.scaling, self.softcap), self.positions, self.seen)

    def rounded(self, scores: Tensor) -> Tensor:
        """Non-negative scores without what is only noise in keys of this dtype (``SIGNIFICANT_BITS``)."""
        return round_significant(scores, SIGNIFICANT_BITS.get(self.keys.dtype, SIGNIFICANT_BITS[torch.float32]))


Score = Callable[[CacheView], Tensor]


@dataclass(frozen=True)
class Policy:
    """A score function and what the cache must record for it."""

    score: Score
    observes: Literal["nothing", "queries", "mass"] = "nothing"
    looks_back: int = OBSERVED_QUERIES
    """Of a policy that observes queries: how many of the last ones it asks the attention of, at most."""
    entrywise: bool = False
    """An entry's score depends on that entry alone, on its key and its position."""
    temporal: bool = True
    """Kept entries stay in temporal order. Otherwise each prune lays them best first, and newer ones follow: other places in
    the tensor, the same figures, because attention is a sum over a set."""
    rolls: bool = False
    """Kept keys are turned to positions that lie contiguously before the next token; needs ``temporal``."""
    name: str = ""
    """As a sweep names it."""
    own: bool = False
    """Whether it is one of kvsweep's, which may see the entries themselves, in any order and among places that hold nothing."""

    def __post_init__(self) -> None:
        """Raises ValueError for more queries than are kept, and for a policy that rolls keys which lie in no temporal order:
        nothing says where they would go."""
        if not 1 <= self.looks_back <= OBSERVED_QUERIES:
            raise ValueError(f"looks_back must be 1 to {OBSERVED_QUERIES}, the queries that are kept (got {self.looks_back})")
        if self.rolls and not self.temporal:
            raise ValueError("a policy that rolls must be temporal")


def round_significant(scores: Tensor, bits: int = 12) -> Tensor:
    """Non-negative float32 scores rounded to ``bits`` significant bits.

    Rotation keeps norms, so repetitions of a token tie exactly in mathematics and differ by rounding noise in floats;
    without rounding that noise, not the method, chooses which repetition stays (science, section 1, point 3).
    """
    drop = 24 - bits
    whole = scores.float().contiguous().view(torch.int32)
    return ((whole + (1 << (drop - 1))) & ~((1 << drop) - 1)).view(torch.float32)


def knorm(view: CacheView) -> Tensor:
    """Keep the keys of lowest L2 norm (Devoto et al. 2024, arXiv 2406.11430, section 3)."""
    return -knorm_high(view)


def knorm_high(view: CacheView) -> Tensor:
    """The inverse control: keep the keys of highest norm."""
    return view.rounded(torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32))


def random(view: CacheView) -> Tensor:
    """A fresh uniform draw per event, the same for a (seed, layer, head, text, position, event) in any batch."""
    head = torch.arange(view.positions.shape[1], device=view.positions.device)[None, :, None]
    state = _mix(view.row_ids + _mix(head + (view.layer << 20) + (view.seed << 32)))
    state = _mix(state ^ _mix(view.positions.long() + (view.seen << 32)))
    return (state & 0xFFFFFF).float() / float(1 << 24)


def recent(view: CacheView) -> Tensor:
    """Sliding window: keep the newest."""
    return view.positions.float()


def streaming(view: CacheView) -> Tensor:
    """Attention sinks: the first 4 positions and the newest (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""
    return torch.where(view.positions < 4, ALWAYS, view.positions.float())


def h2o(view: CacheView) -> Tensor:
    """Heavy hitters: half of the budget to the newest entries, half to those with most attention accumulated over all queries.

    Zhang et al. 2023 (arXiv 2306.14048), section 4: "a balance of recent and H2 tokens"; equal halves as in its experiments.
    With grouped-query attention an entry's mass is the sum over the query heads that share it.
    """
    assert view.mass is not None
    n = view.keys.shape[2]
    newest = torch.arange(n, device=view.keys.device) >= n - view.keep // 2
    return torch.where(newest, ALWAYS, view.rounded(view.mass))


def snapkv(view: CacheView) -> Tensor:
    """Attention of the last 32 queries, averaged, smoothed over 5 neighbouring entries; those 32 positions always stay.

    Li et al. 2024 (arXiv 2404.14469), section 4 (observation window, pooling). A budget below 32 keeps the newest.
    """
    mass = view.attention(OBSERVED_QUERIES).mean((2, 3))
    pooled = functional.avg_pool1d(mass, POOLING, stride=1, padding=POOLING // 2)
    age = view.seen - view.positions
    return torch.where(age <= OBSERVED_QUERIES, 2.0 + OBSERVED_QUERIES - age, view.rounded(pooled))


def snapkv_max7(view: CacheView) -> Tensor:
    """``snapkv`` as its authors' LongBench runs are configured: the most attended to of 7 neighbours, over the prefix alone.

    Li et al. 2024 (arXiv 2404.14469), configuration "w32, k7, maxpool" of the authors' code: window 32, kernel 7, pooling by the
    maximum; what the window's own entries get is left out before pooling. Heads that share a KV head are averaged, where that
    code stores the keys of each query head. With the schedule ``prefill_once`` it is their protocol.
    """
    age = view.seen - view.positions
    in_window = age <= OBSERVED_QUERIES
    mass = view.attention(OBSERVED_QUERIES).mean((2, 3)).masked_fill(in_window, 0.0)
    pooled = functional.max_pool1d(mass, MAX_POOLING, stride=1, padding=MAX_POOLING // 2)
    return torch.where(in_window, 2.0 + OBSERVED_QUERIES - age, view.rounded(pooled))


def tova(view: CacheView) -> Tensor:
    """Attention of the last query, averaged over all heads of the layer, so that its heads keep the same entries.

    Oren et al. 2024 (arXiv 2401.06104), section 3.2. Heads hold the same entries because they always kept the same.
    """
    mass = view.attention(1).mean((1, 2, 3))
    return view.rounded(mass)[:, None].expand(-1, view.keys.shape[1], -1)


_OWN = {
    policy.name: policy
    for policy in (
        Policy(knorm, name="knorm", own=True, entrywise=True),
        Policy(knorm_high, name="knorm_high", own=True, entrywise=True),
        Policy(knorm, name="knorm_sorted", own=True, entrywise=True, temporal=False),
        Policy(random, name="random", own=True, entrywise=True),
        Policy(recent, name="recent", own=True, entrywise=True),
        Policy(streaming, name="streaming", own=True, entrywise=True),
        Policy(streaming, name="streaming_rolled", own=True, entrywise=True, rolls=True),
        Policy(h2o, name="h2o", own=True, observes="mass"),
        Policy(snapkv, name="snapkv", own=True, observes="queries"),
        Policy(snapkv_max7, name="snapkv_max7", own=True, observes="queries"),
        Policy(tova, name="tova", own=True, observes="queries", looks_back=1),
    )
}
POLICIES: Mapping[str, Policy] = MappingProxyType(_OWN)
"""Every policy that prunes, for reading only; ``dense`` is the absence of one. ``knorm_sorted`` is the control of the order: it
keeps what ``knorm`` keeps and stores it by norm, lowest first, as a published script did. ``streaming_rolled`` keeps what
``streaming`` keeps, at positions within the cache, as its authors' code has them (``rotary``)."""


def find_policy(name: str) -> Policy:
    """A policy by its name, or a user's own by ``module:function`` (the function itself, or a ``Policy``).

    Raises ValueError where there is none.
    """
    if name in POLICIES or name == "dense":
        return POLICIES.get(name, POLICIES["knorm"])
    match = PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(f"policy must be one of {', '.join(POLICY_NAMES)}, or module:function (got {name!r})")
    if match["digest"] not in (None, digest(match["module"])):
        raise PolicyError(
            f"policy {name!r}: the code of {match['module']!r} here is another version than the sweep was planned with"
        )
    with whole_process_state():
        try:
            found = getattr(importlib.import_module(match["module"]), match["function"])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: whatever a module does, it is its cells' failure
            raise PolicyError(f"policy {name!r}: its module cannot be used ({type(error).__name__}: {error})") from error
    policy = found if isinstance(found, Policy) else Policy(found)
    if not callable(policy.score):
        raise PolicyError(f"policy {name!r} is a {type(found).__name__}; it must be a function of a view, or a Policy")
    return replace(policy, name=name, own=False)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (arithmetic shifts masked to logical ones)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
