"""Datasets by name -> one text -> token ids. Torch-free: the driver tokenizes once and ships ids to the workers."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.text_tokens import SpecialTokens, open_tokenizer

NAMES = ("pydocs", "wikitext-2", "wikitext-103", "pg19", "text:PATH", "hf:NAME[/CONFIG][:SPLIT]")
PG19_BOOKS = 8


class CorpusError(ValueError):
    """A dataset that cannot be found, read or used, with what to do."""


@dataclass(frozen=True)
class Corpus:
    """One text; ``document_starts`` are character offsets where it is made of several independent documents."""

    name: str
    text: str
    document_starts: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the text's SHA-256: the same name may hold other text elsewhere (pydocs: per Python version)."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of a whole corpus under one tokenizer."""

    ids: np.ndarray
    """[tokens] int32."""
    document_tokens: np.ndarray | None
    """[documents] index of each document's first token; None for a single text."""
    special_spelled: int = 0
    """Special tokens that the text spells."""

    def document_at(self, token: int) -> int | None:
        """Which document holds a token; None for a single text."""
        if self.document_tokens is None:
            return None
        return int(np.searchsorted(self.document_tokens, token, side="right")) - 1


def read_corpus(name: str) -> Corpus:
    """The text of a dataset. Raises CorpusError for unknown names, unreadable files and empty texts."""
    if name == "pydocs":
        corpus = _pydocs()
    elif name.startswith("text:"):
        corpus = Corpus(name, _read_file(name))
    elif name in ("wikitext-2", "wikitext-103"):
        corpus = _from_hub(name, "Salesforce/wikitext", f"{name}-raw-v1", "test")
    elif name == "pg19":
        corpus = _from_hub(name, "emozilla/pg19", None, "test", books=PG19_BOOKS)
    elif name.startswith("hf:"):
        corpus = _from_hub(name, *_parse_hub_name(name))
    else:
        raise CorpusError(f"dataset {name!r} is unknown; allowed: {', '.join(NAMES)}")
    if not corpus.text.strip():
        raise CorpusError(f"dataset {name!r} holds no text")
    return corpus


def tokenize(corpus: Corpus, tokenizer_file: str, special: SpecialTokens = "literal") -> TokenizedCorpus:
    """The whole text's ids without special tokens before or behind it.

    Raises CorpusError where the text spells special tokens, which are to be letters, and the tokenizer cannot read them so.
    """
    tokenizer = open_tokenizer(tokenizer_file, special)
    encoded = tokenizer.encode(corpus.text, with_offsets=bool(corpus.document_starts))
    spelled = tokenizer.spelled_special(corpus.text)
    if spelled and special == "literal" and (misread := tokenizer.misread(encoded.ids)):
        raise CorpusError(
            f"dataset {corpus.name!r} spells {', '.join(misread[:5])}, which this tokenizer reads as control tokens even where "
            "they are to be letters; take them out of the text, or say special_tokens_in_text: parse"
        )

    first_characters = encoded.first_characters
    documents = None if first_characters is None else np.searchsorted(first_characters, corpus.document_starts)
    return TokenizedCorpus(encoded.ids, documents, spelled)


def _pydocs() -> Corpus:
    from pydoc_data.topics import topics

    return Corpus("pydocs", "\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n")


def _read_file(name: str) -> str:
    path = Path(name.removeprefix("text:")).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CorpusError(f"dataset {name!r}: there is no file {path} (relative paths start at {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"dataset {name!r}: not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise CorpusError(f"dataset {name!r}: cannot read {path}: {error.strerror}") from None


def _parse_hub_name(name: str) -> tuple[str, str | None, str]:
    """``hf:org/name[/config][:split]``; a leading ./ or / is a local dataset folder."""
    body, _, split = name.removeprefix("hf:").partition(":")
    if body.startswith((".", "/", "~")):
        return str(Path(body).expanduser()), None, split or "test"
    parts = body.split("/")
    if not body or len(parts) > 3:
        raise CorpusError(f"dataset {name!r}: write hf:NAME[/CONFIG][:SPLIT]")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "test"


def _from_hub(name: str, source: str, config: str | None, split: str, books: int | None = None) -> Corpus:
    """Rows of a hub dataset (or local folder of one) as a text: joined by blank lines, or ``books`` documents streamed."""
    import datasets

    try:
        dataset: Any = datasets.load_dataset(source, config, split=split, streaming=books is not None)
        rows: list[dict[str, Any]] = list(itertools.islice(dataset, books))
        column = next((key for key in ("text", "content", "document") if rows and key in rows[0]), None)
        if column is None:
            raise CorpusError(f"dataset {name!r}: no text column among {sorted(rows[0]) if rows else 'no rows'}")
        texts = [row[column] for row in rows]
    except CorpusError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise CorpusError(
            f"dataset {name!r}: cannot be loaded ({type(error).__name__}: {reason}); is the hub reachable? "
            "A local file works as text:PATH, a local dataset folder as hf:./FOLDER:SPLIT"
        ) from error
    starts = tuple(itertools.accumulate((len(text) + 2 for text in texts[:-1]), initial=0)) if books else ()
    return Corpus(name, "\n\n".join(texts), starts)
