"""The files of a local model: which weights transformers loads, what they hold, and the identity of all.

Everything raises ValueError with what is wrong and where, in words that go behind the model's name. Nothing
imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from workers.models.model_json import is_file, one_line, read_json, shown

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The names that transformers looks for, in this order; a file under any other name is not read."""
ADAPTER = "adapter_config.json"
IDENTITY_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""Besides the weights, what can change a number where it is there: settings, tokenizer, chat template."""
TEMPLATES = "additional_chat_templates/*.jinja"
HEADER_BYTES = 100_000_000
"""The largest header that the safetensors library reads."""
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6,
    "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The weight files that transformers loads from a folder,
    and the index that names them if there is one."""

    files: tuple[Path, ...]
    index: Path | None

    @property
    def are_safe(self) -> bool:
        """Whether their headers can be read without running what is in them."""
        return all(file.suffix == ".safetensors" for file in self.files)

    def held(self, stored_bytes: int) -> Held:
        """What they hold, by the headers; of other formats by the size, ``stored_bytes`` a number."""
        if self.are_safe:
            return read_headers(self.files)
        return Held(sum(file.stat().st_size for file in self.files) // stored_bytes, None)


def find_weights(folder: Path, allow_pickle: bool, named: object = None) -> Weights:
    """What transformers loads from ``folder``; ``named``: the ``transformers_weights`` of config.json.

    A single file goes before an index, safetensors before pickles, as in ``PreTrainedModel.from_pretrained``.
    """
    names = [SAFE, SAFE_INDEX, *([PICKLED, PICKLED_INDEX] if allow_pickle else [])]
    if named is not None:
        names = [_named(named)]

    for name in names:
        if is_file(folder / name):
            return (
                _indexed(folder / name) if name.endswith(".index.json") else Weights((folder / name,), None)
            )

    hint = (
        ""
        if allow_pickle
        else "; convert the weights: other formats can run code (allow_pickle: true reads them)"
    )
    raise ValueError(f"no {' or '.join(names)} in {folder}, which is what transformers loads{hint}")


def _named(name: object) -> str:
    if (
        not isinstance(name, str)
        or not name.endswith((".safetensors", ".safetensors.index.json"))
        or not _is_inside(name)
    ):
        raise ValueError(
            f"config.json names {shown(name)} as transformers_weights; it must be a .safetensors file of the "
            "folder, or an index of such files"
        )
    return name


def _indexed(index: Path) -> Weights:
    """The files that an index names, each once."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f"{index.name} in {index.parent} has no weight_map of tensors and the files that hold them"
        )

    suffix = ".bin" if index.name == PICKLED_INDEX else ".safetensors"
    files = []
    for name in sorted(set(names.values())):
        if not name.endswith(suffix) or not _is_inside(name):
            raise ValueError(
                f"{index.name} in {index.parent} names {shown(name)}; it may name {suffix} files of its "
                "folder only"
            )
        if not is_file(index.parent / name):
            raise ValueError(f"{index.name} names {name}, which is missing in {index.parent}")
        files.append(index.parent / name)
    return Weights(tuple(files), index)


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


@dataclass(frozen=True)
class Held:
    """What the headers of weight files say."""

    parameters: int
    """Numbers in all tensors."""
    layers: int | None
    """How many layers there can be at most, by the numbers in the names of tensors;
    None where no name has one."""


def read_headers(files: Iterable[Path]) -> Held:
    """Of safetensors files, each header checked against its file's size."""
    parameters = 0
    numbers: set[int] = set()
    for file in files:
        try:
            with file.open("rb") as opened:
                size = file.stat().st_size
                header, start = _header(opened, size)
                parameters += sum(
                    _tensor_size(value, size - start)
                    for key, value in header.items()
                    if key != "__metadata__"
                )
        except (OSError, ValueError, RecursionError) as error:
            reason = (
                "its header is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
            )
            raise ValueError(
                f"{file.name} in {file.parent} is not a whole safetensors file: {reason}"
            ) from error

        numbers |= {
            int(part)
            for name in header
            for part in name.split(".")
            if part.isascii() and part.isdecimal() and len(part) < 10
        }
    return Held(parameters, max(numbers) + 1 if numbers else None)


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Tensor -> what is said of it, and where the tensors begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_BYTES):
        raise ValueError(f"its header would be {length:,} bytes long, and the file has {size:,}")
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise ValueError(f"its header is not JSON ({one_line(error)})") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a table of tensors")
    return header, 8 + length


def _tensor_size(tensor: Any, room: int) -> int:
    """Numbers in a tensor, of which the header says dtype,
    shape and where it lies in the ``room`` bytes that follow."""
    try:
        shape = tensor["shape"]
        first, last = tensor["data_offsets"]
        bits = BITS.get(tensor["dtype"])
        is_whole = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError("its header does not say shape, dtype and place of every tensor") from error

    numbers = math.prod(shape) if is_whole else -1
    if (
        not is_whole
        or not first <= last <= room
        or (bits is not None and numbers * bits != 8 * (last - first))
    ):
        raise ValueError(
            f"a tensor of shape {shown(shape)} would lie at bytes {shown(first)} to {shown(last)} of the "
            f"{room:,} that it holds"
        )
    return numbers


def identity(folder: Path, files: Iterable[Path]) -> str:
    """A hash of names and contents: moving content from one file to another changes it, as do a file more and
    a file less."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise ValueError(f"{path.name} in {path.parent} cannot be read: {error.strerror}") from error
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def settings_files(folder: Path) -> list[Path]:
    """Those of the identity that are there and are no weights."""
    return [folder / name for name in IDENTITY_FILES if is_file(folder / name)] + sorted(
        folder.glob(TEMPLATES)
    )
