"""What travels between driver and worker: units with their token ids, results with their rows.
Plain data, no torch."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from workers.machine.code_digest import ROOT, code_digest
from workers.messages.kept_answers import KeptAnswers
from workers.models.bos import Bos
from workers.models.model_files import ModelFacts
from workers.policies.settings import PruneSettings
from workers.texts.check_text import TEXTS, continued
from workers.texts.questions import Question
from workers.texts.windows import Window


@dataclass(frozen=True)
class UnitCell:
    """A cell of a unit: what names it and how it prunes."""

    cell_id: str
    settings: PruneSettings


class Work(Protocol):
    """What the cells of a unit are to do; which kind of work it is, its type says."""

    tells_rounding: ClassVar[bool]
    """Whether rows say what the self-check found on their own text."""

    def check_text(self) -> np.ndarray | None:
        """[texts, length] ids of the longest texts, on which the model is checked;
        None where only running it brings them."""
        ...


@dataclass(frozen=True)
class PerplexityWork:
    """Windows and their ids with BOS, [windows, window] int32; ``documents`` has one entry per window."""

    tells_rounding: ClassVar[bool] = True

    windows: tuple[Window, ...]
    tokens: np.ndarray
    documents: tuple[int | None, ...]
    stride: int
    checked: np.ndarray | None = None
    """[texts, window] ids of windows on which the model is checked, the same in all units about a text, so
    that what the check finds of rounding does not depend on which unit came first; where left out the unit's
    own."""

    def check_text(self) -> np.ndarray | None:
        """Windows that are the same in all units about a text."""
        return (self.tokens if self.checked is None else self.checked)[:TEXTS].astype(np.int64)


@dataclass(frozen=True)
class GenerationWork:
    """A batch of prompts (ids, of one length) that all cells of the unit continue in interleaved rounds."""

    tells_rounding: ClassVar[bool] = False

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    repeats: int
    """Rounds at least."""
    max_repeats: int
    interval_width: float
    """More rounds than ``repeats`` are run until the intervals of all ratios are narrower than this."""
    warmup: int
    seed: int
    protocol: str = "interleaved"
    """``report_2025`` is wrong on purpose."""

    def check_text(self) -> np.ndarray | None:
        """Prompts, as long as they will be with what is generated."""
        return np.stack([continued(prompt, len(prompt) + self.new_tokens) for prompt in self.prompts[:TEXTS]])


@dataclass(frozen=True)
class RetrievalWork:
    """Questions that every cell of the unit answers."""

    tells_rounding: ClassVar[bool] = False

    questions: tuple[Question, ...]
    question_pruned: bool
    """Whether the question goes through with the context, before the first check."""

    def check_text(self) -> np.ndarray | None:
        """The longest prompts with their right answers."""
        texts = [question.prompt_ids + question.answer_ids for question in self.questions]
        longest = max(map(len, texts))
        return np.array([text for text in texts if len(text) == longest][:TEXTS], dtype=np.int64)


@dataclass(frozen=True)
class HarnessWork:
    """A task of lm-evaluation-harness that every cell of the unit does."""

    tells_rounding: ClassVar[bool] = False

    task: str
    limit: int | None
    num_fewshot: int | None
    include_path: str | None
    bos: Bos = "auto"

    def check_text(self) -> np.ndarray | None:
        """None: only running a task brings its texts."""
        return None


TRACE = "kvsweep_trace"
"""Attribute of an error that was kept without its frames: its traceback as text."""


@dataclass(frozen=True)
class WorkUnit:
    """What one actor call does: cells that share a loaded model and their texts."""

    unit_id: str
    task: str
    model: ModelFacts
    device: str
    dtype: str
    cells: tuple[UnitCell, ...]
    work: Work
    code: str = field(default_factory=code_digest)
    """Digest of the code of whoever made the unit; a worker with other code refuses it."""
    code_root: str = str(ROOT)
    """Where that code lies."""
    complete: frozenset[str] = frozenset()
    """Cells whose rows of this unit are all stored: what serves them alone is left out."""
    answers: tuple[KeptAnswers, ...] = ()
    """What is stored of cells that are not complete: these requests are not computed again."""


class FromOutside(Exception):  # noqa: N818 - a mark beside an error's own type
    """What is no fault of a cell, its model or this code, such as a hub that does not answer: the same
    command tries again."""


@dataclass(frozen=True)
class Failure:
    """One cell that failed, with its reason."""

    cell_id: str
    error_type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, cell_id: str, error: BaseException) -> Failure:
        """From an exception. One that came from outside leaves no traceback, which is how everybody tells it
        from the others."""
        trace = getattr(error, TRACE, None) or "".join(traceback.format_exception(error))
        trace = "" if isinstance(error, FromOutside) else trace
        return cls(cell_id, type(error).__name__, str(error) or type(error).__name__, trace)


@dataclass
class UnitResult:
    """Rows (the task's columns and ``cell_id``) and failures of one unit, and where it ran."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """For whoever started the sweep."""
    device_name: str = ""
    node: str = ""
    seconds: float = 0.0
    """Without what it took to load the model."""
    load_seconds: float = 0.0
    peak_bytes: int | None = None
    """The most memory that the worker took, loading and self-check included; None without a counter."""
    code: str = ""
    """Digest of the code that made it."""
