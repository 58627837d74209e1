"""Which model each verdict of the audit holds for: verdicts
of several models side by side, and where they disagree.

A verdict is of one model's rows. Nothing here judges: it says whose verdict it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis import labels
from analysis.audit.claim_evidence import NOT_TESTABLE, Evidence
from analysis.keys import TARGET

EMBEDDED = ("reference-neox", "reference-llama")
"""The models that come with kvsweep, by the names that run.json has for them."""


@dataclass(frozen=True)
class Judged:
    """``claims.audit`` of one model's rows.

    ``place``: model, dataset, device and dtype, as far as rows tell.
    """

    place: tuple[str, ...]
    claims: pl.DataFrame

    @property
    def model(self) -> str:
        """Its name in run.json and the rows."""
        return self.place[0]

    @property
    def words(self) -> str:
        """Everything about it in one line."""
        return " · ".join(self.place)


def judged(evidence: Evidence, claims: pl.DataFrame) -> Judged:
    """Whose rows were judged."""
    frames = (evidence.cells, evidence.speeds, evidence.answers)
    frame = next((frame for frame in frames if frame.height), None)
    if frame is None:
        return Judged((labels.text(evidence.model.get("name")),), claims)
    return Judged(tuple(labels.text(frame[name][0]) for name in TARGET), claims)


def head(found: Sequence[Judged]) -> list[str]:
    """What to know before any verdict: on which claims models disagree, and that only small models of ours
    were looked at."""
    return [*_disagreements(found), *_caution(found)]


def verdicts_in_words(found: Sequence[Judged]) -> list[str]:
    """``head``, then each claim with a line per model: whose verdict it is, the verdict, and why."""
    names, lines = _names(found), head(found)
    for rows in _by_claim(found):
        lines.append(f"{rows[0]['number']}. {rows[0]['claim']}")
        lines += [
            f"   {name}: {row['verdict']} ({row['why']})" for name, row in zip(names, rows, strict=True)
        ]
    return [_printable(line) for line in lines]


def _caution(found: Sequence[Judged]) -> list[str]:
    """That the verdicts are of our own small models, where no other one was looked at."""
    models = list(dict.fromkeys(each.model for each in found))
    if not models or not set(models) <= set(EMBEDDED):
        return []

    if len(models) == 1:
        who, them = f"Only {models[0]} was looked at: it is a small model", "it"
    else:
        who, them = f"Only {' and '.join(models)} were looked at: they are small models", "them"
    return [
        f"{who} that we trained, and key norms and attention go together there. "
        f"What these verdicts say of a method holds for {them}; of other models they say nothing."
    ]


def _disagreements(found: Sequence[Judged]) -> list[str]:
    """A line per claim that models settle differently; one that none does, where there are several."""
    if len(found) < 2:
        return []

    names, lines, both = _names(found), [], 0
    for rows in _by_claim(found):
        settled = {
            name: row["verdict"]
            for name, row in zip(names, rows, strict=True)
            if row["verdict"] != NOT_TESTABLE
        }
        both += len(settled) > 1
        if len(set(settled.values())) > 1:
            verdicts = "; ".join(f"{name}: {verdict}" for name, verdict in settled.items())
            lines.append(f"Models disagree on claim {rows[0]['number']}, {rows[0]['claim']}: {verdicts}.")
    settled_by_several = "1 claim is" if both == 1 else f"{both} claims are"
    return lines or [
        f"The models disagree on no claim; {settled_by_several} settled by more than one of them."
    ]


def _by_claim(found: Sequence[Judged]) -> list[list[labels.Row]]:
    """The rows of each claim, one per entry of ``found``, in its order."""
    return [list(rows) for rows in zip(*(each.claims.iter_rows(named=True) for each in found), strict=True)]


def _names(found: Sequence[Judged]) -> list[str]:
    """The model of each; all that is known of its rows where a model occurs more than once."""
    times = Counter(each.model for each in found)
    return [each.model if times[each.model] == 1 else each.words for each in found]


def _printable(line: str) -> str:
    """Names come from stored files: nothing in them steers a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
