"""Planning does work in proportion to what it makes: counted in calls, for a clock tells of the machine."""

import io
import json
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cells import unit_sizes
from pipeline.commands import plan_table
from pipeline.planning import grid, resolve
from pipeline.planning import plan as plans
from pipeline.planning.cell_reach import planned_budget
from pipeline.planning.grid import Exclusions, make_grid
from pipeline.planning.planning_progress import PlanningProgress
from pipeline.planning.spec import load_spec
from pipeline.planning.wall_clock import WallClock
from pipeline.sweepfile import sweep_keys
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import FIELDS, Exclusion, SweepSpec
from pipeline.tasks.perplexity import Passes
from tests.planning.test_planning_golden import resolved
from workers.policies.budget import Schedule


def spec_of(**keys) -> SweepSpec:
    basis = {"name": "x", "models": ["a"], "datasets": ["d"], "keep_ratios": [0.9, 0.5], "prune_after": [8]}
    return SweepSpec.model_validate_json(
        json.dumps({**basis, "perplexity": {"window": 64, "windows": 3}, **keys})
    )


@pytest.fixture
def plan_of(monkeypatch):
    """keys of a sweep -> its plan, over facts that cost nothing to find."""
    monkeypatch.setattr(plans, "resolve", lambda spec, *_: resolved(spec))
    return lambda **keys: plans.make_plan(spec_of(**keys), "cpu")


def counted(monkeypatch, owner, name: str) -> list:
    """Grows by one at each call of ``owner.name``."""
    calls: list = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: calls.append(given) or real(*given, **named))
    return calls


def test_no_plan_walks_through_the_prunes_of_a_cell(plan_of, monkeypatch, capsys):
    """They are as many as tokens, times cells; figures follow from three numbers."""
    monkeypatch.setattr(Schedule, "events", property(lambda _: pytest.fail("the prunes were listed")))
    made = plan_of(keep_ratios=[0.95, 0.9], prune_after=[8, 16], schedules=["every_step", "constant"])
    plan_table.print_plan(made, WallClock(1.0, 1, ()), every=True)
    assert len(made.grid.cells) == 9 and made.never_prune == []
    assert [planned_budget(cell) is not None for cell in made.grid.cells] == [True] * 9


def test_the_passes_of_cells_are_estimated_once_and_not_for_each_stretch_of_windows(plan_of, monkeypatch):
    calls = counted(monkeypatch, Passes, "of")
    made = plan_of(perplexity={"window": 8, "windows": 100})
    assert (len(made.units), len(calls)) == (7, 1)


def test_a_filter_leaves_out_values_and_does_not_sift_the_whole_product(plan_of, monkeypatch):
    calls = counted(monkeypatch, grid, "_reason_to_drop")
    many = [n / 1000 for n in range(1, 1000)]
    made = plan_of(
        keep_ratios=many, perplexity={"window": 64, "keep_ratios": [0.25, 0.5], "policies": ["knorm"]}
    )
    assert len(made.grid.cells) == 3 and len(calls) == 2


VALUES = {
    "policies": ["knorm", "random"],
    "keep_ratios": [0.25, 0.5],
    "prune_after": [8, 16],
    "protect_sink": [0, 1],
}
BLOCKS = st.lists(
    st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 2), min_size=1).map(
        lambda named: {
            axis: VALUES[axis] if pick == 2 else [VALUES[axis][pick]] for axis, pick in named.items()
        }
    ),
    max_size=6,
)


@given(BLOCKS)
def test_what_blocks_exclude_is_what_any_of_them_matches_on_every_axis_that_it_names(blocks):
    cells = make_grid(spec_of(**VALUES), resolved(spec_of()).targets).cells
    excluded = Exclusions([Exclusion.model_validate(block) for block in blocks])
    for cell in cells:
        by_hand = any(
            all(getattr(cell, FIELDS[axis]) in values for axis, values in block.items()) for block in blocks
        )
        assert (cell in excluded) == by_hand


