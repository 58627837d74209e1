"""Run directories as lazy frames: what was planned (run.json) and every row that came back, each row once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from analysis.impossible import OF_LISTS, once, reason
from analysis.keys import PRUNING, TARGET, VERSIONS
from pipeline.results import (
    ANSWER_TOKENS,
    CELL_COLUMNS,
    STORE_ERRORS,
    PlaceError,
    RunStore,
    RunUnreadableError,
    placed,
    required_run,
)

ROW_KEYS: dict[str, list[str]] = {
    "perplexity": ["cell_id", *VERSIONS, "window_index"],
    "generation": [
        "cell_id",
        *VERSIONS,
        "run_id",
        "prompt_tokens",
        "repeat",
        "control",
    ],
    "retrieval": [
        "cell_id",
        *VERSIONS,
        "kind",
        "context_tokens",
        "digits",
        "distractors",
        "depth",
        "question_index",
    ],
    "tasks": [
        "cell_id",
        *VERSIONS,
        "task_name",
        "metric",
        "filter",
        "doc_index",
    ],
    "failures": ["cell_id", *VERSIONS, "task", "error_type", "message"],
}
"""What names one row of a table. Timings of two runs are two measurements, hence ``run_id`` in generation."""

LISTS = [name for name in PRUNING if isinstance(CELL_COLUMNS[name], pl.List)]
POOLED_SETTINGS = [name for name in (*TARGET, *PRUNING) if name not in LISTS]
POOLED = {"perplexity": ["window", "stride"], "retrieval": [], "tasks": ["num_fewshot"]}
"""The tables whose cells are pooled over seeds, with the columns that tell apart more than the settings
do."""

CUT_SHORT = ("perplexity", "retrieval")
"""The tables whose cells give rows text by text, so that one may fail with some of them stored."""

TOKENS_READ = {
    "perplexity": pl.col("window"),
    "generation": pl.col("prompt_tokens") + pl.col("new_tokens"),
    "retrieval": pl.col("context_tokens") + ANSWER_TOKENS,
}
"""How much of a text the model of a row saw at once."""

MADE_OF_LISTS = {"perplexity": OF_LISTS}
"""Figures that are made of list columns before these are left out."""

OLDER = {
    "retrieval": {"digits": 5, "distractors": 0, "question_pruned": True},
    "generation": {"control": False, "batch_size": 1, "timing_protocol": "interleaved"},
}
"""What rows of older schemas, which lack these columns, were made with."""

LONG_COLUMNS = [
    "nll",
    "event_steps",
    "event_kept",
    "cache_tokens_final",
    "token_seconds",
    "prune_steps",
    "output_tokens",
    "norm_attention",
]
"""List columns, which only ``Results.lists`` reads, for chosen cells, and ``norm_attention``; left out, they
stay on disk."""


QUANTILES = {"step_low": 0.1, "step_middle": 0.5, "step_high": 0.9}
"""Of the times per token of one run of a cell."""


@dataclass(frozen=True)
class Run:
    """One run directory and the content of its run.json."""

    directory: str
    info: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Everything that one report is made of.

    ``scanned`` maps a table's name to its rows as stored, with
    ``source`` (index into ``runs``), repetitions included.
    """

    runs: list[Run]
    stores: list[RunStore]
    scanned: dict[str, pl.LazyFrame]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Where rows are read. Raises RunUnreadableError for a part that cannot be."""
        try:
            yield
        except (pl.exceptions.ComputeError, OSError) as error:
            where, said = ", ".join(run.directory for run in self.runs), str(error).splitlines()[0]
            raise RunUnreadableError(
                f"{where}: a part cannot be read ({said}). `kvsweep run` into that directory sets broken "
                "parts aside."
            ) from error

    def rows(self, task: str) -> pl.LazyFrame:
        """The rows of a table, each once (units are delivered at least once, and runs may share cells); none
        of cells that failed halfway.

        Adds ``pool_id``, ``impossible`` (a figure that cannot be, in words) and, but for tasks and failures,
        ``beyond_context``: more tokens than the model was trained on (null where run.json does not say).
        """
        judged = self._short(task) if task == "failures" else self._short(task).with_columns(reason(task))
        rows = once(judged, ROW_KEYS[task])
        if task in CUT_SHORT:
            own, cut_short = ["cell_id", *VERSIONS], self._cut_short(rows)
            rows = rows.join(cut_short, on=own, how="anti", nulls_equal=True, maintain_order="left")
        if task in TOKENS_READ:
            rows = rows.join(
                self._contexts(), on=["model", "model_revision"], how="left", maintain_order="left"
            )
            rows = rows.with_columns(beyond_context=TOKENS_READ[task] > pl.col("context")).drop("context")
        return rows.with_columns(pool_id=_pool_id(task))

    def _short(self, task: str) -> pl.LazyFrame:
        """The rows without their lists. Where figures are made of them, they are read here: as a stream, of
        which no more than those is kept.
        """
        rows = self.scanned[task]
        if task not in MADE_OF_LISTS:
            return rows.drop(LONG_COLUMNS, strict=False)
        figures = rows.with_columns(**MADE_OF_LISTS[task]).drop(LONG_COLUMNS, strict=False)
        return figures.collect(engine="streaming").lazy()

    def _cut_short(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Cells that failed and have fewer rows than their dense twin: they failed halfway.

        What they gave before is stored, and a figure made of
        it would be one of the texts on which they survived.
        """
        own = ["cell_id", *VERSIONS]
        counts = rows.group_by(*own, "dense_cell_id").agg(given=pl.len())
        twins = counts.select("cell_id", *VERSIONS, asked="given")
        failed = self.scanned["failures"].select(own).unique()
        known = counts.join(failed, on=own, how="semi", nulls_equal=True)
        paired = known.join(
            twins, left_on=["dense_cell_id", *VERSIONS], right_on=own, how="left", nulls_equal=True
        )
        return paired.filter(pl.col("given") < pl.col("asked")).select(own)

    def lists(self, cell_ids: Sequence[str], *columns: str) -> pl.DataFrame:
        """The perplexity rows of some cells, each once: ``cell_id``,
        versions, ``window_index`` and these columns.

        Only the parts that hold those cells are read.
        """
        keys, wanted = ROW_KEYS["perplexity"], pl.col("cell_id").is_in(list(cell_ids))
        scans = [
            store.scan("perplexity", store.parts_with("perplexity", cell_ids))
            .filter(wanted)
            .select(*keys, *columns)
            for store in self.stores
        ]
        return pl.concat(scans).collect().unique(keys, keep="first", maintain_order=True)

    def _contexts(self) -> pl.LazyFrame:
        """Trained context in tokens of every model of the runs."""
        listed = [
            model for run in self.runs for model in run.info.get("models", []) if isinstance(model, dict)
        ]
        rows = [tuple(model.get(key) for key in ("name", "revision", "context")) for model in listed]
        schema = {"model": pl.String, "model_revision": pl.String, "context": pl.Int64}
        return pl.LazyFrame(rows, schema=schema, orient="row").unique(
            ["model", "model_revision"], keep="first"
        )


