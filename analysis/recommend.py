"""Which setting to use: the one that holds least and is confirmed,
on windows that did not choose it, to cost little PPL.

A cell that is picked among many looks better than it is, so its own interval says too much. Here one half of
the windows (or documents) chooses which cells are worth a try, and the other half confirms them one after the
other, the safest first, until one is not confirmed: that a setting is recommended wrongly happens in at most
5 of 100 reports, however many cells there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from analysis import labels
from analysis.keys import SAME, SCORED
from analysis.retrieval.tables import kept_accuracy, knows_enough, scored_schedule, shown_lower
from analysis.statistics.pairs import POOL, SIXTEEN_BITS
from analysis.statistics.uncertainty import LEVEL, t_quantile, units, weighted_mean
from analysis.verdicts import valid

MAX_PPL_INCREASE = 0.01

CONTROLS = ("random", "knorm_high", "knorm_sorted")
"""Policies that are there to be compared with. None of them is recommended, whatever it costs here."""

FEWEST_UNITS = 8
"""Windows or documents that a cell needs, so that each half has four."""

HALVES = ("choosing_high", "confirmed_high")
"""The half that chooses and the one that confirms, as the columns of their upper bounds."""


def usable() -> pl.Expr:
    """Cells that a recommendation may rest on: valid, with an interval and a budget; no control, no bug
    reproduced on purpose."""
    return (
        valid()
        & pl.col("pruned_high").is_not_null()
        & pl.col("budget").is_not_null()
        & pl.col("position_mode").ne_missing("cache_length")
        & ~pl.col("policy").is_in(CONTROLS)
        & (pl.col("rounding_ppl").is_not_null() | ~pl.col("dtype").is_in(SIXTEEN_BITS))
    )


def front(cells: pl.DataFrame) -> pl.DataFrame:
    """The usable cells that no other of their model and dataset beats in realised budget and upper bound of
    the PPL ratio.

    The ratio is that of the tokens that saw a pruned cache.
    """
    return _best(cells.filter(usable()), "pruned_high")


def _best(cells: pl.DataFrame, bound: str) -> pl.DataFrame:
    ranked = cells.sort("budget", bound, maintain_order=True)
    best_before = pl.col(bound).cum_min().shift(1).over(SCORED)
    best = ranked.filter(best_before.is_null() | (pl.col(bound) < best_before))
    return best.sort(*SCORED, "budget", nulls_last=False, maintain_order=True)


def recommended(
    measured: pl.DataFrame, cells: pl.DataFrame, answers: pl.DataFrame, tolerance: float = MAX_PPL_INCREASE
) -> pl.DataFrame:
    """One row per model and dataset: the columns of the recommended cell, null where there is none, and
    ``advice`` in words.

    ``measured``: ``pairs.with_dense``; ``cells``: ``Tables.perplexity``; ``answers``:
    ``retrieval_tables.retrieval``. Adds ``confirmed_high``: the one-sided 95 % upper bound of the PPL ratio,
    over the tokens that saw a pruned cache, on the half that confirmed. A cell whose retrieval was measured,
    under whatever schedule, must also be shown to keep it.
    """
    groups = cells.filter(pl.col("policy") != "dense").select(SCORED).unique(maintain_order=True)
    candidates = with_retrieval(with_halves(measured, cells.filter(usable())), answers)
    found = [
        groups.clear().join(candidates, on=SCORED, how="left").with_columns(advice=pl.lit(None, pl.String))
    ]
    for group in groups.iter_slices(1):
        own = candidates.join(group, on=SCORED, how="semi", nulls_equal=True, maintain_order="left")
        chosen, advice = _choice(own, tolerance)
        found.append(
            group.join(chosen, on=SCORED, how="left", nulls_equal=True).with_columns(advice=pl.lit(advice))
        )
    return pl.concat(found).sort(SCORED, nulls_last=False, maintain_order=True)


def _choice(cells: pl.DataFrame, tolerance: float) -> tuple[pl.DataFrame, str]:
    """The recommended cell (no row where there is none), and why."""
    limit = f"{100 * tolerance:g} %"
    kept, why_none = _worth_a_try(cells, tolerance, limit)
    if kept.is_empty():
        return kept, f"no recommendation: {why_none}"

    tried = _best(kept, "choosing_high").sort("budget", descending=True, maintain_order=True)
    # The first that is not confirmed makes the product 0, and with it all behind.
    confirmed = tried.filter((pl.col("confirmed_high") <= 1 + tolerance).cum_prod().cast(pl.Boolean))
    if confirmed.is_empty():
        worst = labels.figure(100 * (tried["confirmed_high"][0] - 1))
        not_confirmed = f"within {limit} was not confirmed on the other half of the windows, up to {worst} %"
        return confirmed, f"no recommendation: {not_confirmed}"

    last = confirmed.tail(1)
    others = f"{last['unit_kind'][0]} that did not choose it"
    advice = f"at most {limit} worse where the cache was pruned, confirmed on {others}"
    return last, f"{advice}; {last['asked'][0]}"


def _worth_a_try(cells: pl.DataFrame, tolerance: float, limit: str) -> tuple[pl.DataFrame, str]:
    """The cells that look cheap on the half that chooses and that retrieval does not rule out, and why there
    may be none."""
    if cells.is_empty():
        return cells, "no cell that pruned, controls apart, has an interval"

    enough = cells.filter(pl.col("pruned_units") >= FEWEST_UNITS)
    if enough.is_empty():
        most = labels.count(cells.select(pl.col("pruned_units").max()).item())
        too_few = "that pruned are too few to choose on one half and confirm on the other"
        return enough, f"{most} {cells['unit_kind'][0]} {too_few}"

    cheap = enough.filter(pl.col("choosing_high") <= 1 + tolerance)
    if cheap.is_empty():
        least = labels.figure(100 * (enough.select(pl.col("choosing_high").min()).item() - 1))
        return cheap, f"no cell looks to stay within {limit}; the closest may be {least} % worse"

    kept = cheap.filter(pl.col("veto").is_null())
    return kept, f"retrieval rules out each cell that looks to stay within {limit}: {cheap['veto'][0]}"


def with_halves(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """The cells with ``choosing_high`` and ``confirmed_high``: upper bounds (one-sided, 95 %) of their PPL
    ratio on either half.

    Every other window, or document, belongs to one half. The ratio is that of the tokens that saw a pruned
    cache, raised by what rounding alone does to PPL (``rounding_ppl``, which matters in 16 bits).
    """
    highs = [
        cells.select(POOL).clear().with_columns(half=pl.lit(None, pl.Int64), high=pl.lit(None, pl.Float64))
    ]
    for (n,), group in _units_of_halves(measured, cells).group_by("n"):
        for number in range(len(HALVES)):
            # Of an odd number of units the first half has one more.
            count = (int(str(n)) + 1 - number) // 2
            highs.append(_upper_bounds(group.filter(pl.col("half") == number), number, count))

    bounds = pl.concat(highs)
    rounding = pl.col("rounding_log").exp()
    for number, name in enumerate(HALVES):
        of_half = bounds.filter(pl.col("half") == number).select(*POOL, pl.col("high").alias(name))
        cells = cells.join(of_half, on=POOL, how="left", nulls_equal=True, maintain_order="left")
        cells = cells.with_columns(pl.col(name) * rounding)
    return cells


def _units_of_halves(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """Sums of the units that pruned, where a cell has enough of them.

    ``half`` says to which each belongs, ``n`` how many its cell has.
    """
    sums = units(measured, POOL).join(cells.select(POOL), on=POOL, how="semi", nulls_equal=True)
    pruned = sums.filter(pl.col("tokens_pruned") > 0).sort(*POOL, "unit")
    halved = pruned.with_columns(n=pl.len().over(POOL), half=pl.int_range(pl.len()).over(POOL) % 2)
    return halved.filter(pl.col("n") >= FEWEST_UNITS).sort(*POOL, "half", "unit")


def _upper_bounds(of_half: pl.DataFrame, number: int, count: int) -> pl.DataFrame:
    """The upper bound of each cell's ratio on one half, of which it has ``count`` units."""
    nll, tokens = (
        of_half[name].cast(pl.Float64).to_numpy().reshape(-1, count) for name in ("nll", "tokens_pruned")
    )
    mean, error = weighted_mean(nll, tokens)
    bound = pl.Series(mean + t_quantile(LEVEL, count) * error).exp()
    keys = of_half.unique(POOL, keep="first", maintain_order=True).select(POOL)
    return keys.with_columns(half=pl.lit(number, pl.Int64), high=bound)


