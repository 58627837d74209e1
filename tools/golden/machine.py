"""Where and with what a golden run was made: whether floats of another one must have the same bits."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.golden.command import THREADS

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "polars", "scipy", "altair")
"""Whose arithmetic, or words, are in what is kept."""

HARNESS = "lm_eval"
"""Its version is in the ids of its tasks' cells, so with another one those cells are others."""


def made_by() -> dict[str, str]:
    """Versions and machine, by name."""
    import torch

    return {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(THREADS),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: _version(name) for name in (*PACKAGES, HARNESS)},
    }


def departures(kept: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, in words; floats have the same bits only where there is none of it."""
    names = [name for name in kept if kept[name] != now.get(name)]
    return [f"{name} {now.get(name)} (kept: {kept[name]})" for name in names]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
