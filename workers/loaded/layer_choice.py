"""The diagnosis of a loaded model put to use: ``auto:k`` becomes layers, and cells of ``knorm`` carry what
they rest on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from workers.loaded.diagnosis import fixed_diagnosis
from workers.messages.out_of_memory import without_frames
from workers.messages.work import Failure, WorkUnit
from workers.models.model_files import ModelFacts
from workers.policies.settings import PruneSettings
from workers.policies.skip_rule import check_count, skipped_count

BY_NORM = ("knorm", "knorm_high", "knorm_sorted")
"""Policies whose figures mean little without how key norm and attention go together."""


@dataclass
class Chosen:
    """A unit whose cells all name their layers, and what the diagnosis adds to their rows."""

    unit: WorkUnit
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By cell: ``skip_layers`` where a rule chose them, ``norm_attention`` where the policy goes by norms."""
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def with_layers(settings: PruneSettings, model: nn.Module, facts: ModelFacts) -> PruneSettings:
    """The settings with layers in the place of a rule.

    Raises ValueError where the model has too few of them, and what a diagnosis raises.
    """
    rule = settings.skip_layers
    if not isinstance(rule, str):
        return settings
    check_count(rule, facts.layers, facts.name)
    return replace(settings, skip_layers=fixed_diagnosis(model, facts).worst(skipped_count(rule)))


def choose_layers(unit: WorkUnit, model: nn.Module) -> Chosen:
    """Resolve the rules of a unit's cells.

    Where the model cannot be diagnosed, cells with a rule fail with the reason, for nothing says what they
    are; cells without one need only lack the column, which is said.
    """
    chosen = Chosen(unit)
    if not any(
        isinstance(cell.settings.skip_layers, str) or cell.settings.policy in BY_NORM for cell in unit.cells
    ):
        return chosen
    try:
        correlations = fixed_diagnosis(model, unit.model).rounded
    except Exception as error:
        return _undiagnosed(unit, without_frames(error))

    cells = []
    for cell in unit.cells:
        columns: dict[str, Any] = {"norm_attention": correlations} if cell.settings.policy in BY_NORM else {}
        settings = with_layers(cell.settings, model, unit.model)
        if settings is not cell.settings:
            columns["skip_layers"] = list(settings.skipped)
        chosen.columns[cell.cell_id] = columns
        cells.append(replace(cell, settings=settings))
    chosen.unit = replace(unit, cells=tuple(cells))
    return chosen


def _undiagnosed(unit: WorkUnit, error: Exception) -> Chosen:
    lost = [cell for cell in unit.cells if isinstance(cell.settings.skip_layers, str)]
    left = tuple(cell for cell in unit.cells if cell not in lost)
    failing = ", and cells with skip_layers auto:k fail" if lost else ""
    warning = (
        f"{unit.model.name}: how key norm and attention go together cannot be told "
        f"({type(error).__name__}: {error}); norm_attention is left empty{failing}"
    )
    return Chosen(
        replace(unit, cells=left), {}, [Failure.of(cell.cell_id, error) for cell in lost], [warning]
    )
