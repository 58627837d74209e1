"""Eviction policies: one score function each, with what a cache must know of it in the line above.

Contract: ``score(view) -> [batch, kv_heads, n]`` float32, **higher = kept**, equal scores go to the earlier
position. How many entries are kept is decided in ``budget.py`` alone; what is protected is added in
``select``.

Command lines, plans, judges' tables, documents and colours take their policies from here. torch is imported
where a score is computed and not before, because planning asks for names and for what is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from workers.policies.cache_view import CacheView
from workers.policies.observation import NOTHING, OBSERVED_QUERIES, LastQueries, Mass, Observation
from workers.policies.policy import Policy, Score

if TYPE_CHECKING:
    from torch import Tensor

ALWAYS = (2 - 2**-23) * 2.0**127
"""The score of an entry that stays whatever others score: the largest float32. Scores are finite."""

POOLING = 5
"""Neighbouring entries over which ``snapkv`` pools: the default of its authors' code."""

MAX_POOLING = 7
"""The same of ``snapkv_max7``: what its authors' benchmark is configured with."""

_OWN: dict[str, Policy] = {}
POLICIES: Mapping[str, Policy] = MappingProxyType(_OWN)
"""Every policy that prunes, for reading only; ``dense`` is the absence of one."""


def turns_keys(name: str) -> bool:
    """Whether a policy of this name turns the keys that it keeps; a user's own does not."""
    return name in POLICIES and POLICIES[name].rolls


def _policy(
    observes: Observation = NOTHING, *, entrywise: bool = False, temporal: bool = True, rolls: bool = False
) -> Callable[[Score], Score]:
    """The function is a policy of its own name; ``Policy`` says what the rest means."""

    def register(score: Score) -> Score:
        name = score.__name__
        _OWN[name] = Policy(score, observes, entrywise, temporal, rolls, name=name, own=True)
        return score

    return register


@_policy(entrywise=True)
def knorm(view: CacheView) -> Tensor:
    """Keep the keys of lowest L2 norm (Devoto et al. 2024, arXiv 2406.11430, section 3)."""
    return -knorm_high(view)


@_policy(entrywise=True)
def knorm_high(view: CacheView) -> Tensor:
    """The inverse control: keep the keys of highest norm."""
    import torch

    return view.rounded(torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32))


@_policy(entrywise=True, temporal=False)
def knorm_sorted(view: CacheView) -> Tensor:
    """The control of the order: keeps what ``knorm`` keeps and stores it by norm, lowest first, as a
    published script did."""
    return knorm(view)


@_policy(entrywise=True)
def random(view: CacheView) -> Tensor:
    """A uniform draw per event, the same for a (seed, layer, head, text, position, event) in any batch."""
    import torch

    head = torch.arange(view.positions.shape[1], device=view.positions.device)[None, :, None]
    # head, layer and seed lie in bits of their own, and so do position and event
    state = _mix(view.row_ids + _mix(head + (view.layer << 20) + (view.seed << 32)))
    state = _mix(state ^ _mix(view.positions.long() + (view.seen << 32)))
    return (state & 0xFFFFFF).float() / float(1 << 24)  # 24 bits, which a float32 holds exactly


@_policy(entrywise=True)
def recent(view: CacheView) -> Tensor:
    """Sliding window: keep the newest."""
    return view.positions.float()


@_policy(entrywise=True)
def streaming(view: CacheView) -> Tensor:
    """Attention sinks: the first 4 positions and the newest
    (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""
    import torch

    return torch.where(view.positions < 4, ALWAYS, view.positions.float())


@_policy(entrywise=True, rolls=True)
def streaming_rolled(view: CacheView) -> Tensor:
    """Keeps what ``streaming`` keeps, at positions within the cache,
    as its authors' code has them (``rotary``)."""
    return streaming(view)


@_policy(Mass())
def h2o(view: CacheView) -> Tensor:
    """Heavy hitters: half of the budget to the newest entries, half to those with most attention accumulated
    over all queries.

    Zhang et al. 2023 (arXiv 2306.14048), section 4: "a balance of recent and H2 tokens"; equal halves as in
    its experiments. With grouped-query attention an entry's mass is the sum over the query heads that share
    it.
    """
    import torch

    assert view.mass is not None
    n = view.keys.shape[2]
    newest = torch.arange(n, device=view.keys.device) >= n - view.keep // 2
    return torch.where(newest, ALWAYS, view.rounded(view.mass))


@_policy(LastQueries())
def snapkv(view: CacheView) -> Tensor:
    """Attention of the last 32 queries, averaged, smoothed over 5 neighbouring entries;
    those 32 positions always stay.

    Li et al. 2024 (arXiv 2404.14469), section 4 (observation window, pooling). A budget below 32 keeps the
    newest.
    """
    import torch
    from torch.nn import functional

    mass = view.attention(OBSERVED_QUERIES).mean((2, 3))
    pooled = functional.avg_pool1d(mass, POOLING, stride=1, padding=POOLING // 2)
    age = view.seen - view.positions
    return torch.where(age <= OBSERVED_QUERIES, 2.0 + OBSERVED_QUERIES - age, view.rounded(pooled))


@_policy(LastQueries())
def snapkv_max7(view: CacheView) -> Tensor:
    """``snapkv`` as its authors' LongBench runs are configured: the most attended to of 7 neighbours, over
    the prefix alone.

    Li et al. 2024 (arXiv 2404.14469), configuration "w32, k7, maxpool" of the authors' code: window 32,
    kernel 7, pooling by the maximum; what the window's own entries get is left out before pooling. Heads that
    share a KV head are averaged, where that code stores the keys of each query head. With the schedule
    ``prefill_once`` it is their protocol.
    """
    import torch
    from torch.nn import functional

    age = view.seen - view.positions
    in_window = age <= OBSERVED_QUERIES
    mass = view.attention(OBSERVED_QUERIES).mean((2, 3)).masked_fill(in_window, 0.0)
    pooled = functional.max_pool1d(mass, MAX_POOLING, stride=1, padding=MAX_POOLING // 2)
    return torch.where(in_window, 2.0 + OBSERVED_QUERIES - age, view.rounded(pooled))


@_policy(LastQueries(1))
def tova(view: CacheView) -> Tensor:
    """Attention of the last query, averaged over the layer's heads, so that all keep the same entries.

    Oren et al. 2024 (arXiv 2401.06104), section 3.2. Heads hold the same entries because they always kept the
    same.
    """
    mass = view.attention(1).mean((1, 2, 3))
    return view.rounded(mass)[:, None].expand(-1, view.keys.shape[1], -1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (arithmetic shifts masked to logical ones)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
