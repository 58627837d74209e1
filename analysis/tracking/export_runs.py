"""Settings of finished runs as records of an experiment
tracker: figures of the report's tables, with their verdicts.

A cell is a setting and a task; a record holds what all cells of a setting gave, so that a tracker can draw
one against another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import polars as pl

from analysis import labels
from analysis.generation.speed import COMPARED, TEXT, short
from analysis.load import OLDER, Results, load
from analysis.page import columns
from analysis.page.column import SETTINGS as CELL_SETTINGS
from analysis.page.column import Column
from analysis.tables import Tables
from analysis.tracking.record import Record, Tracker
from analysis.tracking.stores import TRACKERS

LONGEST_TEXT = 400
"""Characters of a text; trackers cut or refuse longer ones in ways of their own."""


@dataclass(frozen=True)
class _Figures:
    """What of a task is exported: its table, the columns that the page shows, and figures that it says in
    words or not at all."""

    table: Callable[[Tables], pl.DataFrame]
    columns: list[Column]
    further: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The columns of a cell's figures, each once."""
        shown = [key for column in self.columns for key in (column.key, column.upper)]
        return [
            key
            for key in dict.fromkeys([*shown, *self.further, *OF_CELL])
            if key not in {*IN_PLACE, *SETTINGS}
        ]

    @property
    def texts(self) -> set[str]:
        """The columns that are words, whatever their values."""
        return {column.key for column in self.columns if column.setting or column.form == "text"}


TASKS = {
    "perplexity": _Figures(lambda made: made.cells, columns.PERPLEXITY, ["dense_ppl", "n_paired", "p_value"]),
    "generation": _Figures(
        lambda made: made.generation,
        columns.GENERATION,
        [
            *[f"{measure}_{end}" for measure in COMPARED for end in ("low", "high")],
            *[
                f"{short(measure)}_{figure}"
                for measure in COMPARED
                for figure in ("ratio", "low", "high", "rounds")
            ],
            *TEXT,
        ],
    ),
    "retrieval": _Figures(lambda made: made.retrieval, columns.RETRIEVAL),
    "tasks": _Figures(lambda made: made.harness, columns.TASKS, ["dense_stderr"]),
}

PLACES: dict[str, Callable[[labels.Row], str]] = {
    "perplexity": lambda row: "perplexity",
    "generation": lambda row: (
        f"generation/prompt_{row['prompt_tokens']}/batch_{row['batch_size']}/{_name(row['timing_protocol'])}"
    ),
    "retrieval": lambda row: (
        f"retrieval/{_name(row['kind'])}/context_{row['context_tokens']}{_question(row)}"
    ),
    "tasks": lambda row: f"tasks/{_name(row['task_name'])}/{_name(row['metric'])}/{_name(row['filter'])}",
}
"""Where a row's figures go in its record; what stands in the place's name is not a figure."""

IN_PLACE = {
    "prompt_tokens",
    "batch_size",
    "timing_protocol",
    "kind",
    "context_tokens",
    "task_name",
    "metric",
    "filter",
    "suite",
}

SETTINGS = [column.key for column in CELL_SETTINGS if column.key != "device_name"]
"""What a record is about. The name of the device stands
with each figure: tasks can have run on different nodes."""

OF_CELL = ["cell_id", "dense_cell_id", "device_name", "beyond_context"]
"""What a task's cell adds to its figures."""

VERDICTS = {"perplexity": "verdict", "generation": "timing", "retrieval": "verdict", "tasks": "verdict"}
"""The column of a task's table that says what its figures can speak for."""


@dataclass(frozen=True)
class Exported:
    """What an export did: records written, skipped (there already), changed since they were exported, and
    where they are."""

    written: int
    skipped: int
    changed: int
    place: str


@dataclass
class _Growing:
    """A record as it grows table by table."""

    name: str
    params: dict[str, str | int | float]
    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)

    def free(self, place: str) -> str:
        """The place, numbered where it is taken, as by the same
        prompts on two devices or two ways to read a text."""
        taken = {name.rpartition("/")[0] for name in (*self.params, *self.metrics)}
        numbered = (place if number == 1 else f"{place}/{number}" for number in range(1, len(taken) + 2))
        return next(name for name in numbered if name not in taken)


def export(
    directories: Sequence[str],
    tracker: str,
    project: str = "kvsweep",
    store: str | None = None,
    *,
    replace: bool = False,
) -> Exported:
    """Write one record per setting and run into a tracker's
    local store; ``tracker`` is a key of ``TRACKERS``.

    A record that is there already is skipped. One whose figures have changed since
    (its run went on) is left and counted, or with ``replace`` written anew. Raises
    RunUnreadableError, and TrackingError where the tracker is not installed or the
    store cannot be used; all directories are read before the store is touched.
    """
    opened = TRACKERS[tracker](project, store)
    # Each directory by itself: its figures must not depend on what else was named on the command line.
    found: dict[str, Record] = {}
    for directory in directories:
        for record in records(load([directory])):
            found.setdefault(record.key, record)
    return _write(opened, list(found.values()), replace=replace)


