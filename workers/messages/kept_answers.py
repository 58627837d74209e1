"""Answers of a task's requests, kept until its rows are there:
a unit that is started again computes only the others.

Which requests go through a model together follows from the whole list of them, and may show in a last bit. So
what is kept is the answers of requests that went through together, all or none, by the name of exactly these
requests in exactly this company.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar


@dataclass(frozen=True)
class KeptAnswers:
    """Answers of requests that went through a model together: plain data, as it is stored."""

    cell_id: str
    asked: str
    """Names the requests and what they went through; see ``AnswerBook``."""
    answers: list[Any]
    """One for each request, in order."""


class Answer(Protocol):
    """What a request gives."""

    def plain(self) -> list[Any]:
        """As JSON can hold it, each number with all its bits."""
        ...

    @classmethod
    def of_plain(cls, values: Any) -> Self:
        """The answer of which ``plain`` made these values. Raises ValueError for what is none."""
        ...


A = TypeVar("A", bound=Answer)


def nobody(answers: KeptAnswers) -> None:
    """Where nothing is kept."""


class AnswerBook:
    """Answers of one cell's requests: known ones are taken, and new ones are told of as they are made."""

    def __init__(
        self,
        cell_id: str = "",
        made_with: str = "",
        known: Iterable[KeptAnswers] = (),
        tell: Callable[[KeptAnswers], object] = nobody,
    ) -> None:
        """``made_with``: what decides a number and is not in the cell's id, such as the device's own name.

        ``known``: of any cells; those of others are not taken.
        """
        self.cell_id = cell_id
        self._made_with = made_with
        self._tell = tell
        self._known = {each.asked: each.answers for each in known if each.cell_id == cell_id}

    def answers(self, asked: Any, count: int, kind: type[A], compute: Callable[[], list[A]]) -> list[A]:
        """The ``count`` answers of requests that go through together: known ones, or what ``compute`` gives.

        ``asked``, which JSON must hold, is all that tells these requests and their company from others.
        """
        name = digest_of([self._made_with, kind.__name__, asked])
        known = self._known_answers(name, count, kind)
        if known is not None:
            return known

        made = compute()
        self._tell(KeptAnswers(self.cell_id, name, [answer.plain() for answer in made]))
        return made

    def _known_answers(self, name: str, count: int, kind: type[A]) -> list[A] | None:
        """None where they are not known, or where what is stored for them can be no such answers."""
        values = self._known.get(name)
        if values is None or len(values) != count:
            return None
        try:
            return [kind.of_plain(each) for each in values]
        except ValueError:
            return None


def digest_of(asked: Any) -> str:
    """32 hex digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