def load(directories: Sequence[str]) -> Results:
    """Open run directories, local paths or URLs.

    No row is read yet, but every part is looked at. Raises RunUnreadableError.
    """
    try:
        stores = [
            RunStore(directory) for directory in dict.fromkeys(placed(directory) for directory in directories)
        ]
        runs = [Run(store.directory, required_run(store)) for store in stores]
        for store in stores:
            for task in ROW_KEYS:
                store.check_parts(task)
        return Results(runs, stores, {task: _scan(stores, task) for task in ROW_KEYS})
    except (PlaceError, *STORE_ERRORS) as error:
        raise RunUnreadableError(str(error).splitlines()[0]) from error


def _scan(stores: Sequence[RunStore], task: str) -> pl.LazyFrame:
    derived = [pl.col(name).fill_null(value) for name, value in OLDER.get(task, {}).items()]
    derived += STEP_TIMES.get(task, [])
    scans = [
        store.scan(task).with_columns(*derived, source=pl.lit(index, pl.Int32))
        for index, store in enumerate(stores)
    ]
    return pl.concat(scans)


def _step_times() -> list[pl.Expr]:
    """Mean time of the decoding steps that pruned, and of the others; null where there are none."""
    steps = pl.col("token_seconds")
    pruned = steps.list.gather(pl.col("prune_steps"), null_on_oob=True)
    others = steps.list.len() - pruned.list.len()

    return [
        pruned.list.mean().alias("prune_step_seconds"),
        *[
            steps.list.eval(pl.element().quantile(at)).list.first().alias(name)
            for name, at in QUANTILES.items()
        ],
        pl.when(others > 0).then((steps.list.sum() - pruned.list.sum()) / others).alias("plain_step_seconds"),
    ]


STEP_TIMES = {"generation": _step_times()}
"""Columns that are made of those which stay on disk."""


def _pool_id(task: str) -> pl.Expr:
    """Names the cells that are one point of a chart: those that differ in nothing but the seed.

    Every seed has its own cell and its own dense twin. Rows per cell stand for the plan's size, which no
    column holds. A timing belongs to its run, so generation pools nothing.
    """
    if task not in POOLED:
        return pl.col("cell_id")
    plain = pl.col(*POOLED_SETTINGS, *POOLED[task]).cast(pl.String).fill_null("-")
    lists = pl.col(LISTS).cast(pl.List(pl.String)).list.join(",").fill_null("-")
    return pl.concat_str(plain, lists, pl.len().over("cell_id", *VERSIONS), separator="|")
