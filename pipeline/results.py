"""The tables: their schema, atomic Parquet parts on local disk or an object store, one scan function.

A part is serialised in memory and put whole, first writer wins, so a reader never sees half of one. Every part is named by
the work unit that made it; the driver is the only writer. All reading goes through ``scan``.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore, from_url

from pipeline.schema import ANSWER_TOKENS, CELL_COLUMNS, SCHEMA_VERSION, TASK_COLUMNS, TASKS, answer_room, schema, to_arrow
from pipeline.store_errors import explained, repeats

__all__ = [
    "ANSWER_TOKENS", "CELL_COLUMNS", "SCHEMA_VERSION", "STORE_ERRORS", "TASKS", "TASK_COLUMNS", "RunStore", "answer_room",
    "is_remote", "schema", "to_arrow",
]  # fmt: skip

if TYPE_CHECKING:
    from obstore.store import RetryConfig  # not there at run time

RETRIES: RetryConfig = {
    "max_retries": 10,
    "backoff": {"init_backoff": datetime.timedelta(milliseconds=100), "max_backoff": datetime.timedelta(seconds=5), "base": 2},
    "retry_timeout": datetime.timedelta(seconds=30),
}
"""How often and how long obstore asks again after a 5xx or a lost connection: seconds, since nothing is lost by stopping."""

LEAST_BYTES = 12
"""A Parquet file has at least its two marks and the length of its footer."""

CREATE_ATTEMPTS = 5
"""Of a put that only the first writer wins. obstore does not repeat it after a lost connection: it may have worked."""

STORE_ERRORS = (obstore.exceptions.BaseError, OSError)
"""What an unreachable or refusing store raises."""


def as_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """A whole file, with the schema's version and ``metadata`` in it."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"kvsweep_schema": str(SCHEMA_VERSION), **metadata}), buffer, compression="zstd")
    return buffer.getvalue()


def is_remote(directory: str) -> bool:
    """Whether a run directory is a URL of an object store."""
    return "://" in directory and not directory.startswith("file://")


class RunStore:
    """One run directory: local path or object-store URL (s3://, gs://).

    Raises FileNotFoundError for a local directory that is not there, and STORE_ERRORS where the store cannot be reached or
    refuses: StoreError, in words, for an object store.
    """

    def __init__(self, directory: str, *, create: bool = False) -> None:
        self.directory = directory.rstrip("/") if is_remote(directory) else str(Path(directory).resolve())
        if is_remote(directory):
            with explained(self.directory):
                self.store: ObjectStore = from_url(self.directory, retry_config=RETRIES)
        else:
            if create:
                Path(self.directory).mkdir(parents=True, exist_ok=True)
            elif not Path(self.directory).is_dir():
                raise FileNotFoundError(f"{directory}: there is no such directory")
            self.store = from_url(Path(self.directory).as_uri())

    def put(self, name: str, content: bytes, *, overwrite: bool = False) -> bool:
        """Write a whole object at once; False where another one is there already and ``overwrite`` is not set."""
        with self._explained():
            if not overwrite:
                return self._create(name, content)
            obstore.put(self.store, name, content, mode="overwrite")
            return True

    def _create(self, name: str, content: bytes) -> bool:
        """In an object store a request whose answer was lost may have worked, so what is there then is compared with ours."""
        remote = is_remote(self.directory)
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                obstore.put(self.store, name, content, mode="create")
                return True
            except obstore.exceptions.AlreadyExistsError:
                return remote and self.get(name) == content
            except obstore.exceptions.GenericError as error:
                if not remote or attempt == CREATE_ATTEMPTS or repeats(str(error)):
                    raise
                found = self.get(name)
                if found is not None:
                    return found == content
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def get(self, name: str) -> bytes | None:
        """The object's content, or None where there is none."""
        with self._explained():
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except (obstore.exceptions.NotFoundError, FileNotFoundError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def delete(self, name: str) -> None:
        """Remove one object."""
        with self._explained():
            obstore.delete(self.store, name)

    def delete_all(self, names: Sequence[str]) -> None:
        """Remove many objects, in an object store with few requests; one that is gone already is no error."""
        with self._explained():
            if is_remote(self.directory):
                obstore.delete(self.store, list(names))
                return
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self.store, name)

    def sizes(self, task: str) -> dict[str, int]:
        """Names of a table's parts, sorted, and their bytes."""
        with self._explained():
            found = {meta["path"]: meta["size"] for batch in obstore.list(self.store, prefix=f"{task}/") for meta in batch}
        return {name: found[name] for name in sorted(found) if name.endswith(".parquet")}

    def parts(self, task: str) -> list[str]:
        """Names of a table's parts, sorted."""
        return list(self.sizes(task))

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.directory) if is_remote(self.directory) else contextlib.nullcontext()

    def write_part(self, task: str, unit_id: str, table: pa.Table) -> bool:
        """Put one unit's rows as ``task/unit_id.parquet``; False where another writer was first."""
        return self.put(f"{task}/{unit_id}.parquet", as_parquet(table, {"unit_id": unit_id}))

    def add_part(self, task: str, unit_id: str, table: pa.Table) -> str:
        """Put one unit's rows beside those that it has given before; returns the part's name.

        The first part has the unit's name, further ones a number: no part is ever replaced or dropped because its name is taken.
        """
        names = itertools.chain([unit_id], (f"{unit_id}-{number}" for number in itertools.count(1)))
        return next(f"{task}/{name}.parquet" for name in names if self.write_part(task, name, table))

    def set_aside_unreadable(self, task: str, *, thorough: bool = False) -> list[str]:
        """Rename parts that are not whole Parquet files to ``*.unreadable``; returns their names.

        Looks at sizes alone, which finds what a scan takes for an empty table, unless ``thorough``: then at every footer.
        """
        broken = []
        for name, size in self.sizes(task).items():
            if size >= LEAST_BYTES and not thorough:
                continue
            content = self.get(name) or b""
            try:
                pq.read_metadata(io.BytesIO(content))
            except (pa.ArrowException, OSError):
                self.put(f"{name}.unreadable", content, overwrite=True)
                self.delete(name)
                broken.append(name)
        return broken

    def parts_with(self, task: str, cell_ids: Collection[str]) -> list[str]:
        """Names of the parts that hold rows of these cells."""
        found = self.scan(task, part_column="part").filter(pl.col("cell_id").is_in(list(cell_ids)))
        places = found.select(pl.col("part").unique()).collect()["part"]
        return sorted(f"{task}/{place.rsplit('/', 1)[-1]}" for place in places)

    def scan(self, task: str, parts: Sequence[str] | None = None, part_column: str | None = None) -> pl.LazyFrame:
        """All rows of a table, or of some of its parts, lazily; empty with the right schema where there are none.

        ``part_column`` adds the path of each row's part under this name.
        """
        names = self.parts(task) if parts is None else parts
        if not names:
            return pl.LazyFrame(schema=schema(task) | ({part_column: pl.String} if part_column else {}))
        return scan_files(task, [f"{self.directory}/{name}" for name in names], part_column)


def scan_files(task: str, sources: list[str] | list[IO[bytes]], part_column: str | None = None) -> pl.LazyFrame:
    """Parquet files of a table, of this schema or an older one."""
    return pl.scan_parquet(
        sources,
        schema=schema(task),
        missing_columns="insert",
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(integer_cast="upcast"),
        glob=False,
        include_file_paths=part_column,
    )
