"""Sentences for the head of the page, all computed from
the rows: what was found, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from analysis import labels
from analysis.generation.speed import NO_DIFFERENCE
from analysis.keys import SCORED, VERSIONS
from analysis.load import Results
from analysis.statistics.pairs import FEW_WINDOWS, SIXTEEN_BITS, finite
from analysis.statistics.uncertainty import widened
from analysis.tables import Tables
from analysis.verdicts import IMPOSSIBLE, WARNED, valid

EARLIER_THAN_POSSIBLE = 0.9
"""Pruning starts after the prompt's pass; a first token earlier
than this share of the dense time is a measuring error."""

CURVES = [*SCORED, "prune_after"]
"""What a sentence on perplexity is of."""


def findings(made: Tables) -> list[str]:
    """Lowest and highest PPL ratio per model, dataset and threshold, and the clearest change of speed per
    model and prompt.

    What is picked among many cells has an interval that holds for all of them together.
    """
    return [*_perplexity(made.perplexity), *_speed(made.generation)]


def _perplexity(cells: pl.DataFrame) -> list[str]:
    # A reproduced bug is shown in charts and tables, but is no finding about a policy.
    sound = pl.col("position_mode").ne_missing("cache_length")
    usable = cells.filter(valid(), pl.col("ratio").is_not_null(), sound)

    several = [name for name in CURVES if usable[name].n_unique() > 1]
    found = []
    for _, group in usable.group_by(CURVES, maintain_order=True):
        ranked = finite(widened(group.sort("ratio"), group.height)).to_dicts()
        low, high = ranked[0], ranked[-1]
        place = f"{labels.place(low, several)}, prune_after {labels.text(low['prune_after'])}"

        if len(ranked) == 1:
            found.append(f"{place}: PPL ratio {_ratio(low)}; the only cell that counts.")
        else:
            words = f"lowest PPL ratio {_ratio(low)}; highest {_ratio(high)}"
            found.append(
                f"{place}: of {len(ranked)} cells that pruned, {words}; both intervals hold for all cells "
                "together."
            )
    return found


def _ratio(row: labels.Row) -> str:
    bounds = labels.interval(row["wide_low"], row["wide_high"])
    return (
        f"{labels.figure(row['ratio'])} {bounds} at {labels.percent(row['budget'])} of the dense cache "
        f"({labels.cell(row)})"
    )


def _speed(speeds: pl.DataFrame) -> list[str]:
    keys = [
        "model",
        "device_name",
        "prompt_tokens",
        "batch_size",
        "timing_protocol",
        "run_id",
        *VERSIONS,
    ]
    groups = speeds.filter(pl.col("tpot_ratio").is_not_null()).group_by(keys, maintain_order=True)
    return [f"{_timed_place(group)}: time per output token{_of_turns(group)}." for _, group in groups]


def _timed_place(group: pl.DataFrame) -> str:
    """What took turns, in words."""
    model, device, prompt, batch = group.select("model", "device_name", "prompt_tokens", "batch_size").row(0)
    place = f"{model} on {labels.text(device)}, {prompt} prompt tokens"
    return place if batch == 1 else f"{place}, batch of {batch}"


def _of_turns(group: pl.DataFrame) -> str:
    """How the time per token of cells that took turns differs from dense, behind its name."""
    if (group["timing"] != "STABLE").all():
        return f": nothing can be said, {group['fault'][0]}"

    told = ~pl.col("tpot_words").str.starts_with(NO_DIFFERENCE)
    shown = group.filter(told, pl.col("timing") == "STABLE").sort("tpot_ratio").to_dicts()
    if not shown:
        return f": {NO_DIFFERENCE} in any of {group.height} cells"

    ends = [shown[0]] if len(shown) == 1 else [shown[0], shown[-1]]
    words = "; ".join(map(_changed_speed, ends))
    many = f"{len(shown)} of {group.height} cells, each at the 95 % level"
    return f" differs from dense in {many}: {words}"


def _changed_speed(row: labels.Row) -> str:
    bounds = labels.interval(row["tpot_low"], row["tpot_high"])
    silent = row["prune_step_seconds"] is None and row["prune_events"] > 0
    pruned = "; no step pruned, so that this is of a smaller cache alone" if silent else ""
    return (
        f"{row['tpot_words']}, ratio {bounds} ({labels.cell(row)}, prune_after "
        f"{labels.text(row['prune_after'])}{pruned})"
    )


def warnings(made: Tables, not_drawn: Mapping[str, int]) -> list[str]:
    """What a reader has to know before trusting a figure of this
    page; ``not_drawn``: how many of what have no charts."""
    found = [*_of_coverage(made.coverage), *_impossible(made.excluded), *_of_cells(made.perplexity)]
    found += [*_of_versions(made.results, made.perplexity), *_of_speed(made.generation)]
    if left_out := [f"{count} {words}" for words, count in not_drawn.items() if count > 0]:
        found.append(
            f"To keep the page small, {', '.join(left_out)}; they are in the tables. "
            "A report of fewer run directories draws more of them, --csv writes every figure."
        )
    return found


def _of_coverage(covered: pl.DataFrame) -> list[str]:
    failed, missing = int(covered["failed"].sum()), int(covered["missing"].sum())
    found = [f"Failed, hence in no chart (reasons are under Failures): {_cells(failed)}."] if failed else []
    return found + ([f"Planned, but without complete rows here: {_cells(missing)}."] if missing else [])


def _impossible(excluded: pl.DataFrame) -> list[str]:
    cells = excluded.filter(pl.col("verdict") == IMPOSSIBLE).select("task", "cells").iter_rows()
    words = (
        "A figure that cannot be, or one of the dense twin, hence in no chart and no finding (the table's "
        "note names it)"
    )
    return [f"{words}: {_cells(count)} of {task}." for task, count in cells]


def _of_cells(cells: pl.DataFrame) -> list[str]:
    compared = cells.filter(pl.col("policy") != "dense")
    paired = pl.col("n_paired")
    checks = [
        *[(pl.col("verdict") == verdict, words) for verdict, words in WARNED.items()],
        (paired == 0, "No row of the dense twin: no ratio can be formed"),
        (paired == 1, "Compared on one window: a ratio without an interval"),
        (
            pl.col("n_units").is_between(2, FEW_WINDOWS - 1),
            f"Compared on fewer than {FEW_WINDOWS} windows or documents (n < {FEW_WINDOWS}): "
            "whether so few hold what an interval says was not measured",
        ),
        (
            paired.is_between(1, pl.col("n_windows") - 1),
            "Some windows have no dense twin and are left out of the ratio",
        ),
        (pl.col("dtype").is_in(SIXTEEN_BITS), _of_rounding(compared)),
        (
            (pl.col("skip_layers").n_unique() > 1).over("cell_id"),
            "One cell skipped other layers on other machines, where its rule (auto:k) "
            "chose them by another text or rounding; its rows are kept apart",
        ),
        (
            pl.col("position_mode") == "cache_length",
            "Positions derived from the pruned length, a bug reproduced on purpose",
        ),
    ]

    counted = [(compared.filter(check).height, words) for check, words in checks]
    return [f"{words}: {count:,} of {_cells(compared.height)}." for count, words in counted if count]


def _of_rounding(compared: pl.DataFrame) -> str:
    """What rounding alone does to figures in 16 bits, as it was measured beside them."""
    own = compared.filter(pl.col("dtype").is_in(SIXTEEN_BITS))
    ppl, nats = (own.select(pl.col(name).max()).item() for name in ("rounding_ppl", "rounding_nats"))
    words = "Measured in 16 bits, where only float32 is exact"
    if ppl is None:
        return f"{words}: figures move by rounding with what shares a pass, by how much was not recorded"
    moved = f"{labels.percent(ppl)} of PPL and {labels.figure(nats)} nats a token on average"
    measured = "measured for knorm on the first windows, where pruned"
    return (
        f"{words}: rounding alone moves figures by up to {moved} ({measured}); "
        "do not rely on smaller differences"
    )


def _of_versions(results: Results, cells: pl.DataFrame) -> list[str]:
    found = []
    if cells["protocol_version"].n_unique() > 1:
        found.append(
            "The rows follow more than one protocol version; they are kept apart and must not be compared."
        )

    several = cells.group_by("model", maintain_order=True).agg(
        pl.col("bos").drop_nulls().n_unique().alias("n")
    )
    both = several.filter(pl.col("n") > 1)["model"]
    found += [
        f"Texts of model {labels.text(name)} began with BOS and without it; such rows are kept apart."
        for name in both
    ]

    if cells["special_tokens_in_text"].n_unique() > 1:
        found.append(
            "Special tokens that texts spell were read as letters and as tokens; such rows are kept apart."
        )

    for name, version in (("model", "model_revision"), ("dataset", "dataset_fingerprint")):
        several = (
            cells.group_by(name, maintain_order=True)
            .agg(pl.col(version).n_unique().alias("n"))
            .filter(pl.col("n") > 1)
        )
        found += [
            f"{name} {labels.text(value)} occurs in more than one version; they are kept apart."
            for value in several[name]
        ]

    dirty = [
        run.directory
        for run in results.runs
        if isinstance(run.info.get("git"), dict) and run.info["git"].get("dirty")
    ]
    return found + (["The working tree had uncommitted changes when the run started."] if dirty else [])


def _of_speed(speeds: pl.DataFrame) -> list[str]:
    wrong = speeds.filter(pl.col("timing") == "WRONG_ON_PURPOSE").height
    on_purpose = "Timed by a wrong protocol on purpose (report_2025), to show what it makes of the same runs"
    found = [f"{on_purpose}: {_cells(wrong)}."] if wrong else []

    unstable = speeds.filter(pl.col("timing") == "UNSTABLE_TIMING")
    for (fault,), group in unstable.group_by("fault", maintain_order=True):
        found.append(f"No speed-up or slow-down is named, {fault}: {_cells(group.height)}.")

    sooner = pl.col("ttft_high") < EARLIER_THAN_POSSIBLE
    early = speeds.filter(sooner, pl.col("timing") != "WRONG_ON_PURPOSE").height
    too_early = "First token much earlier than dense, a measuring error, because pruning starts after it"
    return [*found, f"{too_early}: {_cells(early)}."] if early else found


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count:,} cells"
