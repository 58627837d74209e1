"""Which tokens are in a window and which of them are scored: off-by-one errors are found by eye here."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.texts.windows import plan_windows


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "limit", "expected"),
    [
        (10, 4, 4, None, [(0, 0, 1), (1, 4, 1)]),
        (10, 4, 2, None, [(0, 0, 1), (1, 2, 2), (2, 4, 2), (3, 6, 2)]),
        (10, 4, 3, 3, [(0, 0, 1), (1, 3, 1), (2, 6, 1)]),
        (10, 4, 3, 1, [(1, 3, 1)]),
        (40, 4, 4, 2, [(2, 8, 1), (7, 28, 1)]),  # ten windows, five in each half
        (40, 4, 2, 3, [(3, 6, 2), (9, 18, 2), (15, 30, 2)]),
        (3, 4, 4, None, []),
        (4, 4, 1, None, [(0, 0, 1)]),
    ],
)
def test_windows_literal(tokens, window, stride, limit, expected):
    assert [
        (w.index, w.start, w.first_scored) for w in plan_windows(tokens, window, stride, limit)
    ] == expected


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_overlapping_windows_score_each_token_once(tokens, window, data):
    stride = data.draw(st.integers(1, window))
    windows = plan_windows(tokens, window, stride)
    scored = [w.start + i for w in windows for i in range(w.first_scored, w.length)]
    assert len(scored) == len(set(scored)) == sum(w.tokens_scored for w in windows)
    if windows and stride < window:
        assert sorted(scored) == list(range(1, windows[-1].start + window))


@given(st.integers(1, 3000), st.integers(1, 60))
def test_windows_are_spread_over_the_text_and_keep_their_numbers(count, limit):
    every, some = plan_windows(4 * count, 4, 4), plan_windows(4 * count, 4, 4, limit)
    assert len(some) == min(count, limit)
    assert {window.index for window in some} <= {window.index for window in every}
    assert all(window == every[window.index] for window in some)
    gaps = [b.index - a.index for a, b in itertools.pairwise(some)]
    ends = some[0].index, count - 1 - some[-1].index
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(ends[0] - ends[1]) <= 1, "as much is left out before the first as behind the last"


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (4, 0), (4, 5)])
def test_impossible_windows_are_refused(window, stride):
    with pytest.raises(ValueError, match="window"):
        plan_windows(100, window, stride)


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "expected"),
    [
        (9, 4, 4, [(0, 0, 1), (1, 4, 1)]),  # BOS 0 1 2, BOS 4 5 6
        (7, 4, 4, [(0, 0, 1), (1, 4, 1)]),
        (6, 4, 4, [(0, 0, 1)]),
        (7, 4, 2, [(0, 0, 1), (1, 2, 2), (2, 4, 2)]),  # 0 1 2 are scored, then 3 4, then 5 6
        (2, 4, 4, []),
    ],
)
def test_windows_behind_bos_literal(tokens, window, stride, expected):
    assert [
        (w.index, w.start, w.first_scored) for w in plan_windows(tokens, window, stride, bos=True)
    ] == expected


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_overlapping_windows_behind_bos_score_each_token_once(tokens, window, data):
    stride = data.draw(st.integers(1, window - 1))
    windows = plan_windows(tokens, window, stride, bos=True)
    scored = [w.start + i - 1 for w in windows for i in range(w.first_scored, w.length)]
    assert sorted(scored) == list(range(windows[-1].start + window - 1 if windows else 0))
