"""Eleven claims that reports made about pruning by key norm, each judged by the rows of a sweep: ``audit``.

Verdicts are computed: every rule says which cells it picks by their role and which figures lead to which
verdict, and where rows are lacking, which. Plain knorm means: no layer skipped, nothing protected, absolute
positions, a check at every step. The rules that judge perplexity are in ``perplexity_claims``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from analysis import labels
from analysis.audit import perplexity_claims as perplexity
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
    evidences,
    largest,
    missing,
    no_timing,
    plain,
    share_of,
    timed,
)
from analysis.retrieval.tables import KNOWS, kept_accuracy, shown_lower
from analysis.statistics.margins import ACCURACY_MARGIN, mostly, outside, within
from analysis.statistics.uncertainty import holm
from analysis.verdicts import valid

__all__ = ["CLAIMS", "Evidence", "audit", "control_experiment", "evidences"]

CLAIMED_FALL = 0.86
PLAIN_FALL = 0.5
"""A fall of TTFT that the wrong protocol has to show, and the honest interval to exclude, to be called its
artefact."""
SLOWER = (0.82, 0.90)
SOME_COMPRESSION = 0.7
SORT = ["kind", "digits", "distractors", "question_pruned"]


def audit(evidence: Evidence) -> pl.DataFrame:
    """One row per claim: number, claim, claimed, reproduced (the same protocol), honest, model, verdict, why.

    Null where nothing.
    """
    own = replace(evidence, cells=largest(evidence.cells))
    model = labels.text(evidence.model.get("name"))
    found = []
    for number, (claim, claimed, rule) in enumerate(CLAIMS, start=1):
        ruling = rule(own)
        found.append(
            (number, claim, claimed, ruling.reproduced, ruling.honest, model, ruling.verdict, ruling.why)
        )
    texts = dict.fromkeys(("claim", "claimed", "reproduced", "honest", "model", "verdict", "why"), pl.String)
    return pl.DataFrame(found, schema={"number": pl.Int64, **texts}, orient="row")


def _first_token(e: Evidence) -> Ruling:
    """Stable cells: confirmed where most intervals show a fall of 86 % or more, refuted where most show a
    smaller one or none.

    An artefact where, besides, most of the wrongly timed intervals show a fall of 50 % and most of the stable
    ones exclude it.
    """
    wrong, stable = timed(e.speeds, "WRONG_ON_PURPOSE", "ttft"), timed(e.speeds, "STABLE", "ttft")
    reproduced = _range(wrong, "ttft", "TTFT")
    if stable.is_empty():
        return no_timing(e.speeds, reproduced)
    best = stable.row(0, named=True)
    place = f"{best['prompt_tokens']} prompt tokens, keep_ratio {labels.ratio_setting(best['keep_ratio'])}"
    figures = f"TTFT {change(best['ttft_ratio'])} {changes(best['ttft_low'], best['ttft_high'])}"
    honest = f"lowest of {counted(stable, 'stable cell')}: {figures} ({place})"
    falls, stays = pl.col("ttft_high") <= 1 - CLAIMED_FALL, pl.col("ttft_low") > 1 - CLAIMED_FALL
    why = (
        f"a fall of {labels.percent(CLAIMED_FALL)} is shown in {share_of(stable, falls)} stable cells, "
        "excluded in "
    )
    why += share_of(stable, stays)

    if mostly(stable, falls):
        return Ruling(CONFIRMED, why, reproduced, honest)
    if not mostly(stable, stays):
        return Ruling(NOT_TESTABLE, f"{why}: the intervals are too wide", reproduced, honest)
    fell, no_fall = pl.col("ttft_high") <= 1 - PLAIN_FALL, pl.col("ttft_low") > 1 - PLAIN_FALL
    if mostly(wrong, fell) and mostly(stable, no_fall):
        cause = (
            "pruning starts after the prompt's pass; TTFT falls only where the baseline's is a share of its "
            "whole time"
        )
        verdict = artefact("taking 10 % of the whole time for the baseline's TTFT")
        return Ruling(verdict, f"{why}; {cause}", reproduced, honest)
    return Ruling(REFUTED, why, reproduced, honest)


def _throughput(e: Evidence) -> Ruling:
    """Stable cells: confirmed where most intervals lie wholly within -18 to -10 %, refuted where most lie
    wholly outside."""
    reproduced = _range(timed(e.speeds, "WRONG_ON_PURPOSE", "tokens"), "tokens", "throughput")
    stable = timed(e.speeds, "STABLE", "tokens").filter(pl.col("prune_step_seconds").is_not_null())
    if stable.is_empty():
        return no_timing(e.speeds, reproduced)
    rows = stable.to_dicts()
    ends = [
        f"{change(r['tokens_ratio'])} {changes(r['tokens_low'], r['tokens_high'])}"
        for r in rows[:1] + rows[1:][-1:]
    ]
    claimed, others = (held("tokens_low", "tokens_high", *SLOWER) for held in (within, outside))
    why = (
        f"{share_of(stable, claimed)} stable intervals lie within -18 to -10 %, "
        f"{share_of(stable, others)} wholly outside"
    )
    verdict = REFUTED if mostly(stable, others) else NOT_TESTABLE
    return Ruling(
        CONFIRMED if mostly(stable, claimed) else verdict, why, reproduced, "throughput " + " to ".join(ends)
    )


def _range(wrong: pl.DataFrame, measure: str, name: str) -> str | None:
    """The spread of a ratio under the wrong protocol; ``wrong`` is sorted by it."""
    if wrong.is_empty():
        return None
    ratios = wrong[f"{measure}_ratio"].to_list()
    ends = " to ".join(change(ratio) for ratio in ratios[:1] + ratios[1:][-1:])
    return f"{name} {ends} in {counted(wrong, 'cell')} timed the reports' way"


def _learned_positions(e: Evidence) -> Ruling:
    """What run.json says of the model: only a GPT-NeoX, which is what Pythia is, can tell."""
    architecture = str(e.model.get("architecture") or "unknown")
    positions = e.model.get("positions")
    if not architecture.lower().replace("_", "").startswith("gptneox"):
        return Ruling(
            NOT_TESTABLE,
            f"the claim is about GPT-NeoX, as Pythia is; the architecture here is {architecture}",
        )
    known = positions if isinstance(positions, dict) else {}
    if known.get("kind") == "learned":
        return Ruling(CONFIRMED, "the model has one learned vector per position", honest="learned positions")
    if known.get("kind") != "rotary":
        return missing("kind of positions of the model in run.json", "this version of kvsweep")
    share = known.get("share")
    honest = "rotary positions" + (f" on {labels.percent(share)} of each head" if share is not None else "")
    return Ruling(REFUTED, "the model has no learned positions", honest=honest)


def _retrieval(e: Evidence) -> Ruling:
    """Plain knorm at keep_ratio 0.7 or above that pruned, where dense knows the answers, on the same
    questions as dense: refuted where a cell is shown to lose answers (McNemar, Holm over the cells),
    confirmed where each is shown to lose at most 10 points.

    Every sort of question counts: passkeys and needles, asked before and after the prune. The claim names
    none.
    """
    pruned = plain(e.answers).filter(valid(), pl.col("keep_ratio") >= SOME_COMPRESSION)
    if pruned.is_empty():
        remedy = "retrieval, policy knorm and contexts longer than prune_after"
        return missing("plain knorm answers at keep_ratio 0.7 or above that pruned", remedy)
    cells = pruned.filter(pl.col("dense_accuracy") >= KNOWS)
    if cells.is_empty():
        known = labels.percent(pruned.select(pl.col("dense_accuracy").max()).item())
        return Ruling(
            NOT_TESTABLE,
            f"the dense cell answers {known} of the questions; at least {labels.percent(KNOWS)} are needed",
        )
    cells = cells.with_columns(family=pl.lit(0)).with_columns(p_value=holm(pl.col("p_value"), ["family"]))
    worst = cells.sort("accuracy").row(0, named=True)
    figures = [
        labels.percent(worst[name])
        for name in ("accuracy", "accuracy_low", "accuracy_high", "dense_accuracy")
    ]
    place = f"keep_ratio {labels.ratio_setting(worst['keep_ratio'])}, {worst['context_tokens']} tokens, "
    place += f"{labels.questions(worst)}, dense {figures[3]}"
    held = f"answer still held, by attention, {labels.percent(worst['answer_retained_weighted'])}"
    honest = (
        f"lowest of {counted(cells, 'cell')}: {figures[0]} [{figures[1]}, {figures[2]}] ({place}); {held}"
    )
    verdict = NOT_TESTABLE
    if cells.filter(shown_lower().fill_null(False)).height:
        verdict = REFUTED
    elif (
        cells.filter(kept_accuracy()).height == cells.height and cells["keep_ratio"].min() == SOME_COMPRESSION
    ):
        verdict = CONFIRMED
    sorts = [f"{words} {share_of(own, shown_lower().fill_null(False))}" for words, own in _by_sort(cells)]
    kept = f"{share_of(cells, kept_accuracy())} to lose at most {100 * ACCURACY_MARGIN:g} points"
    why = f"shown to lose answers: {'; '.join(sorts)} cells; {kept}"
    unknown = [words for words, _ in _by_sort(pruned.join(cells, on=SORT, how="anti", nulls_equal=True))]
    return Ruling(
        verdict, why + (f"; dense does not know: {'; '.join(unknown)}" if unknown else ""), honest=honest
    )


def _by_sort(cells: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Cells by sort of question, which is put in words."""
    return [
        (labels.questions(own.row(0, named=True)), own)
        for _, own in cells.group_by(SORT, maintain_order=True)
    ]


