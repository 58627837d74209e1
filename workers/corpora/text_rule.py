"""The one rule by which bytes become the text that is tokenized (docs/data.md).

1. Files are UTF-8. Anything else is refused, with the file and the byte.
2. A byte order mark at the start of a file is no text and is dropped.
3. ``\\r\\n`` and ``\\r`` become ``\\n``.
4. Halves of surrogate pairs, which only JSON can spell (``"\\ud800"``), become U+FFFD and are counted.
5. A NUL in a file of prose is refused: it tells of UTF-16 or of no text at all. In rows it is a character
   like any other.
"""

from __future__ import annotations

import re

from workers.corpora.entry import CorpusError

MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SURROGATE = re.compile("[\ud800-\udfff]")


def without_mark(data: bytes, place: str) -> bytes:
    """The beginning of a file without its byte order mark. Raises CorpusError for that of UTF-16."""
    if data.startswith(UTF_16):
        raise CorpusError(f"{place} is UTF-16, and only UTF-8 is read; convert it: iconv -f UTF-16 -t UTF-8")
    return data.removeprefix(MARK)


def decoded(data: bytes, place: str, first_byte: int = 0) -> str:
    """UTF-8 as it stands in a file, ``data`` beginning at its byte ``first_byte``.
    Raises CorpusError with the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{place} is not UTF-8 text (byte {first_byte + error.start}); convert it first"
        ) from None


def prose(data: bytes, place: str, first_byte: int = 0) -> str:
    """A file of prose, or a passage of one, by the whole rule. Raises CorpusError."""
    body = data if first_byte else without_mark(data, place)
    skipped = first_byte + len(data) - len(body)
    text = decoded(body, place, skipped)
    if (at := body.find(b"\0")) >= 0:
        raise CorpusError(
            f"{place} holds a NUL (byte {skipped + at}): it is UTF-16 without a mark, or no text; convert it "
            "first"
        )
    return plain(text)[0]


def plain(text: str) -> tuple[str, int]:
    """A text by rules 3 and 4, and how many halves of surrogate pairs it held."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return SURROGATE.subn("\ufffd", text)
