"""Read a sweep file, strictly: a fault names file, line, key, value and what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.sweep_keys import BLOCK_OF, BLOCKS, CellFilter, SweepSpec, cell_value

EMBEDDED_SWEEPS = Path(__file__).parent / "sweeps"


class SweepError(ValueError):
    """Bad input, found before any work started; one message per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


Position = tuple[str, int, int]
"""(file or option, line, column), lines from 1; line 0 for an option."""


def load_spec(path: str | None, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep file (None: the embedded default; a bare name: an embedded sweep) and apply ``key=value`` overrides.

    Raises SweepError with one message per fault.
    """
    file = _find(path)
    try:
        document = YAML().load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SweepError([f"{file}: not UTF-8 text (byte {error.start})"]) from None
    except OSError as error:
        raise SweepError([f"{file}: cannot be read: {error.strerror}"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise SweepError([f"{where}: not valid YAML: {error.problem or error.context}"]) from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # the last three: what ruamel.yaml lets through
        raise SweepError([f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}"]) from None
    if not isinstance(document, CommentedMap):
        raise SweepError([f"{file}: a sweep file is a mapping of keys to values, like 'name: my-sweep'"])
    positions: dict[tuple[Any, ...], Position] = {}
    plain = _plain(document, (), str(file), positions)
    for override in overrides:
        _apply(plain, override, positions)
    return _validated(plain, str(file), positions)


def _find(path: str | None) -> Path:
    if path is None:
        return EMBEDDED_SWEEPS / "default.yaml"
    file = Path(path).expanduser()
    embedded = EMBEDDED_SWEEPS / f"{path}.yaml"
    if not file.exists() and "/" not in path and embedded.exists():
        return embedded
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in EMBEDDED_SWEEPS.glob("*.yaml")))
        raise SweepError([f"{path}: there is no such sweep file (embedded sweeps by name: {names})"])
    return file


def _plain(node: Any, at: tuple[Any, ...], file: str, positions: dict[tuple[Any, ...], Position]) -> Any:
    """The node as dicts and lists; remembers where each key and item stands."""
    if isinstance(node, CommentedMap):
        for key in set(node) & set(node.lc.data or ()):  # a key merged in with << has no place of its own
            line, column = node.lc.key(key)
            positions[(*at, str(key))] = (file, line + 1, column + 1)
        return {str(key): _plain(value, (*at, str(key)), file, positions) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for i in range(len(node)):
            line, column = node.lc.item(i)
            positions[(*at, i)] = (file, line + 1, column + 1)
        return [_plain(value, (*at, i), file, positions) for i, value in enumerate(node)]
    return node


def _apply(plain: dict[str, Any], override: str, positions: dict[tuple[Any, ...], Position]) -> None:
    """``a.b=value`` with a YAML value. Raises SweepError where it is malformed."""
    key, equals, text = override.partition("=")
    try:
        value = json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
    except (YAMLError, ValueError, TypeError, RecursionError):
        raise SweepError([f"--set {override}: the value is not valid YAML"]) from None
    if not equals or not key:
        raise SweepError([f"--set {override}: write key=value, like --set perplexity.windows=4"])
    path = tuple(key.split("."))
    target = plain
    for depth, parent in enumerate(path[:-1], 1):
        positions.setdefault(path[:depth], (f"--set {override}", 0, 0))
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise SweepError([f"--set {override}: {parent} is not a block of keys"])
    target[path[-1]] = value
    for replaced in [at for at in positions if at[: len(path)] == path]:
        del positions[replaced]
    positions[path] = (f"--set {override}", 0, 0)


def spec_of(plain: dict[str, Any], origin: str) -> SweepSpec:
    """A sweep that is in no file; ``origin`` names who made it. Raises SweepError with one message per fault."""
    return _validated(plain, origin, {})


def _validated(plain: dict[str, Any], file: str, positions: dict[tuple[Any, ...], Position]) -> SweepSpec:
    try:
        spec = SweepSpec.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        raise SweepError([_fault(fault, file, positions) for fault in error.errors()]) from None
    faults = []
    asked = [block for block in BLOCK_OF.values() if getattr(spec, block)]
    if not asked:
        faults.append(f"{file}: nothing to measure; add at least one block of {', '.join(BLOCK_OF.values())}")
    if not spec.datasets and asked != ["lm_eval"]:
        faults.append(f"{_where(('datasets',), file, positions)}: is required, at least one (only lm_eval brings its own texts)")
    if spec.perplexity and spec.perplexity.stride > spec.perplexity.window:
        faults.append(
            f"{_where(('perplexity', 'stride'), file, positions)}: must be <= perplexity.window "
            f"{spec.perplexity.window} (got {spec.perplexity.stride})"
        )
    faults += _exclusion_faults(spec, file, positions)
    if faults:
        raise SweepError(faults)
    return spec


def _exclusion_faults(spec: SweepSpec, file: str, positions: dict[tuple[Any, ...], Position]) -> list[str]:
    """Excluded values that are not in the grid: a typo would silently exclude nothing."""
    faults = []
    for i, block in enumerate(spec.exclude):
        for axis, values in block.named().items():
            in_grid = [cell_value(axis, value) for value in getattr(spec, axis)]
            for place in (place for place, value in enumerate(values) if value not in in_grid):
                at, allowed = ("exclude", i, axis, place), ", ".join(map(json.dumps, getattr(spec, axis)))
                got = json.dumps(getattr(block, axis)[place])
                faults.append(f"{_where(at, file, positions)}: must be one of the sweep's {axis} {allowed} (got {got})")
    return faults


def _where(at: tuple[Any, ...], file: str, positions: dict[tuple[Any, ...], Position]) -> str:
    """``file:line:column: a.b.3`` of a key, or of the nearest enclosing key that has a position."""
    name = ".".join(map(str, at)) or "the file"
    for length in range(len(at), 0, -1):
        if at[:length] in positions:
            source, line, column = positions[at[:length]]
            return f"{source}:{line}:{column}: {name}" if line else f"{source}: {name}"
    return f"{file}: {name}"


def _fault(fault: Any, file: str, positions: dict[tuple[Any, ...], Position]) -> str:
    at = tuple(fault["loc"])
    where = _where(at, file, positions)
    kind, got = fault["type"], json.dumps(fault.get("input"), default=str)[:80]
    if kind == "extra_forbidden":
        known = _known_keys(at[:-1])
        near = difflib.get_close_matches(str(at[-1]), known, 1)
        return f"{where}: unknown key{f'; did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"
    if kind == "missing":
        return f"{where}: is required"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "string_pattern_mismatch":
        message = "must be letters, digits, '.', '_' and '-' only, 64 at most"
    return f"{where}: {message} (got {got})"


def _known_keys(at: tuple[Any, ...]) -> list[str]:
    """A block's own keys first, then those of its filter."""
    fields = (BLOCKS[at[0]] if at else SweepSpec).model_fields
    return sorted(fields, key=lambda name: name in CellFilter.model_fields and at != ("exclude",))
