"""What is printed where there is no terminal: counts of cells, at most a line a second, the last state in any
case."""

import pytest

from pipeline.driving import progress
from pipeline.driving.progress import Progress
from pipeline.driving.time_left import TimeLeft


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


class Left(TimeLeft):
    """A minute and a half, always."""

    def __init__(self) -> None:
        super().__init__(lambda kind: 1)

    def seconds(self) -> float:
        return 90.0


def made(missing: list[list[str]]) -> Progress:
    return Progress(missing, Left())


def test_a_cell_is_done_after_its_last_unit_and_failed_where_any_failed(clock):
    state = made([["a", "b"], ["a"], ["c"]])
    state.finished("u", "x", ["a", "b"], set())
    assert (state.done, state.failed, state.cells) == (1, 0, 3)
    state.finished("u", "x", ["a"], {"a"})
    assert (state.done, state.failed) == (1, 1)
    state.finished("u", "x", ["c"], set())
    assert (state.done, state.failed) == (2, 1)


def test_a_cell_that_was_done_with_one_unit_and_fails_in_a_later_report_is_failed(clock):
    state = made([["a"], ["b"]])
    state.finished("u", "x", ["a"], set())
    state.finished("u", "x", ["b"], {"a", "b"})
    assert (state.done, state.failed) == (0, 2)


def test_lines_come_once_a_second_and_the_last_state_is_always_said(clock, capsys):
    with made([[f"c{i}"] for i in range(50)]) as state:
        for i in range(50):
            clock.now += 0.1
            state.finished("u", f"unit {i}", [f"c{i}"], set())
    said = capsys.readouterr().err.splitlines()
    assert 4 <= len(said) <= 6
    assert (
        "50/50 cells done, 0 failed" in said[-1]
        and "unit 49" in said[-1]
        and "about 0:01:30 left" in said[-1]
    )


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


def test_a_line_says_the_cell_at_hand_and_the_share_of_the_work_inside_units_that_go_on(clock, capsys):
    left = TimeLeft(lambda kind: 1)
    for name, cost in (("u", 30.0), ("v", 10.0)):
        left.planned(name, ("perplexity", "cpu"), cost)
    state = Progress([["a"], ["b"]], left)
    state.moved("u", "perplexity m t", "knorm 0.5")
    assert capsys.readouterr().err == "", "not before a while has passed"
    clock.now += 11
    left.moved("u", 0.5, 10.0)
    state.moved("u", "perplexity m t", "snapkv\x1b[2J 0.5")
    said = capsys.readouterr().err
    assert "perplexity m t: snapkv\N{REPLACEMENT CHARACTER}[2J 0.5 | 38% of the work, 0/2 cells done" in said
    assert "about 0:00:17 left" in said, "10 s for 15 of 40 estimated ones"
    clock.now += 11
    state.stopped("u")
    state.tick(1, 1)
    assert "snapkv" not in capsys.readouterr().err
