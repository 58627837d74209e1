"""The ordinary folder of a GGUF file:
found in the cache folder by the file's hash, or made there once. No torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from workers.machine.cache_folder import cache_folder, make_folder
from workers.models.gguf.header import read_header
from workers.models.gguf.process import ConversionError, convert_file, missing_packages
from workers.models.gguf.refusals import refusals
from workers.models.model_json import read_json_if_there

RECORD = "kvsweep.json"
"""Where a folder that kvsweep made of other files says of which; no part of the model."""


def converted(file: Path) -> Path:
    """The folder. Raises ValueError, with a clause that goes behind the file's name,
    where it cannot become a model."""
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()

        folder = cache_folder() / f"gguf-{digest[:16]}"
        if not folder.is_dir():
            _make(file, digest, folder)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ValueError(
            f"it cannot be read or its conversion written: {error.strerror or error}{where}"
        ) from error
    return folder


def quantization_of(folder: Path) -> str | None:
    """How the numbers of a folder's GGUF file were stored; None for a folder that was made of none."""
    named = read_json_if_there(folder / RECORD).get("quantization")
    return named if isinstance(named, str) and len(named) <= 40 else None


def _make(file: Path, digest: str, folder: Path) -> None:
    header = read_header(file)
    reasons = list(refusals(header))
    if reasons:
        raise ValueError("; ".join(reasons))
    if lacking := missing_packages():
        raise ValueError(lacking)

    def fill(scratch: Path) -> None:
        needed = 4 * header.parameters
        free = shutil.disk_usage(scratch).free
        if free < needed:
            raise ConversionError(
                f"{scratch.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed"
            )
        _say(
            f"converting {str(file)!r} ({header.quantization}) once to float32, {needed / 1e6:,.0f} MB, into "
            f"{folder}"
        )
        convert_file(file, scratch / "made")
        record = {"file": file.name, "gguf_sha256": digest, "quantization": header.quantization}
        (scratch / "made" / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    make_folder(folder, fill, lambda: _say(f"another process is converting {str(file)!r}; waiting for it"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
