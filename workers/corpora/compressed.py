"""What is in a compressed file, as far as is read of one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from workers.corpora.entry import CorpusError, shown_path

EXPANDED = 64_000_000
"""Bytes of a compressed file's content that are read at most. Whatever lies behind them is not looked at."""
PIECE = 1_000_000


def _zstandard(path: Path) -> Any:
    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}
"""By a file's last ending."""


def expanded(path: Path, limit: int = EXPANDED) -> tuple[bytes, bool]:
    """The first ``limit`` bytes of what a compressed file holds, and whether that is all.

    Raises CorpusError where it is damaged.
    """
    parts: list[bytes] = []
    left = limit + 1
    try:
        with OPENERS[path.suffix.lower()](path) as stream:
            while left > 0 and (part := stream.read(min(PIECE, left))):
                parts.append(part)
                left -= len(part)
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise CorpusError(
            f"{shown_path(path)} cannot be expanded ({reason}): damaged, or no {path.suffix} file"
        ) from None
    data = b"".join(parts)
    return data[:limit], len(data) <= limit
