"""Score functions and selection: signs, ties, temporal order, independence of the batch."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.command import ROOT
from workers.cache.notes import Observed
from workers.policies.attention_weights import Scale
from workers.policies.cache_view import SIGNIFICANT_BITS, round_significant, view_of
from workers.policies.eviction import POLICIES
from workers.policies.observation import LastQueries, Mass
from workers.policies.own_policies import find_policy
from workers.policies.policy import Policy
from workers.policies.policy_files import PolicyError, resolved
from workers.policies.selection import select, select_ragged, take_entries


def view(keys=None, n=20, batch=2, heads=3, seen=None, rows=None, seed=0, layer=1, keep=3, mass=None):
    torch.manual_seed(0)
    keys = torch.randn(batch, heads, n, 8) if keys is None else keys
    positions = torch.arange(keys.shape[2], dtype=torch.int32).expand(*keys.shape[:2], -1)
    row_ids = torch.tensor(rows if rows is not None else list(range(keys.shape[0])))
    queries = torch.ones(
        keys.shape[0], 2 * keys.shape[1], min(32, keys.shape[2]), keys.shape[3], dtype=keys.dtype
    )
    mass = torch.rand(keys.shape[:3]) if mass is None else mass
    return view_of(
        keys=keys,
        values=lambda: keys,
        positions=positions,
        seen=seen or keys.shape[2],
        keep=keep,
        layer=layer,
        seed=seed,
        row_ids=row_ids,
        scale=Scale(1.0, None),
        observed=Observed(queries=queries, mass=mass),
    )


def kept(policy, v, keep):
    return select(POLICIES[policy].score(v), keep)[0]


LITERAL = {
    "knorm": [1, 2, 4],
    "knorm_high": [0, 3, 5],
    "knorm_sorted": [1, 2, 4],
    "recent": [3, 4, 5],
    "streaming": [0, 1, 2],
    "streaming_rolled": [0, 1, 2],
    "tova": [0, 3, 5],
}
"""What each policy keeps of six entries, in order."""
IN_TESTS_OF_THEIR_OWN = {"h2o", "random", "snapkv", "snapkv_max7"}
"""Those that look at more than six entries can show."""


def test_every_policy_has_a_literal_case():
    assert LITERAL.keys() | IN_TESTS_OF_THEIR_OWN == POLICIES.keys()
    assert not LITERAL.keys() & IN_TESTS_OF_THEIR_OWN


def test_documents_name_every_policy_and_no_other():
    """The table of docs/method.md, and the README's sweep file."""
    lines = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").splitlines()
    begin = lines.index("| policy | keeps | |") + 2
    table = itertools.takewhile(lambda line: line.startswith("| `"), lines[begin:])
    assert sorted(line.split("`")[1] for line in table) == sorted(POLICIES)

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = readme[readme.index("\npolicies: [") : readme.index("a dense twin is added")]
    assert set(re.findall(r"\b[a-z]\w*", named)) >= set(POLICIES)


@pytest.mark.parametrize(("policy", "expected"), LITERAL.items())
def test_policy_keeps_literal_entries(policy, expected):
    keys = torch.tensor([5.0, 1.0, 2.0, 6.0, 3.0, 4.0]).view(1, 1, 6, 1)
    assert kept(policy, view(keys), 3).flatten().tolist() == expected


def test_streaming_keeps_four_sinks_and_the_newest():
    assert kept("streaming", view(n=20, batch=1, heads=1), 7).flatten().tolist() == [0, 1, 2, 3, 17, 18, 19]


def test_h2o_gives_half_of_the_budget_to_the_newest_and_half_to_the_heaviest():
    mass = torch.tensor([5.0, 1.0, 2.0, 6.0, 3.0, 4.0]).view(1, 1, 6)
    v = view(torch.zeros(1, 1, 6, 1), keep=4, mass=mass)
    assert kept("h2o", v, 4).flatten().tolist() == [0, 3, 4, 5]


