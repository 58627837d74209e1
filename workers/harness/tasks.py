"""Tasks of EleutherAI's lm-evaluation-harness by name, without torch:
where one is defined, and the digest of its definition.

The harness is an optional dependency, imported where it is needed. Its own index of all tasks takes seconds
(14,000 files), so a task is looked for first in the folder given, then in the harness's folders whose files
mention its name, then everywhere.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHOWN = 100
"""Tasks of a group that an error names at most."""


class HarnessError(ValueError):
    """A task or an argument that cannot be used, or a missing harness, with what to do."""


@dataclass(frozen=True)
class HarnessTask:
    """A single task: its name, the file that defines it, and its settings with the files it includes."""

    name: str
    file: Path
    config: Mapping[str, Any]
    """Functions are named by the path of their file, not imported."""


def require_harness() -> Path:
    """The harness's own folder of tasks. Raises HarnessError where it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise HarnessError("lm_eval is not installed: pip install 'kvsweep[lm-eval]'")
    return Path(found.origin).parent / "tasks"


def find_task(name: str, include_path: str | None = None) -> HarnessTask:
    """The task of that name; those of ``include_path`` (a folder of YAML files) hide the harness's own.

    Raises HarnessError where there is none, with near names, or where the name is that of several tasks, with
    theirs.
    """
    own = require_harness()
    if include_path is not None and not _is_folder(_path(include_path)):
        raise HarnessError(f"include_path {include_path!r}: there is no such directory")
    index: dict[str, Any] = {}
    for folders in _places(name, own, include_path):
        index = _index(folders)
        if name in index:
            return _single(name, index, own, include_path)
    near = difflib.get_close_matches(name, index, 5)  # the last place is everywhere
    hint = f"; near it: {', '.join(near)}" if near else "; `lm_eval ls tasks` prints all"
    raise HarnessError(f"there is no task {name!r} in lm_eval {version('lm_eval')}{hint}")


def task_digest(name: str, include_path: str | None = None) -> str:
    """16 hex digits of what defines the task: its settings, its code and local data, the harness's version.

    A dataset on a hub is known by its name only: what the hub gives for it may change unnoticed. Raises
    HarnessError.
    """
    task = find_task(name, include_path)
    digest = hashlib.sha256(f"lm_eval {version('lm_eval')} {name}".encode())
    digest.update(json.dumps(_portable(task.config), sort_keys=True, default=str).encode())
    for content in sorted(
        hashlib.sha256(file.read_bytes()).digest() for file in set(_files_named(task.config))
    ):
        digest.update(content)
    return digest.hexdigest()[:16]


def _places(name: str, own: Path, include_path: str | None) -> Iterator[list[Path]]:
    if include_path is not None:
        yield [_path(include_path)]
    mention = name.encode()
    mentioning = sorted({file.parent for file in own.rglob("*.yaml") if mention in file.read_bytes()})
    yield [
        folder
        for folder in mentioning
        if not any(folder.is_relative_to(other) for other in mentioning if other != folder)
    ]
    yield _everywhere(own, include_path)


def _path(include_path: str) -> Path:
    """With the home directory for ``~``, where there is one."""
    return Path(os.path.expanduser(include_path))


def _is_folder(path: Path) -> bool:
    """Of what may not be looked at, or is no path, too."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _everywhere(own: Path, include_path: str | None) -> list[Path]:
    return [own, *([_path(include_path)] if include_path is not None else [])]


def _index(folders: list[Path]) -> dict[str, Any]:
    """Name -> the harness's entry, of all tasks, groups and tags defined in the folders."""
    from lm_eval.tasks import TaskManager

    # tags found in two folders are nothing to warn of
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)
    return TaskManager(include_path=[*folders], include_defaults=False).task_index


def _single(name: str, index: dict[str, Any], own: Path, include_path: str | None) -> HarnessTask:
    """Raises HarnessError for a group or a tag: each task is a measurement of its own."""
    entry = index[name]
    kind = entry.kind.name.lower()
    if kind in ("group", "tag"):
        members = sorted(_members(name, index | _index(_everywhere(own, include_path))))
        more = f", ... ({len(members)} in all)" if len(members) > SHOWN else ""
        raise HarnessError(
            f"{name!r} is a {kind} of tasks; name the tasks themselves: {', '.join(members[:SHOWN])}{more}"
        )
    return HarnessTask(name, Path(entry.yaml_path), entry.cfg)


def _members(name: str, index: dict[str, Any]) -> set[str]:
    """The tasks below a group or tag."""
    entry = index.get(name)
    if entry is None or entry.kind.name.lower() not in ("group", "tag"):
        return {name}
    below = entry.tags if entry.kind.name == "TAG" else entry.cfg.get("task") or ()
    names = [item if isinstance(item, str) else str(item.get("task") or item.get("group")) for item in below]
    return set().union(*(_members(each, index) for each in names if each != name))


def _portable(value: Any) -> Any:
    """Settings in which files are named without their folders,
    so that a digest is the same on every machine."""
    if isinstance(value, Mapping):
        return {str(key): _portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and _file_of(value) else value


def _files_named(value: Any) -> Iterator[Path]:
    """Local files that settings name: data, and the code of functions."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _files_named(inner)
    elif isinstance(value, str) and (file := _file_of(value)):
        yield file


def _file_of(text: str) -> Path | None:
    """The file that a string names, itself or as ``path/to/module.function``."""
    if "\n" in text or not 0 < len(text) < 1000:
        return None
    for candidate in (Path(text), Path(text.rpartition(".")[0] + ".py")):
        if candidate.is_file():
            return candidate
    return None
