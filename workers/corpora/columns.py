"""Which column of a set of rows is the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.corpora.entry import CorpusError

USUAL = ("text", "content", "document")
"""Names by which a text is found, in this order."""
LISTED = 20


@dataclass(frozen=True)
class Column:
    """A column that rows have."""

    name: str
    kind: str
    """``text``, or in words what it holds instead."""


def text_column(asked: str | None, columns: Sequence[Column], dataset: str, looked: str = "") -> str:
    """The one that was asked for, else ``text``, ``content``, ``document``, else the only one of texts.

    ``looked`` says where columns were looked for.

    Raises CorpusError where that is none, or several, and where it cannot hold text.
    """
    names = [column.name for column in columns]
    listed = ", ".join(f"{column.name} ({column.kind})" for column in columns[:LISTED])
    listed += f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
    way = f"name one: {{name: {dataset!r}, column: NAME}}"

    if asked is not None and asked not in names:
        where = f" in {looked}" if looked else ""
        raise CorpusError(f"dataset {dataset!r} has no column {asked!r}{where}; it has {listed}")
    texts = [column.name for column in columns if column.kind == "text"]
    chosen = asked or next((name for name in USUAL if name in names), texts[0] if len(texts) == 1 else None)
    if not texts:
        its = f"its column {chosen!r} holds {columns[names.index(chosen)].kind}, and " if chosen else ""
        strings = "write the text as strings into a column of its own"
        raise CorpusError(f"dataset {dataset!r}: {its}no column holds text; it has {listed}; {strings}")
    if chosen is None:
        several = "several columns of text and none is called"
        raise CorpusError(f"dataset {dataset!r} has {several} {', '.join(USUAL)}: {listed}; {way}")

    kind = columns[names.index(chosen)].kind
    if kind != "text":
        raise CorpusError(
            f"dataset {dataset!r}: its column {chosen!r} holds {kind}, no text; it has {listed}; {way}"
        )
    return chosen
