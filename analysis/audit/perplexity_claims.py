"""The rules of the audit that judge perplexity: which cells each picks, and which figures lead to which
verdict.

A claim that figures are equal is confirmed where every interval lies within 1 % of 1, and refuted where some
interval lies wholly outside, of intervals that hold together. A claim that one thing costs more than another
rests on paired contrasts of the two. Where neither is shown the verdict is "not testable here".
"""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.audit.claim_evidence import (
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
from analysis.audit.contrast import above, below, contrast, saved_share
from analysis.recommend import MAX_PPL_INCREASE, front, recommended
from analysis.statistics.margins import PPL_MARGIN, changed, mostly, unchanged
from analysis.statistics.uncertainty import widened

EQUAL = 1e-6
"""Ratios (of PPL, and keep_ratios) this near to each other are the same."""
LONG_THRESHOLD = 512
PRUNED_LENGTH = "positions taken from the pruned length"
LOW_THRESHOLD = "the low threshold"
INCREASES = {"h2o": "+2 to +3 %", "streaming": "+1 to +5 %", "snapkv": "+3 to +4 %", "knorm": "+0.5 %"}
"""Claimed increases of PPL."""
SOME_COMPRESSION = (0.8, 0.7)
RECOMMENDED = (0.9, 0.75, 0.8)
THAT_PRUNES = "perplexity, policy knorm and a prune_after well below the window"
MARGIN = labels.percent(PPL_MARGIN)
EQUAL_WHERE_PRUNED = unchanged("pruned_low", "pruned_high")


def equal_at_every_ratio(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: confirmed where every interval lies within 1 % of 1.

    An artefact where some cell is shown to lie further off: a dense pass, which is how the reports evaluated,
    gives the same figure at every ratio.
    """
    cells = lowest(sure(plain(e.cells)))
    if cells.is_empty():
        return missing("plain knorm cells that pruned, with an interval", THAT_PRUNES)
    if cells["keep_ratio"].n_unique() < 2:
        return missing(
            "plain knorm cells of two keep_ratios that pruned, with intervals",
            f"several keep_ratios, {THAT_PRUNES}",
        )
    reproduced = (
        f"PPL {labels.figure(cells['dense_ppl'][0])} at each of {counted(cells, 'ratio')}: "
        "a dense pass knows no keep_ratio"
    )
    return Ruling(
        _equality(cells, artefact("evaluating without the cache")), _how_many(cells), reproduced, _ends(cells)
    )


def _equality(cells: pl.DataFrame, otherwise: str) -> str:
    """The verdict on "equal to dense": ``otherwise`` where some cell is shown to differ."""
    if where_pruned(cells).filter(changed()).height:
        return otherwise
    return CONFIRMED if cells.filter(EQUAL_WHERE_PRUNED).height == cells.height else NOT_TESTABLE


def _how_many(cells: pl.DataFrame) -> str:
    """How many intervals lie outside and inside the margin, where, and on how many units."""
    thresholds = labels.text(sorted(set(cells["prune_after"])))
    units = f"{cells['n_units'].min()} {cells['unit_kind'][0]}"
    differ, equal = share_of(where_pruned(cells), changed()), share_of(cells, EQUAL_WHERE_PRUNED)
    words = f"{differ} cells differ from dense by more than {MARGIN} where pruned, {equal} by less"
    return f"at prune_after {thresholds} {words} ({units})"


def _ends(cells: pl.DataFrame) -> str:
    """The cells of lowest and highest PPL ratio, with intervals that hold for all of the cells together."""
    rows = where_pruned(cells).sort("pruned_ratio").to_dicts()
    ends = [
        f"{with_interval(r['pruned_ratio'], r['wide_low'], r['wide_high'])} {_at(r)}"
        for r in rows[:1] + rows[1:][-1:]
    ]
    return "PPL ratio where pruned " + " to ".join(ends)


def where_pruned(cells: pl.DataFrame) -> pl.DataFrame:
    """Intervals of the ratios where pruned that hold for all cells together: the other tokens have dense's
    NLL and dilute it."""
    return widened(cells, cells.height, "pruned_ratio", "pruned_error", "pruned_units")


def _ratio(row: labels.Row) -> str:
    return with_interval(row["ratio"], row["ratio_low"], row["ratio_high"])


def _at(row: labels.Row) -> str:
    return f"at keep_ratio {labels.ratio_setting(row['keep_ratio'])}"


def _factor(row: labels.Row) -> str:
    return with_interval(row["factor"], row["low"], row["high"])


def unchanged_at_512(e: Evidence) -> Ruling:
    """Cells that really pruned at 512 or above: confirmed where every interval lies within 1 % of 1.

    Where some cell is shown to lie further off, an artefact if the cells below their threshold all equal
    dense, else refuted. Cells that barely pruned stand in where none never did.
    """
    vacuous = plain(e.cells).filter(pl.col("verdict") == "NEVER_PRUNED")
    vacuous = vacuous if vacuous.height else plain(e.cells).filter(pl.col("verdict") == "BARELY_PRUNED")
    reproduced = None
    if vacuous.height:
        ppl, share = vacuous["ppl"].sort(), vacuous.select(pl.col("share_pruned").max()).item()
        pruned = f"at most {labels.percent(share)} of the tokens scored pruned"
        reproduced = (
            f"PPL {labels.figure(ppl[0])} to {labels.figure(ppl[-1])} in {counted(vacuous, 'cell')}, {pruned}"
        )
    cells = sure(plain(e.cells)).filter(pl.col("prune_after") >= LONG_THRESHOLD)
    if cells.is_empty():
        kind = f"plain knorm cells that pruned at {LONG_THRESHOLD} entries or more, with an interval"
        return missing(kind, f"a window well above {LONG_THRESHOLD}", reproduced)
    equal = vacuous.height and vacuous.filter((pl.col("ratio") - 1).abs() <= EQUAL).height == vacuous.height
    otherwise = artefact("a threshold that is never reached") if equal else REFUTED
    return Ruling(_equality(cells, otherwise), _how_many(cells), reproduced, _ends(cells))


def order(e: Evidence) -> Ruling:
    """The same kept set stored in order of norm, against knorm: confirmed where most pairs are shown to be
    worse by over 1 %.

    Where all are shown to be equal within 1 %, what else differed is varied alone, starting from absolute
    positions and the highest threshold; what raises PPL in most pairs is the cause.
    """
    knorm, bug = sure(plain(e.cells)), sure(plain(e.cells, positions="cache_length"))
    stored, kept = (sure(e.cells.filter(pl.col("policy") == name)) for name in ("knorm_sorted", "knorm"))
    pairs = contrast(e.measured, stored, kept, ["policy"])
    below_highest = knorm.filter(pl.col("prune_after") < pl.col("prune_after").max())
    causes = {
        PRUNED_LENGTH: highest(contrast(e.measured, bug, knorm, ["position_mode"])),
        LOW_THRESHOLD: contrast(e.measured, lowest(below_highest), highest(knorm), ["prune_after"]),
    }
    honest = (
        "; ".join(f"{cause}: {_largest(found)}" for cause, found in causes.items() if found.height) or None
    )
    if pairs.is_empty():
        return missing(
            "knorm_sorted cells beside the same of knorm", "policies: [knorm, knorm_sorted]", honest=honest
        )
    furthest = pairs.sort(pl.col("factor").log().abs()).row(-1, named=True)
    reproduced = f"knorm_sorted / knorm {_factor(furthest)}, the furthest from 1 of {counted(pairs, 'pair')}"
    equal, worse = unchanged("low", "high"), pl.col("low") > 1 + PPL_MARGIN
    absent = "".join(f"; no cells that vary {cause}" for cause, found in causes.items() if found.is_empty())
    changes_little = f"order changes PPL by less than {MARGIN} in {share_of(pairs, equal)} pairs"
    why = f"{changes_little}, raises it by more in {share_of(pairs, worse)}{absent}"

    if mostly(pairs, worse):
        return Ruling(CONFIRMED, why, reproduced, honest)
    if pairs.filter(equal).height < pairs.height:
        return Ruling(NOT_TESTABLE, why, reproduced, honest)
    raises = pl.col("low") > 1 + PPL_MARGIN
    sizes = {cause: found["factor"].sort()[-1] for cause, found in causes.items() if mostly(found, raises)}
    guilty = sorted(sizes, key=lambda cause: -sizes[cause])
    return Ruling(artefact(" and ".join(guilty)) if guilty else REFUTED, why, reproduced, honest)


def _largest(pairs: pl.DataFrame) -> str:
    row = pairs.sort("factor").row(-1, named=True)
    return (
        f"up to {_factor(row)} {_at(row)}, prune_after {row['prune_after']}; "
        f"above 1 in {share_of(pairs, above())}"
    )


def u_curve(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: refuted where the highest keep_ratio is shown not to be worse than
    the lowest by 1 %.

    An artefact where it is shown to be worse, and protecting the newest entries is shown to take away half of
    what it costs. What else may cause a rise, conflicting information included, no row can tell: then nothing
    is confirmed.
    """
    curve = lowest(sure(plain(e.cells))).sort("keep_ratio", descending=True)
    rise = contrast(e.measured, curve[:1], curve[1:][-1:], ["keep_ratio"])
    if rise.is_empty():
        return missing(
            "plain knorm cells of two keep_ratios, with intervals", f"several keep_ratios, {THAT_PRUNES}"
        )
    top = rise.row(0, named=True)
    here = (pl.col("prune_after") == top["prune_after"]) & (pl.col("keep_ratio") == top["keep_ratio"])
    points = [
        f"{labels.ratio_setting(row['keep_ratio'])}: {labels.figure(row['ppl'])}" for row in curve.to_dicts()
    ]
    reproduced = "; ".join(
        [f"prune_after {top['prune_after']}: dense {labels.figure(top['dense_ppl'])}", *points]
    )
    controls = control_experiment(sure(e.cells)).filter(here).to_dicts()
    honest = "; ".join(
        f"{row['policy']} {_ratio(row)}, recent retained {labels.percent(row['recent_retained'])}"
        for row in controls
    )
    honest = f"PPL ratio {_at(top)}: {honest}"
    why = f"highest keep_ratio / lowest {_factor(top)}"
    over_least = contrast(e.measured, curve[:-1], curve[-1:], ["keep_ratio"])
    if top["high"] <= 1 + PPL_MARGIN and over_least.filter(above()).is_empty():
        return Ruling(REFUTED, f"{why}: no rise of more than {MARGIN}", reproduced, honest)
    if rise.filter(above()).is_empty() or top["ratio_low"] <= 1:
        return Ruling(
            NOT_TESTABLE, f"{why}, PPL ratio to dense {_ratio(top)}: no rise shown", reproduced, honest
        )

    kinds = [n for n in e.cells["protect_recent"].drop_nulls().unique() if n]
    guarded = pl.concat([sure(plain(e.cells, recent=n)).filter(here) for n in kinds] or [curve.clear()])
    most = guarded.filter(pl.col("protect_recent") == pl.col("protect_recent").max())
    halved = saved_share(e.measured, most, curve[:1], ["protect_recent"])
    if halved.is_empty():
        lacking = missing("knorm cells with the newest protected", "protect_recent: [0, 4, 8, 16]")
        return Ruling(NOT_TESTABLE, f"{why}; {lacking.why}", reproduced, honest)
    row = halved.row(0, named=True)
    helped = contrast(e.measured, most, curve[:1], ["protect_recent"]).row(0, named=True)
    why += f"; last {row['protect_recent']} protected / none {_factor(helped)}"
    if halved.filter(below()).height:
        why += ", shown to take away over half of the loss"
        return Ruling(artefact("dropping the newest keys"), why, reproduced, honest)
    cause = "not shown to take away half of the loss, and what else causes it no row can tell"
    return Ruling(NOT_TESTABLE, f"{why}: {cause}", reproduced, honest)


def layer_0(e: Evidence) -> Ruling:
    """knorm with layer 0 skipped, against no layer and against any other single one, which holds as much.

    Confirmed where most pairs are shown to be better, against each of them. Refuted where most are shown not
    to be better than one of them by over 1 %; an artefact where that one is no layer, and skipping helps with
    positions from the pruned length.
    """
    first = sure(plain(e.cells, skip=[0]))
    none = contrast(e.measured, first, sure(plain(e.cells)), ["skip_layers"])
    bug_first, bug_none = (sure(plain(e.cells, skip=range(n), positions="cache_length")) for n in (1, 0))
    bug = contrast(e.measured, bug_first, bug_none, ["skip_layers"])
    reproduced = _skipping(bug, "no layer")
    if none.is_empty():
        return missing(
            "knorm cells with layer 0 skipped beside the same without",
            "skip_layers: [[], [0], [3]]",
            reproduced,
        )
    compared = {"no layer": none}
    listed = e.cells.filter(pl.col("skip_layers").list.len() == 1, pl.col("skip_layers_rule").is_null())
    for layer in listed["skip_layers"].list.first().unique().sort():
        pairs = (
            contrast(e.measured, first, sure(plain(e.cells, skip=[layer])), ["skip_layers"])
            if layer
            else none.clear()
        )
        compared |= {f"layer {layer}": pairs} if pairs.height else {}
    honest = "; ".join(str(_skipping(pairs, name)) for name, pairs in compared.items())
    shown = "; ".join(
        f"better than with {name} in {share_of(pairs, below())} pairs" for name, pairs in compared.items()
    )
    why = f"skipping layer 0 is shown {shown}" + (
        f"; with {PRUNED_LENGTH} in {share_of(bug, below())}" if bug.height else ""
    )

    not_better = (pl.col("low") >= 1 - PPL_MARGIN) & ~below()
    if any(mostly(pairs, not_better) for pairs in compared.values()):
        verdict = artefact(PRUNED_LENGTH) if mostly(bug, below()) and mostly(none, not_better) else REFUTED
        return Ruling(verdict, why, reproduced, honest)
    if len(compared) == 1:
        return Ruling(
            NOT_TESTABLE, f"{why}; no cells that skip another layer, which holds as much", reproduced, honest
        )
    if all(mostly(pairs, below()) for pairs in compared.values()):
        return Ruling(CONFIRMED, why, reproduced, honest)
    return Ruling(NOT_TESTABLE, why, reproduced, honest)


def _skipping(pairs: pl.DataFrame, other: str) -> str | None:
    """The pairs that gain most and least from skipping layer 0 instead of another one."""
    if pairs.is_empty():
        return None
    rows = pairs.sort("factor").to_dicts()
    ends = [
        f"{_factor(row)} {_at(row)}, prune_after {row['prune_after']}" for row in rows[:1] + rows[1:][-1:]
    ]
    return f"PPL layer 0 / {other} skipped " + " to ".join(ends)


def four_policies(e: Evidence) -> Ruling:
    """knorm against each of three policies at keep_ratio 0.8 and 0.7 and the highest threshold that all have,
    paired: confirmed where it is shown to be better than each in most pairs, refuted where it is shown to be
    worse than one in most pairs.
    """
    asked = pl.any_horizontal((pl.col("keep_ratio") - ratio).abs() < EQUAL for ratio in SOME_COMPRESSION)
    cells = sure(plain(e.cells, *INCREASES)).filter(asked)
    absent = [name for name in INCREASES if name not in cells["policy"]]
    cells = highest(cells.filter(pl.col("policy").n_unique().over("prune_after") == len(INCREASES)))
    if cells.is_empty():
        lacking = f"cells of {', '.join(absent)}" if absent else "threshold at which all four policies pruned"
        return missing(
            f"{lacking} at keep_ratio 0.8 or 0.7",
            f"policies: [{', '.join(INCREASES)}] and a prune_after below the window",
        )
    words = []
    for name in INCREASES:
        rows = cells.filter(pl.col("policy") == name).sort("keep_ratio", descending=True).to_dicts()
        words += [
            f"{name} {change(r['ratio'])} {changes(r['ratio_low'], r['ratio_high'])} {_at(r)}" for r in rows
        ]
    own = cells.filter(pl.col("policy") == "knorm")
    others = [name for name in INCREASES if name != "knorm"]
    compared = {
        name: contrast(e.measured, own, cells.filter(pl.col("policy") == name), ["policy"]) for name in others
    }
    if any(pairs.is_empty() for pairs in compared.values()):
        return missing(
            "keep_ratio that knorm and the others share", "keep_ratios: [0.8, 0.7] for all four policies"
        )
    figures = [
        f"knorm / {name} {'; '.join(_factor(row) for row in pairs.to_dicts())}"
        for name, pairs in compared.items()
    ]
    held = " to ".join(labels.percent(cells["budget"].sort()[end]) for end in (0, -1))
    why = f"{', '.join(figures)}; at prune_after {cells['prune_after'][0]}, {held} of the dense cache"
    verdict = NOT_TESTABLE
    if any(mostly(pairs, above()) for pairs in compared.values()):
        verdict = REFUTED
    elif all(mostly(pairs, below()) for pairs in compared.values()):
        verdict = CONFIRMED
    return Ruling(verdict, why, honest="; ".join(words))


def recommendation(e: Evidence) -> Ruling:
    """Confirmed where the least cache that is confirmed to cost at most 1 % of PPL is knorm at a recommended
    keep_ratio; refuted where plain knorm is shown to cost more at each of them.
    """
    best = front(e.cells)
    if best.is_empty():
        return missing("cells that pruned, with an interval", THAT_PRUNES)
    advice = recommended(e.measured, e.cells, e.answers).row(0, named=True)
    points = dict.fromkeys(
        f"{row['policy']} {labels.ratio_setting(row['keep_ratio'])}" for row in best.to_dicts()
    )
    honest = f"Pareto front: {', '.join(points)}"
    if advice["budget"] is not None:
        honest = (
            f"{labels.cell(advice)}, prune_after {advice['prune_after']}, "
            f"{labels.percent(advice['budget'])} held; {honest}"
        )
    recommended_ratio = pl.any_horizontal(
        (pl.col("keep_ratio") - ratio).abs() < EQUAL for ratio in RECOMMENDED
    )
    asked = sure(plain(e.cells)).filter(recommended_ratio)
    costs_more = pl.col("pruned_low") > 1 + MAX_PPL_INCREASE
    shown = (
        f"shown to cost over {labels.percent(MAX_PPL_INCREASE)} of PPL in {share_of(asked, costs_more)} cells"
    )
    why = f"knorm at 0.9, 0.8 and 0.75 is {shown}; the advice here: {advice['advice']}"
    if asked.height and asked.filter(costs_more).height == asked.height:
        return Ruling(REFUTED, why, honest=honest)
    right = asked.filter(pl.col("pool_id").eq_missing(advice["pool_id"])).height > 0
    return Ruling(CONFIRMED if right else NOT_TESTABLE, why, honest=honest)
