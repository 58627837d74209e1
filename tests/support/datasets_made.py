"""Small datasets on disk, of every form that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def words(number: int, count: int = 60) -> str:
    """A text that no other number has."""
    return f"Document {number}. " + " ".join(f"w{number}x{i}" for i in range(count))


def as_json_lines(texts: Sequence[Any], column: str = "text") -> bytes:
    """One object per line."""
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()


def as_csv(texts: Sequence[Any], column: str = "text") -> bytes:
    """A header and a line per text."""
    stream = io.StringIO()
    csv.writer(stream).writerows([["id", column], *[[i, text] for i, text in enumerate(texts)]])
    return stream.getvalue().encode()


def as_parquet(texts: Sequence[Any], column: str = "text", rows_per_group: int = 5) -> bytes:
    """Row groups of five."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(texts)), column: texts}), stream, row_group_size=rows_per_group)
    return stream.getvalue()


def as_json(texts: Sequence[Any], column: str = "text") -> bytes:
    """A list of objects."""
    return json.dumps([{"id": i, column: text} for i, text in enumerate(texts)]).encode()


def zstandard(data: bytes) -> bytes:
    """Compressed by pyarrow."""
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as compressed:
        compressed.write(data)
    return stream.getvalue().to_pybytes()


FORMS = {
    "data.jsonl": as_json_lines,
    "data.ndjson": as_json_lines,
    "data.json": as_json,
    "lines.json": as_json_lines,
    "data.csv": as_csv,
    "data.parquet": as_parquet,
    "data.jsonl.gz": lambda texts: gzip.compress(as_json_lines(texts)),
    "data.jsonl.bz2": lambda texts: bz2.compress(as_json_lines(texts)),
    "data.json.xz": lambda texts: lzma.compress(as_json(texts)),
    "data.csv.zst": lambda texts: zstandard(as_csv(texts)),
}
"""A file's name -> its content."""


def write(folder: Path, name: str, content: bytes | str) -> Path:
    """A file, its folders included."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file
