"""The integers behind a prune: kept counts, next events, whole schedules; against a one-step simulation."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.policies.budget import Budget, event_schedule, is_due, kept_count, next_event

RATIOS = st.sampled_from([1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.1, 0.01])


@pytest.mark.parametrize(
    ("ratio", "entries", "kept"),
    [
        (0.9, 10, 9),
        (0.9, 11, 10),
        (0.5, 1, 1),
        (0.5, 2, 1),
        (0.3, 10, 3),
        (0.55, 100, 55),
        (0.07, 100, 7),
        (1.0, 7, 7),
        (0.01, 5, 1),
    ],
)
def test_kept_count_is_the_exact_ceiling(ratio, entries, kept):
    assert kept_count(ratio, entries) == kept


def test_floats_would_round_up_where_the_decimal_is_whole():
    assert math.ceil(0.55 * 100) == 56  # what a naive implementation keeps
    assert kept_count(0.55, 100) == 55


@pytest.mark.parametrize(
    ("ratio", "threshold", "held", "event"),
    [
        (0.9, 32, 0, 32),
        (0.9, 1, 0, 10),
        (0.9, 32, 29, 32),
        (0.95, 1, 19, 20),
        (0.5, 1, 1, 2),
        (1.0, 1, 0, None),
        (0.9, 512, 600, 601),
    ],
)
def test_next_event(ratio, threshold, held, event):
    assert next_event(ratio, threshold, held) == event


@given(RATIOS, st.integers(1, 80), st.integers(0, 200))
def test_next_event_is_the_first_length_at_which_a_prune_drops_something(ratio, threshold, held):
    found = next_event(ratio, threshold, held)
    due = [m for m in range(held + 1, held + 300) if is_due(ratio, threshold, m)]
    assert found == (due[0] if due else None)


@given(RATIOS, st.integers(1, 80), st.integers(1, 400), st.integers(1, 20))
def test_schedule_is_what_one_step_at_a_time_does(ratio, threshold, steps, first_scored):
    held, events, after, before, pruned_tokens = 0, [], [], [], []
    for step in range(steps):
        if step + 1 >= first_scored:
            pruned_tokens.append(bool(events))  # token step + 1 is predicted by the query of this step
        held += 1
        before.append(held)
        if held >= threshold and -(-(Fraction(repr(ratio)) * held) // 1) < held:
            kept = int(-(-(Fraction(repr(ratio)) * held) // 1))
            events.append((step + 1, held, kept))
            held = kept
        after.append(held)
    schedule = event_schedule(ratio, threshold, steps)
    assert schedule.events == tuple(events)
    assert schedule.count == len(events)
    assert schedule.final == held
    assert schedule.peak == max(before)
    predicting = after[first_scored - 1 :]
    assert schedule.mean(first_scored) == pytest.approx(
        sum(predicting) / len(predicting) if predicting else 0.0
    )
    assert schedule.scored_pruned(first_scored) == sum(pruned_tokens)


@given(RATIOS, st.integers(1, 80), st.integers(1, 200), st.integers(0, 120))
def test_a_constant_budget_is_kept_after_every_step(ratio, threshold, steps, prompt):
    """From the moment more is held than ceil(ratio * threshold), that is what every check leaves, of a prompt
    too."""
    most, budget = int(-(-(Fraction(repr(ratio)) * threshold) // 1)), Budget(ratio, threshold, "constant")
    events, held = [], 0
    for step in range(steps):
        held += 1
        assert budget.is_due(held) == (ratio < 1 and held > most)
        if ratio < 1 and held > most:
            events.append((step + 1, held, most))
            held = most
    schedule = budget.event_schedule(steps)
    assert schedule.events == tuple(events) and schedule.count == len(events)
    assert schedule.final == held
    assert schedule.mean() * steps == pytest.approx(
        sum(min(step, most if ratio < 1 else step) for step in range(1, steps + 1))
    )
    assert budget.kept(prompt) == (min(prompt, most) if ratio < 1 else prompt)
    assert budget.next_event(prompt) == (None if ratio == 1 else max(most, prompt) + 1)


def test_other_schedules_differ_in_what_is_checked_alone():
    every, once = Budget(0.5, 8), Budget(0.5, 8, "prefill_once")
    assert every.checks_steps and not once.checks_steps and Budget(0.5, 8, "constant").checks_steps
    assert [budget.kept(11) for budget in (every, once)] == [6, 6] and every.constant is None
    assert Budget(0.5, 8, "constant").kept(11) == 4


def test_a_high_ratio_with_a_late_threshold_holds_the_threshold_not_the_ratio():
    """keep_ratio 0.98 and prune_after 1000 on 2,000 tokens is really about 0.74 of the dense cache."""
    schedule = event_schedule(0.98, 1000, 2000)
    assert schedule.mean() / (2001 / 2) == pytest.approx(0.74, abs=0.01)
