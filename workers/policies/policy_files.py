"""A user's own policy by ``module:function``, without importing it: where its code is, and the hash that
names its version."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

PATTERN = re.compile(
    r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)(@(?P<digest>[0-9a-f]{8}))?"
)
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
    """8 hex digits of the module's source file and of all files beside it that it imports, at any remove.

    Raises PolicyError where there is no such module, or its text is no Python.
    """
    file = _file(module)
    hashed = hashlib.sha256(file.read_bytes())
    for name, beside in sorted(_imported(file, file.parent).items()):
        hashed.update(f"\n{name}\n".encode() + beside.read_bytes())
    return hashed.hexdigest()[:8]


def _imported(file: Path, folder: Path) -> dict[str, Path]:
    """Name -> file of the modules in ``folder`` that a module imports, itself or through others of them."""
    files: dict[str, Path] = {}
    left = [file]

    while left:
        for name in _names_imported(left.pop()):
            places = (
                folder / f"{name.replace('.', '/')}.py",
                folder / name.replace(".", "/") / "__init__.py",
            )
            place = next((place for place in places if place.is_file()), None)
            if place is not None and place != file and name not in files:
                files[name] = place
                left.append(place)
    return files


def _names_imported(file: Path) -> frozenset[str]:
    """Modules by their full names, and what is taken from them, which may be modules too."""
    try:
        return _names_in(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        raise PolicyError(f"{file} is no Python module ({error})") from error


@lru_cache(maxsize=64)
def _names_in(source: bytes) -> frozenset[str]:
    """Those of a source text; known again by the text itself, for a worker looks at it for each policy that
    is in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):  # the bytes, which may say their own encoding (PEP 263)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)} - {""}
    return frozenset(names)


class OwnModules:
    """The modules that own policies are in, each read once however many of its functions are policies."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Path, frozenset[str], str]] = {}

    def resolved(self, policy: str) -> str:
        """The name under which rows keep a policy:
        a user's own gets the hash of its file, so edited code is another policy.

        Raises PolicyError where its module, or the function in it, does not exist.
        """
        match = PATTERN.fullmatch(policy)
        if match is None:
            return policy
        module, function = match["module"], match["function"]
        if module not in self._known:
            file = _file(module)
            self._known[module] = file, _names_defined(file), digest(module)

        file, defined, hashed = self._known[module]
        if function not in defined:
            raise PolicyError(f"module {module!r} ({file}) defines no {function!r}")
        return f"{module}:{function}@{hashed}"


_DEFINITION = re.compile(
    r"^(?:def\s+(?P<function>\w+)|(?P<name>\w+)\s*[:=]|from\s.*?\bimport\b(?P<taken>.*))", re.MULTILINE
)


def _names_defined(file: Path) -> frozenset[str]:
    """What stands at the left margin of a module:
    functions, names that are given values, names taken from other modules."""
    try:
        text = importlib.util.decode_source(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise PolicyError(f"{file} cannot be read as a Python module ({error})") from error

    names: set[str] = set()
    for definition in _DEFINITION.finditer(text):
        if definition["taken"] is None:
            names.add(definition["function"] or definition["name"])
        else:
            names |= set(re.findall(r"\w+", definition["taken"]))
    return frozenset(names)


def resolved(policy: str) -> str:
    """One policy alone, as ``OwnModules`` names it. Raises PolicyError."""
    return OwnModules().resolved(policy)
