"""The tables: declared schema, atomic parts named by their content, one scan."""

import hashlib
import io
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.store.run_store import RunStore
from pipeline.store.schema import CELL_COLUMNS, SCHEMA_VERSION, TASK_COLUMNS, schema, to_arrow
from pipeline.store.store_errors import StoreError
from tests.support.rows import generation_row, perplexity_row, retrieval_row

TABLES = list(TASK_COLUMNS)


@pytest.fixture
def store(tmp_path):
    return RunStore(str(tmp_path / "run"), create=True)


def empty_row(task: str) -> dict:
    return dict.fromkeys(schema(task))


@pytest.mark.parametrize("task", TABLES)
def test_every_table_starts_with_the_cell_columns_and_reads_back_as_declared(store, task):
    assert store.add_part(task, "u", to_arrow(task, [empty_row(task)]))
    frame = store.scan(task).collect()
    assert frame.schema == schema(task)
    assert frame.columns[: len(CELL_COLUMNS)] == list(CELL_COLUMNS)
    assert frame.row(0) == (None,) * len(frame.columns)


@pytest.mark.parametrize("task", TABLES)
def test_a_table_without_parts_is_empty_with_its_schema(store, task):
    frame = store.scan(task).collect()
    assert frame.is_empty() and frame.schema == schema(task)


def test_token_nlls_survive_as_float32_from_arrays_of_unequal_length(store):
    nlls = [
        np.array([0.1, 2.5, 3e-30], np.float32),
        np.array([], np.float32),
        np.linspace(0, 9, 50, dtype=np.float32),
    ]
    rows = [perplexity_row(i, nll=nll) for i, nll in enumerate(nlls)]
    store.add_part("perplexity", "u", to_arrow("perplexity", rows))
    read = store.scan("perplexity").collect()
    assert read.schema["nll"] == pl.List(pl.Float32)
    for nll, series in zip(nlls, read["nll"], strict=True):
        assert series.to_numpy().tobytes() == nll.tobytes()


def test_nulls_stay_nulls_and_empty_lists_empty(store):
    rows = [
        generation_row(0, peak_memory_bytes=None, skip_layers=[]),
        generation_row(1, peak_memory_bytes=5, skip_layers=[0, 1]),
    ]
    store.add_part("generation", "u", to_arrow("generation", rows))
    read = store.scan("generation").collect()
    assert read["peak_memory_bytes"].to_list() == [None, 5]
    assert read["skip_layers"].to_list() == [[], [0, 1]]


def test_rows_of_all_parts_are_read_whatever_is_null_in_one_of_them(store):
    second = store.add_part("perplexity", "b", to_arrow("perplexity", [perplexity_row(1, policy="dense")]))
    first = store.add_part("perplexity", "a", to_arrow("perplexity", [perplexity_row(0)]))
    assert store.parts("perplexity") == [first, second]
    read = store.scan("perplexity").collect()
    assert read["recent_retained"].to_list() == [0.5, None]
    assert read["prune_after"].to_list() == [32, None]


def test_parts_of_one_unit_with_other_rows_stand_beside_each_other_and_the_same_rows_are_there_once(store):
    tables = [to_arrow("perplexity", [perplexity_row(i)]) for i in (1, 2)]
    names = [store.add_part("perplexity", "u", table) for table in [*tables, *tables]]
    assert names[:2] == names[2:] and store.parts("perplexity") == sorted(names[:2])
    assert sorted(store.scan("perplexity").collect()["window_index"]) == [1, 2]


def test_a_part_s_name_holds_a_digest_of_its_content(store):
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    digest = hashlib.sha256((Path(store.directory) / name).read_bytes()).hexdigest()
    assert name == f"perplexity/u-{digest[:12]}.parquet"


def test_a_name_that_other_content_has_taken_is_mended(store):
    """As after a writer that died on a disk without atomic links, or a copy that was cut off."""
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    whole = (Path(store.directory) / name).read_bytes()
    (Path(store.directory) / name).write_bytes(whole[:-5])
    assert store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()])) == name
    assert (Path(store.directory) / name).read_bytes() == whole


def test_a_store_that_does_not_give_back_what_was_put_is_refused(store, monkeypatch):
    monkeypatch.setattr(store, "put", lambda *_, **__: True)
    with pytest.raises(StoreError, match="was stored, and is not there"):
        store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))


def test_a_part_names_its_schema_and_unit(store):
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    metadata = pq.read_metadata(Path(store.directory) / name).metadata
    assert metadata[b"kvsweep_schema"] == str(SCHEMA_VERSION).encode()
    assert metadata[b"unit_id"] == b"u"


