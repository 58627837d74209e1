"""What the audit of claims rests on: the rows of one model and text, cells picked from them by their role,
figures as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl

from analysis import labels
from analysis.generation.speed import FEWEST_ROUNDS
from analysis.keys import GROUP, PRUNING, SCORED, SETTINGS, VARIANT
from analysis.load import Results
from analysis.statistics.margins import PPL_MARGIN
from analysis.statistics.pairs import FEW_WINDOWS
from analysis.tables import Tables
from analysis.verdicts import valid
from pipeline.results import CELL_COLUMNS

NOT_TESTABLE = "not testable here"
CONFIRMED = "confirmed"
REFUTED = "refuted"

CONTROLS = ["knorm", "random", "recent", "streaming", "knorm_high"]
"""The policies of the control experiment: the method, three that know nothing of norms, its inverse."""

THAT_PRUNES = "perplexity, policy knorm and a prune_after well below the window"
"""What a sweep needs to give cells that claims on perplexity can be judged by."""

MARGIN = labels.percent(PPL_MARGIN)
"""By how much PPLs may differ and still be called equal, in words."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Evidence:
    """All of one model, dataset, device, dtype, window and stride.

    Frames without rows still have their columns.

    ``measured``: ``Tables.windows``; ``cells``: ``Tables.perplexity``; ``speeds``:
    ``Tables.generation``; ``answers``: ``Tables.retrieval``; ``model``: the entry
    of run.json (name, revision, architecture, layers, context, positions).
    """

    measured: pl.DataFrame
    cells: pl.DataFrame
    speeds: pl.DataFrame
    answers: pl.DataFrame
    model: dict[str, Any]


@dataclass(frozen=True)
class Ruling:
    """What the rows say about a claim: figures of the same
    protocol, honest figures, verdict and why, all as text."""

    verdict: str
    why: str
    reproduced: str | None = None
    honest: str | None = None


def artefact(cause: str) -> str:
    """The verdict on a claim whose figures come from how they were obtained."""
    return f"artefact of {cause}"


def missing(rows: str, remedy: str, reproduced: str | None = None, honest: str | None = None) -> Ruling:
    """The ruling where rows are lacking: which, and what a sweep needs to give them."""
    return Ruling(NOT_TESTABLE, f"no {rows}; a sweep with {remedy} gives them", reproduced, honest)


def evidences(made: Tables) -> list[Evidence]:
    """The tables of a report, split into what may be judged together. Groups without perplexity come last.

    Cells that failed have no figures and are no group; a run.json of an older version says less of a model
    than a newer one.
    """
    models = _models(made.results)
    scored = made.perplexity.select(SCORED).unique().sort(SCORED)
    others = pl.concat([made.generation.select(GROUP), made.retrieval.select(GROUP)]).unique().sort(GROUP)
    others = others.join(scored, on=GROUP, how="anti", nulls_equal=True)
    groups = pl.concat([scored, others], how="diagonal_relaxed")
    return [_evidence(made, group, models) for group in groups.iter_slices(1)]


