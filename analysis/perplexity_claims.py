"""The rules of the audit that judge perplexity: which cells each picks, and which figures lead to which verdict."""

from __future__ import annotations

import math

import polars as pl

from analysis import labels
from analysis.claim_evidence import (
    CONFIRMED,
    NOT_TESTABLE,
    REFUTED,
    Evidence,
    Ruling,
    artefact,
    change,
    changes,
    control_experiment,
    counted,
    highest,
    lowest,
    missing,
    plain,
    share_of,
    sure,
    with_interval,
)
from analysis.contrast import above, below, contrast, mostly
from analysis.recommend import MAX_PPL_INCREASE, front, recommended

EQUAL = 1e-6
"""Ratios (of PPL, and keep_ratios) this near to each other are the same."""
LONG_THRESHOLD = 512
PRUNED_LENGTH = "positions taken from the pruned length"
LOW_THRESHOLD = "the low threshold"
INCREASES = {"h2o": (1.02, 1.03), "streaming": (1.01, 1.05), "snapkv": (1.03, 1.04), "knorm": (1.0, 1.01)}
"""Claimed ratios of PPL; the +0.5 % of knorm is taken as 0 to 1 %."""
SOME_COMPRESSION = (0.8, 0.7)
RECOMMENDED = (0.9, 0.75, 0.8)
THAT_PRUNES = "perplexity, policy knorm and a prune_after well below the window"