def test_snapkv_keeps_its_observation_window_and_what_pooled_attention_favours():
    """One strongly attended entry lifts its two neighbours on either side; ties go to the earliest."""
    keys = torch.zeros(1, 1, 45, 1)
    keys[0, 0, 6] = 5.0
    v = view(keys)
    assert kept("snapkv", v, 32).flatten().tolist() == list(range(13, 45))
    assert kept("snapkv", v, 35).flatten().tolist() == [4, 5, 6, *range(13, 45)]
    assert kept("snapkv", v, 10).flatten().tolist() == list(range(35, 45))


def test_snapkv_max7_lifts_three_neighbours_on_either_side_and_sees_the_prefix_alone():
    """What an entry of the window gets lifts nothing: the prefix ends before it. Ties go to the earliest."""
    keys = torch.zeros(1, 1, 45, 1)
    keys[0, 0, 6], keys[0, 0, 13] = 3.0, 9.0
    assert kept("snapkv_max7", view(keys), 32).flatten().tolist() == list(range(13, 45))
    assert kept("snapkv_max7", view(keys), 36).flatten().tolist() == [3, 4, 5, 6, *range(13, 45)]
    assert kept("snapkv_max7", view(keys), 39).flatten().tolist() == [*range(3, 10), *range(13, 45)]
    assert kept("snapkv_max7", view(keys), 10).flatten().tolist() == list(range(35, 45))


def test_a_policy_that_rolls_keeps_temporal_order():
    with pytest.raises(ValueError, match="must be temporal"):
        Policy(lambda view: view.positions.float(), rolls=True, temporal=False)


def test_an_observation_that_is_none_is_refused():
    for count in (0, 129):
        with pytest.raises(ValueError, match=rf"count must be 1 to 128 \(got {count}\)"):
            LastQueries(count)
    with pytest.raises(
        ValueError, match=r"must be Nothing\(\), LastQueries\(count\) or Mass\(\) \(got 'queries'\)"
    ):
        Policy(lambda view: view.positions.float(), observes="queries")
    with pytest.raises(ValueError, match="entrywise looks at each entry alone"):
        Policy(lambda view: view.positions.float(), observes=Mass(), entrywise=True)


def test_observed_queries_do_not_see_what_came_after_them():
    chance = view(n=40).attention(32)
    assert chance.shape == (2, 3, 2, 32, 40)
    assert torch.equal(chance > 0, torch.ones(32, 40, dtype=torch.bool).tril(8).expand_as(chance))
    assert torch.allclose(chance.sum(-1), torch.ones(2, 3, 2, 32))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_of_queries_is_that_of_each_query_head_by_itself(softcap):
    """Entry by entry in plain Python, the heads that share a KV head one after the other, also of entries in
    another order."""
    order = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(3)).argsort(-1)
    whole = view(n=40)
    queries = torch.randn(2, 6, 32, 8, generator=torch.Generator().manual_seed(4))
    mixed = replace(
        whole,
        keys=take_entries(whole.keys, order),
        positions=order.int(),
        queries=queries,
        scale=Scale(0.4, softcap),
    )
    chance = mixed.attention(4)
    for head, query, last in ((0, 0, 3), (1, 2, 0), (2, 5, 1)):
        logits = []
        for key, position in zip(mixed.keys[1, head], order[1, head].tolist(), strict=True):
            logit = 0.4 * float(queries[1, query, -4 + last] @ key)
            logit = logit if softcap is None else softcap * math.tanh(logit / softcap)
            logits.append(logit if position <= 36 + last else -math.inf)
        expected = torch.tensor(logits).softmax(-1)
        assert torch.allclose(chance[1, head, query % 2, last], expected, atol=1e-6)


def test_attention_that_the_pass_made_is_not_made_again_but_where_more_is_asked():
    whole = view(n=40)
    made = replace(whole, weights=torch.full((2, 3, 2, 3, 40), 0.5))
    assert torch.equal(made.attention(2), torch.full((2, 3, 2, 2, 40), 0.5))
    assert torch.equal(made.attention(4), whole.attention(4))


