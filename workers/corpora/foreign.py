"""Files of forms that are not read, told by their endings and first bytes, and what to do with each."""

from __future__ import annotations

import re
from collections.abc import Sequence

ARCHIVE = "is an archive, and archives are not read; unpack it and name its folder"
ARROW = "is an Arrow file, which is not read; write it as Parquet"
OFFICE = "is an office document, which is not read; save a table as .csv, a text as .txt"
PARQUET = "is Parquet by another name; name it .parquet"

BY_ENDING = {
    ".tsv": "is separated by tabs, and only commas are read; write it with commas, as .csv",
    ".tab": "is separated by tabs, and only commas are read; write it with commas, as .csv",
    ".parq": PARQUET,
    ".pq": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".zip": ARCHIVE,
    ".tar": ARCHIVE,
    ".tgz": ARCHIVE,
    ".7z": ARCHIVE,
    ".rar": ARCHIVE,
    ".xlsx": OFFICE,
    ".xls": OFFICE,
    ".ods": OFFICE,
    ".docx": OFFICE,
    ".doc": OFFICE,
    ".odt": OFFICE,
    ".pdf": "is a PDF, which is not read; write its text as .txt",
}
"""The ending is the last one, or the one before that of a compression."""

BY_BEGINNING = {
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"PK\x03\x04": (
        "is a ZIP archive or an office document, which is not read; unpack it, or save it as .csv or .txt"
    ),
    b"%PDF-": BY_ENDING[".pdf"],
    b"\x1f\x8b": "is compressed by gzip; let its name end in .gz",
    b"BZh91AY&SY": "is compressed by bzip2; let its name end in .bz2",
    b"\xfd7zXZ\x00": "is compressed by xz; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed by Zstandard; let its name end in .zst",
}
LONGEST = max(map(len, BY_BEGINNING))

ROTATED = re.compile(r"(\.(?:jsonl|ndjson|json|csv|parquet))(?:[.-]\d+|\.bak|\.old|\.orig)$", re.IGNORECASE)
"""Ends of names of rows that are kept under a further ending."""


def foreign_by_name(endings: Sequence[str]) -> str | None:
    """What a file is whose endings, without that of a compression, are these, and what to do; None where it
    may be read."""
    if found := ROTATED.search("".join(endings)):
        return f"would be read as prose; let its name end in {found[1].lower()}"
    return BY_ENDING.get(endings[-1]) if endings else None


def foreign_by_beginning(data: bytes) -> str | None:
    """The same of a file that begins so."""
    return next((said for mark, said in BY_BEGINNING.items() if data.startswith(mark)), None)
