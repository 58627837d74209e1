"""Calls of score functions. What others wrote gets copies, leaves no trace in the process, and returns what
the contract asks.

The policies of kvsweep itself are called as they are.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from workers.machine.process_state import whole_process_state
from workers.policies.cache_view import CacheView
from workers.policies.policy import Policy
from workers.policies.policy_files import PolicyError


def scores_of(policy: Policy, view: CacheView) -> Tensor:
    """[batch, kv_heads, n] float32, higher = kept.

    Raises PolicyError for scores of another shape or type or such as are not finite, and where the policy
    raises what would end the process; what else it raises is raised as it is.
    """
    if policy.own:
        return policy.score(view)
    copies = {
        each.name: value.clone()
        for each in fields(view)
        if isinstance(value := getattr(view, each.name), Tensor)
    }
    own = replace(view, **copies, take_values=lambda: view.values.clone())
    with whole_process_state():
        try:
            scores = policy.score(own)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # what is meant to end a process, or a task in it
            raise PolicyError(
                f"{_name(policy)} ended the process ({type(error).__name__} {error})"
            ) from error
    return _checked(policy, scores, view.positions)


def _checked(policy: Policy, scores: object, positions: Tensor) -> Tensor:
    name = _name(policy)
    if not isinstance(scores, Tensor):
        raise PolicyError(f"{name} returned {type(scores).__name__}; it must return a tensor of scores")
    if scores.shape != positions.shape:
        raise PolicyError(
            f"{name} returned scores of shape {list(scores.shape)}; one for each entry is asked for: "
            f"{list(positions.shape)}"
        )
    if scores.dtype != torch.float32:
        raise PolicyError(
            f"{name} returned scores in {str(scores.dtype).removeprefix('torch.')}; return scores.float()"
        )
    if scores.device != positions.device:
        raise PolicyError(f"{name} returned scores on {scores.device}; the entries are on {positions.device}")

    if not bool(torch.isfinite(scores).all()):
        raise PolicyError(
            f"{name} returned scores that are NaN or infinite; workers.policies.eviction.ALWAYS is the score "
            "of what must stay"
        )
    return scores.detach()


def _name(policy: Policy) -> str:
    return (
        f"policy {policy.name!r}"
        if policy.name
        else f"policy {getattr(policy.score, '__name__', 'without a name')!r}"
    )