def test_tova_heads_of_a_layer_keep_the_same():
    index = kept("tova", view(n=30), 7)
    assert torch.equal(index, index[:, :1].expand_as(index))


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


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5]), min_size=2, max_size=40), st.data())
def test_selection_among_entries_in_any_order_keeps_the_same_and_lays_them_best_first(scores, data):
    """Ties go to the earlier position wherever it lies."""
    keep = data.draw(st.integers(1, len(scores) - 1))
    positions = data.draw(st.permutations(range(len(scores))))
    safe = data.draw(st.sets(st.sampled_from(range(len(scores))), max_size=keep))
    order = sorted(range(len(scores)), key=lambda i: (positions[i] not in safe, -scores[i], positions[i]))
    lying = torch.tensor(positions, dtype=torch.int32).view(1, 1, -1)
    protected = torch.tensor([p in safe for p in positions]).view(1, 1, -1)
    index, tied = select(torch.tensor(scores).view(1, 1, -1), keep, protected, lying)
    assert index.flatten().tolist() == order[:keep]
    straight = (
        torch.empty(len(scores)).scatter(0, lying.flatten().long(), torch.tensor(scores)).view(1, 1, -1)
    )
    shielded = torch.tensor([p in safe for p in range(len(scores))]).view(1, 1, -1)
    temporal, temporal_tied = select(straight, keep, shielded)
    assert sorted(positions[i] for i in index.flatten().tolist()) == temporal.flatten().tolist()
    assert bool(tied) == bool(temporal_tied)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(2, 24), st.integers(1, 24)), min_size=1, max_size=4),
    st.booleans(),
)
@example(5, [(24, 14), (20, 20), (22, 21), (15, 14)], True)
def test_ragged_selection_is_selection_row_by_row(seed, rows, temporal):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-4, 4, (len(rows), 2, max(n for n, _ in rows) + 1), generator=generator).float()
    protected = torch.rand(scores.shape, generator=generator) < 0.2
    lengths = torch.tensor([n for n, _ in rows])
    keep = torch.tensor([min(k, n) for n, k in rows])
    shuffled = torch.rand(scores.shape, generator=generator).argsort(-1).int()
    positions = None if temporal else shuffled
    index, tied = select_ragged(scores, keep, lengths, int(keep.max()), protected, positions)
    assert int(index.min()) >= 0 and int(index.max()) < scores.shape[-1]
    quick, quick_tied = select_ragged(
        scores, keep, lengths, int(keep.max()), protected, positions, int(keep.min())
    )
    assert int(quick.min()) >= 0 and int(quick.max()) < scores.shape[-1] and torch.equal(tied, quick_tied)
    for row, k in enumerate(keep.tolist()):
        assert torch.equal(index[row, :, :k], quick[row, :, :k])
    for i, (n, k) in enumerate(zip(lengths.tolist(), keep.tolist(), strict=True)):
        if k == n:
            assert index[i, :, :k].sort().values.tolist() == [list(range(n))] * 2
            assert not temporal or index[i, :, :k].tolist() == [list(range(n))] * 2
            assert not tied[i].any()
        else:
            mine = None if temporal else shuffled[i : i + 1, :, :n]
            alone, alone_tied = select(scores[i : i + 1, :, :n], k, protected[i : i + 1, :, :n], mine)
            assert torch.equal(index[i, :, :k], alone[0])
            assert torch.equal(tied[i], alone_tied[0])


def test_protected_entries_outlive_better_ones_within_the_budget():
    scores = torch.tensor([1.0, 9.0, 8.0, 7.0]).view(1, 1, 4)
    protected = torch.tensor([True, False, False, False]).view(1, 1, 4)
    assert select(scores, 2, protected)[0].flatten().tolist() == [0, 1]