CLAIMS: list[tuple[str, str | None, Callable[[Evidence], Ruling]]] = [
    ("TTFT falls by 86 to 92 %", "0.0959 s to 0.0091 s", _first_token),
    ("PPL is the same at every keep_ratio", "51.91; 39.49", perplexity.equal_at_every_ratio),
    ("PPL is unchanged with prune_after = 512", "75.03; 39.49", perplexity.unchanged_at_512),
    ("PPL rises because sorting shuffles the order", "39.68 to 155.91", perplexity.order),
    (
        "U-curve at prune_after = 32: keeping more is worse, because of conflicting information",
        "dense 60.81; 0.95: 240.87; 0.9: 176.28; 0.85: 154.59; 0.8: 143.87; 0.75: 136.79; 0.7: 140.67; "
        "0.6: 135.12; 0.5: 136.74; 0.4: 139.64; 0.3: 140.14",
        perplexity.u_curve,
    ),
    ("Throughput falls by 10 to 18 %", "-10 to -18 %", _throughput),
    ("Pythia has learned position embeddings, hence it is fragile", "learned positions", _learned_positions),
    ("Skipping layer 0 is more stable", None, perplexity.layer_0),
    (
        "At keep_ratio 0.8 and 0.7 knorm costs the least PPL of four policies",
        "h2o +2 to +3 %; streaming +1 to +5 %; snapkv +3 to +4 %; knorm +0.5 %",
        perplexity.four_policies,
    ),
    ("One keep_ratio is recommended", "0.9; 0.75; 0.8", perplexity.recommendation),
    ("Retrieval stays right up to 30 % compression", "100 % at keep_ratio 0.7 and above", _retrieval),
]
"""Claim, its figures, and the rule that judges it; numbered from 1."""
