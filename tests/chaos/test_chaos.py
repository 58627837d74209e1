"""Seeded kills against real runs; more of them: ``python -m tests.chaos.schedules``."""

import pytest

from tests.chaos.schedules import differences, run, schedule, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = (107,)
"""A worker, a part and the head in one."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory, ray_folder):
    """The sweep and a run of it that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_kills_every_row_is_there_once_with_the_bits_of_an_undisturbed_run(seed, calm, tmp_path):
    sweep, whole = calm
    outcome = run(seed, sweep, whole, tmp_path / "out")
    assert outcome.faults == []
    assert sum(outcome.landed.values()) > 0 and outcome.statuses[-1] == 0


def test_the_comparison_sees_a_row_too_few_too_many_and_a_bit_that_differs(calm, tmp_path):
    import shutil

    import polars as pl

    _, whole = calm
    changes = {
        "few": lambda frame: frame[1:],
        "many": lambda frame: pl.concat([frame, frame[:1]]),
        "bit": lambda frame: frame.with_columns(pl.col("nll_sum") * (1 + 1e-15)),
    }
    for name, change in changes.items():
        out = tmp_path / name
        shutil.copytree(whole, out)
        assert differences(whole, out) == []
        file = sorted((out / "perplexity").glob("*.parquet"))[0]
        change(pl.read_parquet(file)).write_parquet(file)
        assert differences(whole, out) != [], name


def test_schedules_follow_from_their_seed_alone_and_hit_everything():
    assert schedule(7) == schedule(7)
    kinds = {kill.what for seed in range(200) for turn in schedule(seed) for kill in turn}
    assert kinds == {
        "worker",
        "hung worker",
        "raylet",
        "hung raylet",
        "head",
        "driver",
        "interrupt",
        "terminate",
        "part",
    }
