"""How fast a model runs on this machine, remembered from the last time that it was measured;
plain data, without torch.

Plans are told in these seconds. How a sweep is cut into units never depends on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.machine.cache_folder import cache_folder
from workers.models.model_files import ModelFacts

MEASURE = 3
"""Raised where a pace is measured in another way: what was remembered before counts no more."""
LEAST_SECONDS, MOST_SECONDS = 1e-9, 1e5
"""What a token can take."""


@dataclass(frozen=True)
class Pace:
    """Of one model, dtype and device, with so many CPU threads."""

    token_seconds: float
    """Of a token among many of one pass, its likelihood included."""
    pass_seconds: float
    """Of a pass of a single token, beyond that."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no measurement gives."""
        both = (self.token_seconds, self.pass_seconds)
        if any(isinstance(seconds, bool) or not 0 <= seconds <= MOST_SECONDS for seconds in both):
            raise ValueError(f"seconds are from 0 to {MOST_SECONDS:g}")
        if self.token_seconds < LEAST_SECONDS:
            raise ValueError(f"no token takes less than {LEAST_SECONDS:g} seconds")


def remember(pace: Pace, facts: ModelFacts, dtype: str, device: str, threads: int) -> None:
    """For plans that are made on this machine later."""
    with contextlib.suppress(
        OSError, RuntimeError
    ):  # no home, or one that cannot be written to: plans stay rough
        file = _file(facts, dtype, device, threads)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(pace)), encoding="utf-8")


def remembered(facts: ModelFacts, dtype: str, device: str, threads: int) -> Pace | None:
    """None where it was never measured here, or the file that says so is none of ours."""
    try:
        return Pace(**json.loads(_file(facts, dtype, device, threads).read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def _file(facts: ModelFacts, dtype: str, device: str, threads: int) -> Path:
    counted = threads if device == "cpu" else 0
    key = f"{MEASURE} {platform.node()} {platform.processor()} {facts.revision} {dtype} {device} {counted}"
    return cache_folder() / "pace" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
