"""A path, folder or pattern -> the files that it means. What is no file, or cannot be read, is refused before
it is opened."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from workers.corpora.compressed import OPENERS
from workers.corpora.entry import CorpusError, shown_path
from workers.corpora.foreign import LONGEST, foreign_by_beginning, foreign_by_name

Kind = Literal["prose", "json lines", "json", "csv", "parquet"]
KINDS: dict[str, Kind] = {
    ".txt": "prose",
    ".md": "prose",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""By ending, which that of a compression may follow.
Files of other endings are prose where they are named."""
BESIDE = ("readme", "license", "licence", "dataset_info", "dataset_infos", "dataset_dict", "state")
"""Names of files that lie beside the data in a folder."""

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)")
"""A scheme, and a host or bucket."""

HASHED = 256_000_000
"""Bytes of a dataset's files up to which all of them are in its fingerprint."""
EDGE = 65_536
"""Bytes at the start and at the end of each file of a larger dataset that are."""


@dataclass(frozen=True)
class SourceFile:
    """A regular file that can be read."""

    path: Path
    name: str
    """Within the folder or pattern that was asked for."""
    size: int
    kind: Kind
    compressed: bool
    identity: tuple[int, int]
    """Its device and inode, which all names of one file share."""


def without_scheme(path: str, dataset: str) -> str:
    """A path as it is, and that of a ``file://`` address. Raises CorpusError for any other address."""
    address = ADDRESS.match(path)
    if address is None:
        return path
    if address[1].lower() == "file" and address[2] in ("", "localhost"):
        return unquote(path[address.end() :])
    raise CorpusError(
        f"dataset {dataset!r}: only local files are read; fetch it, and name its path: text:PATH"
    )


def find_files(path: str, dataset: str) -> list[SourceFile]:
    """The files of one kind that a path, a folder or a pattern (``*``, ``?``, ``[``, ``**``) means, in the
    order of their names.

    Raises CorpusError where there are none, where they are of several kinds, and where one cannot be read.
    """
    root = Path(os.path.expanduser(path))  # which, unlike pathlib, leaves the ~ of nobody as it is
    try:
        mode = _mode(root)
        if mode is None and glob.has_magic(path):
            return _of_one_kind(
                _matching(root), f"dataset {dataset!r}: no file matches {shown_path(root)}", dataset
            )
        if mode is None:
            raise CorpusError(
                f"dataset {dataset!r}: there is no file {shown_path(root)} (relative paths start at "
                f"{Path.cwd()})"
            )
        if stat.S_ISDIR(mode):
            empty = f"dataset {dataset!r}: the folder {shown_path(root)} holds no file of {', '.join(KINDS)}"
            return _of_one_kind(_inside(root), empty, dataset)
        return [_file(root, root.name, mode, dataset)]
    except OSError as error:
        reason = "its links lead in a circle" if error.errno == errno.ELOOP else error.strerror
        raise CorpusError(
            f"dataset {dataset!r}: cannot read {shown_path(error.filename or root)}: {reason}"
        ) from None
    except ValueError as error:  # a NUL in a path
        raise (
            error
            if isinstance(error, CorpusError)
            else CorpusError(f"dataset {dataset!r}: is no path ({error})")
        ) from None


def each_once(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Files of which none is read by a second name (links), and in words which names were left out."""
    kept: dict[tuple[int, int], SourceFile] = {}
    left_out = []
    for file in files:
        first = kept.setdefault(file.identity, file)
        if first is not file:
            left_out.append(f"{shown_path(file.name)} is the same file as {shown_path(first.name)}")
    return list(kept.values()), left_out


def fingerprint(files: Sequence[SourceFile]) -> str:
    """16 hex digits of what files hold: their bytes, of more than 256 MB their names, sizes and both ends."""
    whole = sum(file.size for file in files) <= HASHED
    digest = hashlib.sha256()

    for file in files:
        name = "" if whole else file.name
        digest.update(f"{file.size} {name}\n".encode("utf-8", "surrogateescape"))

        with file.path.open("rb") as stream:
            if whole:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(EDGE))
                stream.seek(max(0, file.size - EDGE))
                digest.update(stream.read(EDGE))

    return digest.hexdigest()[:16]


def file_kind(path: Path) -> tuple[Kind | None, bool]:
    """What a file holds by its endings, and whether it is compressed."""
    endings, compressed = _endings(path)
    return KINDS.get(endings[-1]) if endings else None, compressed


def _endings(path: Path) -> tuple[list[str], bool]:
    """In lower case without that of a compression, and whether there is one."""
    endings = [ending.lower() for ending in path.suffixes]
    compressed = bool(endings) and endings[-1] in OPENERS
    return endings[:-1] if compressed else endings, compressed


def _mode(path: Path) -> int | None:
    """None where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _file(path: Path, name: str, mode: int, dataset: str) -> SourceFile:
    if not stat.S_ISREG(mode):
        what = "no regular file but a device, pipe or socket, which is not read"
        raise CorpusError(f"dataset {dataset!r}: {shown_path(path)} is {what}")
    if not os.access(path, os.R_OK):
        raise CorpusError(f"dataset {dataset!r}: cannot read {shown_path(path)}: Permission denied")
    kind, compressed = file_kind(path)
    if said := _foreign(path, kind, compressed=compressed):
        raise CorpusError(f"dataset {dataset!r}: {shown_path(path)} {said}")
    status = path.stat()
    return SourceFile(path, name, status.st_size, kind or "prose", compressed, (status.st_dev, status.st_ino))


def _foreign(path: Path, kind: Kind | None, *, compressed: bool) -> str | None:
    """What a file is instead of what it is called; Parquet says so itself where it is read."""
    if kind is None and (said := foreign_by_name(_endings(path)[0])):
        return said
    if kind == "parquet" or compressed:
        return None
    with path.open("rb") as stream:
        return foreign_by_beginning(stream.read(LONGEST))


def _matching(pattern: Path) -> Iterator[tuple[Path, str]]:
    for found in sorted(glob.glob(str(pattern), recursive=True)):
        if not Path(found).is_dir():
            yield Path(found), found


def _inside(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of known endings at any depth, hidden ones and what lies beside data left out; links to folders
    are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            beside = name.partition(".")[0].lower() in BESIDE
            if not name.startswith(".") and not beside and file_kind(path)[0]:
                yield path, path.relative_to(folder).as_posix()


def _of_one_kind(paths: Iterator[tuple[Path, str]], none: str, dataset: str) -> list[SourceFile]:
    files = [_file(path, name, path.stat().st_mode, dataset) for path, name in paths]
    if not files:
        raise CorpusError(none)
    counts = Counter(file.kind for file in files)
    if len(counts) > 1:
        listed = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        raise CorpusError(
            f"dataset {dataset!r} is files of several kinds ({listed}); name those of one, like "
            "text:FOLDER/*.jsonl"
        )
    return files
