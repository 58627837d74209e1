"""The plain class behind the Ray actor and the inline executor: keeps a model between units, turns exceptions into failures."""

from __future__ import annotations

import gc
import os
import platform
import time

import torch
from torch import nn

from workers.models import load
from workers.unit import run_unit
from workers.work import Failure, UnitResult, WorkUnit


class Worker:
    """Takes units one after the other; ``threads`` is how many CPU threads torch may use."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._key: tuple[str, str, str] | None = None
        self._model: nn.Module | None = None

    def run(self, unit: WorkUnit) -> UnitResult:
        """All rows of the unit. What goes wrong in our own code or in the model is a failure of its cells, never an exception:
        repeating it would end the same way.
        """
        begin = loaded = time.perf_counter()
        try:
            device = torch.device(unit.device)
            model = self._loaded(unit, device)
            loaded = time.perf_counter()
            result = run_unit(unit, model, device)
        except Exception as error:
            result = UnitResult(failures=[Failure.of(cell.cell_id, error) for cell in unit.cells])
        result.node, result.load_seconds = f"{platform.node()}:{os.getpid()}", loaded - begin
        result.seconds = time.perf_counter() - loaded
        return result

    def _loaded(self, unit: WorkUnit, device: torch.device) -> nn.Module:
        """The unit's model, loaded unless it is the one that the last unit used."""
        key = (unit.model.revision, unit.dtype, unit.device)
        if self._model is None or self._key != key:
            self._model = None
            gc.collect()
            self._model, self._key = load(unit.model, unit.dtype, device), key
        return self._model
