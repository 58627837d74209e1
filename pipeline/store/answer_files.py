"""Answers that units have told of before their rows: small
files of JSON lines, there for as long as the rows are not.

A worker or a driver that is killed in the middle of a long task of the harness
takes what is here up again. Nothing but that reads these files, so one that is
broken or somebody else's is left alone: its requests are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from pipeline.store.run_store import READERS, RunStore
from pipeline.store.store_errors import RunUnreadableError
from workers.messages.kept_answers import KeptAnswers

FOLDER, ENDING = "answers", ".jsonl"
MOST_ANSWER_BYTES = 2**26
"""Of a file; one holds what a worker has answered in some 20 seconds."""


class AnswerFiles:
    """The answers in a run directory, each file named by its
    cell and a digest of its content; the driver alone writes."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        for name in store.names(FOLDER, ENDING):
            self._names[_cell_of(name)].add(name)

    @property
    def cells(self) -> frozenset[str]:
        """Ids of the cells that files are named by."""
        return frozenset(self._names)

    def add(self, answers: Iterable[KeptAnswers]) -> None:
        """Put what a unit has told of. Raises as the store does."""
        by_cell: defaultdict[str, list[KeptAnswers]] = defaultdict(list)
        for each in answers:
            by_cell[each.cell_id].append(each)
        for cell_id, own in by_cell.items():
            content = "".join(json.dumps(vars(each)) + "\n" for each in own).encode()
            name = f"{FOLDER}/{cell_id}-{_digest(content)}{ENDING}"
            self._store.put(name, content, overwrite=True)
            self._names[cell_id].add(name)

    def of(self, cell_ids: Iterable[str]) -> tuple[KeptAnswers, ...]:
        """What can be read of these cells' answers. Raises as the store does."""
        names = sorted(name for cell_id in cell_ids for name in self._names.get(cell_id, ()))
        if not names:
            return ()
        with ThreadPoolExecutor(READERS) as pool:
            return tuple(answer for found in pool.map(self._read, names) for answer in found)

    def drop(self, cell_ids: Collection[str]) -> None:
        """Delete the answers of cells whose rows are stored. Raises as the store does."""
        names = sorted(name for cell_id in cell_ids for name in self._names.pop(cell_id, ()))
        if names:
            self._store.delete_all(names)
            self._store.delete_empty(FOLDER)

    def _read(self, name: str) -> list[KeptAnswers]:
        """All answers of a file, or none where it is gone, or not what was put there."""
        try:
            content = self._store.get(name, MOST_ANSWER_BYTES)
        except RunUnreadableError:
            return []
        if content is None or not name.endswith(f"-{_digest(content)}{ENDING}"):
            return []
        with contextlib.suppress(ValueError, RecursionError):
            return list(_parsed(content))
        return []


def drop_useless(store: RunStore, task: str) -> None:
    """Delete the answers of all cells of a task whose rows are stored, where a driver died between the two.

    Raises as the store does.
    """
    files = AnswerFiles(store)
    if files.cells:
        stored = store.scan(task).filter(pl.col("cell_id").is_in(list(files.cells))).select("cell_id")
        files.drop(stored.collect()["cell_id"].unique().to_list())


def _parsed(content: bytes) -> Iterator[KeptAnswers]:
    """Raises ValueError for what is no JSON, or other than answers."""
    for line in content.splitlines():
        given: Any = json.loads(line)
        if not isinstance(given, dict) or given.keys() != {"cell_id", "asked", "answers"}:
            raise ValueError("no answers")
        if (
            not isinstance(given["cell_id"], str)
            or not isinstance(given["asked"], str)
            or not isinstance(given["answers"], list)
        ):
            raise ValueError("no answers")
        yield KeptAnswers(**given)


def _cell_of(name: str) -> str:
    return name.removeprefix(f"{FOLDER}/").rpartition("-")[0]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
