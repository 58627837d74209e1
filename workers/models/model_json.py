"""The JSON files of a model's folder: one reader, which ends soon and in one line whatever lies there.

Everything raises ValueError with what is wrong and where, in words that go behind the model's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20
"""Of a file of settings or a vocabulary; the largest known, a tokenizer.json, has 34 MB."""
MAX_SHOWN = 80
"""Characters of somebody's value in a message."""


def is_file(path: Path) -> bool:
    """Whether a file is there.
    Raises ValueError for what has its name and is none: a folder, a pipe, an end of symlinks."""
    try:
        if path.is_file():
            return True
        if path.is_symlink() or path.exists():
            what = "(a folder, a pipe or a symbolic link to nothing)"
            raise ValueError(f"{path.name} in {path.parent} is not a file that can be read {what}")
    except OSError as error:
        raise ValueError(f"{path.name} in {path.parent} cannot be read: {error.strerror}") from error
    return False


def checked_size(path: Path) -> Path:
    """A file that is there and no longer than such files are."""
    if not is_file(path):
        raise ValueError(f"{path.name} is missing in {path.parent}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"{path.name} in {path.parent} is {size / 2**20:,.0f} MiB long; {MAX_BYTES / 2**20:,.0f} is the "
            "most"
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The settings by name that a JSON file holds."""
    checked_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise ValueError(f"{path.name} in {path.parent} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} in {path.parent} holds no settings by name (it is {shown(content)})")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same; no settings where there is no such file."""
    return read_json(path) if is_file(path) else {}


def finite(name: str, value: object) -> float | None:
    """A number that is one.
    None where there is none; booleans, NaN, infinity and what no float can hold are refused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {shown(value)}, not a number")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise ValueError(f"{name} is {shown(value)}, not a finite number")
    return value


def shown(value: object) -> str:
    """Somebody's value within a message of one line."""
    if isinstance(value, Mapping | list | tuple) and len(value) > 20:
        return f"a {'table' if isinstance(value, Mapping) else 'list'} of {len(value):,}"
    try:
        written = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        written = f"a {type(value).__name__} that is too large to show"
    return written if len(written) <= MAX_SHOWN else f"{written[:MAX_SHOWN]}..."


def one_line(message: object, most: int = 300) -> str:
    """What somebody's library says, as one line in which nothing moves a terminal's cursor."""
    text = " ".join(str(message).split())
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text[:most]
    )
    return safe + ("..." if len(text) > most else "")
