"""Many parts become few: no row is lost, doubled or changed, whenever it stops and whoever reads in
between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.driving import compaction
from pipeline.driving.compaction import PREFIX, compact, finish
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from tests.support.command import kvsweep
from tests.support.rows import perplexity_row, write_run


def filled(directory: Path, parts: int, rows: int = 2) -> RunStore:
    store = RunStore(str(directory), create=True)
    for part in range(parts):
        made = [perplexity_row(row, cell_id=f"cell{part}") for row in range(rows)]
        store.add_part("perplexity", f"unit{part}", to_arrow("perplexity", made))
    return store


def rows(store: RunStore) -> list[dict]:
    return store.scan("perplexity").sort("cell_id", "window_index").collect().to_dicts()


def test_small_parts_become_one_with_the_same_rows(tmp_path):
    store = filled(tmp_path / "run", 7)
    before = rows(store)
    assert compact(store) == 7
    assert rows(store) == before
    (name,) = store.parts("perplexity")
    assert name.startswith(f"perplexity/{PREFIX}")
    assert compact(store) == 0, "one part needs no company"


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 5), max_size=12), most=st.integers(2, 5))
def test_whatever_the_sizes_and_limits_each_row_is_there_once(tmp_path_factory, sizes, most):
    store = RunStore(str(tmp_path_factory.mktemp("run")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "MOST_PARTS", most)
        for part, count in enumerate(sizes):
            made = [perplexity_row(row, cell_id=f"cell{part}") for row in range(count)]
            store.add_part("perplexity", f"unit{part}", to_arrow("perplexity", made))
        before = rows(store)
        compact(store)
        assert rows(store) == before
        assert len(store.parts("perplexity")) <= len(sizes) // most + 1


def test_large_parts_stay_as_they_are(tmp_path, monkeypatch):
    store = filled(tmp_path / "run", 3)
    monkeypatch.setattr(compaction, "SMALL_BYTES", 1)
    assert compact(store) == 0 and len(store.parts("perplexity")) == 3


def test_a_compaction_that_was_cut_off_is_finished_by_the_next(tmp_path, monkeypatch):
    store = filled(tmp_path / "run", 5)
    before = rows(store)
    monkeypatch.setattr(RunStore, "delete_all", lambda self, names: self.delete(names[0]))
    compact(store)
    monkeypatch.undo()
    doubled = Counter(row["cell_id"] for row in rows(store))
    assert sorted(doubled.values()) == [2, 4, 4, 4, 4], "a reader sees rows twice, never too few"
    finish(store, "perplexity")
    assert rows(store) == before and len(store.parts("perplexity")) == 1


def test_a_part_that_was_written_anew_under_an_old_name_is_not_taken_for_what_was_replaced(tmp_path):
    store = filled(tmp_path / "run", 3)
    compact(store)
    store.add_part("perplexity", "unit0", to_arrow("perplexity", [perplexity_row(9, cell_id="cell0")]))
    finish(store, "perplexity")
    assert {(row["cell_id"], row["window_index"]) for row in rows(store)} >= {("cell0", 9), ("cell0", 0)}


def test_parts_of_older_schemas_are_read_as_always(tmp_path):
    store = filled(tmp_path / "run", 1)
    old = to_arrow("perplexity", [perplexity_row(0, cell_id="old")]).drop_columns(["event_steps"])
    store.add_part("perplexity", "old", old)
    before = rows(store)
    compact(store)
    assert rows(store) == before and pl.Series(before)[0] is not None


def test_the_command_compacts_a_run_and_refuses_one_that_is_driven(tmp_path):
    directory = write_run(str(tmp_path / "run"))
    store = filled(Path(directory), 4)
    with Lease(store):
        refused = kvsweep("compact", directory, folder=tmp_path)
    assert (
        refused.returncode == 2
        and "another driver is running" in refused.stderr
        and len(store.parts("perplexity")) == 4
    )
    done = kvsweep("compact", directory, folder=tmp_path)
    assert done.returncode == 0 and done.stdout == "4 files put together\n"
    nothing = kvsweep("compact", tmp_path, folder=tmp_path)
    assert nothing.returncode == 2 and "holds no run.json" in nothing.stderr
