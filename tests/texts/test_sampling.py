"""In which order things are taken: each once, evenly, and as many of each as can be."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.texts.sampling import even_shares, in_order, spread


@given(
    st.integers(0, 300), st.integers(1, 40), st.sampled_from(["spread", "first", "random"]), st.integers(0, 5)
)
def test_an_order_is_of_all_numbers_each_once(count, wanted, sample, seed):
    assert sorted(in_order(count, wanted, sample, seed)) == list(range(count))
    assert list(in_order(count, wanted, sample, seed)) == list(in_order(count, wanted, sample, seed))


def test_orders_literal():
    assert list(in_order(10, 3, "first", 0)) == list(range(10))
    assert list(in_order(10, 2, "spread", 0)) == [
        2,
        7,
        0,
        8,
        4,
        6,
        1,
        9,
        5,
        3,
    ]  # the middles of halves; then 0, 8, 4, ...
    assert list(in_order(10, 3, "random", 1)) != list(in_order(10, 3, "random", 2))


def test_chance_is_even():
    first = [next(in_order(5, 1, "random", seed)) for seed in range(2000)]
    assert all(330 < first.count(number) < 470 for number in range(5)), (
        "400 each, within 4 standard deviations"
    )


@given(st.integers(50, 5000), st.integers(1, 30), st.integers(0, 20))
def test_what_is_taken_beyond_the_spread_lies_about_evenly_too(count, wanted, more):
    some = sorted(islice(in_order(count, wanted, "spread", 0), wanted + more))
    assert some[0] <= count / wanted and len(some) == min(count, wanted + more)
    assert max(b - a for a, b in pairwise([-1, *some, count])) <= count / wanted + 1
    assert set(spread(count, wanted)) <= set(some)


def test_an_order_of_a_billion_is_made_only_as_far_as_it_is_needed():
    for sample in ("spread", "first", "random"):
        assert len(set(islice(in_order(10**9, 8, sample, 0), 100))) == 100


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 90))
def test_shares_are_those_of_dealing_one_at_a_time(room, count):
    dealt = [0] * len(room)
    left = min(count, sum(room))
    while left:
        for i in range(len(room)):
            if left and dealt[i] < room[i]:
                dealt[i] += 1
                left -= 1
    assert even_shares(room, count) == dealt


def test_shares_of_a_few_long_ones_among_many_are_no_walk_over_all_for_each_window():
    many = [10**12, *[1] * 1000]
    assert even_shares(many, 10**9) == [10**9 - 1000, *[1] * 1000]


@pytest.mark.parametrize(
    ("room", "count", "shares"),
    [
        ([5, 5, 5], 3, [1, 1, 1]),
        ([5, 1, 5], 8, [4, 1, 3]),
        ([2, 2], 9, [2, 2]),
        ([], 4, []),
        ([0, 3], 2, [0, 2]),
    ],
)
def test_shares_are_as_equal_as_can_be(room, count, shares):
    assert even_shares(room, count) == shares