def test_a_cell_is_looked_at_once_for_each_axis_however_many_blocks_exclude():
    looked = []

    class Watched:
        def __getattr__(self, name):
            looked.append(name)
            return {"policy": "knorm", "keep_ratio": 0.7}.get(name)

    blocks = [Exclusion(policies=["knorm"], keep_ratios=[n / 1000]) for n in range(1, 500)]
    assert Watched() not in Exclusions(blocks)  # pyright: ignore[reportOperatorIssue]
    assert len(looked) <= len(FIELDS)
    assert replace(make_grid(spec_of(), resolved(spec_of()).targets).cells[1], keep_ratio=0.25) in Exclusions(
        blocks
    )


def test_values_listed_twice_are_found_without_comparing_each_with_each(monkeypatch):
    compared = []

    class Said(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    dumps = json.dumps
    monkeypatch.setattr(sweep_keys.json, "dumps", lambda value: Said(dumps(value)))
    assert len(spec_of(keep_ratios=[n / 1000 for n in range(1, 1001)]).keep_ratios) == 1000
    assert len(compared) < 5000
    with pytest.raises(ValueError, match=r"listed twice: 0\.5"):
        spec_of(keep_ratios=[0.5, 0.25, 0.5])


def test_models_of_one_tokenizer_share_the_tokens_of_a_text(
    sweep_file, tiny_model_dir, tmp_path, monkeypatch
):
    (tmp_path / "twin").symlink_to(tiny_model_dir)
    calls = counted(monkeypatch, resolve, "tokens_of")
    found = resolve.resolve(
        load_spec(str(sweep_file(models=f"[{tiny_model_dir}, {tmp_path / 'twin'}]"))), "cpu"
    )
    assert len(found.models) == 2 and len(found.tokens) == 2 and len(calls) == 1


def test_a_grid_that_nobody_can_run_is_refused_before_it_is_made(plan_of, monkeypatch):
    monkeypatch.setattr(grid, "MAX_COMBINATIONS", 100)
    made = counted(monkeypatch, grid, "_reason_to_drop")
    with pytest.raises(
        SweepError,
        match=r"more than 100 combinations \(120 in perplexity alone: 60 keep_ratios, 2 prune_after",
    ):
        plan_of(keep_ratios=[n / 100 for n in range(1, 61)], prune_after=[8, 16])
    assert made == []
    monkeypatch.setattr(unit_sizes, "MAX_UNITS", 3)
    with pytest.raises(
        SweepError, match=r"7 units of work \(100 windows of a text among them\), and 3 is the most"
    ):
        plan_of(perplexity={"window": 8, "windows": 100})


class Terminal(io.StringIO):
    """A stream that people look at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_plan_that_takes_long_says_what_it_is_at_and_a_quick_one_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", out := stream())
    with PlanningProgress(quiet=0.001, every=0.001) as said:
        said.now("cells", lambda: 12345)
        waited = 0
        while "cells: 12,345" not in out.getvalue() and waited < 5000:
            time.sleep(0.001)
            waited += 1
    assert "planning, 0 s: cells: 12,345" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K" if stream is Terminal else "cells: 12,345\n")
    assert out.getvalue().count("\n") == 0 or stream is not Terminal

    monkeypatch.setattr(sys, "stderr", out := stream())
    with PlanningProgress() as said:
        said.now("cells")
    assert out.getvalue() == ""


class Looks:
    """How often the progress looked, each of which it writes."""

    def __init__(self) -> None:
        self._count = 0
        self.third = threading.Event()

    def __call__(self) -> int:
        self._count += 1
        if self._count == 3:
            self.third.set()
        return self._count


def test_a_closed_stderr_ends_no_plan(monkeypatch):
    """A thread's exception is only a warning, so the thread itself is asked: it goes on looking."""
    closed = io.StringIO()
    monkeypatch.setattr(closed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", closed)
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    looks = Looks()
    with PlanningProgress(quiet=0.001, every=0.001) as said:
        closed.close()
        said.now("cells", looks)
        assert looks.third.wait(10), "it stopped where it could not write"
    assert not failed
