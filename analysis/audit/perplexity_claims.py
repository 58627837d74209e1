"""Three claims about which setting costs the least PPL:
layer 0 skipped, one of four policies, one keep_ratio.

That one setting costs more than another rests on paired contrasts of the two. Where neither is shown the
verdict is "not testable here".
"""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.audit.cause_claims import PRUNED_LENGTH
from analysis.audit.claim_evidence import (
    CONFIRMED,
    NOT_TESTABLE,
    REFUTED,
    THAT_PRUNES,
    Evidence,
    Ruling,
    artefact,
    at_ratio,
    change,
    changes,
    factor_words,
    first_and_last,
    highest,
    missing,
    plain,
    share_of,
    sure,
)
from analysis.audit.contrast import above, below, contrast
from analysis.recommend import MAX_PPL_INCREASE, front, recommended
from analysis.statistics.margins import PPL_MARGIN, mostly

SAME_SETTING = 1e-6
"""Values of keep_ratio this near to each other are the same."""

INCREASES = {"h2o": "+2 to +3 %", "streaming": "+1 to +5 %", "snapkv": "+3 to +4 %", "knorm": "+0.5 %"}
"""Claimed increases of PPL."""

COMPARED_RATIOS = (0.8, 0.7)
RECOMMENDED = (0.9, 0.75, 0.8)


def layer_0(e: Evidence) -> Ruling:
    """knorm with layer 0 skipped, against no layer and against any other single one, which holds as much.

    Confirmed where most pairs are shown to be better, against each of them. Refuted where most are shown not
    to be better than one of them by over 1 %; an artefact where that one is no layer, and skipping helps with
    positions from the pruned length.
    """
    first = sure(plain(e.cells, skip=[0]))
    none = contrast(e.measured, first, sure(plain(e.cells)), ["skip_layers"])
    bug = _with_the_bug(e)
    reproduced = _skipping(bug, "no layer")
    if none.is_empty():
        lacking = "knorm cells with layer 0 skipped beside the same without"
        return missing(lacking, "skip_layers: [[], [0], [3]]", reproduced)

    compared = {"no layer": none, **_other_layers(e, first)}
    honest = "; ".join(str(_skipping(pairs, name)) for name, pairs in compared.items())
    shown = [
        f"better than with {name} in {share_of(pairs, below())} pairs" for name, pairs in compared.items()
    ]
    why = f"skipping layer 0 is shown {'; '.join(shown)}"
    why += f"; with {PRUNED_LENGTH} in {share_of(bug, below())}" if bug.height else ""

    not_better = (pl.col("low") >= 1 - PPL_MARGIN) & ~below()
    if any(mostly(pairs, not_better) for pairs in compared.values()):
        helps_the_bug = mostly(bug, below()) and mostly(none, not_better)
        return Ruling(artefact(PRUNED_LENGTH) if helps_the_bug else REFUTED, why, reproduced, honest)
    if len(compared) == 1:
        alone = f"{why}; no cells that skip another layer, which holds as much"
        return Ruling(NOT_TESTABLE, alone, reproduced, honest)
    if all(mostly(pairs, below()) for pairs in compared.values()):
        return Ruling(CONFIRMED, why, reproduced, honest)
    return Ruling(NOT_TESTABLE, why, reproduced, honest)


def _with_the_bug(e: Evidence) -> pl.DataFrame:
    """Layer 0 skipped against no layer, where positions come from the pruned length."""
    first = sure(plain(e.cells, skip=[0], positions="cache_length"))
    none = sure(plain(e.cells, positions="cache_length"))
    return contrast(e.measured, first, none, ["skip_layers"])


