"""One point of the grid: everything that changes its numbers, the id that names it, its dense twin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

from pipeline.store.schema import PROTOCOL_VERSION, PRUNING
from workers.policies.budget import Budget
from workers.policies.skip_rule import Skip

_json = lru_cache(maxsize=2**16, typed=True)(json.JSONEncoder().encode)
"""Of a field's value, of which a grid has few. ``typed``: 1
and 1.0 are equal, and no two spellings of one id may be."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid and one task; everything here changes the numbers.

    Grids hold a million of them.
    """

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
    """``parse`` for the harness's tasks, which bring their own texts and are read as the harness reads
    them."""
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
        """Every field and the protocol version as JSON with sorted keys; an encoder for the whole takes four
        times as long."""
        form = _canonical_form(PROTOCOL_VERSION, *_before(self), *_behind(self))
        return form % tuple(map(_json, _pruned_sorted(self)))

    def values(self) -> dict[str, Any]:
        """Everything above by name."""
        return {name: getattr(self, name) for name in CELL_FIELDS}

    @property
    def budget(self) -> Budget:
        """How many entries a pruning layer holds and when it
        is looked at; the dense cell's never drops anything."""
        return Budget(self.keep_ratio, self.prune_after or 1, self.schedule)

    @property
    def group(self) -> tuple[str, ...]:
        """What a cell shares with its dense twin and with nobody else's."""
        model = (self.model, self.model_revision)
        dataset = (self.dataset, self.dataset_fingerprint)
        read = (str(self.seed), str(self.bos), self.special_tokens_in_text)
        return (self.task, *model, *dataset, self.device, self.dtype, self.settings, *read)

    @property
    def pruning(self) -> tuple[Any, ...]:
        """The values of ``PRUNED_BY``, in that order."""
        return _pruning(self)

    def pruned(self) -> Callable[[Iterable[Any]], Cell]:
        """Makes the cells of the same target and task from values of ``PRUNED_BY``, in that order.

        ``dataclasses.replace`` takes four times as long, and there are millions.
        """
        before, behind = _before(self), _behind(self)
        return lambda pruning: Cell(*before, *pruning, *behind)

    @property
    def dense(self) -> Cell:
        """The twin that never prunes, to compare with."""
        return self.pruned()(DENSE.values())


CELL_FIELDS = tuple(part.name for part in fields(Cell) if part.init)

PRUNED_BY = tuple(name for name in CELL_FIELDS if name in PRUNING)
"""The fields that say how a cell prunes. They stand together in a cell, behind those of its target."""

DENSE = {name: PRUNING[name] for name in PRUNED_BY}
"""Their values in a cell that never prunes."""

_first = CELL_FIELDS.index(PRUNED_BY[0])
_before = attrgetter(*CELL_FIELDS[:_first])
_pruning = attrgetter(*PRUNED_BY)
_behind = attrgetter(*CELL_FIELDS[_first + len(PRUNED_BY) :])
_pruned_sorted = attrgetter(*sorted(PRUNED_BY))


@lru_cache(maxsize=1024, typed=True)
def _canonical_form(protocol: int, *shared: Any) -> str:
    """The JSON of cells that share everything but how they prune, with a place for each of ``PRUNED_BY``."""
    others = [name for name in CELL_FIELDS if name not in PRUNING]
    said = {"protocol_version": protocol, **dict(zip(others, shared, strict=True))}
    texts = {name: _json(value).replace("%", "%%") for name, value in said.items()}
    texts |= dict.fromkeys(PRUNED_BY, "%s")
    return "{" + ", ".join(f'"{name}": {texts[name]}' for name in sorted(texts)) + "}"


@lru_cache(maxsize=1024)
def _parsed(settings: str) -> Mapping[str, Any]:
    return json.loads(settings)


def settings_of(cell: Cell) -> Mapping[str, Any]:
    """The settings of a cell's task by name."""
    return _parsed(cell.settings)
