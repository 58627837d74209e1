"""Read a sweep file, strictly: a fault names file, line, key, value and what is allowed."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import BLOCKS, FIELDS, CellFilter, SweepSpec, cell_value
from pipeline.sweepfile.yaml_values import MAX_BYTES, YamlError, YamlNode, read_yaml
from pipeline.tasks import TASKS, tasks_asked

EMBEDDED_SWEEPS = Path(__file__).parents[1] / "sweeps"


FAULTS_SHOWN, ALLOWED_SHOWN = 50, 20
"""Of each, so many are said one by one and the others counted."""


@dataclass
class Places:
    """Where the keys and items of a sweep stand, and which of them options have replaced."""

    file: str
    root: YamlNode = field(default_factory=lambda: YamlNode(0, 0, {}))
    replaced: dict[tuple[Any, ...], str] = field(default_factory=dict)
    created: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """Blocks that are there because an option names a key in them."""

    def where(self, at: tuple[Any, ...]) -> str:
        """``file:line:column: a.b.3`` of a key, or of the nearest enclosing key that has a place."""
        name = ".".join(map(str, at)) or "the file"
        for length in range(len(at), 0, -1):
            path = at[:length]
            if path in self.replaced:
                return f"{self.replaced[path]}: {name}"
            if any(path[:n] in self.replaced for n in range(1, length)):
                continue
            if place := self._place(path):
                return f"{self.file}:{place[0]}:{place[1]}: {name}"
            if path in self.created:
                return f"{self.created[path]}: {name}"
        return f"{self.file}: {name}"

    def _place(self, path: tuple[Any, ...]) -> tuple[int, int] | None:
        node, place = self.root, None
        for step in path:
            if isinstance(node.value, dict) and step in node.value:
                place, node = node.keys.get(step), node.value[step]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                place = (node.line, node.column)
            else:
                return None
        return place


def load_spec(path: str | None, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep file (None: the embedded default; a bare name:
    an embedded sweep) and apply ``key=value`` overrides.

    Raises SweepError with one message per fault.
    """
    file = _find(path)
    try:
        root = read_yaml(_text(file))
    except YamlError as error:
        where = f"{printable(str(file))}:{error.line}:{error.column}" if error.line else printable(str(file))
        raise SweepError([f"{where}: {error}"]) from None
    if not isinstance(root.value, dict):
        raise SweepError(
            [f"{printable(str(file))}: a sweep file is a mapping of keys to values, like 'name: my-sweep'"]
        )

    places, plain = Places(printable(str(file)), root), root.plain()
    for override in overrides:
        _apply(plain, override, places)
    return _validated(plain, places)


def _find(path: str | None) -> Path:
    if path is None:
        return EMBEDDED_SWEEPS / "default.yaml"
    try:
        file = Path(os.path.expanduser(path))
        kind = file.stat().st_mode
    except (OSError, ValueError):  # no such file or user, a NUL, a loop of links
        if path in _embedded():
            return EMBEDDED_SWEEPS / f"{path}.yaml"
        raise _no_such(path, "there is no such sweep file") from None

    if stat.S_ISDIR(kind):
        raise _no_such(path, "there is no such sweep file, it is a directory")
    if not stat.S_ISREG(kind):
        raise _no_such(path, "is a pipe or a device; a sweep is read from a file")
    return file


def _no_such(path: str, what: str) -> SweepError:
    return SweepError([f"{printable(path)}: {what} (embedded sweeps by name: {', '.join(_embedded())})"])


def _embedded() -> list[str]:
    return sorted(file.stem for file in EMBEDDED_SWEEPS.glob("*.yaml"))


def _text(file: Path) -> str:
    """What a sweep file says, line ends as one character. Raises SweepError where it is too long, unreadable
    or no UTF-8."""
    name = printable(str(file))
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SweepError([f"{name}: longer than {MAX_BYTES / 2**20:g} MiB, so no sweep file"])
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise SweepError([f"{name}: not UTF-8 text (byte {error.start})"]) from None
    except OSError as error:
        raise SweepError([f"{name}: cannot be read: {error.strerror}"]) from None


