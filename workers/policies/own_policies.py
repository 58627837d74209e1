"""A policy by its name: kvsweep's, or a user's own by ``module:function``, which is imported here."""

from __future__ import annotations

import importlib
from dataclasses import replace

from workers.machine.process_state import whole_process_state
from workers.policies.eviction import POLICIES
from workers.policies.policy import Policy
from workers.policies.policy_files import PATTERN, PolicyError, digest
from workers.policies.settings import POLICY_NAMES


def find_policy(name: str) -> Policy:
    """A policy by its name, or a user's own by ``module:function`` (the function itself, or a ``Policy``).

    Raises ValueError where there is none.
    """
    if name in POLICIES or name == "dense":
        return POLICIES.get(name, POLICIES["knorm"])
    match = PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"policy must be one of {', '.join(POLICY_NAMES)}, or module:function (got {name!r})"
        )
    if match["digest"] not in (None, digest(match["module"])):
        raise PolicyError(
            f"policy {name!r}: the code of {match['module']!r} here is another version than the sweep was "
            "planned with"
        )

    with whole_process_state():
        try:
            found = getattr(importlib.import_module(match["module"]), match["function"])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: whatever a module does, it is its cells' failure
            raise PolicyError(
                f"policy {name!r}: its module cannot be used ({type(error).__name__}: {error})"
            ) from error

    policy = found if isinstance(found, Policy) else Policy(found)
    if not callable(policy.score):
        raise PolicyError(
            f"policy {name!r} is a {type(found).__name__}; it must be a function of a view, or a Policy"
        )
    return replace(policy, name=name, own=False)
