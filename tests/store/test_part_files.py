"""Parts as they lie in a directory: broken ones, edited ones, and those of a newer version, before a row of
them is believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.store.run_store import RunStore
from pipeline.store.schema import SCHEMA_VERSION, TASK_COLUMNS, schema, to_arrow
from pipeline.store.store_errors import RunUnreadableError
from tests.support.rows import perplexity_row


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(str(tmp_path / "run"), create=True)


def empty_row(task: str) -> dict:
    return dict.fromkeys(schema(task))


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-20], lambda b: b"not parquet at all", lambda b: b[:4] + b[-4:]]
)
def test_unreadable_parts_are_set_aside_and_the_others_stay(store, damage):
    bad, good = (
        store.add_part("perplexity", name, to_arrow("perplexity", [perplexity_row()]))
        for name in ("bad", "good")
    )
    file = Path(store.directory) / bad
    broken = damage(file.read_bytes())
    file.write_bytes(broken)
    with pytest.raises(RunUnreadableError, match=f"{bad}: is no (readable )?Parquet file"):
        store.check_parts("perplexity")
    assert list(store.set_aside_unreadable("perplexity")) == [bad]
    assert store.parts("perplexity") == [good]
    assert file.with_name(f"{file.name}.unreadable").read_bytes() == broken
    assert store.scan("perplexity").collect().height == 1
    assert store.set_aside_unreadable("perplexity", thorough=True) == {}
    store.check_parts("perplexity")
    assert store.add_part("perplexity", "bad", to_arrow("perplexity", [perplexity_row()])) == bad, (
        "its name is free again"
    )


def test_a_part_whose_values_are_damaged_under_a_sound_footer_is_found_by_the_thorough_look(store):
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row(nll=[0.5] * 5000)]))
    file = Path(store.directory) / name
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    assert store.set_aside_unreadable("perplexity") == {}
    assert list(store.set_aside_unreadable("perplexity", thorough=True)) == [name]


def test_a_footer_larger_than_what_is_read_at_first_is_read_whole(store, monkeypatch):
    monkeypatch.setattr("pipeline.store.run_store.TAIL_BYTES", 64)
    store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    store.check_parts("perplexity")


def rewritten(store: RunStore, change: Callable[[pa.Table], pa.Table], task: str = "perplexity") -> str:
    """A part whose table was changed and written again with the marks it had."""
    (row,) = [perplexity_row()] if task == "perplexity" else [empty_row(task)]
    table = to_arrow(task, [row])
    return store.add_part(task, "edited", change(table))


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cast("nll_sum", pa.string()), "has the column nll_sum as String, where Float64 belongs"),
        (cast("window_index", pa.int64()), "has the column window_index as Int64, where Int32 belongs"),
        (cast("policy", pa.large_binary()), "has the column policy as Binary, where String belongs"),
        (lambda table: table.drop_columns("cell_id"), "has no column cell_id"),
        (lambda table: table.drop_columns("window_index"), "has no column window_index"),
        (
            lambda table: table.set_column(0, "run_id", pa.nulls(1)),
            "has the column run_id as Null, where String belongs",
        ),
        (lambda _: pa.table({"x": [1]}), "has no column cell_id"),
    ],
)
def test_a_part_with_columns_of_other_types_or_without_its_keys_is_named_and_set_aside(change, said, store):
    name = rewritten(store, change)
    with pytest.raises(RunUnreadableError) as caught:
        store.check_parts("perplexity")
    assert f"{name}: {said}" in str(caught.value) and "sets it aside" in str(caught.value)
    assert said in store.set_aside_unreadable("perplexity")[name]
    assert store.parts("perplexity") == []


@pytest.mark.parametrize("change", [cast("nll_sum", pa.float32()), cast("tokens_scored", pa.int8())])
def test_narrower_numbers_of_another_program_are_the_same_numbers(change, store):
    rewritten(store, change)
    store.check_parts("perplexity")
    (row,) = store.scan("perplexity").collect().to_dicts()
    assert (row["nll_sum"], row["tokens_scored"]) == (200.0, 100)


@pytest.mark.parametrize("look", ["check_parts", "set_aside_unreadable"])
def test_a_part_of_a_newer_kvsweep_is_refused_and_left_alone(look, store, monkeypatch):
    monkeypatch.setattr("pipeline.store.part_files.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    monkeypatch.undo()
    with pytest.raises(
        RunUnreadableError, match=rf"{name}: was written by a newer kvsweep \(schema {SCHEMA_VERSION + 1}"
    ):
        getattr(store, look)("perplexity")
    assert store.parts("perplexity") == [name]


@pytest.mark.parametrize("task", TASK_COLUMNS)
def test_the_columns_that_a_part_must_have_are_those_of_every_table(task, store):
    store.add_part(task, "u", to_arrow(task, [empty_row(task)]))
    store.check_parts(task)


def test_a_folder_that_is_named_like_a_part_is_none(store):
    (Path(store.directory) / "perplexity" / "x.parquet").mkdir(parents=True)
    (Path(store.directory) / "perplexity" / "x.parquet" / "y.parquet").write_bytes(b"x")
    assert store.parts("perplexity") == []