def test_only_whole_files_are_ever_in_the_table_folder(store, monkeypatch):
    """The part is complete in memory before anything is put, and put in one call."""
    puts, put = [], store.put
    monkeypatch.setattr(
        store, "put", lambda name, content: puts.append((name, content)) or put(name, content)
    )
    whole = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    ((name, content),) = puts
    assert name == whole
    assert pq.read_table(io.BytesIO(content)).num_rows == 1


def test_a_put_leaves_no_other_file_behind(store):
    name = store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    assert [f"perplexity/{file.name}" for file in Path(store.directory).rglob("*") if file.is_file()] == [
        name
    ]


def test_columns_that_an_older_part_lacks_are_null_and_unknown_ones_left_out(store):
    table = to_arrow("perplexity", [perplexity_row(0)])
    store.add_part("perplexity", "new", table)
    store.add_part("perplexity", "old", table.drop_columns(["score_ties"]).append_column("retired", [["x"]]))
    read = store.scan("perplexity").collect()
    assert read.schema == schema("perplexity")
    assert read["score_ties"].to_list() == [0.02, None]


def test_prunes_of_files_that_did_not_record_them_are_null_and_those_of_dense_cells_empty(store):
    rows = [
        perplexity_row(0, event_steps=[32, 35], event_kept=[29, 29]),
        perplexity_row(1, event_steps=[], event_kept=[]),
    ]
    table = to_arrow("perplexity", rows)
    store.add_part("perplexity", "new", table)
    store.add_part("perplexity", "old", table.slice(0, 1).drop_columns(["event_steps", "event_kept"]))
    read = store.scan("perplexity").collect()
    assert read["event_steps"].to_list() == [[32, 35], [], None]
    assert read["event_kept"].to_list() == [[29, 29], [], None]


BOTH = ["bos", "special_tokens_in_text", "quantization"]
LATEST = {"perplexity": BOTH, "generation": BOTH, "retrieval": [*BOTH, "correct_text"]}
"""What schemas 5, 6 and 8 added; 7 has a wider ``document``. A change here needs another version, and old
files must be read."""


@pytest.mark.parametrize("task", LATEST)
def test_files_of_the_schema_before_are_read_with_nulls_for_what_came_after(store, task):
    assert SCHEMA_VERSION == 8
    row = {"perplexity": perplexity_row, "generation": generation_row, "retrieval": retrieval_row}[task](0)
    store.add_part(task, "old", to_arrow(task, [row]).drop_columns(LATEST[task]))
    read = store.scan(task).collect()
    assert read.schema == schema(task) and read.height == 1
    assert all(read[name].to_list() == [None] for name in LATEST[task])


@pytest.mark.parametrize(
    "change", [lambda row: row | {"nll_mean": 1.0}, lambda row: {k: row[k] for k in row if k != "nll_sum"}]
)
def test_a_row_with_an_unknown_or_without_a_known_column_is_refused(change):
    with pytest.raises(
        ValueError, match=r"perplexity row: missing .*, unknown .*nll_mean|missing \['nll_sum'\]"
    ):
        to_arrow("perplexity", [perplexity_row(), change(perplexity_row())])


def test_values_of_another_type_are_refused_rather_than_stored_as_null():
    with pytest.raises((TypeError, pl.exceptions.PolarsError)):
        to_arrow("perplexity", [perplexity_row() | {"tokens_scored": "many"}])


def test_objects_are_put_once_unless_told_to_overwrite(store):
    assert store.get("run.json") is None
    assert store.put("run.json", b"1") and not store.put("run.json", b"2")
    assert store.get("run.json") == b"1"
    assert store.put("run.json", b"3", overwrite=True) and store.get("run.json") == b"3"


def test_a_folder_is_made_only_where_asked(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        RunStore(str(missing))
    assert not missing.exists()
    RunStore(str(missing), create=True)
    assert missing.is_dir()


def test_the_same_folder_is_read_by_relative_path(store, monkeypatch):
    store.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    monkeypatch.chdir(Path(store.directory).parent)
    assert RunStore("run").scan("perplexity").collect().height == 1


def test_folder_names_with_spaces_and_brackets_work(tmp_path):
    odd = RunStore(str(tmp_path / "a [b] *ü%20"), create=True)
    name = odd.add_part("perplexity", "u", to_arrow("perplexity", [perplexity_row()]))
    assert odd.scan("perplexity").collect().height == 1
    assert (Path(odd.directory) / name).exists()