def equal_at_every_ratio(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: confirmed where every interval of the PPL ratio contains 1."""
    cells = lowest(sure(plain(e.cells)))
    if cells.is_empty():
        return missing("plain knorm cells that pruned, with an interval", THAT_PRUNES)
    reproduced = (
        f"PPL {labels.figure(cells['dense_ppl'][0])} at each of {counted(cells, 'ratio')}: a dense pass knows no keep_ratio"
    )
    verdict = artefact("evaluating without the cache") if cells.filter(_not_one()).height else CONFIRMED
    return Ruling(verdict, _how_many(cells), reproduced, _ends(cells))


def _not_one() -> pl.Expr:
    return (pl.col("ratio_low") > 1) | (pl.col("ratio_high") < 1)


def _how_many(cells: pl.DataFrame) -> str:
    """How many intervals exclude 1, where, and on how many units."""
    thresholds = labels.text(sorted(set(cells["prune_after"])))
    units = f"{cells['n_units'].min()} {cells['resampled'][0]}"
    return f"at prune_after {thresholds} {share_of(cells, _not_one())} intervals exclude 1 ({units})"


def _ends(cells: pl.DataFrame) -> str:
    """The cells of lowest and highest PPL ratio."""
    rows = cells.sort("ratio").to_dicts()
    return "PPL ratio " + " to ".join(f"{_ratio(row)} {_at(row)}" for row in rows[:1] + rows[1:][-1:])


def _ratio(row: labels.Row) -> str:
    return with_interval(row["ratio"], row["ratio_low"], row["ratio_high"])


def _at(row: labels.Row) -> str:
    return f"at keep_ratio {labels.ratio_setting(row['keep_ratio'])}"


def _factor(row: labels.Row) -> str:
    return with_interval(row["factor"], row["low"], row["high"])


def unchanged_at_512(e: Evidence) -> Ruling:
    """Cells that really pruned at 512 or above, else at the highest threshold: confirmed where every interval contains 1. An
    artefact where the cells below their threshold all equal dense. Cells that barely pruned stand in where none never did.
    """
    vacuous = plain(e.cells).filter(pl.col("verdict") == "NEVER_PRUNED")
    vacuous = vacuous if vacuous.height else plain(e.cells).filter(pl.col("verdict") == "BARELY_PRUNED")
    reproduced = None
    if vacuous.height:
        ppl, share = vacuous["ppl"].sort(), vacuous.select(pl.col("share_pruned").max()).item()
        pruned = f"at most {labels.percent(share)} of the tokens scored pruned"
        reproduced = f"PPL {labels.figure(ppl[0])} to {labels.figure(ppl[-1])} in {counted(vacuous, 'cell')}, {pruned}"
    valid = sure(plain(e.cells))
    cells = valid.filter(pl.col("prune_after") >= LONG_THRESHOLD)
    cells = cells if cells.height else highest(valid)
    if cells.is_empty():
        return missing("plain knorm cells that pruned, with an interval", THAT_PRUNES, reproduced)
    verdict = REFUTED
    if cells.filter(_not_one()).is_empty():
        verdict = CONFIRMED
    elif vacuous.height and vacuous.filter((pl.col("ratio") - 1).abs() <= EQUAL).height == vacuous.height:
        verdict = artefact("a threshold that is never reached")
    return Ruling(verdict, _how_many(cells), reproduced, _ends(cells))


def order(e: Evidence) -> Ruling:
    """The same kept set stored in order of norm, against knorm: confirmed where most pairs differ. Else what else differed is
    varied alone, starting from absolute positions and the highest threshold; what raises PPL in most pairs is the cause.
    """
    knorm, bug = sure(plain(e.cells)), sure(plain(e.cells, positions="cache_length"))
    stored, kept = (sure(e.cells.filter(pl.col("policy") == name)) for name in ("knorm_sorted", "knorm"))
    pairs = contrast(e.measured, stored, kept, ["policy"])
    below_highest = knorm.filter(pl.col("prune_after") < pl.col("prune_after").max())
    causes = {
        PRUNED_LENGTH: highest(contrast(e.measured, bug, knorm, ["position_mode"])),
        LOW_THRESHOLD: contrast(e.measured, lowest(below_highest), highest(knorm), ["prune_after"]),
    }
    honest = "; ".join(f"{cause}: {_largest(found)}" for cause, found in causes.items() if found.height) or None
    if pairs.is_empty():
        return missing("knorm_sorted cells beside the same of knorm", "policies: [knorm, knorm_sorted]", honest=honest)
    furthest = pairs.sort(pl.col("factor").log().abs()).row(-1, named=True)
    reproduced = f"knorm_sorted / knorm {_factor(furthest)}, the furthest from 1 of {counted(pairs, 'pair')}"
    differs = above() | below()
    absent = "".join(f"; no cells that vary {cause}" for cause, found in causes.items() if found.is_empty())
    why = f"order changes PPL in {share_of(pairs, differs)} pairs{absent}"
    if mostly(pairs, differs):
        return Ruling(CONFIRMED, why, reproduced, honest)
    sizes = {cause: found["factor"].sort()[-1] for cause, found in causes.items() if mostly(found, above())}
    guilty = sorted(sizes, key=lambda cause: -sizes[cause])
    return Ruling(artefact(" and ".join(guilty)) if guilty else REFUTED, why, reproduced, honest)


def _largest(pairs: pl.DataFrame) -> str:
    row = pairs.sort("factor").row(-1, named=True)
    return f"up to {_factor(row)} {_at(row)}, prune_after {row['prune_after']}; above 1 in {share_of(pairs, above())}"


def u_curve(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: refuted where the highest keep_ratio is not shown to be worse than the lowest. An
    artefact where protecting the newest entries is shown to help and takes away half of what pruning costs (log of the ratio).
    Where it seems to, but is not shown to, nothing can be said.
    """
    curve = lowest(sure(plain(e.cells))).sort("keep_ratio", descending=True)
    rise = contrast(e.measured, curve[:1], curve[1:][-1:], ["keep_ratio"])
    if rise.is_empty():
        return missing("plain knorm cells of two keep_ratios, with intervals", f"several keep_ratios, {THAT_PRUNES}")
    top = rise.row(0, named=True)
    here = (pl.col("prune_after") == top["prune_after"]) & (pl.col("keep_ratio") == top["keep_ratio"])
    points = [f"{labels.ratio_setting(row['keep_ratio'])}: {labels.figure(row['ppl'])}" for row in curve.to_dicts()]
    reproduced = "; ".join([f"prune_after {top['prune_after']}: dense {labels.figure(top['dense_ppl'])}", *points])
    controls = control_experiment(sure(e.cells)).filter(here).to_dicts()
    honest = "; ".join(
        f"{row['policy']} {_ratio(row)}, recent retained {labels.percent(row['recent_retained'])}" for row in controls
    )
    honest = f"PPL ratio {_at(top)}: {honest}"
    why = f"highest keep_ratio / lowest {_factor(top)}"
    if rise.filter(above()).is_empty():
        return Ruling(REFUTED, f"{why}: no rise shown", reproduced, honest)
    guarded = sure(e.cells).filter(here, pl.col("protect_recent") > 0)
    pairs = contrast(e.measured, guarded, curve[:1], ["protect_recent"]).sort("ratio")
    if pairs.is_empty():
        lacking = missing("knorm cells with the newest protected", "protect_recent: [0, 4, 8, 16]")
        return Ruling(NOT_TESTABLE, f"{why}; {lacking.why}", reproduced, honest)
    best = pairs.row(0, named=True)
    why += f"; last {best['protect_recent']} protected / none {_factor(best)}"
    halved = top["ratio"] > 1 and math.log(best["ratio"]) <= math.log(top["ratio"]) / 2
    if halved and pairs[:1].filter(below()).is_empty():
        return Ruling(NOT_TESTABLE, f"{why}: too wide", reproduced, honest)
    return Ruling(artefact("dropping the newest keys") if halved else CONFIRMED, why, reproduced, honest)


def layer_0(e: Evidence) -> Ruling:
    """knorm with layer 0 skipped against none: confirmed where most pairs are shown better with absolute positions; an artefact
    where that is so only with positions taken from the pruned length.
    """
    knorm = {
        (mode, n): sure(plain(e.cells, skip=range(n), positions=mode)) for mode in ("absolute", "cache_length") for n in (0, 1)
    }
    true, bug = (contrast(e.measured, knorm[mode, 1], knorm[mode, 0], ["skip_layers"]) for mode in ("absolute", "cache_length"))
    reproduced = _skipping(bug)
    if true.is_empty():
        return missing("knorm cells with layer 0 skipped beside the same without", "skip_layers: [[], [0]]", reproduced)
    held = [labels.percent(true.select(pl.col(name).mean()).item()) for name in ("under_budget", "budget")]
    why = (
        f"skipping holds {held[1]} of the dense cache instead of {held[0]} and is shown better in {share_of(true, below())} pairs"
    )
    why += f", with {PRUNED_LENGTH} in {share_of(bug, below())}" if bug.height else ""
    verdict = artefact(PRUNED_LENGTH) if mostly(bug, below()) else REFUTED
    return Ruling(CONFIRMED if mostly(true, below()) else verdict, why, reproduced, _skipping(true))


def _skipping(pairs: pl.DataFrame) -> str | None:
    """The pairs that gain most and least from skipping."""
    if pairs.is_empty():
        return None
    rows = pairs.sort("factor").to_dicts()
    ends = [f"{_factor(row)} {_at(row)}, prune_after {row['prune_after']}" for row in rows[:1] + rows[1:][-1:]]
    return "PPL skipped / not " + " to ".join(ends)


def four_policies(e: Evidence) -> Ruling:
    """Four policies at keep_ratio 0.8 and 0.7 and the highest threshold that all have: refuted where an interval of the increase
    of PPL excludes what is claimed of its policy.
    """
    asked = pl.any_horizontal((pl.col("keep_ratio") - ratio).abs() < EQUAL for ratio in SOME_COMPRESSION)
    cells = sure(plain(e.cells, *INCREASES)).filter(asked)
    absent = [name for name in INCREASES if name not in cells["policy"]]
    cells = highest(cells.filter(pl.col("policy").n_unique().over("prune_after") == len(INCREASES)))
    if cells.is_empty():
        lacking = f"cells of {', '.join(absent)}" if absent else "threshold at which all four policies pruned"
        return missing(
            f"{lacking} at keep_ratio 0.8 or 0.7", f"policies: [{', '.join(INCREASES)}] and a prune_after below the window"
        )
    words, wrong = [], []
    for name, (least, most) in INCREASES.items():
        rows = cells.filter(pl.col("policy") == name).sort("keep_ratio", descending=True).to_dicts()
        words += [f"{name} {change(r['ratio'])} {changes(r['ratio_low'], r['ratio_high'])} {_at(r)}" for r in rows]
        wrong += [name] if any(row["ratio_high"] < least or row["ratio_low"] > most for row in rows) else []
    held = " to ".join(labels.percent(cells["budget"].sort()[end]) for end in (0, -1))
    place = f"at prune_after {cells['prune_after'][0]}, {held} of the dense cache"
    why = f"outside the claimed range: {', '.join(wrong)}" if wrong else "every interval overlaps the claimed range"
    return Ruling(REFUTED if wrong else CONFIRMED, f"{why}; {place}", honest="; ".join(words))


def recommendation(e: Evidence) -> Ruling:
    """The least cache that is shown to cost at most 1 % of PPL: confirmed where that is knorm at a recommended keep_ratio."""
    cells = e.cells.filter(pl.col("policy") != "knorm_sorted")  # keeps what knorm keeps
    best = front(cells)
    if best.is_empty():
        return missing("cells that pruned, with an interval", THAT_PRUNES)
    advice = recommended(cells).row(0, named=True)
    points = dict.fromkeys(f"{row['policy']} {labels.ratio_setting(row['keep_ratio'])}" for row in best.to_dicts())
    along = f"Pareto front: {', '.join(points)}"
    if advice["budget"] is None:
        return Ruling(REFUTED, str(advice["advice"]), honest=f"no setting; {along}")
    place = f"{labels.cell(advice)}, prune_after {advice['prune_after']}: PPL ratio {_ratio(advice)}"
    right = advice["policy"] == "knorm" and any(abs(advice["keep_ratio"] - ratio) < EQUAL for ratio in RECOMMENDED)
    held, limit = labels.percent(advice["budget"]), labels.percent(MAX_PPL_INCREASE)
    why = f"least cache, {held} of the dense one, that is shown to cost at most {limit} of PPL"
    return Ruling(CONFIRMED if right else REFUTED, why, honest=f"{place}; {along}")