def _other_layers(e: Evidence, first: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """``first`` against each other single layer that was listed to be skipped, by the layer in words."""
    listed = e.cells.filter(pl.col("skip_layers").list.len() == 1, pl.col("skip_layers_rule").is_null())
    compared: dict[str, pl.DataFrame] = {}
    for layer in listed["skip_layers"].list.first().unique().sort():
        if layer:
            pairs = contrast(e.measured, first, sure(plain(e.cells, skip=[layer])), ["skip_layers"])
            compared |= {f"layer {layer}": pairs} if pairs.height else {}
    return compared


def _skipping(pairs: pl.DataFrame, other: str) -> str | None:
    """The pairs that gain most and least from skipping layer 0 instead of another one."""
    if pairs.is_empty():
        return None
    rows = first_and_last(pairs.sort("factor").to_dicts())
    ends = [f"{factor_words(row)} {at_ratio(row)}, prune_after {row['prune_after']}" for row in rows]
    return f"PPL layer 0 / {other} skipped " + " to ".join(ends)


def four_policies(e: Evidence) -> Ruling:
    """knorm against each of three policies at keep_ratio 0.8 and 0.7 and the highest threshold that all have,
    paired: confirmed where it is shown to be better than each in most pairs, refuted where it is shown to be
    worse than one in most pairs.
    """
    measured = sure(plain(e.cells, *INCREASES)).filter(_is_one_of(COMPARED_RATIOS))
    absent = [name for name in INCREASES if name not in measured["policy"]]
    of_all = pl.col("policy").n_unique().over("prune_after") == len(INCREASES)
    cells = highest(measured.filter(of_all))
    if cells.is_empty():
        lacking = f"cells of {', '.join(absent)}" if absent else "threshold at which all four policies pruned"
        remedy = f"policies: [{', '.join(INCREASES)}] and a prune_after below the window"
        return missing(f"{lacking} at keep_ratio 0.8 or 0.7", remedy)

    compared = _knorm_against_others(e, cells)
    if any(pairs.is_empty() for pairs in compared.values()):
        lacking = "keep_ratio that knorm and the others share"
        return missing(lacking, "keep_ratios: [0.8, 0.7] for all four policies")

    figures = [
        f"knorm / {name} {'; '.join(map(factor_words, pairs.to_dicts()))}" for name, pairs in compared.items()
    ]
    budgets = cells["budget"].sort()
    held = f"{labels.percent(budgets[0])} to {labels.percent(budgets[-1])}"
    why = f"{', '.join(figures)}; at prune_after {cells['prune_after'][0]}, {held} of the dense cache"

    verdict = NOT_TESTABLE
    if any(mostly(pairs, above()) for pairs in compared.values()):
        verdict = REFUTED
    elif all(mostly(pairs, below()) for pairs in compared.values()):
        verdict = CONFIRMED
    return Ruling(verdict, why, honest=_increases(cells))


def _is_one_of(ratios: tuple[float, ...]) -> pl.Expr:
    """The cells of one of these values of keep_ratio."""
    return pl.any_horizontal((pl.col("keep_ratio") - ratio).abs() < SAME_SETTING for ratio in ratios)


def _knorm_against_others(e: Evidence, cells: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The pairs of knorm and each other policy, by its name."""
    knorm = cells.filter(pl.col("policy") == "knorm")
    others = [name for name in INCREASES if name != "knorm"]
    return {
        name: contrast(e.measured, knorm, cells.filter(pl.col("policy") == name), ["policy"])
        for name in others
    }


def _increases(cells: pl.DataFrame) -> str:
    """What each policy costs at each keep_ratio, in the order of the claim."""
    told = []
    for name in INCREASES:
        rows = cells.filter(pl.col("policy") == name).sort("keep_ratio", descending=True).to_dicts()
        for row in rows:
            interval = changes(row["ratio_low"], row["ratio_high"])
            told.append(f"{name} {change(row['ratio'])} {interval} {at_ratio(row)}")
    return "; ".join(told)


def recommendation(e: Evidence) -> Ruling:
    """Confirmed where the least cache that is confirmed to cost at most 1 % of PPL is knorm at a recommended
    keep_ratio; refuted where plain knorm is shown to cost more at each of them.
    """
    best = front(e.cells)
    if best.is_empty():
        return missing("cells that pruned, with an interval", THAT_PRUNES)

    advice = recommended(e.measured, e.cells, e.answers).row(0, named=True)
    honest = _best_settings(best, advice)
    asked = sure(plain(e.cells)).filter(_is_one_of(RECOMMENDED))
    costs_more = pl.col("pruned_low") > 1 + MAX_PPL_INCREASE
    shown = f"over {labels.percent(MAX_PPL_INCREASE)} of PPL in {share_of(asked, costs_more)} cells"
    why = f"knorm at 0.9, 0.8 and 0.75 is shown to cost {shown}; the advice here: {advice['advice']}"

    if asked.height and asked.filter(costs_more).height == asked.height:
        return Ruling(REFUTED, why, honest=honest)
    right = asked.filter(pl.col("pool_id").eq_missing(advice["pool_id"])).height > 0
    return Ruling(CONFIRMED if right else NOT_TESTABLE, why, honest=honest)


def _best_settings(best: pl.DataFrame, advice: labels.Row) -> str:
    """The settings on the Pareto front, behind the recommended one where there is one."""
    rows = best.select("policy", "keep_ratio").iter_rows()
    points = dict.fromkeys(f"{policy} {labels.ratio_setting(ratio)}" for policy, ratio in rows)
    words = f"Pareto front: {', '.join(points)}"
    if advice["budget"] is None:
        return words
    held = f"{labels.percent(advice['budget'])} held"
    return f"{labels.cell(advice)}, prune_after {advice['prune_after']}, {held}; {words}"