def test_rounding_noise_does_not_choose_between_repetitions():
    """Two keys of mathematically equal norm differ in the last bits; with raw floats the later one could
    win."""
    norm = torch.tensor([3.3000004, 3.3, 3.2999997])
    assert len(set(norm.tolist())) == 3
    assert len(set(round_significant(norm).tolist())) == 1


def test_rounding_keeps_twelve_bits():
    exact = torch.tensor([1.0, 1.5, 1 + 2**-11, 2048.0, 4095.0])
    assert torch.equal(round_significant(exact), exact)
    assert float(round_significant(torch.tensor([1 + 2**-13]))) == 1.0


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 12), (torch.float16, 11), (torch.bfloat16, 10)])
@pytest.mark.parametrize("policy", ["knorm", "knorm_high", "knorm_sorted", "h2o", "snapkv", "tova"])
def test_scores_have_the_significant_bits_of_their_keys_dtype(policy, dtype, bits):
    """By arithmetic: a mantissa in [0.5, 1) times two to the power of the bits is whole, and with one bit
    less it is not."""
    keys = torch.randn(2, 3, 60, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    scores = POLICIES[policy].score(view(keys)).abs()
    mantissa = torch.frexp(scores[(scores < 2) | (policy.startswith("knorm"))].double()).mantissa
    whole = mantissa * 2**bits
    assert torch.equal(whole, whole.round()) and not torch.equal(whole / 2, (whole / 2).round())


def test_scores_are_float32_whatever_the_cache():
    keys = torch.randn(1, 2, 10, 8, dtype=torch.bfloat16)
    for policy in POLICIES:
        assert POLICIES[policy].score(view(keys)).dtype == torch.float32, policy


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entries_kept_in_16_bits_are_those_kept_of_the_same_keys_in_float32(policy, dtype, monkeypatch):
    """A 16-bit run differs from a float32 run by its keys and by how far scores are rounded, never by how
    they are computed."""
    monkeypatch.setitem(SIGNIFICANT_BITS, "float32", SIGNIFICANT_BITS[str(dtype).removeprefix("torch.")])
    narrow = torch.randn(2, 3, 50, 8, generator=torch.Generator().manual_seed(7)).to(dtype)
    queries = torch.randn(2, 6, 32, 8, generator=torch.Generator().manual_seed(8)).to(dtype)
    views = [replace(view(keys), queries=queries.to(keys.dtype)) for keys in (narrow, narrow.float())]
    assert torch.equal(*(kept(policy, v, 40) for v in views))


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
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 75  # chi-square, 39 degrees of freedom: p < 0.001 beyond


def test_a_users_own_policy_is_found_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_policies.py").write_text("def oldest(view):\n    return -view.positions.float()\n")
    monkeypatch.syspath_prepend(tmp_path)
    policy = find_policy("my_policies:oldest")
    assert isinstance(policy, Policy)
    assert select(policy.score(view(n=6)), 2)[0][0, 0].tolist() == [0, 1]


def test_other_code_under_the_same_name_is_refused(tmp_path, monkeypatch):
    """What a node with an older copy of the file must not do silently."""
    (tmp_path / "edited_policy.py").write_text("def oldest(view):\n    return -view.positions.float()\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = resolved("edited_policy:oldest")
    find_policy(name)
    (tmp_path / "edited_policy.py").write_text("def oldest(view):\n    return view.positions.float()\n")
    assert resolved("edited_policy:oldest") != name
    with pytest.raises(PolicyError, match="another version"):
        find_policy(name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no_such_module:f", "no module"),
        ("workers.policies.eviction:nothing", "nothing"),
        (":score", "knorm"),
        ("best", "knorm"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(name, word):
    with pytest.raises(ValueError, match=word):
        find_policy(resolved(name) if name != "workers.policies.eviction:nothing" else name)
    if name.startswith("workers"):
        with pytest.raises(PolicyError, match="defines no"):
            resolved(name)
