"""One point of the grid: everything that changes its numbers, the id that names it, its dense twin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from pipeline.schema import PROTOCOL_VERSION
from workers.budget import Budget
from workers.skip_rule import Skip

_json = lru_cache(maxsize=2**16, typed=True)(json.JSONEncoder().encode)
"""Of a field's value, of which a grid has few. ``typed``: 1 and 1.0 are equal, and no two spellings of one id may be."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid and one task; everything here changes the numbers. Grids hold a million of them."""

    task: str
    model: str
    model_revision: str
    dataset: str
    dataset_fingerprint: str
    device: str
    dtype: str
    policy: str
    keep_ratio: float
    prune_after: int | None
    """None for the dense cell."""
    skip_layers: Skip
    """A rule (``auto:k``) stays one: which layers it means, only the loaded model tells."""
    protect_sink: int
    protect_recent: int
    schedule: str
    position_mode: str
    seed: int
    bos: int | None
    """The token that each text begins with; None where none is put there."""
    special_tokens_in_text: str
    """``parse`` for the harness's tasks, which bring their own texts and are read as the harness reads them."""
    settings: str
    """The task's settings as canonical JSON."""
    _id: str = field(default="", init=False, compare=False, repr=False)

    @property
    def cell_id(self) -> str:
        """16 hex digits of everything above and the protocol version."""
        if not self._id:
            object.__setattr__(self, "_id", hashlib.sha256(self._canonical().encode()).hexdigest()[:16])
        return self._id

    def _canonical(self) -> str:
        """Every field and the protocol version as JSON with sorted keys, written out: an encoder takes four times as long."""
        return (
            f'{{"bos": {_json(self.bos)}, "dataset": {_json(self.dataset)}, '
            f'"dataset_fingerprint": {_json(self.dataset_fingerprint)}, "device": {_json(self.device)}, '
            f'"dtype": {_json(self.dtype)}, "keep_ratio": {self.keep_ratio!r}, "model": {_json(self.model)}, '
            f'"model_revision": {_json(self.model_revision)}, "policy": {_json(self.policy)}, '
            f'"position_mode": {_json(self.position_mode)}, "protect_recent": {self.protect_recent}, '
            f'"protect_sink": {self.protect_sink}, "protocol_version": {PROTOCOL_VERSION}, '
            f'"prune_after": {_json(self.prune_after)}, "schedule": {_json(self.schedule)}, "seed": {self.seed}, '
            f'"settings": {_json(self.settings)}, "skip_layers": {_json(self.skip_layers)}, '
            f'"special_tokens_in_text": {_json(self.special_tokens_in_text)}, "task": {_json(self.task)}}}'
        )

    def values(self) -> dict[str, Any]:
        """Everything above by name."""
        return {name: getattr(self, name) for name in CELL_FIELDS}

    @property
    def budget(self) -> Budget:
        """How many entries a pruning layer holds and when it is looked at; the dense cell's never drops anything."""
        return Budget(self.keep_ratio, self.prune_after or 1, self.schedule)

    @property
    def group(self) -> tuple[str, ...]:
        """What a cell shares with its dense twin and with nobody else's."""
        return (
            self.task, self.model, self.model_revision, self.dataset, self.dataset_fingerprint, self.device, self.dtype,
            self.settings, str(self.seed), str(self.bos), self.special_tokens_in_text,
        )  # fmt: skip

    @property
    def dense(self) -> Cell:
        """The twin that never prunes, to compare with."""
        return replace(
            self, policy="dense", keep_ratio=1.0, prune_after=None, skip_layers=(), protect_sink=0, protect_recent=0,
            schedule="every_step", position_mode="absolute",
        )  # fmt: skip


CELL_FIELDS = tuple(part.name for part in fields(Cell) if part.init)


@lru_cache(maxsize=1024)
def _parsed(settings: str) -> Mapping[str, Any]:
    return json.loads(settings)


def settings_of(cell: Cell) -> Mapping[str, Any]:
    """The settings of a cell's task by name."""
    return _parsed(cell.settings)
