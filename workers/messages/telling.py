"""What a worker tells while its unit goes on: finished rows, answers that rows are made of, how far it is.

Both are told at intervals, so that what is lost with a worker is little and what is stored is not many small
files; whatever a short unit gives is told at its end alone, by its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers.messages.kept_answers import KeptAnswers
from workers.models.pace import Pace

ROWS_SECONDS, SHARE_SECONDS = 20.0, 4.0
"""How often what is finished (rows, answers), and how often the share of the work alone, is told.

A thousand workers tell 250 times a second."""
FIRST_ROWS_SECONDS = 8.0
"""When what is finished is told for the first time:
who watches a sweep of a large model sees rows within its first minute."""
MOST_SHARE = 0.99
"""Of a unit that goes on: timed rounds may be more than were expected."""


@dataclass(frozen=True)
class News:
    """What is new of a unit that goes on."""

    rows: list[dict[str, Any]]
    """Finished, and told of for the first time."""
    device_name: str
    """Where they were made."""
    share: float
    """Of the unit's work that is done, in [0, 1]."""
    doing: str
    """The cell at hand, in words."""
    seconds: float
    """Since the unit began, without what it took to load the model."""
    pace: Pace | None = None
    """How fast the unit's model was found to run, once it is loaded."""
    answers: list[KeptAnswers] = field(default_factory=list)
    """Of cells whose rows are not there yet, told of for the first time."""


Tell = Callable[[News], None]


@dataclass
class Telling:
    """Collects what a unit gives; ``tell`` hears of it in time, and ``rows`` holds what it has not heard."""

    tell: Tell | None
    """Without one, all rows stay in ``rows``."""
    device_name: str = ""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By cell: what every row of it gets."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[KeptAnswers] = field(default_factory=list)
    doing: str = ""
    _work: float = 0.0
    _done: float = 0.0

    def __post_init__(self) -> None:
        self._begin = self._told = self._told_rows = time.monotonic()

    def expect(self, work: float) -> None:
        """The unit's work, in any unit of its own."""
        self._work += work

    def worked(self, work: float, doing: str = "") -> None:
        """So much more of it is done; ``doing``: the cell at hand."""
        self._done += work
        self.doing = doing or self.doing
        self._tell_in_time()

    def give(self, rows: list[dict[str, Any]]) -> None:
        """Rows that are finished, each with the ``cell_id`` of its cell."""
        self.rows += [row | self.columns.get(row["cell_id"], {}) for row in rows]
        finished = {row["cell_id"] for row in rows}
        # answers are kept until the rows that are made of them are there
        self.answers = [each for each in self.answers if each.cell_id not in finished]
        self._tell_in_time()

    def answered(self, answers: KeptAnswers) -> None:
        """Requests are answered whose rows come later."""
        self.answers.append(answers)
        self._tell_in_time()

    def forget(self, cell_id: str) -> None:
        """A cell failed: what it gave and nobody has heard of is no measurement of it."""
        self.rows = [row for row in self.rows if row["cell_id"] != cell_id]

    def _tell_in_time(self) -> None:
        if self.tell is None:
            return
        now = time.monotonic()
        is_first = self._told_rows == self._begin
        interval = min(FIRST_ROWS_SECONDS, ROWS_SECONDS) if is_first else ROWS_SECONDS
        with_rows = bool(self.rows or self.answers) and now - self._told_rows >= interval
        if not with_rows and now - self._told < SHARE_SECONDS:
            return

        rows: list[dict[str, Any]] = []
        answers: list[KeptAnswers] = []
        if with_rows:
            rows, self.rows = self.rows, []
            answers, self.answers = self.answers, []
            self._told_rows = now
        self._told = now
        share = min(MOST_SHARE, self._done / self._work) if self._work else 0.0
        self.tell(News(rows, self.device_name, share, self.doing, now - self._begin, answers=answers))
