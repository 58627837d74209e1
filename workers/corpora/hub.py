"""Sets of the Hugging Face hub, by the datasets library: streamed, so that no more is fetched than is read; offline cached."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.corpora.collection import Collection
from workers.corpora.columns import Column, text_column
from workers.corpora.entry import CorpusError, DatasetEntry
from workers.corpora.rows import Row

ROWS = 64
"""Rows of a block."""
BLOCKS = 16
"""Blocks of each file of a streamed set: it can only be read from its start, and this is how far it is."""
SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True)
class HubName:
    """A set of the hub."""

    name: str
    config: str | None
    split: str


@dataclass(frozen=True)
class StreamBlock:
    """Rows of one file of a streamed set."""

    stream: Any
    column: str
    file: int
    first: int
    dataset: str

    def rows(self) -> Sequence[Row]:
        """None where the file has fewer rows. Numbered by file times 2^40 and row. Raises CorpusError where it cannot be read."""
        try:
            shard = self.stream.shard(self.stream.num_shards, self.file)
            found = list(itertools.islice(shard.skip(self.first), ROWS))
        except Exception as error:
            raise unreachable(self.dataset, error) from error
        return [Row((self.file << 40) + self.first + i, row.get(self.column)) for i, row in enumerate(found)]


@dataclass(frozen=True)
class CachedBlock:
    """Rows of a set that lies on this machine."""

    table: Any
    column: str
    first: int

    def rows(self) -> Sequence[Row]:
        """At most ``ROWS``."""
        values = self.table[self.first : self.first + ROWS][self.column]
        return [Row(self.first + i, value) for i, value in enumerate(values)]


def parse_hub_name(name: str) -> HubName:
    """``hf:org/name[/config][:split]``. Raises CorpusError for anything else."""
    body, _, split = name.removeprefix("hf:").partition(":")
    parts = body.split("/")
    if not body or len(parts) > 3 or not all(parts):
        raise CorpusError(f"dataset {name!r}: write hf:NAME[/CONFIG][:SPLIT]")
    return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, checked_split(split, name) or "test")


def checked_split(split: str, name: str) -> str:
    """A split's name. Raises CorpusError for slices and sums of splits."""
    if split and not SPLIT.fullmatch(split):
        raise CorpusError(
            f"dataset {name!r}: {split!r} is no split's name; parts of a split need not be named, for only as much is read as "
            "windows need (sample: first | spread | random)"
        )
    return split


def read_hub(entry: DatasetEntry, source: HubName, seed: int) -> Collection:
    """A set of the hub as documents, its fingerprint that of the commit, the configuration and the split.

    Raises CorpusError where the hub cannot be reached and the set is not in its cache, or has no such split or no column of text.
    """
    import datasets
    from datasets import config

    offline = config.HF_HUB_OFFLINE or config.HF_DATASETS_OFFLINE
    try:
        builder = datasets.load_dataset_builder(source.name, source.config)
        if offline:
            table: Any = datasets.load_dataset(source.name, source.config, split=source.split)
        else:
            table = builder.as_streaming_dataset(split=source.split)
        features = table.features or table._resolve_features().features
    except Exception as error:
        raise unreachable(entry.name, error) from error

    columns = [Column(name, _kind(feature)) for name, feature in features.items()]
    column = text_column(entry.column, columns, entry.name)
    way = "cached" if offline else "streamed"
    identity = " ".join([str(builder.hash), source.config or "", source.split, way])
    return Collection(
        entry.label, hashlib.sha256(identity.encode()).hexdigest()[:16], _blocks(table, column, entry.name, offline=offline),
        "rows", column, entry.sample, seed, entry.documents == "joined", len(table) if offline else None,
    )  # fmt: skip


def load_rows(name: str, source: HubName) -> list[dict[str, Any]]:
    """All rows of a small set, which is then in the cache. Raises CorpusError as ``read_hub`` does."""
    import datasets

    try:
        return list(datasets.load_dataset(source.name, source.config, split=source.split))  # pyright: ignore
    except Exception as error:
        raise unreachable(name, error) from error


def unreachable(name: str, error: Exception) -> CorpusError:
    """What went wrong with the hub, in one sentence."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
        if type(cause).__name__ == "HfHubHTTPError":
            break
    lines = str(error).strip().splitlines() or str(cause).strip().splitlines()
    reason = " ".join(lines[0].split())[:200] if lines else ""
    return CorpusError(
        f"dataset {name!r}: cannot be loaded ({type(error).__name__}: {reason}); is the hub reachable? "
        "Local files work as text:PATH, or as hf:./FOLDER:SPLIT"
    )


def _blocks(table: Any, column: str, dataset: str, *, offline: bool) -> Sequence[StreamBlock | CachedBlock]:
    if offline:
        return [CachedBlock(table, column, first) for first in range(0, len(table), ROWS)]
    places = itertools.product(range(BLOCKS), range(table.num_shards))
    return [StreamBlock(table, column, file, block * ROWS, dataset) for block, file in places]


def _kind(feature: Any) -> str:
    """``text``, or what a column holds in words."""
    dtype = getattr(feature, "dtype", None)
    if dtype in ("string", "large_string"):
        return "text"
    if isinstance(feature, dict):
        return "objects"
    return "lists" if isinstance(feature, list) or dtype in (None, "list") else str(dtype)
