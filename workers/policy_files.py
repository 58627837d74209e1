"""A user's own policy by ``module:function``, without importing it: where its code is, and the hash that names its version."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

PATTERN = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)(@(?P<digest>[0-9a-f]{8}))?")
"""``module:function``, and behind ``@`` the hash of the module's file once it is resolved."""


class PolicyError(ValueError):
    """A policy that cannot be found, with what to do."""


def _file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise PolicyError(f"there is no module {module!r}; it must be importable where kvsweep is started")
    return Path(spec.origin)


def digest(module: str) -> str:
    """8 hex digits of the module's source file. Raises PolicyError where there is no such module."""
    return hashlib.sha256(_file(module).read_bytes()).hexdigest()[:8]


def resolved(policy: str) -> str:
    """The name under which rows keep a policy: a user's own gets the hash of its file, so that edited code is another policy.

    Raises PolicyError where its module, or the function in it, does not exist.
    """
    match = PATTERN.fullmatch(policy)
    if match is None:
        return policy
    module, function = match["module"], match["function"]
    file = _file(module)
    defined = rf"^(def\s+{function}\b|{function}\s*[:=]|from\s.*\bimport\b.*\b{function}\b)"
    if not re.search(defined, file.read_text(encoding="utf-8"), re.MULTILINE):
        raise PolicyError(f"module {module!r} ({file}) defines no {function!r}")
    return f"{module}:{function}@{digest(module)}"
