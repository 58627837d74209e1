"""A task that only this file knows is planned, run, stored, resumed, and seen in status and report: nobody
asks for its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from analysis import coverage
from analysis.keys import VERSIONS
from analysis.load import ROW_KEYS as REPORT_KEYS
from analysis.load import load
from pipeline.cells.beginning import beginning
from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.model_size import shape_of
from pipeline.cells.planned_budget import PlannedBudget, decoded_budget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import Resolved
from pipeline.commands.run_status import status_lines
from pipeline.driving.compaction import compact
from pipeline.driving.run_sweep import BAD_INPUT, DONE
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store import schema
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks import TASKS, tasks_asked
from pipeline.tasks.task import Task, TextNeed
from tests.support.command import run_inline
from workers.cache.pruned_cache import PrunedCache
from workers.corpora import Tokens
from workers.footprint.perplexity import perplexity_bytes
from workers.messages.telling import Tell, Telling
from workers.messages.work import UnitResult, WorkUnit
from workers.models.model_files import ModelFacts
from workers.unit import RUNNERS
from workers.worker import Worker

COLUMNS = {"length": pl.Int32, "entries": pl.Float64}


class HeldBlock(CellFilter):
    """``held: {lengths: [24, 40]}``: how many entries a cache holds behind prompts of these lengths."""

    lengths: tuple[int, ...] = (24,)


class SweepWithHeld(SweepSpec):
    held: HeldBlock | None = None


@dataclass(frozen=True)
class HeldWork:
    tells_rounding: ClassVar[bool] = False

    prompts: tuple[tuple[int, ...], ...]

    def check_text(self) -> np.ndarray | None:
        return np.array([max(self.prompts, key=len)], dtype=np.int64)


def held_rows(
    unit: WorkUnit, model: torch.nn.Module, device: torch.device, result: UnitResult, telling: Telling
) -> None:
    assert isinstance(unit.work, HeldWork)
    for cell in unit.cells:
        for prompt in unit.work.prompts:
            cache = PrunedCache(model.config, cell.settings, row_ids=[0])  # pyright: ignore[reportArgumentType]
            cache.begin_prompt(len(prompt))
            with torch.no_grad():
                model(torch.tensor([prompt], device=device), past_key_values=cache)
            entries = sum(layer.keys.shape[-2] for layer in cache.pruned_layers) / len(cache.pruned_layers)
            telling.give([{"cell_id": cell.cell_id, "length": len(prompt), "entries": entries}])


class Held(Task):
    name = "held"
    block = "held"

    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        block = self.block_of(spec)
        if isinstance(block, HeldBlock):
            yield {"lengths": list(block.lengths)}

    def sweep_faults(self, spec: SweepSpec) -> Iterator[tuple[tuple[str, ...], str]]:
        for own in self.settings(spec):
            if min(own["lengths"]) < 2:
                yield ("held", "lengths"), "a prompt has two tokens at least"

    def lengths(self, spec: SweepSpec) -> list[tuple[str, int]]:
        return [("held.lengths", length) for own in self.settings(spec) for length in own["lengths"]]

    def text_needs(self, spec: SweepSpec, tokens: Tokens, bos: bool) -> list[TextNeed]:
        return [
            TextNeed("the longest prompt", length - bos, 1, all_apart=True)
            for _, length in self.lengths(spec)
        ]

    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        return min(settings["lengths"])

    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        return max(settings["lengths"])

    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        return max(settings["lengths"])

    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        return decoded_budget(cell, settings_of(cell)["lengths"], looks=1, passes=0)

    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        return len(settings_of(cell)["lengths"])

    def notes(self, spec: SweepSpec, cells: Sequence[Cell]) -> list[str]:
        return [f"{len(cells)} cells are asked what they hold"]

    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        return sum(settings_of(cell)["lengths"][0] * rates.token for cell in unit.cells)

    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        length = max(settings_of(cells[0])["lengths"])
        return length, perplexity_bytes(shape_of(facts, cells[0]), length, texts, cells)

    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> HeldWork:
        first = unit.cells[0]
        (ids,) = resolved.tokens[first.model, first.dataset].prompts(max(settings_of(first)["lengths"]), 1)
        return HeldWork(
            tuple(tuple(beginning(first, ids, length).tolist()) for length in settings_of(first)["lengths"])
        )


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """What a new task is: an object, the columns of its table, its block of the sweep file, a runner, two
    lists of the report."""
    monkeypatch.setitem(TASKS, Held.name, Held())
    monkeypatch.setitem(schema.TASK_COLUMNS, Held.name, COLUMNS)
    monkeypatch.setitem(schema.ROW_KEYS, Held.name, ["length"])
    monkeypatch.setattr("pipeline.planning.spec.SweepSpec", SweepWithHeld)
    monkeypatch.setitem(RUNNERS, HeldWork, held_rows)
    monkeypatch.setitem(REPORT_KEYS, Held.name, ["cell_id", *VERSIONS, "length"])
    monkeypatch.setattr(coverage, "TASKS", (*coverage.TASKS, Held.name))


@pytest.fixture
def sweep(sweep_file):
    """The YAML of the ratios, and of other keys -> a sweep file of this task alone."""
    keys = {"perplexity": None, "held": "{lengths: [24, 40]}"}
    return lambda ratios="[0.9, 0.5]", **changes: sweep_file(keep_ratios=ratios, **{**keys, **changes})


@pytest.fixture
def ran(monkeypatch) -> list[WorkUnit]:
    """The units that workers were given, in order."""
    units: list[WorkUnit] = []
    run = Worker.run

    def noted(self: Worker, unit: WorkUnit, tell: Tell | None = None) -> UnitResult:
        units.append(unit)
        return run(self, unit, tell)

    monkeypatch.setattr(Worker, "run", noted)
    return units


def test_it_is_planned_beside_the_others(sweep):
    both = load_spec(str(sweep(perplexity="{window: 64, stride: 64, windows: 3}")))
    assert [task.name for task in tasks_asked(both)] == ["perplexity", "held"]
    plan = make_plan(both)
    own = [cell for cell in plan.grid.cells if cell.task == "held"]
    assert [cell.keep_ratio for cell in own] == [1.0, 0.9, 0.5] and plan.rows_expected(own[0]) == 2
    assert [unit.task for unit in plan.units] == ["perplexity", "held", "held", "held"]
    assert "3 cells are asked what they hold" in plan.notes and plan.never_prune == []
    assert [cell.task for cell in make_plan(load_spec(str(sweep(prune_after="[41]")))).never_prune] == [
        "held",
        "held",
    ]


def test_what_it_cannot_do_is_refused_before_anything_starts(sweep, out, capsys):
    assert run_inline(sweep(held="{lengths: [1]}"), out) == BAD_INPUT
    assert ": held.lengths: a prompt has two tokens at least" in capsys.readouterr().err
    with pytest.raises(SweepError, match=r"held.lengths: 300 is longer than the context of"):
        make_plan(load_spec(str(sweep(held="{lengths: [300]}"))))
    with pytest.raises(
        SweepError, match="add at least one block of perplexity, generation, retrieval, lm_eval, held"
    ):
        load_spec(str(sweep(held=None)))


def test_it_runs_and_is_stored_and_resumed(sweep, out, ran):
    assert run_inline(sweep("[0.5]"), out) == DONE
    assert [len(unit.cells) for unit in ran] == [1, 1]
    store = RunStore(str(out))
    stored = store.scan("held").collect()
    found = {(row["keep_ratio"], row["length"]): row["entries"] for row in stored.iter_rows(named=True)}
    assert found == {(1.0, 24): 24, (1.0, 40): 40, (0.5, 24): 12, (0.5, 40): 20}

    ran.clear()
    assert run_inline(sweep("[0.5]"), out) == DONE
    assert not ran, "nothing is missing"
    assert run_inline(sweep("[0.9, 0.5]"), out) == DONE
    assert [unit.cells[0].settings.keep_ratio for unit in ran] == [0.9], "only the cell that is new"
    assert compact(store) == 3 and store.scan("held").collect().height == 6
    ran.clear()
    assert run_inline(sweep("[0.9, 0.5]"), out) == DONE
    assert not ran


def test_status_and_report_speak_of_it(sweep, out):
    assert run_inline(sweep(), out) == DONE
    told = status_lines(RunStore(str(out)))
    assert told[-2:] == ["held: 3 cells planned, 3 done, 0 failed, 0 missing", "  6 of 6 rows"]

    (row,) = coverage.coverage(load([str(out)])).rows(named=True)
    assert (row["task"], row["planned"], row["done"], row["failed"], row["missing"]) == ("held", 3, 3, 0, 0)
    assert ">held<" in (out / "report.html").read_text(encoding="utf-8")
