"""Rows of a run against kept ones: cells, rows and columns that are gone or new, and values that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tools.golden.runs import KEYS, rows_of
from tools.golden.values import departures

NOT_COMPARED = {
    "run_id": "drawn anew for each run",
    "device_name": "the machine's",
    "seconds": "by a clock",
    "ttft_seconds": "by a clock",
    "prompt_prune_seconds": "by a clock",
    "tpot_seconds": "by a clock",
    "total_seconds": "by a clock",
    "tokens_per_second": "by a clock",
    "token_seconds": "by a clock",
    "prune_seconds": "by a clock",
    "memory_bandwidth": "by a clock",
    "peak_memory_bytes": "by the allocator and what the process held before",
    "traceback": "names files and lines, which move",
    "node": "the machine's",
}
"""Columns of rows that are made anew -> why they are not compared."""

Key = tuple[Any, ...]
Difference = str


def planned(kept: Path, now: Path, where: str) -> Iterator[Difference]:
    """Cells that are gone or new, then what their planning says, then their order."""
    one, other = (pl.read_parquet(run / "cells.parquet") for run in (kept, now))
    ids = [set(frame["task", "cell_id"].rows()) for frame in (one, other)]
    yield from _gone_and_new(ids[0], ids[1], f"{where} cells")
    old, new = ({row["cell_id"]: row for row in frame.to_dicts()} for frame in (one, other))
    for cell in [cell for cell in old if cell in new]:
        for at, before, after in departures(old[cell], new[cell], exact=True):
            yield f"{where} cells {cell} {at.lstrip('.')}: kept {before}, now {after}"
    if one["cell_id"].to_list() != other["cell_id"].to_list() and old.keys() == new.keys():
        yield f"{where} cells: the same, in another order"


def count_planned(run: Path) -> int:
    """Cells of a run directory's plan."""
    return pl.read_parquet(run / "cells.parquet").height


def compared(kept: Path, now: Path, where: str, *, exact: bool) -> Iterator[Difference]:
    """Every table of two run directories."""
    for table in KEYS:
        one, other = rows_of(kept, table), rows_of(now, table)
        if one is None or other is None:
            if one is not None or other is not None:
                yield f"{where} {table}: the table is {'new' if one is None else 'gone'}"
            continue
        yield from _table(one, other, f"{where} {table}", table, exact=exact)


def count_rows(run: Path) -> int:
    """Rows of all tables of a run directory."""
    return sum(rows.height for table in KEYS if (rows := rows_of(run, table)) is not None)


def _table(
    kept: pl.DataFrame, now: pl.DataFrame, where: str, table: str, *, exact: bool
) -> Iterator[Difference]:
    for name in dict.fromkeys([*kept.columns, *now.columns]):
        one, other = kept.schema.get(name), now.schema.get(name)
        if one != other:
            yield f"{where} column {name}: kept {one or 'none'}, now {other or 'none'}"
    yield from _gone_and_new(set(kept["cell_id"]), set(now["cell_id"]), where)

    old, new = _by_key(kept, table), _by_key(now, table)
    shared = set(kept["cell_id"]) & set(now["cell_id"])
    of_shared = [{key for key in found if key[0] in shared} for found in (old, new)]
    yield from _gone_and_new(of_shared[0], of_shared[1], f"{where} rows")
    names = [name for name in kept.columns if name in now.columns and name not in NOT_COMPARED]
    for key in [key for key in old if key in new]:
        for name in names:
            found = list(departures(old[key][name], new[key][name], exact=exact))
            if found:
                at, before, after = found[0]
                more = f" (and {len(found) - 1} more of this list)" if len(found) > 1 else ""
                yield f"{where} {_written(key)} {name}{at}: kept {before!r}, now {after!r}{more}"


def _by_key(rows: pl.DataFrame, table: str) -> dict[Key, dict[str, Any]]:
    """Rows by cell and what tells a cell's rows apart; a row that is there twice has a number behind its
    key."""
    found: dict[Key, dict[str, Any]] = {}
    seen: Counter[Key] = Counter()
    for row in rows.to_dicts():
        key: Key = (row["cell_id"], *(row[name] for name in KEYS[table]))
        again = (f"again {seen[key]}",) if seen[key] else ()
        seen[key] += 1
        found[(*key, *again)] = row
    return found


def _gone_and_new(kept: set[Any], now: set[Any], where: str) -> Iterator[Difference]:
    for what, keys in (("gone", kept - now), ("new", now - kept)):
        for key in sorted(keys, key=str):
            yield f"{where}: {_written(key)} is {what}"


def _written(key: Any) -> str:
    parts: Iterable[Any] = key if isinstance(key, tuple) else (key,)
    return " ".join(map(str, parts))
