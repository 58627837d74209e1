"""Which GPUs are here, and whether torch can use them. Imports no torch: a process of its own is asked once.

``nvidia-smi`` lists what the driver sees. A torch that was built without CUDA, or against a newer driver,
sees none of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

ANSWER_SECONDS, TORCH_SECONDS = 10.0, 120.0
"""How long nvidia-smi, and a process that imports torch, may take;
the first may hang for ever behind a broken driver."""
DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu")
"""Signs of a GPU without nvidia-smi: containers, Windows' Linux, AMD (which torch calls cuda too), Jetson."""
ASK_TORCH = """\
import torch
if torch.cuda.is_available():
    print("usable")
elif torch.version.cuda is None:
    print(f"this torch {torch.__version__} was built without CUDA")
else:
    try:
        torch.cuda.init()
    except Exception as error:
        print(" ".join(str(error).split()))
    else:
        print("torch.cuda.is_available() is false")
"""


@dataclass(frozen=True)
class Cuda:
    """Whether cells can run on ``cuda`` on this machine."""

    usable: bool
    names: tuple[str, ...]
    """GPUs that the driver lists."""
    why_not: str
    """In words, where a GPU is there and cannot be used; empty where there is none, or it can."""


def cuda(*, by_name: bool = False) -> Cuda:
    """The answer for this process; cheap where nothing speaks for a GPU and none is asked for ``by_name``."""
    names, fault = list_gpus()
    if not by_name and not names and not any(Path(device).exists() for device in DEVICES):
        return Cuda(False, (), fault)
    found = torch_says()
    return replace(found, why_not=fault) if fault and not found.usable else found


@lru_cache(maxsize=1)
def torch_says() -> Cuda:
    """What a process that imports torch answers, with the GPUs that the driver lists."""
    names, _ = list_gpus()
    said = _ask([sys.executable, "-P", "-c", ASK_TORCH], TORCH_SECONDS)
    if said is None:
        return Cuda(False, names, "a process that asks torch for it does not answer")
    return Cuda(said == "usable", names, "" if said == "usable" else said[:200] or "torch cannot be imported")


@lru_cache(maxsize=1)
def list_gpus() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that nvidia-smi lists,
    and what is wrong with it where it is there and does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), ""
    listed = _ask([tool, "-L"], ANSWER_SECONDS)
    if listed is None:
        return (), f"nvidia-smi has not answered within {ANSWER_SECONDS:g} s"
    lines = [line.strip() for line in listed.splitlines()]
    return tuple(line.split(" (UUID")[0] for line in lines if line.startswith("GPU ")), ""


def gpu_memory_bytes() -> int | None:
    """Bytes of this machine's smallest GPU; None where no driver tells."""
    tool = shutil.which("nvidia-smi")
    listed = (
        _ask([tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"], ANSWER_SECONDS)
        if tool
        else None
    )
    sizes = [int(line) for line in (listed or "").split() if line.isascii() and line.isdecimal()]
    return min(sizes) * 2**20 if sizes else None


def _ask(command: list[str], seconds: float) -> str | None:
    """What a command prints, stripped; empty where it fails, None where it has not ended in time."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError:
        return ""

    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
