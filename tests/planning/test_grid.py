"""Sweep -> cells: ids, dense twins, what is dropped and why, what can never prune."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cells import cell as cells
from pipeline.cells.cell import CELL_FIELDS, Cell, settings_of
from pipeline.cells.resolved import Target
from pipeline.planning import grid
from pipeline.planning.cell_reach import never_prunes
from pipeline.planning.grid import make_grid
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_keys import FIELDS, SweepSpec
from pipeline.tasks.generation import prunes_while_decoding
from workers.policies.budget import event_schedule

TARGET = Target("m", "r", 3, "d", "f", "cpu", "float32")
CELL = Cell(
    "perplexity",
    "m",
    "r",
    "d",
    "f",
    "cpu",
    "float32",
    "knorm",
    0.9,
    32,
    (0,),
    0,
    0,
    "every_step",
    "absolute",
    0,
    None,
    "literal",
    json.dumps({"stride": 64, "window": 64, "windows": 3}),
)


def spec_of(**keys) -> SweepSpec:
    small = {"window": 64, "stride": 64, "windows": 3}
    basis = {
        "name": "x",
        "models": ["m"],
        "datasets": ["d"],
        "keep_ratios": [0.9, 0.5],
        "prune_after": [8],
        "perplexity": small,
    }
    return SweepSpec.model_validate_json(json.dumps({**basis, **keys}))


def grid_of(**keys) -> grid.Grid:
    return make_grid(spec_of(**keys), [TARGET])


def pruning(made: grid.Grid) -> list[Cell]:
    return [cell for cell in made.cells if cell.policy != "dense"]


def test_cell_ids_are_the_ones_of_stored_results():
    """A change here makes every stored result unknown: raise PROTOCOL_VERSION on purpose, never change these
    by accident."""
    assert CELL.cell_id == "ee6885ef03c46410"
    assert CELL.dense.cell_id == "98787108799e4eee"


def test_ids_of_each_task_are_the_ones_of_stored_results():
    """Whatever keys the tasks' blocks get: what was measured before they existed keeps its name.

    Retrieval's changed once, with schema 4: what it says of the answer's positions became another thing.
    All changed with schema 5, where how a text is read became part of a cell, and with protocols 2, 3 and 4.
    """
    keys = {
        "keep_ratios": [0.9],
        "generation": {"prompt_tokens": [32], "new_tokens": 8},
        "retrieval": {"context_tokens": [64]},
    }
    assert [cell.cell_id for cell in grid_of(**keys).cells] == [
        "98787108799e4eee",
        "b522d6ec7f4e0e86",
        "658ada2db1c09d4d",
        "81cc719a4d3c0196",
        "62b1cc149e12c621",
        "e551ebf38f425d45",
    ]
    keys["generation"]["protocol"] = "report_2025"
    timed = [cell.cell_id for cell in grid_of(**keys).cells if cell.task == "generation"]
    assert timed == ["2daf431bd82e9a52", "6b9dad07f8702d73"]


CHANGED = {
    "task": "retrieval",
    "model": "m2",
    "model_revision": "r2",
    "dataset": "d2",
    "dataset_fingerprint": "f2",
    "device": "cuda",
    "dtype": "bfloat16",
    "policy": "random",
    "keep_ratio": 0.8,
    "prune_after": 33,
    "skip_layers": (1,),
    "protect_sink": 1,
    "protect_recent": 1,
    "schedule": "prefill_once",
    "position_mode": "cache_length",
    "seed": 1,
    "settings": "{}",
    "bos": 1,
    "special_tokens_in_text": "parse",
}


@pytest.mark.parametrize("name", CELL_FIELDS)
def test_the_cell_id_changes_with_each_field(name):
    assert replace(CELL, **{name: CHANGED[name]}).cell_id != CELL.cell_id


def test_the_cell_id_changes_with_the_protocol(monkeypatch):
    before = CELL.cell_id
    monkeypatch.setattr(cells, "PROTOCOL_VERSION", cells.PROTOCOL_VERSION + 1)
    assert replace(CELL).cell_id != before


def test_cells_that_differ_in_pruning_only_share_their_dense_twin():
    for name in (
        "policy",
        "keep_ratio",
        "prune_after",
        "skip_layers",
        "protect_sink",
        "protect_recent",
        "schedule",
    ):
        assert replace(CELL, **{name: CHANGED[name]}).dense == CELL.dense
    for name in ("model", "dataset", "device", "dtype", "seed", "settings", "task"):
        assert replace(CELL, **{name: CHANGED[name]}).dense != CELL.dense


def test_the_dense_twin_is_added_once_to_each_group_before_its_cells():
    spec = spec_of(keep_ratios=[0.9], policies=["knorm", "random"], retrieval={"context_tokens": [64]})
    cells = make_grid(spec, [TARGET, replace(TARGET, dtype="bfloat16")]).cells
    assert [(c.dtype, c.task, c.policy) for c in cells] == [
        (dtype, task, policy)
        for dtype in ("float32", "bfloat16")
        for task in ("perplexity", "retrieval")
        for policy in ("dense", "knorm", "random")
    ]
    assert all(cell.dense in cells for cell in cells)
    assert len({cell.cell_id for cell in cells}) == len(cells)


def test_the_dense_cell_under_any_threshold_is_one_cell_and_the_rest_is_counted():
    made = grid_of(
        keep_ratios=[1.0, 0.5], prune_after=[8, 16, 32], skip_layers=[[], [0]], policies=["knorm", "dense"]
    )
    assert [(c.policy, c.keep_ratio) for c in made.cells].count(("dense", 1.0)) == 1
    assert {(c.policy, c.keep_ratio) for c in pruning(made)} == {("knorm", 0.5)} and len(pruning(made)) == 6
    assert made.dropped == {"keep_ratio 1.0 or policy dense: is the dense cell": 18}  # 24 combinations


def test_all_layers_skipped_is_the_dense_cell_and_counted():
    made = grid_of(skip_layers=[[0], [2, 1, 0]])
    assert {c.skip_layers for c in pruning(made)} == {(0,)}
    assert made.dropped == {"all layers skipped: is the dense cell": 2}


def test_the_same_layers_in_another_order_are_the_same_cell():
    made = grid_of(skip_layers=[[0, 1], [1, 0], [1, 0, 0]], keep_ratios=[0.5])
    assert [c.skip_layers for c in pruning(made)] == [(0, 1)]
    assert made.dropped == {"listed twice": 2}


def test_protection_above_the_budget_is_dropped_and_below_it_kept():
    # 8 entries at the first prune, of which ceil(0.5 * 8) = 4 stay
    made = grid_of(keep_ratios=[0.5], protect_sink=[0, 2], protect_recent=[2, 3])
    assert [(c.protect_sink, c.protect_recent) for c in pruning(made)] == [(0, 2), (0, 3), (2, 2)]
    assert made.dropped == {"protect_sink + protect_recent exceed the entries kept at the first prune": 1}


def test_prefill_once_is_dropped_for_perplexity_and_kept_for_generation():
    keys = {
        "schedules": ["prefill_once"],
        "keep_ratios": [0.5],
        "generation": {"prompt_tokens": [32], "new_tokens": 8},
    }
    made = grid_of(**keys)
    assert [c.task for c in pruning(made)] == ["generation"]
    assert made.dropped == {"prefill_once prunes after a prompt, and perplexity has none": 1}


def test_generation_filters_leave_cells_out_without_counting_them():
    task = {
        "prompt_tokens": [32, 48],
        "new_tokens": 8,
        "keep_ratios": [0.5],
        "policies": ["knorm"],
        "skip_layers": [[1, 0]],
    }
    made = grid_of(generation=task, policies=["knorm", "random"], skip_layers=[[], [0, 1]])
    timed = [c for c in made.cells if c.task == "generation"]
    prompts = [(json.loads(c.settings)["prompt_tokens"], c.policy, c.skip_layers) for c in timed]
    assert prompts == [
        (n, policy, skipped) for n in (32, 48) for policy, skipped in (("dense", ()), ("knorm", (0, 1)))
    ]
    assert not made.dropped


FILTERS = {
    "policies": ["knorm"],
    "keep_ratios": [0.5],
    "prune_after": [16],
    "skip_layers": [[1, 0]],
    "protect_recent": [2],
    "protect_sink": [1],
    "schedules": ["prefill_once"],
    "position_modes": ["cache_length"],
}
MANY = {
    "policies": ["knorm", "random"],
    "keep_ratios": [0.9, 0.5],
    "prune_after": [8, 16],
    "skip_layers": [[], [0, 1]],
    "protect_recent": [0, 2],
    "protect_sink": [0, 1],
    "position_modes": ["absolute", "cache_length"],
}
BROAD = MANY | {"schedules": ["every_step", "prefill_once"]}
TASKS = {
    "perplexity": {"window": 64, "stride": 64, "windows": 3},
    "generation": {"prompt_tokens": [32], "new_tokens": 8},
    "retrieval": {"context_tokens": [64]},
}


@pytest.mark.parametrize(
    ("task", "axis"),
    [pair for pair in itertools.product(TASKS, FILTERS) if pair != ("perplexity", "schedules")],
)
def test_a_filter_restricts_the_cells_of_its_task_alone_and_enters_no_id(task, axis):
    many = BROAD if axis == "schedules" else MANY
    whole, some = (
        grid_of(**many, **TASKS),
        grid_of(**many, **TASKS | {task: TASKS[task] | {axis: FILTERS[axis]}}),
    )
    assert some.dropped == whole.dropped

    def of(made: grid.Grid, mine: bool) -> list[Cell]:
        return [cell for cell in made.cells if (cell.task == task) == mine]

    assert of(some, False) == of(whole, False)
    value = (0, 1) if axis == "skip_layers" else FILTERS[axis][0]
    wanted = [
        cell for cell in of(whole, True) if cell.policy == "dense" or getattr(cell, FIELDS[axis]) == value
    ]
    assert 1 < len(of(some, True)) == len(wanted) < len(of(whole, True))
    if task != "generation":  # the id of a timed cell has its partners in it
        assert of(some, True) == wanted


def test_filters_of_several_axes_leave_only_cells_that_match_all():
    made = grid_of(**BROAD, retrieval={"context_tokens": [64], **FILTERS})
    asked = [cell for cell in pruning(made) if cell.task == "retrieval"]
    assert {
        (c.policy, c.keep_ratio, c.prune_after, c.skip_layers, c.protect_recent, c.position_mode)
        for c in asked
    } == {("knorm", 0.5, 16, (0, 1), 2, "cache_length")}
    assert [(c.protect_sink, c.schedule) for c in asked] == [(1, "prefill_once")]


EXCLUDED = "excluded by the sweep file"


def test_combinations_that_match_every_axis_of_a_block_are_no_cells_and_are_counted():
    blocks = [
        {"policies": ["random"], "protect_recent": [2]},
        {"prune_after": [16], "skip_layers": [[1, 0, 0]]},
    ]
    whole, some = grid_of(**MANY), grid_of(**MANY, exclude=blocks)

    def matches(cell: Cell) -> bool:
        return (cell.policy == "random" and cell.protect_recent == 2) or (
            cell.prune_after == 16 and cell.skip_layers == (0, 1)
        )

    assert some.cells == [cell for cell in whole.cells if not matches(cell)]
    assert some.cells[0] == whole.cells[0].dense
    assert not whole.dropped and some.dropped == {EXCLUDED: len(whole.cells) - len(some.cells)} == {
        EXCLUDED: 32 + 32 - 8
    }


@pytest.mark.parametrize("axis", FIELDS)
def test_every_axis_can_be_excluded(axis):
    many = BROAD
    whole, some = (
        grid_of(**many, retrieval={"context_tokens": [64]}, exclude=blocks)
        for blocks in ([], [{axis: many[axis][1:]}])
    )
    gone = {getattr(cell, FIELDS[axis]) for cell in pruning(whole)} - {
        getattr(cell, FIELDS[axis]) for cell in pruning(some)
    }
    assert gone == {(0, 1) if axis == "skip_layers" else many[axis][1]}
    assert some.dropped[EXCLUDED] == 2 * 2**8 // 2  # half of the combinations of two tasks


def test_dense_cells_stay_whatever_is_excluded_and_a_task_filter_is_not_counted():
    made = grid_of(
        policies=["knorm", "dense"], exclude=[{"policies": ["knorm", "dense"]}], keep_ratios=[1.0, 0.5]
    )
    assert made.cells == [made.cells[0].dense]
    assert made.dropped == {EXCLUDED: 4}
    made = grid_of(exclude=[{"keep_ratios": [0.9]}], retrieval={"context_tokens": [64], "keep_ratios": [0.5]})
    assert [(c.task, c.keep_ratio) for c in pruning(made)] == [("perplexity", 0.5), ("retrieval", 0.5)]
    assert made.dropped == {EXCLUDED: 1}


def test_each_protocol_has_cells_of_its_own_that_never_take_turns_with_anothers():
    def timed(protocol) -> list[Cell]:
        return [
            c
            for c in grid_of(generation=TASKS["generation"] | {"protocol": protocol}).cells
            if c.task == "generation"
        ]

    both = timed(["interleaved", "report_2025"])
    assert both == timed("interleaved") + timed("report_2025")
    assert [json.loads(cell.settings)["protocol"] for cell in both] == ["interleaved"] * 3 + [
        "report_2025"
    ] * 3
    assert [cell.policy for cell in both] == ["dense", "knorm", "knorm"] * 2


def test_a_timed_cell_is_another_one_beside_other_partners_and_an_untimed_is_not():
    task = {"prompt_tokens": [32], "new_tokens": 8}
    few, more = grid_of(generation=task, keep_ratios=[0.5]), grid_of(generation=task, keep_ratios=[0.5, 0.3])

    def ids(made: grid.Grid, task: str) -> set[str]:
        return {c.cell_id for c in made.cells if c.task == task and c.keep_ratio in (0.5, 1.0)}

    assert ids(few, "perplexity") == ids(more, "perplexity")
    assert ids(few, "generation").isdisjoint(ids(more, "generation"))
    for made in (few, more):
        assert {c.dense.cell_id for c in made.cells} <= {c.cell_id for c in made.cells}


def test_a_changed_task_leaves_the_other_tasks_cells_alone():
    def ids(tokens: int) -> set[str]:
        made = grid_of(generation={"prompt_tokens": [32], "new_tokens": tokens})
        return {c.cell_id for c in made.cells if c.task == "perplexity"}

    assert ids(8) == ids(9)


RATIOS = st.integers(1, 100).map(lambda hundredths: hundredths / 100)


@given(RATIOS, st.integers(1, 80), st.integers(2, 80))
def test_a_perplexity_cell_never_prunes_exactly_where_no_token_is_scored_pruned(ratio, threshold, window):
    cell = replace(CELL, keep_ratio=ratio, prune_after=threshold)
    held, dropped_before, scored_pruned = 0, False, 0
    for _ in range(window - 1):  # each pass stores one token and scores the next
        held += 1
        scored_pruned += dropped_before
        kept = -(-round(ratio * 100) * held // 100)
        if held >= threshold and kept < held:
            held, dropped_before = kept, True
    assert never_prunes(cell, {"window": window}) == (scored_pruned == 0)
    assert event_schedule(ratio, threshold, window - 1).scored_pruned(1) == scored_pruned


@given(
    RATIOS,
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(2, 20),
    st.sampled_from(["every_step", "prefill_once"]),
)
def test_a_generation_cell_never_prunes_exactly_where_no_token_comes_from_a_pruned_cache(
    ratio, threshold, prompt, new, schedule
):
    cell = replace(CELL, task="generation", keep_ratio=ratio, prune_after=threshold, schedule=schedule)
    held, pruned, from_pruned = prompt, False, False
    for step in range(new):  # pass `step` gives new token `step`; the prompt's pass is the first
        held += step > 0
        from_pruned |= pruned
        kept = -(-round(ratio * 100) * held // 100)
        if held >= threshold and kept < held and (step == 0 or schedule == "every_step"):
            held, pruned = kept, True
    assert never_prunes(cell, {"prompt_tokens": prompt, "new_tokens": new}) == (not from_pruned)


@given(
    RATIOS,
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(["every_step", "prefill_once"]),
)
def test_a_timed_cell_is_silent_exactly_where_it_prunes_its_prompt_and_nothing_after_it(
    ratio, threshold, prompt, new, schedule
):
    """Cells that never prune, and those that are checked once, are spoken of elsewhere."""
    settings = {"prompt_tokens": prompt, "new_tokens": new}
    cell = replace(
        CELL,
        task="generation",
        keep_ratio=ratio,
        prune_after=threshold,
        schedule=schedule,
        settings=json.dumps(settings),
    )
    held, while_decoding = prompt, 0
    for step in range(new):
        held += step > 0
        kept = -(-round(ratio * 100) * held // 100)
        if held >= threshold and kept < held:
            held, while_decoding = kept, while_decoding + (step > 0)
    spoken_of = schedule == "prefill_once" or never_prunes(cell, settings)
    assert prunes_while_decoding(cell) == (while_decoding > 0 or spoken_of)
    assert prunes_while_decoding(cell.dense)


@pytest.mark.parametrize("sweep", ["default", "seed_reports", "seed_reports_short", "gpu", "pythia"])
def test_the_timed_cells_of_embedded_sweeps_prune_while_decoding(sweep):
    """At 0.9 a prompt of 512 keeps 461, and no 48 new tokens reach 512 again: such a time per token says
    nothing of pruning."""
    cells = [cell for cell in make_grid(load_spec(sweep), [TARGET]).cells if cell.task == "generation"]
    assert all(prunes_while_decoding(cell) for cell in cells)
    never = [settings_of(cell)["prompt_tokens"] for cell in cells if never_prunes(cell, settings_of(cell))]
    assert set(never) <= ({32} if sweep == "seed_reports" else set()), "as was reported"
    assert cells or sweep == "pythia"


def test_a_retrieval_cell_whose_prompt_reaches_the_threshold_is_not_flagged():
    cell = replace(CELL, task="retrieval", prune_after=64)
    assert not never_prunes(cell, {"context_tokens": [32, 64], "digits": [5]})
    assert not never_prunes(cell, {"context_tokens": [63], "digits": [5]}), (
        "it is reached while the answer is decoded"
    )
    assert never_prunes(replace(cell, schedule="prefill_once"), {"context_tokens": [63], "digits": [5]})
    assert never_prunes(cell, {"context_tokens": [32], "digits": [5]})


def test_the_dense_cell_is_not_flagged_as_one_that_never_prunes():
    assert not never_prunes(CELL.dense, {"window": 64})
