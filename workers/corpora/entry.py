"""What a sweep file asks for of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.texts.sampling import Sample

NAMES = ("pydocs", "wikitext-2", "wikitext-103", "pg19", "text:PATH", "hf:NAME[/CONFIG][:SPLIT]")

Documents = Literal["separate", "joined"]
"""Whether rows, and files of prose, are documents that no window crosses,
or one text with blank lines between them."""


class CorpusError(ValueError):
    """A dataset that cannot be found, read or used, with what to do."""


def unreadable(dataset: str, error: OSError) -> CorpusError:
    """What the system says of a dataset's file, before it is opened or in the middle of it."""
    return CorpusError(
        f"dataset {dataset!r}: cannot read {error.filename or 'it'}: {error.strerror or error}"
    )


def shown_path(path: Path | str) -> str:
    """A path for a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


@dataclass(frozen=True)
class DatasetEntry:
    """A dataset by name, and how it is read."""

    name: str
    column: str | None = None
    """The column that holds the text; None: found by its name (``columns.py``)."""
    sample: Sample = "spread"
    documents: Documents = "separate"

    @property
    def label(self) -> str:
        """The dataset's name in rows:
        its own, and what is not as it is by default, like ``pydocs[sample=first]``."""
        default = DatasetEntry(self.name)
        options = [
            f"{key}={getattr(self, key)}"
            for key in ("column", "sample", "documents")
            if getattr(self, key) != getattr(default, key)
        ]
        return f"{self.name}[{','.join(options)}]" if options else self.name
