"""A dataset's name -> its texts, or where they are read from."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workers.corpora.collection import BETWEEN, Collection
from workers.corpora.entry import NAMES, CorpusError, DatasetEntry, shown_path, unreadable
from workers.corpora.files import SourceFile, each_once, find_files, fingerprint, without_scheme
from workers.corpora.hub import checked_split, parse_hub_name, read_hub
from workers.corpora.known import PG19, WIKITEXT, pydocs, wikitext
from workers.corpora.prose import WHOLE_DOCUMENT, WHOLE_TEXT, LongText, ProseFile, file_text
from workers.corpora.row_files import row_blocks
from workers.corpora.tokens import Corpus

SMALL = 8_000_000
"""Bytes of files up to which all rows are read and counted at once, and held."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the words in names of files and folders that mean them: those of the datasets library."""
BETWEEN_WORDS = re.compile(r"[-._ 0-9/]+")
"""What parts them, as in the library: digits do, so that ``train1`` is of ``train``."""
NAMED = 3
"""Files that a note names."""


def read_corpus(asked: str | DatasetEntry, seed: int = 0) -> Corpus | Collection:
    """A dataset by its name, or as a sweep file asks for it; ``seed`` is that of ``sample: random``.

    Raises CorpusError for unknown names, files that cannot be read, and where there is no text.
    """
    entry = DatasetEntry(asked) if isinstance(asked, str) else asked
    try:
        corpus = _read(entry, seed)
        if isinstance(corpus, Collection) and corpus.small:
            corpus.look_through()
        if isinstance(corpus, Collection) and corpus.joined and corpus.small:
            corpus = _joined(corpus)
    except OSError as error:
        raise unreadable(entry.name, error) from None
    if isinstance(corpus, Corpus) and not corpus.text.strip():
        raise CorpusError(f"dataset {entry.name!r} holds no text")
    return corpus


def read_text(name: str) -> Corpus:
    """A dataset that is one text, read whole.
    Raises CorpusError as ``read_corpus`` does, and for any other dataset."""
    corpus = read_corpus(name)
    if isinstance(corpus, Collection):
        raise CorpusError(f"dataset {name!r} is not one text that is read whole")
    return corpus


def _read(entry: DatasetEntry, seed: int) -> Corpus | Collection:
    name = entry.name
    if name == "pydocs":
        return pydocs(entry, seed)
    if name in WIKITEXT:
        return wikitext(entry, seed)
    if name == "pg19":
        return read_hub(entry, PG19, seed)

    if name in ("text:", "hf:"):
        raise CorpusError(f"dataset {name!r} names nothing; allowed: {', '.join(NAMES)}")

    if name.startswith("text:"):
        return _local(entry, find_files(without_scheme(name.removeprefix("text:"), name), name), seed)
    if name.startswith("hf:"):
        path, split = _local_path(name)
        if path is None:
            return read_hub(entry, parse_hub_name(name), seed)
        files = find_files(path, name)
        return _local(entry, _of_split(files, split, name), seed, _unclaimed(entry, files, split))

    raise CorpusError(f"dataset {name!r} is unknown; allowed: {', '.join(NAMES)}")


def _local_path(name: str) -> tuple[str | None, str]:
    """``hf:./FOLDER[:split]``, or of a file or pattern: the path and the split;
    None where it is a name of the hub."""
    folder, slash, last = without_scheme(name.removeprefix("hf:"), name).rpartition("/")
    name_of_last, _, split = last.partition(":")
    path = folder + slash + name_of_last
    return (path, checked_split(split, name)) if path.startswith((".", "/", "~")) else (None, "")


def _of_split(files: Sequence[SourceFile], split: str, name: str) -> Sequence[SourceFile]:
    """The files whose name or folder says the split; where none says any, they are the split ``train``."""
    said = [_splits(file, split) for file in files]
    known = sorted({each for splits in said for each in splits})
    wanted = split or ("test" if "test" in known else "")
    if not wanted and not known:
        return files
    if not known and wanted == "train":
        return files

    of_split = [file for file, splits in zip(files, said, strict=True) if wanted in splits]
    if not of_split:
        has = (
            f"its files say {', '.join(known)}"
            if known
            else "no file or folder says a split, so that all are 'train'"
        )
        raise CorpusError(f"dataset {name!r} has no split {wanted or 'test'!r}: {has}")
    return of_split


