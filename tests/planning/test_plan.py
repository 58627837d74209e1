"""Cells -> work units: each row planned once, the same units every time, and what is done left out."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.commands.plan_table import print_plan
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.planning.wall_clock import WallClock
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.tasks import phases
from pipeline.tasks.perplexity import MOST_CELLS, MOST_WINDOWS, windows_of
from pipeline.tasks.retrieval import Documents, questions_expected, questions_of

CLOCK = WallClock(90.0, 2, ("tiny",))


@pytest.fixture
def plan_of(sweep_file):
    """``plan_of(key="YAML", ...)``: the plan of a small sweep with these keys."""
    return lambda **keys: make_plan(load_spec(str(sweep_file(**keys))))


MANY = {
    "keep_ratios": "[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]",
    "prune_after": "[8, 16, 24]",
    "skip_layers": "[[], [0]]",
    "policies": "[knorm, random]",
    "perplexity": "{window: 64, stride: 64, windows: 20}",
}


def test_units_cover_each_window_of_each_cell_exactly_once(plan_of):
    plan = plan_of(**MANY)
    covered = Counter(
        (cell.cell_id, w.index) for unit in plan.units for cell in unit.cells for w in unit.part.windows
    )
    assert len(plan.grid.cells) == 61
    numbers = [window.index for window in windows_of(plan.grid.cells[0], plan.resolved)]
    assert len(numbers) == 20 and numbers[0] > 0, "the text has more windows"
    assert covered == Counter((cell.cell_id, i) for cell in plan.grid.cells for i in numbers)
    assert max(len(unit.cells) for unit in plan.units) <= MOST_CELLS
    assert max(len(unit.part.windows) for unit in plan.units) <= MOST_WINDOWS


def test_units_and_their_ids_are_the_same_every_time(plan_of):
    first, second = plan_of(**MANY).units, plan_of(**MANY).units
    assert first == second
    ids = [unit.unit_id for unit in first]
    assert ids == [unit.unit_id for unit in second]
    assert len(set(ids)) == len(ids)


def test_a_units_id_follows_from_its_cells_and_windows(plan_of):
    unit = plan_of(**MANY).units[0]
    others = [
        replace(unit, cells=unit.cells[1:]),
        replace(unit, part=replace(unit.part, windows=unit.part.windows[1:])),
        replace(unit, cells=unit.cells[::-1]),
    ]
    assert len({each.unit_id for each in (unit, *others)}) == 4
    assert replace(unit, cost_seconds=0.0).unit_id == unit.unit_id


def test_timed_cells_of_a_comparison_are_one_unit(plan_of):
    plan = plan_of(perplexity=None, generation="{prompt_tokens: [32, 48], new_tokens: 8}")
    assert [len(unit.cells) for unit in plan.units] == [3, 3]
    assert all(unit.cells[0].policy == "dense" for unit in plan.units)


def test_timed_cells_of_each_protocol_are_a_unit_of_their_own(plan_of):
    plan = plan_of(
        perplexity=None,
        generation="{prompt_tokens: [32], new_tokens: 8, protocol: [interleaved, report_2025]}",
    )
    protocols = [{json.loads(cell.settings)["protocol"] for cell in unit.cells} for unit in plan.units]
    assert sorted(protocols, key=str) == [{"interleaved"}, {"report_2025"}]
    assert {work_unit(plan, unit).work.protocol for unit in plan.units} == {"interleaved", "report_2025"}
    assert sum("wrongly on purpose" in note for note in plan.notes) == 1


def test_the_printed_plan_counts_what_the_sweep_file_excludes(plan_of, capsys):
    print_plan(plan_of(prune_after="[16, 24]", exclude="[{prune_after: [24], keep_ratios: [0.5]}]"), CLOCK)
    printed = capsys.readouterr().out
    assert "4 cells in 1 units" in printed
    assert (
        "estimate: 0:01:30 with 2 workers on this machine; rough, as tiny was not measured on this machine"
        in printed
    )
    assert "1 combinations dropped: excluded by the sweep file" in printed


def test_names_are_printed_as_they_are(plan_of, tmp_path, text_file, capsys):
    """:notes: between colons is no picture of notes."""
    folder = tmp_path / ":notes:"
    folder.mkdir()
    shutil.copy(text_file, folder / "a.txt")
    print_plan(plan_of(datasets=f'["text:{folder}"]'), CLOCK)
    assert capsys.readouterr().out.count(":notes:: ") == 2


def test_rows_expected_are_those_of_each_task(plan_of):
    retrieval = "{kinds: [passkey, needle], context_tokens: [240], depths: [0.1, 0.5], questions: 3}"
    plan = plan_of(generation="{prompt_tokens: [32], new_tokens: 8, repeats: 5}", retrieval=retrieval)
    assert {cell.task: plan.rows_expected(cell) for cell in plan.grid.cells} == {
        "perplexity": 3,
        "generation": 5,
        "retrieval": 2 * 1 * 2 * 3,
    }


def test_questions_have_the_asked_length_and_are_the_same_for_every_cell(plan_of):
    block = (
        "{kinds: [passkey, needle], context_tokens: [236, 240], depths: [0, 1], questions: 2, digits: [3, 5]}"
    )
    plan = plan_of(perplexity=None, retrieval=block)
    cells = plan.grid.cells
    assert {unit.part for unit in plan.units} == {
        Documents(kind, n, 0, 4) for kind in ("passkey", "needle") for n in (236, 240)
    }
    assert all(unit.cells == tuple(cells) for unit in plan.units)
    for unit in plan.units:
        questions = questions_of(plan.resolved, unit)
        asked = {(question.kind, len(question.prompt_ids)) for question in questions}
        assert asked == {(unit.part.kind, unit.part.context_tokens)}
        assert len(questions) == questions_expected(cells[0]) == plan.rows_expected(cells[0]) / 4 == 8


def test_a_question_kept_out_of_pruning_makes_cells_of_its_own(plan_of):
    plan = plan_of(
        perplexity=None, retrieval="{context_tokens: [240], questions: 1, question_pruned: [true, false]}"
    )
    assert len(plan.grid.cells) == 2 * 3 and len({cell.dense.cell_id for cell in plan.grid.cells}) == 2


def test_lengths_that_cannot_hold_the_facts_are_refused_with_the_least_that_can(plan_of):
    with pytest.raises(
        SweepError, match=r"240 is too short for a passkey of 5 digits and 3 distractors .* at least \d+"
    ):
        plan_of(perplexity=None, retrieval="{context_tokens: [240], distractors: [0, 3]}")


def test_estimates_are_positive_and_the_longest_units_come_first_after_scouts(plan_of):
    plan = plan_of(
        **MANY, retrieval="{context_tokens: [240]}", generation="{prompt_tokens: [32], new_tokens: 8}"
    )
    assert all(unit.cost_seconds > 0 for unit in plan.units)
    scouts = [unit for unit in plan.units if unit.scout]
    later = [unit for unit in plan.units if not unit.scout]
    assert plan.units == scouts + later
    assert [unit.task for unit in later] == sorted((unit.task for unit in later), key=phases().index)
    for unit, after in pairwise(later):
        assert unit.task != after.task or unit.cost_seconds >= after.cost_seconds
    for scout in scouts:
        assert scout.cost_seconds <= min(unit.cost_seconds for unit in later if unit.task == scout.task)


def test_one_timed_unit_of_several_goes_ahead_of_all_and_a_lone_one_last(plan_of):
    plan = plan_of(**MANY, generation="{prompt_tokens: [32, 48], new_tokens: 8}")
    first, last = plan.units[0], plan.units[-1]
    assert (first.task, first.scout, last.task, last.scout) == ("generation", True, "generation", False)
    assert (
        first.cost_seconds <= last.cost_seconds and sum(unit.task == "generation" for unit in plan.units) == 2
    )
    alone = plan_of(perplexity=None, generation="{prompt_tokens: [32, 48], new_tokens: 8}")
    assert not any(unit.scout for unit in alone.units), "nothing waits for what it would tell"


def test_a_scout_goes_ahead_of_each_kind_that_has_many_units_and_never_of_a_lone_timed_one(plan_of):
    plan = plan_of(
        **MANY, retrieval="{context_tokens: [240]}", generation="{prompt_tokens: [32], new_tokens: 8}"
    )
    counts = Counter(unit.task for unit in plan.units)
    assert {unit.task for unit in plan.units if unit.scout} == {
        task for task in ("perplexity", "retrieval") if counts[task] >= 5
    }
    assert not any(unit.scout for unit in plan_of(**MANY).units), "one kind alone needs none"


def test_cells_that_never_prune_and_a_short_text_are_noted(plan_of):
    plan = plan_of(prune_after="[16, 63, 64]", perplexity="{window: 64, stride: 64, windows: 1000}")
    assert {(c.prune_after, c.keep_ratio) for c in plan.never_prune} == {
        (n, r) for n in (63, 64) for r in (0.9, 0.5)
    }
    assert any(note.startswith("4 cells can never prune") for note in plan.notes)
    assert any("1000 were asked for" in note for note in plan.notes)
    timed = plan_of(
        perplexity=None, prune_after="[40]", generation="{prompt_tokens: [40], new_tokens: 16, repeats: 5}"
    ).notes
    assert [note.split(":")[0] for note in timed] == ["1 generation cells never prune while decoding"]
    assert "keep_ratio 0.5, prune_after 40, prompt of 40, 16 new tokens" in timed[0]
    (note,) = plan_of(perplexity="{window: 64, stride: 64, windows: 1}").notes
    assert "no interval can be given from 1 window" in note


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"skip_layers": "[[0], [99]]"}, ["skip_layers: layer 99 does not exist", "layers 0..1"]),
        (
            {"perplexity": "{window: 257, stride: 64}"},
            ["perplexity.window: 257 is longer than the context", "256 tokens"],
        ),
        (
            {"perplexity": None, "generation": "{prompt_tokens: [250], new_tokens: 8}"},
            ["generation.prompt_tokens + new_tokens: 258 is longer than the context"],
        ),
        (
            {"perplexity": None, "retrieval": "{context_tokens: [256]}"},
            ["retrieval.context_tokens", "264 is longer"],
        ),
        ({"datasets": "[pydoc]"}, ["dataset 'pydoc' is unknown; allowed: pydocs, wikitext-2"]),
        ({"datasets": '["text:/no/such/file"]'}, ["there is no file /no/such/file"]),
        ({"models": "[/no/such/model]"}, ["model '/no/such/model': there is no such directory"]),
        (
            {"models": "[no-such/model]"},
            ["model 'no-such/model': not one of reference-neox, reference-llama, smollm2, not a local"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_at_planning(plan_of, keys, parts):
    with pytest.raises(SweepError) as caught:
        plan_of(**keys)
    (message,) = caught.value.faults
    for part in parts:
        assert part in message


def test_texts_beyond_the_context_run_when_asked_for_and_are_noted(plan_of, tiny_model_dir, tmp_path):
    longer = {"perplexity": "{window: 300, stride: 300, windows: 2}", "allow_beyond_context": "true"}
    plan = plan_of(**longer)
    assert f"{len(plan.grid.cells)} cells read more than the 256 tokens" in plan.notes[0]
    assert not any("read more" in note for note in plan_of().notes)
    folder = tmp_path / "learned"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    with pytest.raises(SweepError, match=r"300 is longer than .* it has no position embeddings beyond"):
        plan_of(models=f"[{folder}]", **longer)


def test_a_task_that_its_own_filter_leaves_without_a_pruned_cell_is_noted(plan_of):
    asked = "context_tokens: [240], depths: [0.5], questions: 2, schedules: [{}]"
    plan = plan_of(perplexity=None, retrieval=f"{{{asked.format('prefill_once')}}}")
    assert [cell.policy for cell in plan.grid.cells] == ["dense"]
    assert (
        "retrieval has dense cells alone: its schedules (prefill_once) restrict the sweep's (every_step), and"
        " none is in both; list it in both" in plan.notes
    )
    plan = plan_of(perplexity=None, retrieval=f"{{{asked.format('prefill_once, every_step')}}}")
    assert len(plan.grid.cells) > 1 and not any("dense cells alone" in note for note in plan.notes)
    assert (
        "retrieval.schedules names prefill_once, which the sweep's own schedules lack: no cell has them"
        in plan.notes
    )
    plan = plan_of(
        perplexity=None, retrieval="{context_tokens: [240], depths: [0.5], questions: 2, policies: [dense]}"
    )
    assert not any("policies" in note for note in plan.notes), "the dense cell alone is what was asked for"
    plan = plan_of(perplexity="{window: 128, stride: 128, windows: 2, keep_ratios: []}")
    assert [cell.policy for cell in plan.grid.cells] == ["dense"]
    assert any(
        "perplexity has dense cells alone: its keep_ratios are an empty list" in note for note in plan.notes
    )


def test_the_wrong_protocol_is_called_wrong_before_it_runs(plan_of):
    made = plan_of(generation="{prompt_tokens: [32], new_tokens: 8, protocol: report_2025}")
    assert any("wrongly on purpose" in note for note in made.notes)


def test_a_window_longer_than_a_sliding_attention_window_is_refused(plan_of, tiny_model_dir, tmp_path):
    folder = tmp_path / "sliding"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 48}))
    with pytest.raises(
        SweepError,
        match=(
            r"window: 64 is longer than the 48 tokens up to which .* can be measured: some of its layers"
            r" attend to the last 48"
        ),
    ):
        plan_of(models=f"[{folder}]")
    (folder / "config.json").write_text(
        json.dumps(config | {"sliding_window": 48, "use_sliding_window": False})
    )
    plan_of(models=f"[{folder}]")


def test_a_users_own_policy_is_named_with_the_hash_of_its_code(plan_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "def oldest(view):\n    return -view.positions.float()\n"
    Path("planned_policy.py").write_text(source)
    (name,) = {cell.policy for cell in plan_of(policies='["planned_policy:oldest"]').grid.cells} - {"dense"}
    assert name.startswith("planned_policy:oldest@")
    Path("planned_policy.py").write_text(source + "# edited\n")
    assert name not in {cell.policy for cell in plan_of(policies='["planned_policy:oldest"]').grid.cells}
    chosen = '{context_tokens: [240], policies: ["planned_policy:oldest"], keep_ratios: [0.9]}'
    blocks = '[{policies: ["planned_policy:oldest"], keep_ratios: [0.5]}]'
    made = plan_of(policies='[knorm, "planned_policy:oldest"]', retrieval=chosen, exclude=blocks)
    own = {(c.task, c.keep_ratio) for c in made.grid.cells if c.policy.startswith("planned_policy:oldest@")}
    assert own == {("perplexity", 0.9), ("retrieval", 0.9)}
    for missing, part in (
        ("planned_policy:newest", "defines no 'newest'"),
        ("no_such:f", "no module 'no_such'"),
    ):
        with pytest.raises(SweepError, match=part):
            plan_of(policies=f'["{missing}"]')


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "holds no text"),
        (b" \n\t\n", "holds no text"),
        (b"abc", "3 tokens"),
        (b"\xff", "not UTF-8 text (byte 0)"),
    ],
)
def test_a_text_without_enough_text_is_refused(plan_of, tmp_path, content, part):
    file = tmp_path / "short.txt"
    file.write_bytes(content)
    with pytest.raises(SweepError) as caught:
        plan_of(datasets=f'["text:{file}"]')
    (message,) = caught.value.faults
    assert part in message and str(file) in message


def test_faults_of_models_and_datasets_are_all_reported(plan_of):
    with pytest.raises(SweepError) as caught:
        plan_of(models="[/no/model, ./no]", datasets="[pydoc, text:no]", skip_layers="[[99]]")
    assert len(caught.value.faults) == 4


def test_one_model_in_two_revisions_is_refused_rather_than_merged(plan_of, tiny_model_dir):
    with pytest.raises(SweepError) as caught:
        plan_of(models=f"[{tiny_model_dir}, {{name: {tiny_model_dir}, revision: other}}]")
    several, local = caught.value.faults
    assert "several revisions" in several and str(tiny_model_dir) in several
    assert "models of a hub" in local and "other" in local


def test_auto_and_the_device_it_means_are_one_device(plan_of, monkeypatch):
    monkeypatch.setattr("pipeline.planning.resolve.find_device", lambda: "cpu")
    assert {cell.device for cell in plan_of(devices="[auto, cpu]").grid.cells} == {"cpu"}
    assert len(plan_of(devices="[auto, cpu]").grid.cells) == 3