def with_retrieval(cells: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """The cells with ``asked``, what retrieval of the same setting says, and ``veto``, the same where it
    rules that out."""
    numbered = cells.with_columns(scored_schedule()).with_row_index("cell")
    same = numbered.select("cell", *SAME)
    both = answers.with_columns(scored_schedule()).join(same, on=SAME, how="inner", nulls_equal=True)
    by_cell = both.partition_by("cell", as_dict=True)
    words = [_told(by_cell.get((number,), both.clear())) for number in range(cells.height)]
    asked = pl.Series([said for said, _ in words], dtype=pl.String)
    return cells.with_columns(
        asked=asked, veto=pl.Series([None if kept else said for said, kept in words], dtype=pl.String)
    )


def _told(asked: pl.DataFrame) -> tuple[str, bool]:
    """What retrieval of a setting says, and whether the setting may be recommended."""
    measured = asked.filter(valid(), pl.col("accuracy_difference").is_not_null())
    if measured.is_empty():
        return "retrieval of this setting was not measured", True
    known = measured.filter(knows_enough())
    if known.is_empty():
        return "retrieval cannot tell, for the dense cell does not know the answers", True

    losses = {
        "retrieval is shown to lose": shown_lower().fill_null(False),
        "retrieval may lose": ~kept_accuracy(),
    }
    for words, shown in losses.items():
        bad = known.filter(shown).sort("accuracy_difference", maintain_order=True)
        if bad.height:
            row = bad.row(0, named=True)
            lost = f"{row['lost']} of {row['paired']} answers lost"
            return f"{words} ({lost}: {labels.questions(row)}, {row['context_tokens']} tokens)", False
    return f"retrieval is kept in {known.height} of {known.height} sorts of questions", True


def advice_in_words(advised: pl.DataFrame) -> list[str]:
    """A sentence per model and dataset; ``advised`` comes from ``recommended``."""
    return list(_sentences(advised))


def _sentences(advised: pl.DataFrame) -> Iterator[str]:
    several = [name for name in SCORED if advised[name].n_unique() > 1]
    for row in advised.iter_rows(named=True):
        place, advice = labels.place(row, several), row["advice"]
        if row["budget"] is not None:
            cell = f"{labels.cell(row)}, prune_after {labels.text(row['prune_after'])}"
            advice = (
                f"least cache for a PPL {advice}: {labels.percent(row['budget'])} of the dense one ({cell})"
            )
        yield f"{place}: {advice}."
