"""What is printed where there is no terminal: counts of cells, at most a line a second, the last state in any case."""

import pytest

from pipeline import progress
from pipeline.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def made(missing: list[list[str]]) -> Progress:
    return Progress(missing, lambda: 90.0)


def test_a_cell_is_done_after_its_last_unit_and_failed_where_any_failed(clock):
    state = made([["a", "b"], ["a"], ["c"]])
    state.finished("x", ["a", "b"], set())
    assert (state.done, state.failed, state.cells) == (1, 0, 3)
    state.finished("x", ["a"], {"a"})
    assert (state.done, state.failed) == (1, 1)
    state.finished("x", ["c"], set())
    assert (state.done, state.failed) == (2, 1)


def test_a_cell_that_was_done_with_one_unit_and_fails_in_a_later_report_is_failed(clock):
    state = made([["a"], ["b"]])
    state.finished("x", ["a"], set())
    state.finished("x", ["b"], {"a", "b"})
    assert (state.done, state.failed) == (0, 2)


def test_lines_come_once_a_second_and_the_last_state_is_always_said(clock, capsys):
    with made([[f"c{i}"] for i in range(50)]) as state:
        for i in range(50):
            clock.now += 0.1
            state.finished(f"unit {i}", [f"c{i}"], set())
    said = capsys.readouterr().err.splitlines()
    assert 4 <= len(said) <= 6
    assert "50/50 cells done, 0 failed" in said[-1] and "unit 49" in said[-1] and "about 0:01:30 left" in said[-1]


def test_what_waits_is_said_when_it_changes_and_silence_ends_after_half_a_minute(clock, capsys):
    state = made([["a"]])
    clock.now += 0.1
    state.tick(12, 0, ["12 units wait for a node with a GPU"])
    clock.now += 2
    state.tick(12, 0, ["12 units wait for a node with a GPU"])
    assert capsys.readouterr().err.count("12 units wait for a node with a GPU") == 1
    clock.now += 31
    state.tick(12, 0, ["12 units wait for a node with a GPU"])
    assert "working" in capsys.readouterr().err