def _splits(file: SourceFile, asked: str) -> set[str]:
    name = file.name.lower()
    words = set(BETWEEN_WORDS.split(name))
    splits = {split for split, names in SPLITS.items() if words & set(names)}
    if asked and asked not in SPLITS and asked.lower() in words | set(re.split(r"[^a-z0-9]+", name)):
        splits.add(asked)
    return splits


def _unclaimed(entry: DatasetEntry, files: Sequence[SourceFile], split: str) -> list[str]:
    """A note of the files that say no split, where others do."""
    none = [shown_path(file.name) for file in files if not _splits(file, split)]
    if not none or len(none) == len(files):
        return []
    more = f" and {len(none) - NAMED:,} more" if len(none) > NAMED else ""
    return [
        f"{entry.label}: {len(none):,} of {len(files):,} files say no split and are not read: "
        f"{', '.join(none[:NAMED])}{more}"
    ]


def _local(
    entry: DatasetEntry, named: Sequence[SourceFile], seed: int, notes: Sequence[str] = ()
) -> Corpus | Collection:
    files, again = each_once(named)
    corpus = _prose(entry, files, seed) if files[0].kind == "prose" else _rows(entry, files, seed)
    if again:
        more = f", and {len(again) - 1:,} more" if len(again) > 1 else ""
        notes = [*notes, f"{entry.label}: a file is read once, whatever names it has ({again[0]}{more})"]
    if isinstance(corpus, Corpus):
        return replace(corpus, read_notes=[*notes, *corpus.read_notes])
    corpus.file_notes = notes
    return corpus


def _rows(entry: DatasetEntry, files: Sequence[SourceFile], seed: int) -> Collection:
    column, blocks, count = row_blocks(files, entry.column, entry.name)
    if count == 0:
        raise CorpusError(f"dataset {entry.name!r} holds no rows")

    small = sum(file.size for file in files) <= SMALL
    joined = entry.documents == "joined"
    compressed = any(file.compressed for file in files)

    return Collection(
        entry.label,
        fingerprint(files),
        blocks,
        "rows",
        column,
        entry.sample,
        seed,
        joined,
        count,
        compressed,
        small=small,
    )


def _prose(entry: DatasetEntry, files: Sequence[SourceFile], seed: int) -> Corpus | Collection:
    """One file is one text; of several each is a document."""
    if entry.column is not None:
        raise CorpusError(f"dataset {entry.name!r} is prose and has no columns (column: {entry.column})")
    if len(files) == 1 and not _is_several(entry.name):
        text = file_text(files[0], WHOLE_TEXT)
        if isinstance(text, str):
            return Corpus(entry.label, text, entry.sample, seed)
        block = ProseFile(files[0], 0, WHOLE_TEXT)
        return Collection(
            entry.label,
            fingerprint(files),
            [block],
            "text",
            None,
            entry.sample,
            seed,
            count=1,
            compressed=files[0].compressed,
        )

    joined = entry.documents == "joined"
    longest = WHOLE_TEXT if joined else WHOLE_DOCUMENT
    blocks = [ProseFile(file, number, longest) for number, file in enumerate(files)]
    small = sum(file.size for file in files) <= SMALL
    compressed = any(file.compressed for file in files)
    return Collection(
        entry.label,
        fingerprint(files),
        blocks,
        "files",
        None,
        entry.sample,
        seed,
        joined,
        len(files),
        compressed,
        small=small,
    )


def _is_several(name: str) -> bool:
    """Whether a name means a folder, of which one file is a document too."""
    path, _ = (
        _local_path(name)
        if name.startswith("hf:")
        else (without_scheme(name.removeprefix("text:"), name), "")
    )
    return path is not None and Path(os.path.expanduser(path)).is_dir()


def _joined(collection: Collection) -> Corpus | Collection:
    """Documents that are to be one text, where that is no longer than one is read whole."""
    parts: list[str] = []
    for block in range(len(collection.blocks)):
        for _, text in collection.texts(block):
            if isinstance(text, LongText):
                return collection
            parts.append(text)

    joined = BETWEEN.join(parts)
    if len(joined.encode()) > WHOLE_TEXT:
        return collection
    return Corpus(
        collection.name,
        joined,
        collection.sample,
        collection.seed,
        collection.facts(),
        tuple(collection.notes()),
    )
