"""Many small parts -> few large ones, while a run goes on or after it.

No row is ever missing or lost on the way.

The rows are put as one whole new part first, and the parts that it replaces
are deleted after that: a reader in between, or after a crash, sees rows twice,
which everything that reads them knows to drop (``done``, ``analysis.load``).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pyarrow.parquet as pq

from pipeline.store.answer_files import drop_useless
from pipeline.store.part_files import as_parquet, scan_files, unreadable
from pipeline.store.run_store import RunStore
from pipeline.store.schema import TASK_COLUMNS
from pipeline.store.store_errors import RunUnreadableError
from pipeline.tasks import TASKS

SMALL_BYTES, TARGET_BYTES, MOST_PARTS = 4 * 2**20, 48 * 2**20, 4000
"""Parts under the first are put together, up to the second
or third: what fits in the driver's memory unpacked."""
AT_LEAST, READERS = 2, 16
PREFIX, REPLACES = "compact-", "kvsweep_replaces"


def compact(store: RunStore, tasks: Collection[str] = TASK_COLUMNS) -> int:
    """Put small parts together; returns how many were replaced. The caller is the only writer of the run.

    Answers whose rows are stored (``answer_files``) are deleted.

    Raises RunUnreadableError where a part cannot be read or
    was written by a newer kvsweep: nothing is replaced then.
    """
    replaced = 0
    for task in tasks:
        store.check_parts(task)
        finish(store, task)
        for names in _groups(store, task):
            with ThreadPoolExecutor(READERS) as pool:
                contents = dict(zip(names, pool.map(store.get, names), strict=True))
            digests = {name: _digest(content) for name, content in contents.items() if content is not None}
            table = _table(
                store, task, {name: content for name, content in contents.items() if content is not None}
            )
            digest = _digest(json.dumps(digests).encode())
            store.add_file(
                f"{task}/{PREFIX}{digest[:8]}", as_parquet(table.to_arrow(), {REPLACES: json.dumps(digests)})
            )
            store.delete_all(names)
            replaced += len(names)
    for task in (task for task in tasks if task in TASKS and TASKS[task].keeps_answers):
        drop_useless(store, task)
    return replaced


def _table(store: RunStore, task: str, contents: dict[str, bytes]) -> pl.DataFrame:
    """All rows of some parts.

    Raises RunUnreadableError, with the part's name, where values of one are broken.
    """
    try:
        return scan_files(task, [io.BytesIO(content) for content in contents.values()]).collect()
    except pl.exceptions.PolarsError as error:
        found = ((name, unreadable(task, content)) for name, content in contents.items())
        name, words = next(
            ((name, words) for name, words in found if words), (task, str(error).splitlines()[0])
        )
        raise RunUnreadableError(
            f"{store.directory}/{name}: {words}; `kvsweep run` with the same sweep sets it aside and does "
            "its cells again"
        ) from error


def finish(store: RunStore, task: str) -> None:
    """Delete what a compaction that was cut off has left: parts that are, byte for byte, in a compacted
    one."""
    names = set(store.parts(task))
    for name in sorted(names):
        if not name.startswith(f"{task}/{PREFIX}"):
            continue
        replaces = _replaced(store.get(name) or b"")
        left = [part for part in replaces.keys() & names if _digest(store.get(part) or b"") == replaces[part]]
        if left:
            store.delete_all(sorted(left))
            names -= set(left)


def _replaced(part: bytes) -> dict[str, str]:
    """Digests of the parts that a compacted one took the place of, by name, as it says itself."""
    metadata = pq.read_metadata(io.BytesIO(part)).metadata or {}
    try:
        said = json.loads(metadata.get(REPLACES.encode(), b"{}"))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _groups(store: RunStore, task: str) -> Iterator[list[str]]:
    """Small parts to put together, oldest names first."""
    group: list[str] = []
    total = 0
    for name, size in store.sizes(task).items():
        if size >= SMALL_BYTES:
            continue
        if group and (total + size > TARGET_BYTES or len(group) == MOST_PARTS):
            if len(group) >= AT_LEAST:
                yield group
            group, total = [], 0
        group.append(name)
        total += size

    if len(group) >= AT_LEAST:
        yield group


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