def _models(results: Results) -> dict[tuple[Any, Any], dict[str, Any]]:
    """What the runs say of each model, by name and revision."""
    entries = [entry for run in results.runs for entry in run.info.get("models", [])]
    models: dict[tuple[Any, Any], dict[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, dict):
            known = {key: value for key, value in entry.items() if value is not None}
            models.setdefault((entry.get("name"), entry.get("revision")), {}).update(known)
    return models


def _evidence(
    made: Tables, group: pl.DataFrame, models: Mapping[tuple[Any, Any], dict[str, Any]]
) -> Evidence:
    name, revision = group.select("model", "model_revision").row(0)
    return Evidence(
        measured=_of(group, made.windows, SCORED),
        cells=_of(group, made.perplexity, SCORED),
        speeds=_of(group, made.generation, GROUP),
        answers=_of(group, made.retrieval, GROUP),
        model=models.get((name, revision), {"name": name, "revision": revision}),
    )


def _of(group: pl.DataFrame, frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return frame.join(group, on=keys, how="semi", nulls_equal=True, maintain_order="left")


def largest(cells: pl.DataFrame) -> pl.DataFrame:
    """One cell per setting, that of most windows: runs of other sizes may measure the same setting."""
    best = cells.sort("n_windows", descending=True, maintain_order=True).unique(
        SETTINGS, keep="first", maintain_order=True
    )
    return cells.join(best.select("pool_id"), on="pool_id", how="semi", maintain_order="left")


def plain(
    frame: pl.DataFrame,
    *policies: str,
    skip: Sequence[int] = (),
    recent: int = 0,
    positions: str = "absolute",
) -> pl.DataFrame:
    """Rows of policies (knorm unless named) in their plain
    form, but for what is named: as the dense cell is set."""
    named = {"skip_layers": skip, "protect_recent": recent, "position_mode": positions}
    settings = [_is(name, named.get(name, PRUNING[name])) for name in VARIANT]
    return frame.filter(pl.col("policy").is_in(policies or ("knorm",)), *settings)


def _is(name: str, value: Any) -> pl.Expr:
    """Whether a setting has this value, which may be a list, or None."""
    whole = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return pl.col(name).eq_missing(pl.lit(whole, CELL_COLUMNS[name]))


def sure(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells whose PPL speaks for pruning and whose ratio has an interval from units enough that it was
    measured to hold."""
    return cells.filter(valid(), pl.col("ratio_low").is_not_null(), pl.col("n_units") >= FEW_WINDOWS)


def lowest(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of the lowest threshold among them."""
    return cells.filter(pl.col("prune_after") == pl.col("prune_after").min())


def highest(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of the highest threshold among them."""
    return cells.filter(pl.col("prune_after") == pl.col("prune_after").max())


def timed(speeds: pl.DataFrame, timing: str, measure: str) -> pl.DataFrame:
    """Plain knorm cells of this timing with a ratio of ``measure`` (ttft, tokens) from enough rounds that
    pruned, lowest first.

    Of rows timed wrong on purpose all count: that protocol errs whether a cell prunes or not.
    """
    cells = plain(speeds).filter(pl.col("timing") == timing, pl.col(f"{measure}_ratio").is_not_null())
    if timing != "WRONG_ON_PURPOSE":
        cells = cells.filter(pl.col("prune_events") > 0, pl.col(f"{measure}_rounds") >= FEWEST_ROUNDS)
    return cells.sort(f"{measure}_ratio")


def no_timing(speeds: pl.DataFrame, reproduced: str | None) -> Ruling:
    """The ruling where no stable timing of a plain knorm cell that pruned is there: unstable, too few rounds,
    or none at all."""
    rows = plain(speeds).filter(pl.col("timing") != "WRONG_ON_PURPOSE")
    faults = rows.filter(pl.col("timing") == "UNSTABLE_TIMING")["fault"].drop_nulls()
    if len(faults):
        return Ruling(NOT_TESTABLE, f"only timings that cannot be compared: {faults[0]}", reproduced)

    kind = f"stable timings of {FEWEST_ROUNDS} rounds or more in which plain knorm pruned"
    return missing(kind, "generation, protocol interleaved, and prompts longer than prune_after", reproduced)


def control_experiment(cells: pl.DataFrame) -> pl.DataFrame:
    """What dropping the newest keys costs: knorm, knorm with the last n protected, and policies that know
    nothing of norms.

    ``cells``: ``Tables.perplexity``. One row per policy (protection in words), keep_ratio and threshold: PPL,
    ratio with interval, realised budget, recent_retained, verdict; absolute positions, no layer skipped.
    """
    guarded = [plain(cells, recent=n) for n in cells["protect_recent"].drop_nulls().unique().sort() if n]
    rows = pl.concat([plain(cells, *CONTROLS), *guarded])
    protected = pl.col("protect_recent")
    words = (
        pl.when(protected > 0)
        .then(pl.format("{}, last {} protected", "policy", protected))
        .otherwise("policy")
    )
    order = pl.col("policy").replace_strict(CONTROLS, range(len(CONTROLS)), return_dtype=pl.Int64)
    ordered = rows.sort(
        *SCORED, "prune_after", -pl.col("keep_ratio"), order, protected, nulls_last=False, maintain_order=True
    )
    kept = [
        "ppl",
        "dense_ppl",
        "ratio",
        "ratio_low",
        "ratio_high",
        "budget",
        "recent_retained",
        "verdict",
        "n_units",
    ]
    return ordered.select(*SCORED, "prune_after", "keep_ratio", words.alias("policy"), *kept)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A figure and its interval."""
    return f"{labels.figure(value)} {labels.interval(low, high)}"


def change(ratio: float) -> str:
    """A ratio as a signed change in per cent."""
    return f"{labels.points(ratio - 1)} %"


def changes(low: float | None, high: float | None) -> str:
    """The interval of a ratio as changes in per cent."""
    if low is None or high is None:
        return labels.NONE
    return f"[{labels.points(low - 1)}, {labels.points(high - 1)}]"


def ratio_words(row: labels.Row) -> str:
    """The PPL ratio of a cell to dense, with its interval."""
    return with_interval(row["ratio"], row["ratio_low"], row["ratio_high"])


def factor_words(row: labels.Row) -> str:
    """The factor of a pair from ``contrast``, with its interval."""
    return with_interval(row["factor"], row["low"], row["high"])


def at_ratio(row: labels.Row) -> str:
    """Which keep_ratio a cell has."""
    return f"at keep_ratio {labels.ratio_setting(row['keep_ratio'])}"


def first_and_last(rows: Sequence[Item]) -> list[Item]:
    """The ends of a list: two of them, or the only one, or none."""
    return [rows[0], rows[-1]] if len(rows) > 1 else list(rows)


def counted(frame: pl.DataFrame, noun: str) -> str:
    """How many rows there are, as ``1 cell`` or ``6 cells``."""
    return f"{frame.height} {noun}" + ("" if frame.height == 1 else "s")


def share_of(cells: pl.DataFrame, shown: pl.Expr) -> str:
    """How many of the rows show something, as ``3 of 11``."""
    return f"{cells.filter(shown).height} of {cells.height}"
