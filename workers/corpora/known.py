"""The datasets that have names here."""

from __future__ import annotations

from workers.corpora.entry import CorpusError, DatasetEntry
from workers.corpora.hub import HubName, load_rows
from workers.corpora.tokens import Corpus

WIKITEXT = ("wikitext-2", "wikitext-103")
PG19 = HubName("emozilla/pg19", None, "test")


def pydocs(entry: DatasetEntry, seed: int) -> Corpus:
    """The documentation of Python's language topics, which every Python brings: one text."""
    from pydoc_data.topics import topics

    _one_text(entry)
    text = "\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n"
    return Corpus(entry.label, text, entry.sample, seed)


def wikitext(entry: DatasetEntry, seed: int) -> Corpus:
    """The test split of raw WikiText (Merity et al. 2016, arXiv 1609.07843).

    Its rows are lines of one text, as the literature has it.
    Raises CorpusError where the hub cannot be reached and the split is not in its cache.
    """
    _one_text(entry)
    source = HubName("Salesforce/wikitext", f"{entry.name}-raw-v1", "test")
    texts = [row["text"] for row in load_rows(entry.name, source)]
    return Corpus(entry.label, "\n\n".join(texts), entry.sample, seed)


def _one_text(entry: DatasetEntry) -> None:
    if entry.column is not None or entry.documents != "separate":
        raise CorpusError(f"dataset {entry.name!r} is one text: it has no column or documents to choose")