def _write(tracker: Tracker, found: Sequence[Record], *, replace: bool) -> Exported:
    written = skipped = changed = 0
    there = tracker.open()

    for record in found:
        known = there.get(record.key)
        if known is None:
            written += 1
        elif known == record.digest:
            skipped += 1
            continue
        else:
            changed += 1
            if not replace:
                continue
            tracker.delete(record.key)
        tracker.write(record)
    return Exported(written, skipped, changed, tracker.place)


def records(results: Results) -> list[Record]:
    """One record per setting of one run, in the order of the report's tables. Raises RunUnreadableError."""
    (run,) = results.runs
    growing: dict[str, _Growing] = {}
    with results.reading():
        made = Tables.of(results)
        for task, figures in TASKS.items():
            keys, texts = figures.keys, figures.texts
            for row in figures.table(made).iter_rows(named=True):
                _add(_of_setting(growing, row), task, row, keys, texts)
        for row in made.failures.iter_rows(named=True):
            _add_failure(_of_setting(growing, row), row)

    told = {
        "run_id": str(run.info.get("run_id") or run.directory),
        "run_name": str(run.info.get("name") or "unnamed run"),
    }
    told["kvsweep_version"] = str(run.info.get("kvsweep_version") or "unknown")
    return [
        _record(setting, own, {name: _shown(value) for name, value in told.items()})
        for setting, own in growing.items()
    ]


def _of_setting(growing: dict[str, _Growing], row: labels.Row) -> _Growing:
    return growing.setdefault(
        json.dumps([row.get(name) for name in SETTINGS]), _Growing(_title(row), _settings(row))
    )


def _record(setting: str, own: _Growing, run: dict[str, str]) -> Record:
    verdict = ", ".join(dict.fromkeys(own.verdicts)) or "NOT_JUDGED"
    params = {**own.params, **run, "verdict": verdict}
    # Sums over threads may differ in the last bits from one reading to the next.
    rounded = {name: f"{value:.9g}" for name, value in own.metrics.items()}
    digest = _hash(json.dumps([params, rounded], sort_keys=True))
    key = _hash(f"{run['run_id']}\0{setting}")
    return Record(key, digest, f"{own.name} · {key[:8]}", params, own.metrics, verdict)


def _add(own: _Growing, task: str, row: labels.Row, keys: Sequence[str], texts: Collection[str]) -> None:
    """One row of a table: its figures as metrics, its words and the settings of the task as params."""
    place = own.free(PLACES[task](row))
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if key in texts or isinstance(value, (str, bool)):
            own.params[f"{place}/{key}"] = _scalar(value)
        else:
            own.metrics[f"{place}/{key}"] = float(value)
    if task in VERDICTS and row.get(VERDICTS[task]):
        own.verdicts.append(row[VERDICTS[task]])


def _add_failure(own: _Growing, row: labels.Row) -> None:
    """The reason of a failure; the verdict FAILED where the task
    has nothing else (a later attempt may have succeeded)."""
    task = _name(row["task"])
    if not any(name.startswith(f"{task}/") for name in own.params | own.metrics):
        own.params[f"{task}/verdict"] = "FAILED"
        own.verdicts.append("FAILED")
    reason = f"{row['error_type']}: {row['message']} ({row['attempts']} attempts)"
    own.params[f"{own.free(f'{task}/failure')}/reason"] = _shown(reason)


def _settings(row: labels.Row) -> dict[str, str | int | float]:
    """What does not apply (the threshold of the dense cell) is left out."""
    return {name: _scalar(row[name]) for name in SETTINGS if row.get(name) is not None}


def _title(row: labels.Row) -> str:
    after = f", prune_after {row['prune_after']}" if row["prune_after"] is not None else ""
    return _shown(f"{row['model']} · {row['dataset']} · {labels.cell(row)}{after}")


def _shown(value: object) -> str:
    """Anything as one short line: names come from outside,
    and a page of a tracker may not expect what they hold."""
    text = labels.text(value)
    plain = "".join(letter if letter.isprintable() else "�" for letter in text)
    return plain if len(plain) <= LONGEST_TEXT else plain[: LONGEST_TEXT - 1] + "…"


def _scalar(value: object) -> str | int | float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _shown(value)


def _name(text: str | None) -> str:
    """Part of a metric's name, in the letters that trackers allow."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text or "unknown")[:60]


def _question(row: labels.Row) -> str:
    """What tells questions of one kind and length apart, where it is not the usual."""
    parts = [f"digits_{row['digits']}"] if row["digits"] != OLDER["retrieval"]["digits"] else []
    parts += [f"distractors_{row['distractors']}"] if row["distractors"] else []
    parts += [] if row["question_pruned"] else ["asked_after"]
    return "".join(f"/{part}" for part in parts)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
