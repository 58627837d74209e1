"""The plain class behind the Ray actor and the inline executor:
keeps a model between units, turns exceptions into failures."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time

import torch
from torch import nn

from workers.cache.attention import forget_masks
from workers.footprint.worker import STARTED_BYTES
from workers.loaded.load import load
from workers.loaded.measure_pace import measure_once
from workers.loaded.self_check import Passed, check_once, rounding_note
from workers.machine.code_digest import check_same_code, code_digest
from workers.machine.heap import limit_heap_blocks
from workers.machine.peak_memory import PeakMemory, resident_bytes
from workers.machine.process_state import whole_process_state
from workers.messages.telling import News, Tell
from workers.messages.work import Failure, UnitResult, WorkUnit
from workers.models.model_files import ModelError
from workers.unit import run_unit


class Worker:
    """Takes units one after the other; ``threads`` is how many CPU threads torch may use."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        limit_heap_blocks()
        self._key: tuple[str, str, str] | None = None
        self._model: nn.Module | None = None
        self._told: tuple[str, str, str] | None = None
        """The model of which the pace was told last."""
        self._refused: dict[tuple[tuple[str, str, str], bytes], str] = {}
        """What failed the self-check, by model and text: trying again would end the same way."""
        self._others = max(0, (resident_bytes() or 0) - STARTED_BYTES)
        """What somebody else has in this process, such as the driver its plan where there is no Ray:
        no unit's memory."""

    def run(self, unit: WorkUnit, tell: Tell | None = None) -> UnitResult:
        """All rows of the unit but those that ``tell`` was told of while it went on.

        What goes wrong in our own code or in the model is a failure of its cells, never an exception:
        repeating it would end the same way.
        """
        begin = loaded = time.perf_counter()
        memory = None
        try:
            check_same_code(unit.code, unit.code_root)
            device = torch.device(unit.device)
            memory = PeakMemory(device)
            memory.start()
            with whole_process_state():
                model = self._loaded(unit, device)
                self._tell_pace(unit, model, device, tell)
                passed = self._checked(unit, model)
                loaded = time.perf_counter()
                result = run_unit(unit, model, device, passed, tell)
            if passed is not None and unit.dtype != "float32":
                result.warnings.insert(0, rounding_note(unit.model.name, unit.dtype, passed))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too, which code that comes with a model may raise
            result = UnitResult(failures=[Failure.of(cell.cell_id, error) for cell in unit.cells])
        result.peak_bytes = self._peak(memory)
        forget_masks()
        result.code = code_digest()
        result.node = f"{platform.node()}:{os.getpid()}"
        result.load_seconds = loaded - begin
        result.seconds = time.perf_counter() - loaded
        return result

    def _peak(self, memory: PeakMemory | None) -> int | None:
        """What a unit took, by its counter."""
        peak = None if memory is None else memory.result()[0]
        return peak if peak is None or memory is None or memory.device.type != "cpu" else peak - self._others

    def _loaded(self, unit: WorkUnit, device: torch.device) -> nn.Module:
        """The unit's model, loaded unless it is the one that the last unit used."""
        key = _key_of(unit)
        if self._model is None or self._key != key:
            self._model = None
            self._model = load(unit.model, unit.dtype, device)
            self._key = key
        return self._model

    def _tell_pace(self, unit: WorkUnit, model: nn.Module, device: torch.device, tell: Tell | None) -> None:
        """Before the model is checked, which takes a while: the driver then knows how long all will take."""
        key = _key_of(unit)
        if tell is None or self._told == key:
            return
        self._told = key
        with contextlib.suppress(
            Exception
        ):  # without it times are rough; what is wrong with a model, its check finds
            pace = measure_once(model, unit.model, unit.dtype, device)
            tell(News([], "", 0.0, "check of the model against transformers' own", 0.0, pace))

    def _checked(self, unit: WorkUnit, model: nn.Module) -> Passed | None:
        """Check the model on texts of the unit; None where only running it brings them. Raises ModelError."""
        text = unit.work.check_text()
        if text is None:
            return None
        place = (_key_of(unit), hashlib.sha256(text.tobytes()).digest())
        if place in self._refused:
            raise ModelError(self._refused[place])
        try:
            own = unit.work.tells_rounding
            return check_once(model, unit.model, unit.dtype, torch.from_numpy(text), own_text=own)
        except ModelError as error:
            self._refused[place] = str(error)  # the error itself would hold the model
            raise


def _key_of(unit: WorkUnit) -> tuple[str, str, str]:
    return (unit.model.revision, unit.dtype, unit.device)
