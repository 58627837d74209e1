"""The command line as a user meets it: exit status, messages, what is left on disk, resuming."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from pipeline.driving.run_sweep import DONE, INTERRUPTED, SOME_FAILED
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from pipeline.tasks.perplexity import windows_of
from tests.support.command import ROOT, kvsweep, run_inline


def contents(folder: Path) -> dict[str, bytes]:
    """All table parts and their bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("*/*.parquet")}


def rows(out: Path, task: str = "perplexity") -> pl.DataFrame:
    return RunStore(str(out)).scan(task).collect()


def keys(frame: pl.DataFrame) -> Counter:
    return Counter(frame.select("cell_id", "window_index").iter_rows())


def planned_keys(sweep: Path) -> Counter:
    plan = make_plan(load_spec(str(sweep)))
    return Counter(
        (c.cell_id, w.index)
        for c in plan.grid.cells
        if c.task == "perplexity"
        for w in windows_of(c, plan.resolved)
    )


def test_help_names_the_commands(tmp_path):
    done = kvsweep("--help", folder=tmp_path)
    assert done.returncode == 0
    for command in ("plan", "run", "status", "report"):
        assert re.search(rf"\b{command}\b", done.stdout)


def test_plan_shows_every_cell_what_was_dropped_and_what_never_prunes(sweep_file, tmp_path):
    sweep = sweep_file(keep_ratios="[1.0, 0.5]", prune_after="[16, 64]", skip_layers="[[], [0, 1]]")
    done = kvsweep("plan", sweep, folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "3 cells in 1 units" in done.stdout
    assert "4 combinations dropped: keep_ratio 1.0 or policy dense: is the dense cell" in done.stdout
    assert "2 combinations dropped: all layers skipped: is the dense cell" in done.stdout
    lines = [
        [field.strip() for field in line.split("│")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    assert [(line[0], line[1], line[2], line[-1]) for line in lines] == [
        ("dense", "1", "-", ""),
        ("knorm", "0.5", "16", ""),
        ("knorm", "0.5", "64", "never prunes"),
    ]
    assert [line[-2] for line in lines][::2] == ["1.000", "1.000"] and float(lines[1][-2]) < 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dir, text_file):
    """A finished run of all three tasks by the real command: the sweep, its folder, what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    sweep = folder / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodels: [{tiny_model_dir}]\ndatasets: ['text:{text_file}']\ndevices:"
        " [cpu]\nkeep_ratios: [0.9, 0.5]\nprune_after: [16]\nperplexity: {window: 64, stride: 64, windows:"
        " 3}\ngeneration: {prompt_tokens: [32], new_tokens: 6, repeats: 5, max_repeats: 5, warmup: 1,"
        " keep_ratios: [0.5]}\nretrieval: {kinds: [passkey, needle], context_tokens: [240], depths: [0.5],"
        " questions: 2}\n"
    )
    done = kvsweep("run", sweep.name, "--inline", "--out", "out", folder=folder)
    return sweep, folder / "out", done


def test_a_run_ends_with_0_and_the_path_of_its_report(finished):
    _, out, done = finished
    assert done.returncode == DONE, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.html").read_text().startswith("<!")
    assert "Traceback" not in done.stderr


def test_a_run_has_every_row_of_every_planned_cell_once(finished):
    sweep, out, _ = finished
    assert keys(rows(out)) == planned_keys(sweep)
    plan = make_plan(load_spec(str(sweep)))
    for task in ("generation", "retrieval"):
        expected = {cell.cell_id: plan.rows_expected(cell) for cell in plan.grid.cells if cell.task == task}
        mine = rows(out, task)
        own = mine.filter(~pl.col("control")) if task == "generation" else mine
        assert dict(Counter(own["cell_id"])) == expected
    assert mine["correct_text"].null_count() == 0 and (mine["correct_text"] | ~mine["correct"]).all()
    assert rows(out, "failures").is_empty()


def test_rows_name_their_run_and_their_dense_twin(finished):
    _, out, _ = finished
    run = json.loads((out / "run.json").read_text())
    for task in ("perplexity", "generation", "retrieval"):
        frame = rows(out, task)
        assert set(frame["run_id"]) == {run["run_id"]}
        dense = set(frame.filter(policy="dense")["cell_id"])
        assert set(frame["dense_cell_id"]) == dense and len(dense) == 1
    assert run["planned"] == {"perplexity": 3, "generation": 2, "retrieval": 3}
    assert [model["positions"] for model in run["models"]] == [{"kind": "rotary", "share": 1.0}]


def test_pruned_cells_were_pruned_and_differ_from_the_dense_one(finished):
    _, out, _ = finished
    by_ratio = {ratio: frame for (ratio,), frame in rows(out).group_by("keep_ratio")}
    assert set(by_ratio[1.0]["prune_events"]) == {0}
    sums = {ratio: frame["nll_sum"].sum() for ratio, frame in by_ratio.items()}
    assert len(set(sums.values())) == 3
    assert by_ratio[0.5]["cache_tokens_mean"].max() < by_ratio[0.9]["cache_tokens_mean"].min() < 32
    assert all(len(nll) == scored for nll, scored in rows(out).select("nll", "tokens_scored").iter_rows())


def test_a_second_run_does_nothing_again(finished, capsys):
    sweep, out, _ = finished
    before = contents(out)
    run = json.loads((out / "run.json").read_text())
    assert run_inline(sweep, out) == DONE
    assert "8 cells, 0 to do in 0 units" in capsys.readouterr().err
    assert contents(out) == before
    again = json.loads((out / "run.json").read_text())
    assert again["run_id"] == run["run_id"] and len(again["resumed_at"]) == len(run["resumed_at"]) + 1


def test_status_tells_what_is_planned_and_done(finished, tmp_path):
    _, out, _ = finished
    done = kvsweep("status", out, folder=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1] == "not running"
    assert "perplexity: 3 cells planned, 3 done, 0 failed, 0 missing" in lines and "  9 of 9 rows" in lines
    assert "generation: 2 cells planned, 2 done, 0 failed, 0 missing" in lines
    assert "retrieval: 3 cells planned, 3 done, 0 failed, 0 missing" in lines
    missing = kvsweep("status", tmp_path / "none", folder=tmp_path)
    assert (
        missing.returncode == 2
        and missing.stderr.startswith("error: ")
        and len(missing.stderr.splitlines()) == 1
    )
    assert kvsweep("status", tmp_path, folder=tmp_path).returncode == 2


def test_a_larger_sweep_into_the_same_folder_adds_only_what_is_new(sweep_file, out):
    assert run_inline(sweep_file(keep_ratios="[0.9]"), out) == DONE
    before = contents(out)
    larger = sweep_file(keep_ratios="[0.9, 0.5]", policies="[knorm, random]")
    assert run_inline(larger, out) == DONE
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert keys(rows(out)) == planned_keys(larger)


def test_a_damaged_part_is_set_aside_and_its_rows_computed_again(sweep_file, out, capsys):
    sweep = sweep_file()
    assert run_inline(sweep, out) == DONE
    good = rows(out).drop("seconds").sort("cell_id", "window_index")
    (name,) = contents(out)
    (out / name).write_bytes(b"")
    assert run_inline(sweep, out) == DONE
    assert f"warning: {name} is no Parquet file: it is cut off; set aside" in capsys.readouterr().err
    assert (out / f"{name}.unreadable").exists()
    assert rows(out).drop("seconds").sort("cell_id", "window_index").equals(good)


def test_a_failing_cell_gives_1_its_reason_and_the_other_cells_rows(sweep_file, out, monkeypatch, capsys):
    from workers.policies import eviction
    from workers.policies.policy import Policy

    def failing(view):
        raise RuntimeError("out of luck")

    sweep = sweep_file(policies="[knorm, random]")
    with monkeypatch.context() as patch:
        patch.setitem(eviction._OWN, "random", Policy(failing))
        assert run_inline(sweep, out) == SOME_FAILED
        captured = capsys.readouterr()
        assert "failed: 2 cells: RuntimeError: out of luck" in captured.err
        assert captured.out.splitlines()[-1] == str(out / "report.html")
        assert dict(Counter(rows(out)["policy"])) == {"dense": 3, "knorm": 6}
        failures = rows(out, "failures")
        assert failures["policy"].to_list() == ["random"] * 2
        assert set(failures["message"]) == {"out of luck"}
        assert all("in failing" in trace for trace in failures["traceback"])
        assert run_inline(sweep, out, retry_failed=True) == SOME_FAILED, "tried again"
        assert rows(out, "failures").height == 2, "the very same failure stands there once"
    capsys.readouterr()
    before = contents(out)
    assert run_inline(sweep, out) == SOME_FAILED, "what failed by itself is not tried again unasked"
    printed = capsys.readouterr().err
    assert "5 cells, 0 to do in 0 units, 2 failed before and are left" in printed
    assert "failed before: 2 cells: RuntimeError: out of luck; --retry-failed runs them again" in printed
    assert contents(out) == before
    assert run_inline(sweep, out, retry_failed=True) == DONE
    assert "5 cells, 2 to do in 1 units ->" in capsys.readouterr().err
    assert keys(rows(out)) == planned_keys(sweep)
    assert before.items() <= contents(out).items(), "what had worked was not done again"


def test_a_model_that_cannot_be_loaded_is_a_failure_of_its_cells(
    sweep_file, tiny_model_dir, tmp_path, out, capsys
):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))  # its files hold 64
    sweep = sweep_file(models=f"[{broken}, {tiny_model_dir}]")
    assert run_inline(sweep, out) == SOME_FAILED
    assert set(rows(out)["model"]) == {str(tiny_model_dir)} and rows(out).height == 9
    assert rows(out, "failures").height == 3
    assert "Traceback" not in capsys.readouterr().err


INTERRUPTIBLE = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it otherwise
from pipeline.driving.run_sweep import RunOptions, run_sweep
sys.exit(run_sweep(sys.argv[1], [], RunOptions(out=sys.argv[2], inline=True, threads=1)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_a_second_one_completes_it(signal_number, sweep_file, out):
    ratios = str([n / 100 for n in range(30, 80, 2)])
    sweep = sweep_file(
        keep_ratios=ratios, prune_after="[16, 24]", perplexity="{window: 128, stride: 88, windows: 32}"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTIBLE, str(sweep), str(out)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not list(out.glob("perplexity/*.parquet")):
            time.sleep(0.02)
        process.send_signal(signal_number)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, errors
    assert "interrupted; what is done is kept" in errors and "Traceback" not in errors
    assert printed == "" and not (out / "driver.json").exists()
    before = contents(out)
    done, planned = keys(rows(out)), planned_keys(sweep)
    assert done and done.keys() < planned.keys(), "some was done and some was not"
    assert run_inline(sweep, out) == DONE
    assert keys(rows(out)) == planned
    assert before.items() <= contents(out).items()


@pytest.mark.slow
def test_a_timing_that_the_memory_cannot_give_is_warned_of(sweep_file, out, capsys, monkeypatch):
    monkeypatch.setattr("workers.generation.rows.memory_bandwidth", lambda device, size: 1.0)
    task = "{prompt_tokens: [32], new_tokens: 4, repeats: 5, max_repeats: 5, warmup: 0, keep_ratios: [0.5]}"
    assert run_inline(sweep_file(perplexity=None, generation=task), out) == DONE
    printed = capsys.readouterr().err
    assert "warning: " in printed and "do not trust this timing" in printed


@pytest.mark.slow
def test_the_reports_protocol_gives_their_figure_and_is_called_wrong_wherever_it_is_shown(
    sweep_file, out, capsys
):
    """A tenth of the baseline's whole time against a measured first token: a gain or loss out of nothing."""
    task = (
        "{prompt_tokens: [32], new_tokens: 16, repeats: 6, warmup: 0, protocol: report_2025, keep_ratios:"
        " [0.5]}"
    )
    assert run_inline(sweep_file(perplexity=None, generation=task), out) == DONE
    timed = rows(out, "generation")
    dense = timed.filter(policy="dense")
    assert dense["ttft_seconds"].to_list() == pytest.approx((dense["total_seconds"] * 0.1).to_list())
    assert set(timed["timing_protocol"]) == {"report_2025"}
    page = (out / "report.html").read_text()
    for part in ("WRONG ON PURPOSE", "WRONG_ON_PURPOSE", "Timed by a wrong protocol on purpose"):
        assert part in page
    assert (
        "faster"
        not in page.partition('<section id="speed">')[2].partition("</section>")[0].partition("<table")[2]
    )
