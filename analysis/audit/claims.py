"""Eleven claims that reports made about pruning by key norm, each judged by the rows of a sweep: ``audit``.

Verdicts are computed: every rule says which cells it picks by their role and which figures
lead to which verdict, and where rows are lacking, which. Plain knorm means: no layer
skipped, nothing protected, absolute positions, a check at every step. The rules that judge
perplexity are in ``equality_claims``, ``cause_claims`` and ``perplexity_claims``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from analysis import labels
from analysis.audit import cause_claims, equality_claims, perplexity_claims
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
    first_and_last,
    largest,
    missing,
    no_timing,
    plain,
    share_of,
    timed,
)
from analysis.retrieval.tables import ASKED, KNOWS, kept_accuracy, shown_lower
from analysis.statistics.margins import ACCURACY_MARGIN, mostly, outside, within
from analysis.statistics.uncertainty import holm
from analysis.verdicts import valid

__all__ = ["CLAIMS", "Evidence", "audit", "control_experiment", "evidences"]

CLAIMED_FALL = 0.86
PLAIN_FALL = 0.5
"""A fall of TTFT that the wrong protocol has to show, and
the honest interval to exclude, to be called its artefact."""
SHARE_TAKEN_FOR_TTFT = (
    "pruning starts after the prompt's pass; "
    "TTFT falls only where the baseline's is a share of its whole time"
)
SLOWER = (0.82, 0.90)
LEAST_KEPT = 0.7


def audit(evidence: Evidence) -> pl.DataFrame:
    """One row per claim: number, claim, claimed, reproduced (the same protocol), honest, model, verdict, why.

    Null where nothing.
    """
    largest_cells = replace(evidence, cells=largest(evidence.cells))
    model = labels.text(evidence.model.get("name"))
    rows = []
    for number, (claim, claimed, rule) in enumerate(CLAIMS, start=1):
        ruling = rule(largest_cells)
        figures = (ruling.reproduced, ruling.honest)
        rows.append((number, claim, claimed, *figures, model, ruling.verdict, ruling.why))
    texts = dict.fromkeys(("claim", "claimed", "reproduced", "honest", "model", "verdict", "why"), pl.String)
    return pl.DataFrame(rows, schema={"number": pl.Int64, **texts}, orient="row")


def _first_token(e: Evidence) -> Ruling:
    """Stable cells: confirmed where most intervals show a fall of 86 % or more, refuted where most show a
    smaller one or none.

    An artefact where, besides, most of the wrongly timed intervals show a fall of 50 % and most of the stable
    ones exclude it.
    """
    wrong = timed(e.speeds, "WRONG_ON_PURPOSE", "ttft")
    stable = timed(e.speeds, "STABLE", "ttft")
    reproduced = _range(wrong, "ttft", "TTFT")
    if stable.is_empty():
        return no_timing(e.speeds, reproduced)

    honest = _lowest_first_token(stable)
    falls = pl.col("ttft_high") <= 1 - CLAIMED_FALL
    stays = pl.col("ttft_low") > 1 - CLAIMED_FALL
    shown = f"{share_of(stable, falls)} stable cells, excluded in {share_of(stable, stays)}"
    why = f"a fall of {labels.percent(CLAIMED_FALL)} is shown in {shown}"

    if mostly(stable, falls):
        return Ruling(CONFIRMED, why, reproduced, honest)
    if not mostly(stable, stays):
        return Ruling(NOT_TESTABLE, f"{why}: the intervals are too wide", reproduced, honest)
    if mostly(wrong, pl.col("ttft_high") <= 1 - PLAIN_FALL) and mostly(
        stable, pl.col("ttft_low") > 1 - PLAIN_FALL
    ):
        verdict = artefact("taking 10 % of the whole time for the baseline's TTFT")
        return Ruling(verdict, f"{why}; {SHARE_TAKEN_FOR_TTFT}", reproduced, honest)
    return Ruling(REFUTED, why, reproduced, honest)


def _lowest_first_token(stable: pl.DataFrame) -> str:
    """The stable cell whose TTFT falls most; ``stable`` is sorted by it."""
    best = stable.row(0, named=True)
    place = f"{best['prompt_tokens']} prompt tokens, keep_ratio {labels.ratio_setting(best['keep_ratio'])}"
    figures = f"TTFT {change(best['ttft_ratio'])} {changes(best['ttft_low'], best['ttft_high'])}"
    return f"lowest of {counted(stable, 'stable cell')}: {figures} ({place})"


def _throughput(e: Evidence) -> Ruling:
    """Stable cells: confirmed where most intervals lie wholly
    within -18 to -10 %, refuted where most lie wholly outside."""
    reproduced = _range(timed(e.speeds, "WRONG_ON_PURPOSE", "tokens"), "tokens", "throughput")
    stable = timed(e.speeds, "STABLE", "tokens").filter(pl.col("prune_step_seconds").is_not_null())
    if stable.is_empty():
        return no_timing(e.speeds, reproduced)

    ends = [
        f"{change(row['tokens_ratio'])} {changes(row['tokens_low'], row['tokens_high'])}"
        for row in first_and_last(stable.to_dicts())
    ]
    honest = f"throughput {' to '.join(ends)}"
    claimed = within("tokens_low", "tokens_high", *SLOWER)
    others = outside("tokens_low", "tokens_high", *SLOWER)
    why = (
        f"{share_of(stable, claimed)} stable intervals lie within -18 to -10 %, "
        f"{share_of(stable, others)} wholly outside"
    )

    verdict = NOT_TESTABLE
    if mostly(stable, claimed):
        verdict = CONFIRMED
    elif mostly(stable, others):
        verdict = REFUTED
    return Ruling(verdict, why, reproduced, honest)


def _range(wrong: pl.DataFrame, measure: str, name: str) -> str | None:
    """The spread of a ratio under the wrong protocol; ``wrong`` is sorted by it."""
    if wrong.is_empty():
        return None
    ends = " to ".join(map(change, first_and_last(wrong[f"{measure}_ratio"].to_list())))
    return f"{name} {ends} in {counted(wrong, 'cell')} timed the reports' way"


def _learned_positions(e: Evidence) -> Ruling:
    """What run.json says of the model: only a GPT-NeoX, which is what Pythia is, can tell."""
    architecture = str(e.model.get("architecture") or "unknown")
    if not architecture.lower().replace("_", "").startswith("gptneox"):
        why = f"the claim is about GPT-NeoX, as Pythia is; the architecture here is {architecture}"
        return Ruling(NOT_TESTABLE, why)

    positions = e.model.get("positions")
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

    Every sort of question counts: passkeys and needles,
    asked before and after the prune. The claim names none.
    """
    pruned = plain(e.answers).filter(valid(), pl.col("keep_ratio") >= LEAST_KEPT)
    if pruned.is_empty():
        remedy = "retrieval, policy knorm and contexts longer than prune_after"
        return missing("plain knorm answers at keep_ratio 0.7 or above that pruned", remedy)
    cells = pruned.filter(pl.col("dense_accuracy") >= KNOWS)
    if cells.is_empty():
        known = labels.percent(pruned.select(pl.col("dense_accuracy").max()).item())
        needed = f"at least {labels.percent(KNOWS)} are needed"
        return Ruling(NOT_TESTABLE, f"the dense cell answers {known} of the questions; {needed}")

    cells = cells.with_columns(family=pl.lit(0)).with_columns(p_value=holm(pl.col("p_value"), ["family"]))
    loses = shown_lower().fill_null(False)
    sorts = [f"{words} {share_of(asked, loses)}" for words, asked in _by_sort(cells)]
    kept = f"{share_of(cells, kept_accuracy())} to lose at most {100 * ACCURACY_MARGIN:g} points"
    why = f"shown to lose answers: {'; '.join(sorts)} cells; {kept}"
    unknown = [words for words, _ in _by_sort(pruned.join(cells, on=ASKED, how="anti", nulls_equal=True))]
    why += f"; dense does not know: {'; '.join(unknown)}" if unknown else ""

    verdict = NOT_TESTABLE
    all_kept = cells.filter(kept_accuracy()).height == cells.height
    if cells.filter(loses).height:
        verdict = REFUTED
    elif all_kept and cells["keep_ratio"].min() == LEAST_KEPT:
        verdict = CONFIRMED
    return Ruling(verdict, why, honest=_lowest_accuracy(cells))


