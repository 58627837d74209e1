"""What a GGUF file says of itself, read within bounds and without torch: whatever lies there under the name,
it ends soon.

Source: the specification of GGUF in the repository of ggml (docs/gguf.md). Everything raises ValueError with
what is wrong, in words that go behind the file's name.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.models.gguf.types import BLOCKS, FILE_TYPES, NAMES, stem_of
from workers.models.model_json import one_line, shown

VERSIONS = (2, 3)
MOST_ENTRIES, MOST_TENSORS, MOST_DIMENSIONS = 10_000, 100_000, 4
MOST_ELEMENTS = 8_000_000
"""Of all lists of texts together; the largest vocabularies known have a million, with their merges."""
MOST_NAME = 2**16
"""Bytes of a name of an entry or tensor."""
MOST_TEXT = 2**24
"""Bytes of a value; chat templates have some thousand."""
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its numbers and how they are stored."""

    name: str
    shape: tuple[int, ...]
    """As ggml has it, the dimension that moves fastest first."""
    kind: str

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """Entries by name, a list as how many it has, and the tensors by name."""

    entries: dict[str, Any]
    tensors: dict[str, GgufTensor] = field(repr=False)

    @property
    def architecture(self) -> str:
        """As llama.cpp names it."""
        return str(self.entries.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numbers for tensor in self.tensors.values())

    @property
    def quantization(self) -> str:
        """The mixture's name, such as ``Q4_K_M``, where the tensors bear it out;
        else how most of the numbers are stored."""
        numbers: Counter[str] = Counter()
        for tensor in self.tensors.values():
            numbers[tensor.kind] += tensor.numbers
        kind = self.entries.get("general.file_type")
        named = FILE_TYPES.get(kind, "") if type(kind) is int else ""
        return named if stem_of(named) in numbers else numbers.most_common(1)[0][0]

    def of_model(self, name: str) -> Any:
        """An entry that begins with the architecture's name; None where there is none."""
        return self.entries.get(f"{self.architecture}.{name}")


def read_header(file: Path) -> GgufHeader:
    """Entries and tensors of a file, each held to the file's size. Raises ValueError."""
    try:
        with file.open("rb") as opened:
            if opened.seek(0, 2) < 24:
                raise ValueError("it is no GGUF file, or was cut off: it has less than 24 bytes")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error


class _Reader:
    """Goes through a file's header from its beginning."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.size = len(content)
        self.at = 0
        self.elements = 0

    def header(self) -> GgufHeader:
        if self.content[:4] != b"GGUF":
            raise ValueError("it is no GGUF file: it does not begin with GGUF")
        self.at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            turned = version & 0xFFFF == 0
            raise ValueError(
                "it is of a machine with the other order of bytes"
                if turned
                else f"it is GGUF version {version}"
            )
        tensors, entries = self._number("<Q"), self._number("<Q")
        if tensors > MOST_TENSORS or entries > MOST_ENTRIES:
            raise ValueError(
                f"its header would have {entries:,} entries and {tensors:,} tensors, more than any model"
            )

        known: dict[str, Any] = {}
        for _ in range(entries):
            name = self._text(MOST_NAME)
            if name in known:
                raise ValueError(f"its header says {shown(name)} twice")
            known[name] = self._value(self._number("<I"))
        return GgufHeader(known, self._tensors(tensors, known.get("general.alignment", 32)))

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError("it was cut off: its header goes on behind its end")
        self.at += count
        return self.content[self.at - count : self.at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _text(self, most: int) -> str:
        length = self._number("<Q")
        if length > most:
            raise ValueError(f"its header would hold a text of {length:,} bytes")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("its header holds a text that is no UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == TEXT:
            return self._text(MOST_TEXT)
        if kind != LIST:
            raise ValueError(f"its header holds a value of a kind that is not known ({kind})")
        return self._length_of_list()

    def _length_of_list(self) -> int:
        """Goes over a list; none of those that are needed here are lists."""
        kind, count = self._number("<I"), self._number("<Q")
        if kind in SCALARS:
            self._skip(count * struct.calcsize(SCALARS[kind]))
            return count
        self.elements += count
        if kind != TEXT or self.elements > MOST_ELEMENTS:
            raise ValueError(
                f"its header holds a list of {count:,} values of kind {kind}, which none of a model has"
            )
        for _ in range(count):
            self._skip(self._number("<Q"))
        return count

    def _skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError("it was cut off: its header goes on behind its end")
        self.at += count

    def _tensors(self, count: int, alignment: Any) -> dict[str, GgufTensor]:
        if type(alignment) is not int or alignment < 1 or alignment > 2**16:
            raise ValueError(f"its tensors would be aligned to {shown(alignment)} bytes")
        found: dict[str, GgufTensor] = {}
        stored, last = 0, 0
        for _ in range(count):
            tensor, offset = self._tensor()
            if tensor.name in found:
                raise ValueError(f"it holds the tensor {shown(tensor.name)} twice")
            found[tensor.name] = tensor
            block, width = BLOCKS[tensor.kind]
            size = tensor.numbers // block * width
            stored, last = stored + size, max(last, offset + size)

        start = -(-self.at // alignment) * alignment
        if found and start + last > self.size:
            raise ValueError(
                f"it was cut off: its tensors end at byte {start + last:,}, and it has {self.size:,}"
            )
        if stored > self.size:
            raise ValueError(
                f"its tensors lie over each other: {stored:,} bytes of them in a file of {self.size:,}"
            )
        return found

    def _tensor(self) -> tuple[GgufTensor, int]:
        name = self._text(MOST_NAME)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"its tensor {shown(name)} would have {dimensions:,} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))

        kind = self._number("<I")
        offset = self._number("<Q")
        named = NAMES.get(kind)
        if named is None:
            raise ValueError(
                f"its tensor {shown(name)} is stored in a way that transformers does not read (ggml type "
                f"{kind})"
            )
        if not all(shape) or shape[0] % BLOCKS[named][0]:
            raise ValueError(
                f"its tensor {one_line(name, 80)} has the shape {shown(shape)}, which {named} cannot store"
            )
        return GgufTensor(name, shape, named), offset