def _apply(plain: dict[str, Any], override: str, places: Places) -> None:
    """``a.b=value`` with a YAML value. Raises SweepError where it is malformed."""
    key, equals, text = override.partition("=")
    option = f"--set {printable(override)}"
    if not equals or not key:
        raise SweepError([f"{option}: write key=value, like --set perplexity.windows=4"])
    try:
        value = read_yaml(text).plain()
    except YamlError as error:
        raise SweepError([f"{option}: {error}"]) from None

    path = tuple(printable(part) for part in key.split("."))
    target = plain
    for depth, parent in enumerate(path[:-1], 1):
        places.created.setdefault(path[:depth], option)
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise SweepError([f"{option}: {parent} is not a block of keys"])
    target[path[-1]] = value
    places.replaced = {at: by for at, by in places.replaced.items() if at[: len(path)] != path} | {
        path: option
    }


def printable(text: str, most: int = 200) -> str:
    """Somebody's text within a message of one line: nothing
    in it moves a terminal's cursor, and a long one is cut."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in shown
    )


def spec_of(plain: dict[str, Any], origin: str) -> SweepSpec:
    """A sweep that is in no file; ``origin`` names who made it.

    Raises SweepError with one message per fault.
    """
    return _validated(plain, Places(origin))


def _validated(plain: dict[str, Any], places: Places) -> SweepSpec:
    try:
        spec = SweepSpec.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        raise SweepError(
            _told((_fault(fault, places) for fault in error.errors()), error.error_count())
        ) from None
    faults = _task_faults(spec, places)
    unknown = _unknown_exclusions(spec)
    faults += _told((_exclusion_fault(spec, at, places) for at in unknown), len(unknown))
    if faults:
        raise SweepError(faults)
    return spec


def _task_faults(spec: SweepSpec, places: Places) -> list[str]:
    """What no task can be asked, or one that is asked cannot do, by the sweep file alone."""
    faults, asked = [], tasks_asked(spec)
    if not asked:
        blocks = ", ".join(task.block for task in TASKS.values())
        faults.append(f"{places.file}: nothing to measure; add at least one block of {blocks}")
    if not spec.datasets and not (asked and all(task.brings_texts for task in asked)):
        without = " and ".join(task.block for task in TASKS.values() if task.brings_texts)
        faults.append(
            f"{places.where(('datasets',))}: is required, at least one (only {without} brings its own texts)"
        )

    for task in asked:
        faults += [f"{places.where(key)}: {what}" for key, what in task.sweep_faults(spec)]
    return faults


def _told(faults: Iterable[str], count: int) -> list[str]:
    """The first faults, and how many more there are: a wrong key in ten thousand blocks is one mistake."""
    shown = list(islice(faults, FAULTS_SHOWN))
    return shown + ([f"and {count - len(shown):,} more faults of this kind"] if count > len(shown) else [])


def _unknown_exclusions(spec: SweepSpec) -> list[tuple[int, str, int]]:
    """(block, axis, place) of excluded values that are not
    in the grid: a typo would silently exclude nothing."""
    in_grid = {axis: {cell_value(axis, value) for value in getattr(spec, axis)} for axis in FIELDS}
    return [
        (i, axis, place)
        for i, block in enumerate(spec.exclude)
        for axis, values in block.named().items()
        for place, value in enumerate(values)
        if value not in in_grid[axis]
    ]


def _exclusion_fault(spec: SweepSpec, at: tuple[int, str, int], places: Places) -> str:
    block, axis, place = at
    values = getattr(spec, axis)
    allowed = ", ".join(map(json.dumps, values[:ALLOWED_SHOWN])) + (
        ", ..." if len(values) > ALLOWED_SHOWN else ""
    )
    got = json.dumps(getattr(spec.exclude[block], axis)[place])
    return f"{places.where(('exclude', *at))}: must be one of the sweep's {axis} {allowed} (got {got})"


def _fault(fault: Any, places: Places) -> str:
    at = tuple(fault["loc"])
    where = places.where(at)
    kind, got = fault["type"], json.dumps(fault.get("input"), default=str)[:80]

    if kind == "extra_forbidden":
        known = _known_keys(at[:-1])
        near = difflib.get_close_matches(str(at[-1])[:80], known, 1)
        return (
            f"{where}: unknown key{f'; did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"
        )
    if kind == "missing":
        return f"{where}: is required"

    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "string_pattern_mismatch":
        message = "must be letters, digits, '.', '_' and '-' only, 64 at most"
    return f"{where}: {printable(message, 600)} (got {got})"


def _known_keys(at: tuple[Any, ...]) -> list[str]:
    """A block's own keys first, then those of its filter."""
    fields = (BLOCKS[at[0]] if at else SweepSpec).model_fields
    return sorted(fields, key=lambda name: name in CellFilter.model_fields and at != ("exclude",))
