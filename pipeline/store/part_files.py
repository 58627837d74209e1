"""Parts of tables as files: how they are written and scanned, and what one must be before a row of it is
believed: Parquet, of a schema known here, with columns of its types."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.schema import ROW_KEYS, SCHEMA_VERSION, schema

SCHEMA_KEY = "kvsweep_schema"

LEAST_BYTES = 12
"""A Parquet file has at least its two marks and the length of its footer."""

TAIL_BYTES = 2**16
"""From the end of a part: its footer, in nearly all cases."""

FIRST_COLUMNS = {"retrieval": {"digits", "distractors"}}
"""Of the columns that tell a cell's rows apart, those that files of the first schemas lack."""


class NewerSchemaError(ValueError):
    """A part was written by a newer kvsweep. The message says by which schema."""


def as_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """A whole file, with the schema's version and ``metadata`` in it."""
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({SCHEMA_KEY: str(SCHEMA_VERSION), **metadata}),
        buffer,
        compression="zstd",
    )
    return buffer.getvalue()


def scan_files(
    task: str, sources: list[str] | list[IO[bytes]], part_column: str | None = None, **access: Any
) -> pl.LazyFrame:
    """Parquet files of a table, of this schema or an older one; ``access`` is how polars asks their store."""
    return pl.scan_parquet(
        sources,
        schema=schema(task),
        missing_columns="insert",
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast"),
        glob=False,
        include_file_paths=part_column,
        **access,
    )


def footer_of(tail: bytes) -> pq.FileMetaData | None:
    """The footer at the end of a part's last bytes; None where it does not lie in them whole.

    Raises ArrowException, OSError.
    """
    if len(tail) >= LEAST_BYTES:
        length = int.from_bytes(tail[-8:-4], "little")
        if tail[-4:] == b"PAR1" and length + LEAST_BYTES > len(tail):
            return None
    return pq.read_metadata(io.BytesIO(tail))


def fault(task: str, footer: pq.FileMetaData) -> str | None:
    """Why rows of a part cannot be those of a table, in words; None where they can.

    Raises NewerSchemaError, ArrowException.
    """
    version = _schema_version(footer)
    if version is not None and version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"was written by a newer kvsweep (schema {version}; this one knows up to {SCHEMA_VERSION})"
        )

    try:
        found = pl.Schema(footer.schema.to_arrow_schema())
    except (TypeError, ValueError, NotImplementedError, pl.exceptions.PolarsError) as error:
        return f"has columns of types that no table has ({' '.join(str(error).split())[:80]})"
    missing = [name for name in ("cell_id", *ROW_KEYS[task]) if name not in found]
    missing = [name for name in missing if name not in FIRST_COLUMNS.get(task, ())]
    if missing:
        return f"has no column {missing[0]}, without which its rows cannot be told apart"
    return _type_fault(found, schema(task))


def _schema_version(footer: pq.FileMetaData) -> int | None:
    """By the mark that kvsweep puts on its files; None where
    there is none, as after an edit with another program."""
    mark = (footer.metadata or {}).get(SCHEMA_KEY.encode())
    return int(mark) if mark is not None and mark.isdigit() else None


def _type_fault(found: Mapping[str, pl.DataType], wanted: Mapping[str, pl.DataType]) -> str | None:
    for name, kind in wanted.items():
        if name in found and not _holds(kind, found[name]):
            return f"has the column {name} as {found[name]}, where {kind} belongs"
    return None


def _holds(wanted: pl.DataType, found: pl.DataType) -> bool:
    """Whether every value of one type is one of the other, as the scan reads it."""
    if isinstance(wanted, pl.List) and isinstance(found, pl.List):
        return wanted.inner == found.inner
    if wanted.is_signed_integer() and found.is_signed_integer():
        return _bits(found) <= _bits(wanted)
    if wanted.is_float() and found.is_float():
        return _bits(found) <= _bits(wanted)
    return wanted == found


def _bits(kind: pl.DataType) -> int:
    return int("".join(sign for sign in str(kind) if sign.isdigit()))


def unreadable(task: str, content: bytes) -> str | None:
    """Why not every row of a part can be read, in words: reads them all.

    None where they can. Raises NewerSchemaError.
    """
    try:
        words = fault(task, pq.read_metadata(io.BytesIO(content)))
        if words is None:
            pq.read_table(io.BytesIO(content)).validate(full=True)
        return words
    except (pa.ArrowException, OSError) as error:
        return f"is no readable Parquet file ({' '.join(str(error).split())[:80]})"
