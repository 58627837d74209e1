"""Score functions and selection: signs, ties, temporal order, independence of the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.eviction import POLICIES, CacheView, round_significant, select
from workers.settings import POLICY_NAMES


def view(keys=None, n=20, batch=2, heads=3, seen=None, rows=None, seed=0, layer=1):
    torch.manual_seed(0)
    keys = torch.randn(batch, heads, n, 8) if keys is None else keys
    positions = torch.arange(keys.shape[2], dtype=torch.int32).expand(*keys.shape[:2], -1)
    row_ids = torch.tensor(rows if rows is not None else list(range(keys.shape[0])))
    return CacheView(keys, positions, seen or keys.shape[2], layer, seed, row_ids)


def kept(policy, v, keep):
    return select(POLICIES[policy](v), keep)[0]


def test_every_named_policy_has_a_function():
    assert set(POLICY_NAMES) == {"dense", *POLICIES}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("knorm", [1, 2, 4]), ("knorm_high", [0, 3, 5]), ("recent", [3, 4, 5]), ("streaming", [0, 1, 2])],
)
def test_policy_keeps_literal_entries(policy, expected):
    keys = torch.tensor([5.0, 1.0, 2.0, 6.0, 3.0, 4.0]).view(1, 1, 6, 1)
    assert kept(policy, view(keys), 3).flatten().tolist() == expected


def test_streaming_keeps_four_sinks_and_the_newest():
    assert kept("streaming", view(n=20, batch=1, heads=1), 7).flatten().tolist() == [0, 1, 2, 3, 17, 18, 19]


def test_each_head_chooses_for_itself():
    keys = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]]).unsqueeze(-1)
    assert kept("knorm", view(keys), 1).tolist() == [[[0], [2]]]


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 7.0]), min_size=2, max_size=40), st.data())
def test_selection_is_a_stable_sort(scores, data):
    """Higher first, ties to the earlier position, result in temporal order."""
    keep = data.draw(st.integers(1, len(scores) - 1))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    index, tied = select(torch.tensor(scores).view(1, 1, -1), keep)
    assert index.flatten().tolist() == sorted(order[:keep])
    assert bool(tied) == (scores[order[keep - 1]] == scores[order[keep]])


def test_protected_entries_outlive_better_ones_within_the_budget():
    scores = torch.tensor([1.0, 9.0, 8.0, 7.0]).view(1, 1, 4)
    protected = torch.tensor([True, False, False, False]).view(1, 1, 4)
    assert select(scores, 2, protected)[0].flatten().tolist() == [0, 1]


def test_rounding_noise_does_not_choose_between_repetitions():
    """Two keys of mathematically equal norm differ in the last bits; with raw floats the later one could win."""
    norm = torch.tensor([3.3000004, 3.3, 3.2999997])
    assert len(set(norm.tolist())) == 3
    assert len(set(round_significant(norm).tolist())) == 1


def test_rounding_keeps_twelve_bits():
    exact = torch.tensor([1.0, 1.5, 1 + 2**-11, 2048.0, 4095.0])
    assert torch.equal(round_significant(exact), exact)
    assert float(round_significant(torch.tensor([1 + 2**-13]))) == 1.0


def test_scores_are_float32_whatever_the_cache():
    keys = torch.randn(1, 2, 10, 8, dtype=torch.bfloat16)
    for policy, score in POLICIES.items():
        assert score(view(keys)).dtype == torch.float32, policy


def test_random_does_not_depend_on_the_batch_around_a_text():
    together = kept("random", view(n=50, batch=3, rows=[0, 1024, 2048]), 20)
    alone = kept("random", view(n=50, batch=1, rows=[1024]), 20)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("change", [{"seed": 1}, {"layer": 2}, {"seen": 51}, {"rows": [7, 8]}])
def test_random_differs_by_seed_layer_event_and_text(change):
    assert not torch.equal(kept("random", view(n=50), 20), kept("random", view(n=50, **change), 20))


def test_random_is_uniform_over_positions():
    counts = torch.zeros(40)
    for seed in range(200):
        counts += torch.bincount(kept("random", view(n=40, seed=seed), 10).flatten(), minlength=40)
    expected = 200 * 6 * 10 / 40
    assert ((counts - expected) ** 2 / expected).sum() < 75  # chi-square, 39 degrees of freedom: p < 0.001 beyond
