"""Time left: within a factor of two after a tenth of a run whose kinds of unit take other times than was estimated."""

import heapq
import random

import pytest

from pipeline.time_left import TimeLeft

A = ("t", "a")


def simulate(units: list[tuple[tuple[str, str], float, float]], workers: int) -> tuple[list[tuple[float, float | None]], float]:
    """Units (kind, estimate, real seconds) on so many workers: (time, estimate of what is left) after each, and the end."""
    left = TimeLeft(lambda kind: workers)
    for kind, cost, _ in units:
        left.planned(kind, cost)
    last = {kind: i for i, (kind, _, _) in enumerate(units)}  # scouts, as the plan has them
    running: list[tuple[float, int]] = []
    queue, said, now = sorted(range(len(units)), key=lambda i: i not in last.values()), [], 0.0
    while queue or running:
        while queue and len(running) < workers:
            index = queue.pop(0)
            heapq.heappush(running, (now + units[index][2], index))
        now, index = heapq.heappop(running)
        left.ended(*units[index])
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


def test_nothing_is_said_before_anything_ended_and_units_that_never_ran_teach_nothing():
    left = TimeLeft(lambda kind: 1)
    for _ in range(3):
        left.planned(A, 10)
    assert left.seconds() is None
    left.ended(A, 10, 0.0)
    assert left.seconds() is None
    left.ended(A, 10, 5.0)
    assert left.seconds() == pytest.approx(5.0)
    left.ended(A, 10, 5.0)
    assert left.seconds() == 0


def test_kinds_that_have_not_run_yet_are_scaled_as_the_others_were():
    left = TimeLeft(lambda kind: 2)
    for kind in (A, ("u", "b")):
        for _ in range(10):
            left.planned(kind, 1)
    for _ in range(10):
        left.ended(A, 1, 3.0)
    assert left.seconds() == pytest.approx(10 * 3 / 2)


def test_a_kind_that_has_not_run_yet_goes_by_its_tasks_other_kinds_and_not_by_other_tasks():
    left = TimeLeft(lambda kind: 1)
    for kind in (A, ("u", "a"), ("u", "b")):
        left.planned(kind, 10)
    left.ended(A, 10, 10.0)
    assert left.seconds() == pytest.approx(20.0), "all that is known"
    left.ended(("u", "a"), 10, 70.0)
    assert left.seconds() == pytest.approx(70.0)


def test_a_last_round_that_leaves_workers_idle_takes_as_long_as_a_full_one():
    left = TimeLeft(lambda kind: 4)
    for _ in range(6):
        left.planned(A, 10)
    left.ended(A, 10, 10.0)
    assert left.seconds() == pytest.approx(20.0)
