"""Time left: within a factor of two after a tenth of a run whose kinds of unit take other times than was
estimated."""

import heapq
import random

import pytest

from pipeline.driving.time_left import TimeLeft

A = ("t", "a")


def simulate(
    units: list[tuple[tuple[str, str], float, float]], workers: int
) -> tuple[list[tuple[float, float | None]], float]:
    """Units (kind, estimate, real seconds) on so many workers: (time, estimate of what is left) after each,
    and the end."""
    left = TimeLeft(lambda kind: workers)
    for index, (kind, cost, _) in enumerate(units):
        left.planned(str(index), kind, cost)
    last = {kind: i for i, (kind, _, _) in enumerate(units)}  # scouts, as the plan has them
    running: list[tuple[float, int]] = []
    queue, said, now = sorted(range(len(units)), key=lambda i: i not in last.values()), [], 0.0
    while queue or running:
        while queue and len(running) < workers:
            index = queue.pop(0)
            heapq.heappush(running, (now + units[index][2], index))
        now, index = heapq.heappop(running)
        left.ended(str(index), units[index][2])
        said.append((now, left.seconds()))
    return said, now


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("workers", [1, 8])
def test_right_within_a_factor_of_two_from_a_tenth_on(seed, workers):
    """A machine 10 times off the estimates, models another 2.5 times, units of a model a third."""
    rng = random.Random(seed)
    machine = 10 ** rng.uniform(-1, 1)
    units = []
    for model in "abc":
        off = rng.uniform(0.4, 2.5)
        costs = sorted((rng.uniform(1, 60) for _ in range(120)), reverse=True)
        units += [(("t", model), cost, cost * machine * off * rng.uniform(0.75, 1.33)) for cost in costs]
    said, end = simulate(units, workers)
    later = [(now, left) for now, left in said if 0.1 * end <= now <= 0.95 * end]
    assert len(later) > 100
    for now, left in later:
        assert left is not None
        assert 0.5 < left / (end - now) < 2, f"at {now / end:.0%}"


def made(workers: int, *kinds: tuple[tuple[str, str], int]) -> TimeLeft:
    """So many units of each kind, of 10 estimated seconds each, named by kind and number."""
    left = TimeLeft(lambda kind: workers)
    for kind, count in kinds:
        for i in range(count):
            left.planned(f"{'/'.join(kind)} {i}", kind, 10)
    return left


def test_nothing_is_said_before_anything_moved_and_units_that_never_ran_teach_nothing():
    left = made(1, (A, 3))
    assert left.seconds() is None
    left.ended("t/a 0", 0.0)
    assert left.seconds() is None
    left.ended("t/a 1", 5.0)
    assert left.seconds() == pytest.approx(5.0)
    left.ended("t/a 2", 5.0)
    assert left.seconds() == 0


def test_kinds_that_have_not_run_yet_are_scaled_as_the_others_were():
    left = made(2, (A, 10), (("u", "b"), 10))
    for i in range(10):
        left.ended(f"t/a {i}", 30.0)
    assert left.seconds() == pytest.approx(10 * 30 / 2)


def test_a_kind_that_has_not_run_yet_goes_by_its_tasks_other_kinds_and_not_by_other_tasks():
    left = made(1, (A, 1), (("u", "a"), 1), (("u", "b"), 1))
    left.ended("t/a 0", 10.0)
    assert left.seconds() == pytest.approx(20.0), "all that is known"
    left.ended("u/a 0", 70.0)
    assert left.seconds() == pytest.approx(70.0)


def test_a_last_round_that_leaves_workers_idle_takes_as_long_as_a_full_one():
    left = made(4, (A, 6))
    left.ended("t/a 0", 10.0)
    assert left.seconds() == pytest.approx(20.0)


def test_a_unit_that_goes_on_tells_how_long_it_and_its_kind_will_take():
    left = made(1, (A, 4))
    left.moved("t/a 0", 0.25, 1.0)
    assert left.seconds() is None, "a second says too little"
    left.moved("t/a 0", 0.25, 5.0)
    assert left.share() == pytest.approx(0.25 / 4)
    assert left.seconds() == pytest.approx(3.75 * 20)
    left.moved("t/a 0", 0.0, 0.0)
    assert left.share() == 0 and left.seconds() is None, "it begins again"
    left.ended("t/a 0", 20.0)
    assert left.share() == pytest.approx(0.25) and left.seconds() == pytest.approx(60.0)


def test_a_measured_pace_is_believed_until_a_unit_has_told_better():
    left = made(1, (A, 4), (("u", "b"), 2))
    left.hint(A, 3.0)
    assert left.seconds() == pytest.approx(6 * 30)
    left.ended("t/a 0", 10.0)
    assert left.seconds() == pytest.approx(5 * 10)


def test_a_machine_that_others_leave_halfway_is_believed_to_be_faster():
    left = made(1, (A, 60))
    for i in range(20):
        left.ended(f"t/a {i}", 100.0)
    for i in range(20, 40):
        left.ended(f"t/a {i}", 20.0)
    assert left.seconds() < 2 * 20 * 20
