"""The loop over submit and wait with an executor that is told what to do: who is tried again, who is given
up."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.placement import Need
from pipeline.cluster.schedule import MAX_ATTEMPTS, MAX_STARTS, Fault, Outcome, Retry, run_units
from tests.support.ready import Ready, unwrap
from workers.messages.work import Failure, RetrievalWork, UnitCell, UnitResult, WorkUnit
from workers.models.model_files import ModelFacts
from workers.models.positions import Positions
from workers.policies.settings import PruneSettings

FACTS = ModelFacts(
    "m", "r", "m", None, "llama", 2, 256, Positions("rotary", 1.0), (), (), 2, 8, 1000, "tokenizer.json"
)
DIED = Fault("ActorDiedError", "killed by signal 9")
NODE_DIED = Fault("NodeDiedError", "its node has died", strike=False)
NO_PLACE = Fault("NoCapacity", "the node is busy", strike=False, started=False)


GPU = Need("cuda", False, 2**20, "m float32")


def unit(name: str, cells: int = 1) -> Ready:
    """A unit; names in capitals need a GPU."""
    own = tuple(UnitCell(f"{name}{i}", PruneSettings()) for i in range(cells))
    work = WorkUnit(name, "retrieval", FACTS, "cpu", "float32", own, RetrievalWork((), True))
    return Ready(work, GPU) if name.isupper() else Ready(work)


class FakeExecutor:
    """Ends units in order with the faults written for them, then with a result; ``rooms`` units of a need run
    at once."""

    def __init__(
        self, faults: dict[str, list[Fault]] | None = None, rooms: int = 2, never: Need | None = None
    ) -> None:
        self.faults = {name: deque(listed) for name, listed in (faults or {}).items()}
        self.rooms, self.never = rooms, never
        self.running: deque[tuple[WorkUnit, Need]] = deque()
        self.started: list[str] = []
        self.told: list[dict[Need, int]] = []
        self.most = 0

    def has_room(self, need: Need) -> bool:
        return need != self.never and sum(other == need for _, other in self.running) < self.rooms

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        assert self.has_room(need)
        self.running.append((unit, need))
        self.started.append(unit.unit_id)
        self.most = max(self.most, len(self.running))

    def wanted(self, queued: Mapping[Need, int]) -> dict[Need, str]:
        self.told.append(dict(queued))
        return {need: "no node has a GPU" for need in queued if need == self.never}

    def wait(self, timeout: float) -> list[Outcome]:
        if not self.running:
            raise AssertionError("waits for nothing")
        ended, _ = self.running.popleft()
        left = self.faults.get(ended.unit_id)
        return [Outcome(ended.unit_id, left.popleft() if left else UnitResult(node="fake"))]


class Reports:
    """What the caller of run_units is told."""

    def __init__(self) -> None:
        self.results: dict[str, tuple[UnitResult, int]] = {}
        self.order: list[str] = []

    def __call__(self, unit: Ready, result: UnitResult, attempts: int) -> None:
        self.order.append(unit.unit_id)
        self.results[unit.unit_id] = result, attempts

    def failures(self, name: str) -> list[Failure]:
        return self.results[name][0].failures

    def attempts(self, name: str) -> int:
        return self.results[name][1]


def run(
    names: str, faults: dict[str, list[Fault]] | None = None, rooms: int = 2
) -> tuple[FakeExecutor, Reports]:
    executor, reports = FakeExecutor(faults, rooms), Reports()
    run_units([unit(name) for name in names], executor, unwrap, reports)
    return executor, reports


def test_every_unit_is_started_and_reported_once_in_order():
    executor, reports = run("abcde")
    assert executor.started == reports.order == list("abcde")
    assert executor.most == 2
    assert {reports.attempts(name) for name in "abcde"} == {1}


def test_no_units_is_no_work():
    executor, reports = run("")
    assert executor.started == reports.order == []


def test_a_unit_whose_process_died_is_tried_again_before_those_that_wait():
    executor, reports = run("abc", {"a": [DIED]}, rooms=1)
    assert executor.started == ["a", "a", "b", "c"]
    assert reports.order == ["a", "b", "c"]
    assert reports.failures("a") == [] and reports.attempts("a") == 2


def test_a_unit_that_kills_every_process_is_given_up_and_the_rest_goes_on():
    executor, reports = run("abc", {"b": [DIED] * 10})
    assert Counter(executor.started) == {"a": 1, "b": MAX_ATTEMPTS, "c": 1}
    assert reports.failures("b") == [Failure("b0", "ActorDiedError", "killed by signal 9", "")]
    assert reports.attempts("b") == MAX_ATTEMPTS == 2
    assert reports.failures("a") == reports.failures("c") == []


def test_units_that_can_never_run_fail_with_the_reason_and_the_others_go_on():
    executor, reports = FakeExecutor(never=GPU), Reports()
    run_units([unit(name) for name in "aBcD"], executor, unwrap, reports)
    for name in "BD":
        assert reports.failures(name) == [Failure(f"{name}0", "NoCapacity", "no node has a GPU", "")]
        assert reports.attempts(name) == 0
    assert executor.started == ["a", "c"] and reports.failures("a") == reports.failures("c") == []


def test_a_unit_that_found_no_place_waits_again_however_often():
    executor, reports = run("ab", {"a": [NO_PLACE] * 20})
    assert executor.started.count("a") == 21
    assert reports.failures("a") == [] and reports.attempts("a") == 1


def test_a_full_need_holds_up_no_other():
    executor, reports = run("abcDE", rooms=1)
    assert executor.started[:2] == ["a", "D"] and sorted(reports.order) == sorted("abcDE")
    assert executor.most == 2


def test_the_executor_is_told_what_still_waits():
    executor, _ = run("abcD", rooms=1)
    assert executor.told[0] == {Ready(unit("a").unit).need: 2}
    assert executor.told[-1] == {}


def test_scouts_go_before_all_others_and_needs_keep_their_order():
    executor, reports = FakeExecutor(rooms=1), Reports()
    units = [replace(unit(name), scout=name in "cE") for name in "abcDE"]
    run_units(units, executor, unwrap, reports)
    assert executor.started == ["c", "E", "a", "D", "b"] and sorted(reports.order) == sorted("abcDE")


def test_units_are_made_whole_only_as_they_are_sent_out():
    made: list[str] = []
    executor = FakeExecutor(rooms=1)

    def prepare(ready: Ready) -> WorkUnit:
        made.append(ready.unit_id)
        assert len(made) == len(executor.started) + 1
        return ready.unit

    run_units([unit(name) for name in "abc"], executor, prepare, Reports())
    assert made == list("abc")


def test_what_is_tried_again_is_told():
    retries: list[Retry] = []
    run_units([unit("a")], FakeExecutor({"a": [DIED]}), unwrap, Reports(), on_retry=retries.append)
    assert retries == [Retry("a", DIED, 1)]


def test_the_death_of_nodes_does_not_count_against_a_unit():
    executor, reports = run("a", {"a": [NODE_DIED] * 4})
    assert len(executor.started) == 5
    assert reports.failures("a") == [] and reports.attempts("a") == 5


def test_a_unit_that_takes_its_node_down_every_time_ends():
    executor, reports = run("ab", {"a": [NODE_DIED] * 99})
    assert executor.started.count("a") == 5
    assert len(reports.failures("a")) == 1 and reports.failures("b") == []


def test_a_unit_given_up_is_a_failure_of_each_of_its_cells():
    executor, reports = FakeExecutor({"a": [DIED, DIED]}), Reports()
    run_units([unit("a", cells=3)], executor, unwrap, reports)
    assert [failure.cell_id for failure in reports.failures("a")] == ["a0", "a1", "a2"]


def test_failures_of_a_units_own_code_are_results_and_not_tried_again():
    class Failing(FakeExecutor):
        def wait(self, timeout: float) -> list[Outcome]:
            return [
                Outcome(o.unit_id, UnitResult(failures=[Failure("a0", "ValueError", "x", "")]))
                for o in super().wait(timeout)
            ]

    executor, reports = Failing(), Reports()
    run_units([unit("a"), unit("b")], executor, unwrap, reports)
    assert executor.started == ["a", "b"]
    assert reports.failures("a")[0].error_type == "ValueError"


def test_ticks_tell_what_waits_and_runs_and_end_at_nothing():
    ticks: list[tuple[int, int]] = []
    run_units(
        [unit(name) for name in "abc"],
        FakeExecutor(),
        unwrap,
        Reports(),
        lambda queued, running: ticks.append((queued, running)),
    )
    assert ticks == [(1, 2), (0, 2), (0, 1), (0, 0)]


def test_an_interrupt_leaves_the_loop_at_once():
    class Interrupted(FakeExecutor):
        def wait(self, timeout: float) -> list[Outcome]:
            raise KeyboardInterrupt

    reports = Reports()
    with pytest.raises(KeyboardInterrupt):
        run_units([unit("a")], Interrupted(), unwrap, reports)
    assert reports.order == []


FAULTS = st.lists(st.sampled_from([DIED, NODE_DIED, NO_PLACE]), max_size=5)


@given(st.lists(FAULTS, max_size=8), st.integers(1, 4))
def test_whatever_happens_each_unit_is_reported_once_and_fails_only_where_it_must(sequences, rooms):
    faults = {f"u{i}": listed for i, listed in enumerate(sequences)}
    executor, reports = FakeExecutor(faults, rooms), Reports()
    run_units([unit(name) for name in faults], executor, unwrap, reports)
    assert sorted(reports.order) == sorted(faults)
    assert executor.most <= rooms
    for name, listed in faults.items():
        strikes = list(accumulate(fault.strike for fault in listed))
        starts = list(accumulate(fault.started for fault in listed))
        last = next(
            (i for i in range(len(listed)) if strikes[i] == MAX_ATTEMPTS or starts[i] == MAX_STARTS), None
        )
        assert executor.started.count(name) == (len(listed) if last is None else last) + 1
        assert [f.error_type for f in reports.failures(name)] == (
            [] if last is None else [listed[last].error_type]
        )
