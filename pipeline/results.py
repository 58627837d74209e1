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
from typing import TYPE_CHECKING, Any

import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore, from_url

from pipeline.store_errors import explained, repeats

if TYPE_CHECKING:
    from obstore.store import RetryConfig  # not there at run time

SCHEMA_VERSION = 3

ANSWER_TOKENS = 8
"""Room for the answer to a retrieval question: five digits and a space are six tokens even where each byte is one."""

RETRIES: RetryConfig = {
    "max_retries": 10,
    "backoff": {"init_backoff": datetime.timedelta(milliseconds=100), "max_backoff": datetime.timedelta(seconds=5), "base": 2},
    "retry_timeout": datetime.timedelta(seconds=30),
}
"""How often and how long obstore asks again after a 5xx or a lost connection: seconds, since nothing is lost by stopping."""

CREATE_ATTEMPTS = 5
"""Of a put that only the first writer wins. obstore does not repeat it after a lost connection: it may have worked."""

STORE_ERRORS = (obstore.exceptions.BaseError, OSError)
"""What an unreachable or refusing store raises."""

CELL_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "run_id": pl.String,
    "protocol_version": pl.Int32,
    "cell_id": pl.String,
    "dense_cell_id": pl.String,
    "model": pl.String,
    "model_revision": pl.String,
    "dataset": pl.String,
    "dataset_fingerprint": pl.String,
    "device": pl.String,
    "device_name": pl.String,
    "dtype": pl.String,
    "policy": pl.String,
    "keep_ratio": pl.Float64,
    "prune_after": pl.Int32,
    "skip_layers": pl.List(pl.Int32),
    "protect_sink": pl.Int32,
    "protect_recent": pl.Int32,
    "schedule": pl.String,
    "position_mode": pl.String,
    "seed": pl.Int64,
}
"""The columns every table starts with: who made the row and which cell it belongs to."""

TASK_COLUMNS: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "perplexity": {
        "window_index": pl.Int32,
        "window_start": pl.Int64,
        "window": pl.Int32,
        "stride": pl.Int32,
        "document": pl.Int32,
        "tokens_scored": pl.Int32,
        "nll_sum": pl.Float64,
        "nll": pl.List(pl.Float32),
        "tokens_correct": pl.Int32,
        "prune_events": pl.Int32,
        "tokens_scored_pruned": pl.Int32,
        "cache_tokens_mean": pl.Float64,
        "cache_tokens_peak": pl.Int32,
        "cache_tokens_final": pl.List(pl.Int32),
        "kv_bytes_mean": pl.Float64,
        "kv_bytes_peak": pl.Int64,
        "recent_retained": pl.Float64,
        "sink_retained": pl.Float64,
        "score_ties": pl.Float64,
        "forward_passes": pl.Int32,
        "seconds": pl.Float64,
        "event_steps": pl.List(pl.Int32),
        "event_kept": pl.List(pl.Int32),
    },
    "generation": {
        "prompt_tokens": pl.Int32,
        "batch_size": pl.Int32,
        "new_tokens": pl.Int32,
        "timing_protocol": pl.String,
        "repeat": pl.Int32,
        "round_order": pl.Int32,
        "control": pl.Boolean,
        "ttft_seconds": pl.Float64,
        "prompt_prune_seconds": pl.Float64,
        "tpot_seconds": pl.Float64,
        "total_seconds": pl.Float64,
        "tokens_per_second": pl.Float64,
        "token_seconds": pl.List(pl.Float64),
        "prune_steps": pl.List(pl.Int32),
        "prune_seconds": pl.Float64,
        "kv_bytes_prompt": pl.Int64,
        "kv_bytes_peak": pl.Int64,
        "kv_bytes_final": pl.Int64,
        "kv_bytes_step_mean": pl.Float64,
        "weight_bytes": pl.Int64,
        "memory_bandwidth": pl.Float64,
        "peak_memory_bytes": pl.Int64,
        "peak_memory_method": pl.String,
        "prune_events": pl.Int32,
        "output_tokens": pl.List(pl.Int32),
        "threads": pl.Int32,
    },
    "retrieval": {
        "kind": pl.String,
        "context_tokens": pl.Int32,
        "depth": pl.Float64,
        "question_index": pl.Int32,
        "expected": pl.String,
        "answer": pl.String,
        "correct": pl.Boolean,
        "prune_events": pl.Int32,
        "answer_position_retained": pl.Float64,
    },
    "failures": {
        "task": pl.String,
        "error_type": pl.String,
        "message": pl.String,
        "traceback": pl.String,
        "attempts": pl.Int32,
        "node": pl.String,
    },
}
"""The columns each task adds. ``control``: the second run of the dense cell in a round. ``prune_steps``: indices into
``token_seconds``. ``output_tokens``: row after row of the batch. ``memory_bandwidth``: measured beside the run, bytes per second.
``seconds`` of perplexity is the window's share of its unit's wall time, for cost only. ``event_steps``: tokens seen at each prune
of a pruning layer, ``event_kept``: entries that it left; for drawing the cache's length over time, the same for every window of a
cell, empty where nothing is ever pruned, null in files of older schemas."""

TASKS = ("perplexity", "generation", "retrieval")


def schema(task: str) -> pl.Schema:
    """The whole schema of a table, cell columns first."""
    return pl.Schema({**CELL_COLUMNS, **TASK_COLUMNS[task]})


def to_arrow(task: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table in the table's schema. Raises ValueError where a row lacks a column or has one too many."""
    wanted = schema(task)
    for row in rows:
        if row.keys() != wanted.keys():
            raise ValueError(
                f"{task} row: missing {sorted(wanted.keys() - row.keys())}, unknown {sorted(row.keys() - wanted.keys())}"
            )
    return pl.DataFrame(rows, schema=wanted, orient="row").to_arrow()


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

    def parts(self, task: str) -> list[str]:
        """Names of a table's parts, sorted."""
        with self._explained():
            found = [meta["path"] for batch in obstore.list(self.store, prefix=f"{task}/") for meta in batch]
        return sorted(name for name in found if name.endswith(".parquet"))

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.directory) if is_remote(self.directory) else contextlib.nullcontext()

    def write_part(self, task: str, unit_id: str, table: pa.Table) -> bool:
        """Put one unit's rows as ``task/unit_id.parquet``; False where another writer was first."""
        buffer = io.BytesIO()
        marked = table.replace_schema_metadata({"kvsweep_schema": str(SCHEMA_VERSION), "unit_id": unit_id})
        pq.write_table(marked, buffer, compression="zstd")
        return self.put(f"{task}/{unit_id}.parquet", buffer.getvalue())

    def add_part(self, task: str, unit_id: str, table: pa.Table) -> str:
        """Put one unit's rows beside those that it has given before; returns the part's name.

        The first part has the unit's name, further ones a number: no part is ever replaced or dropped because its name is taken.
        """
        names = itertools.chain([unit_id], (f"{unit_id}-{number}" for number in itertools.count(1)))
        return next(f"{task}/{name}.parquet" for name in names if self.write_part(task, name, table))

    def set_aside_unreadable(self, task: str) -> list[str]:
        """Rename parts that are not whole Parquet files to ``*.unreadable``; returns their names."""
        broken = []
        for name in self.parts(task):
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
        return pl.scan_parquet(
            [f"{self.directory}/{name}" for name in names],
            schema=schema(task),
            missing_columns="insert",
            extra_columns="ignore",
            cast_options=pl.ScanCastOptions(integer_cast="upcast"),
            glob=False,
            include_file_paths=part_column,
        )
