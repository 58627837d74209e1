"""Sets of the Hugging Face hub, by the datasets library:
streamed, so that no more is fetched than is read; offline cached."""

from __future__ import annotations

import hashlib
import itertools
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workers.corpora.collection import Collection
from workers.corpora.columns import Column, text_column
from workers.corpora.entry import CorpusError, DatasetEntry
from workers.corpora.rows import UNCOUNTED, Row

ROWS = 16
"""Rows of a block."""
BLOCKS = 64
"""Blocks of each file of a streamed set: it can only be read from its start, and this is how far it is."""
SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True)
class HubName:
    """A set of the hub."""

    name: str
    config: str | None
    split: str


class FileStream:
    """The text of one file of a streamed set, fetched in order and kept, as far as anybody asked."""

    def __init__(self, stream: Any, file: int, column: str, dataset: str) -> None:
        self._rows = iter(stream.shard(stream.num_shards, file))
        # left open, it would complain at the interpreter's end of what is gone already
        weakref.finalize(self, self._rows.close)
        self._column = column
        self._dataset = dataset
        self._values: list[object] = []

    def values(self, first: int, count: int) -> list[object]:
        """Fewer where the file ends. Raises CorpusError where it cannot be fetched."""
        lacking = max(0, first + count - len(self._values))
        try:
            self._values += [row.get(self._column) for row in itertools.islice(self._rows, lacking)]
        except Exception as error:
            raise unreachable(self._dataset, error) from error
        return self._values[first : first + count]


@dataclass(frozen=True)
class StreamBlock:
    """Rows of one file of a streamed set, numbered by file times 2^40 and row."""

    stream: FileStream
    file: int
    first: int

    def rows(self) -> Sequence[Row]:
        """None where the file has fewer rows. Raises CorpusError where it cannot be fetched."""
        values = self.stream.values(self.first, ROWS)
        return [Row((self.file << UNCOUNTED) + self.first + i, value) for i, value in enumerate(values)]


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
    return HubName(
        "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, checked_split(split, name) or "test"
    )


def checked_split(split: str, name: str) -> str:
    """A split's name. Raises CorpusError for slices and sums of splits."""
    if split and not SPLIT.fullmatch(split):
        raise CorpusError(
            f"dataset {name!r}: {split!r} is no split's name; parts of a split need not be named, for only "
            "as much is read as windows need (sample: first | spread | random)"
        )
    return split


def read_hub(entry: DatasetEntry, source: HubName, seed: int) -> Collection:
    """A set of the hub as documents, its fingerprint that of the commit, the configuration and the split.

    Raises CorpusError where the hub cannot be reached and the set is not in its cache, or has no such split
    or no column of text.
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
    identity = " ".join(
        [
            str(builder.hash),
            source.config or "",
            source.split,
            "cached" if offline else f"{table.num_shards} files",
        ]
    )
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    blocks = _blocks(table, column, entry.name, offline=offline)
    joined = entry.documents == "joined"
    count, in_turn = (len(table), None) if offline else (None, table.num_shards)
    return Collection(
        entry.label, fingerprint, blocks, "rows", column, entry.sample, seed, joined, count, in_turn=in_turn
    )


def load_rows(name: str, source: HubName) -> list[dict[str, Any]]:
    """All rows of a small set, which is then in the cache. Raises CorpusError as ``read_hub`` does."""
    import datasets

    try:
        return list(datasets.load_dataset(source.name, source.config, split=source.split))  # pyright: ignore
    except Exception as error:
        raise unreachable(name, error) from error


def unreachable(name: str, error: Exception) -> CorpusError:
    """What went wrong with the hub, in one sentence:
    what it answered, where it did, else the library's own words."""
    answers = [answer for cause in _causes(error) if (answer := _answer(cause))]
    if answers:
        reason = f"the hub answered {answers[-1]}"
    else:
        lines = str(error).strip().splitlines()
        said = f": {' '.join(lines[0].split())[:200]}" if lines else ""
        reason = f"{type(error).__name__}{said}"

    return CorpusError(
        f"dataset {name!r}: cannot be loaded ({reason}); is the name right, and can the hub be reached? "
        "Local files work as text:PATH, or as hf:./FOLDER:SPLIT"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: BaseException) -> str:
    """The status of an HTTP answer, and what to do about it; empty for other errors."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int):
        return ""
    ways = {
        401: "log in (hf auth login)",
        403: "log in (hf auth login), and accept its terms on the hub",
        404: "it is not there",
        429: "too many requests: wait, or log in (hf auth login)",
    }
    words = ways.get(status, "it is out of order: try again later" if status >= 500 else "")
    return f"{status}: {words}" if words else str(status)


def _blocks(table: Any, column: str, dataset: str, *, offline: bool) -> Sequence[StreamBlock | CachedBlock]:
    if offline:
        return [CachedBlock(table, column, first) for first in range(0, len(table), ROWS)]
    streams = [FileStream(table, file, column, dataset) for file in range(table.num_shards)]
    places = itertools.product(range(BLOCKS), enumerate(streams))
    return [StreamBlock(stream, file, block * ROWS) for block, (file, stream) in places]


def _kind(feature: Any) -> str:
    """``text``, or what a column holds in words."""
    dtype = getattr(feature, "dtype", None)
    if dtype in ("string", "large_string"):
        return "text"
    if isinstance(feature, dict):
        return "objects"
    return "lists" if isinstance(feature, list) or dtype in (None, "list") else str(dtype)
