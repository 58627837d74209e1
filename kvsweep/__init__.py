"""What a script of yours may import: the pruned cache, what a policy is made of, and a sweep's run.

    from kvsweep import PrunedCache, Policy, CacheView, run

Nothing is imported before it is used: torch comes with ``PrunedCache``, Ray with a run that takes it. Where
things lie in the packages behind may change; the names here stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from kvsweep.other_files import in_the_way

if TYPE_CHECKING:
    from workers.cache.pruned_cache import PrunedCache
    from workers.policies.cache_view import CacheView
    from workers.policies.eviction import ALWAYS, POLICIES
    from workers.policies.observation import LastQueries, Mass
    from workers.policies.policy import Policy

__all__ = ["ALWAYS", "POLICIES", "CacheView", "LastQueries", "Mass", "Policy", "PrunedCache", "run"]

_HOMES = {
    "ALWAYS": "workers.policies.eviction",
    "CacheView": "workers.policies.cache_view",
    "LastQueries": "workers.policies.observation",
    "Mass": "workers.policies.observation",
    "POLICIES": "workers.policies.eviction",
    "Policy": "workers.policies.policy",
    "PrunedCache": "workers.cache.pruned_cache",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for. Raises ImportError where files of others lie in its way."""
    if name not in _HOMES:
        raise AttributeError(f"kvsweep has no {name!r}; it has {', '.join(__all__)}")
    _check_the_way()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def run(
    sweep: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | PathLike[str] | None = None,
    address: str = "local",
    inline: bool = False,
    threads: int | None = None,
    retry_failed: bool = False,
) -> int:
    """``kvsweep run``: a sweep's cells measured, stored and reported. Returns the command's exit status.

    ``sweep``: a sweep file or the name of an embedded one, none for the default; ``overrides``: as after
    ``--set``, such as ``"perplexity.windows=4"``; the rest as the command's options. 0: all cells are done,
    1: some failed, 2: bad input, and nothing was started, 130: interrupted, and the same call goes on. What
    the command prints is printed. Raises ImportError where files of others lie in the way.
    """
    _check_the_way()
    from pipeline.driving.run_sweep import RunOptions, run_sweep

    options = RunOptions(
        None if out is None else fspath(out), address, inline, threads, retry_failed=retry_failed
    )
    return run_sweep(None if sweep is None else fspath(sweep), list(overrides), options)


def _check_the_way() -> None:
    words = in_the_way()
    if words:
        raise ImportError(words)