def _lowest_accuracy(cells: pl.DataFrame) -> str:
    """The cell that answers least, beside the dense one, and what it still held of the answers."""
    worst = cells.sort("accuracy").row(0, named=True)
    interval = f"[{labels.percent(worst['accuracy_low'])}, {labels.percent(worst['accuracy_high'])}]"
    setting = f"keep_ratio {labels.ratio_setting(worst['keep_ratio'])}, {worst['context_tokens']} tokens"
    place = f"{setting}, {labels.questions(worst)}, dense {labels.percent(worst['dense_accuracy'])}"
    held = f"answer still held, by attention, {labels.percent(worst['answer_retained_weighted'])}"
    lowest = f"lowest of {counted(cells, 'cell')}: {labels.percent(worst['accuracy'])}"
    return f"{lowest} {interval} ({place}); {held}"


def _by_sort(cells: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Cells by sort of question, which is put in words."""
    return [
        (labels.questions(asked.row(0, named=True)), asked)
        for _, asked in cells.group_by(ASKED, maintain_order=True)
    ]


CLAIMS: list[tuple[str, str | None, Callable[[Evidence], Ruling]]] = [
    ("TTFT falls by 86 to 92 %", "0.0959 s to 0.0091 s", _first_token),
    ("PPL is the same at every keep_ratio", "51.91; 39.49", equality_claims.equal_at_every_ratio),
    ("PPL is unchanged with prune_after = 512", "75.03; 39.49", equality_claims.unchanged_at_512),
    ("PPL rises because sorting shuffles the order", "39.68 to 155.91", cause_claims.order),
    (
        "U-curve at prune_after = 32: keeping more is worse, because of conflicting information",
        "dense 60.81; 0.95: 240.87; 0.9: 176.28; 0.85: 154.59; 0.8: 143.87; 0.75: 136.79; 0.7: 140.67; "
        "0.6: 135.12; 0.5: 136.74; 0.4: 139.64; 0.3: 140.14",
        cause_claims.u_curve,
    ),
    ("Throughput falls by 10 to 18 %", "-10 to -18 %", _throughput),
    ("Pythia has learned position embeddings, hence it is fragile", "learned positions", _learned_positions),
    ("Skipping layer 0 is more stable", None, perplexity_claims.layer_0),
    (
        "At keep_ratio 0.8 and 0.7 knorm costs the least PPL of four policies",
        "h2o +2 to +3 %; streaming +1 to +5 %; snapkv +3 to +4 %; knorm +0.5 %",
        perplexity_claims.four_policies,
    ),
    ("One keep_ratio is recommended", "0.9; 0.75; 0.8", perplexity_claims.recommendation),
    ("Retrieval stays right up to 30 % compression", "100 % at keep_ratio 0.7 and above", _retrieval),
]
"""Claim, its figures, and the rule that judges it; numbered from 1."""
