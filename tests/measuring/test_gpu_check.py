"""``make gpu-check`` at small size on a CPU: every section is written, what fails or is left out is said."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import exactness
from benchmarks.gpu_check.journal import SECTIONS, Journal, summary
from benchmarks.gpu_check.memory import Taken, memory
from benchmarks.gpu_check.sizes import SMALL
from tests.support.command import ROOT

CPU = torch.device("cpu")


def journal(folder, seconds=600.0):
    return Journal(folder, time.monotonic() + seconds)


@pytest.mark.slow
def test_all_of_it_runs_small_on_a_cpu_and_every_section_is_in_the_folder(tmp_path):
    small = ["--small", "--device", "cpu", "--out", tmp_path / "gpu"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.stem: file.read_text() for file in (tmp_path / "gpu").iterdir()}
    assert set(files) == {*SECTIONS, "summary"}
    assert "0 left out" in files["summary"] and "nothing was measured" not in files["summary"]
    assert all(name in files["summary"] for name in SECTIONS) and "FAILED" not in done.stdout

    checked = re.findall(r"^(\S+) +(float32|bfloat16) ", files["self_checks"], re.MULTILINE)
    assert checked == [("reference-llama", "float32"), ("reference-llama", "bfloat16")]
    exact = r"^reference-llama +(?:bfloat16|float32) +(?:knorm|h2o) "
    assert len(re.findall(exact, files["exactness"], re.MULTILINE)) == 4
    contestants = ("kvsweep", "dense floor", "one token per pass")
    timed = rf"^ +(\d+) +2  ({'|'.join(contestants)}) "
    expected = [(length, what) for length in ("64", "256") for what in contestants]
    assert re.findall(timed, files["perplexity"], re.MULTILINE) == expected
    cells = [line.split() for line in files["generation"].splitlines()[2:]]
    assert [tuple(cell[:3]) for cell in cells] == [
        (prompt, batch, ratio) for batch in "12" for prompt in ("64", "128") for ratio in ("1", "0.5", "0.1")
    ]
    held = {cell[2]: float(cell[7]) for cell in cells if cell[0] == "128"}
    assert held["1"] == 1 and 0.5 < held["0.5"] < 0.52 and 0.1 < held["0.1"] < 0.13
    assert len(files["memory"].splitlines()) == 3 + 2 + len(cells)


def test_what_the_time_does_not_reach_is_left_out_and_said(tmp_path, capsys):
    late = journal(tmp_path, seconds=0.0)
    exactness.self_checks(late, SMALL, CPU)
    memory(late, CPU, command.large_sections(late, SMALL, CPU))
    assert summary(late, CPU, 1.0) == 0
    said = (tmp_path / "summary.txt").read_text()
    for what in (
        "self_checks: reference-llama float32",
        "self_checks: reference-llama bfloat16",
        "large_model: the model",
    ):
        assert f"left out: {what}: 0 s are left" in said
    assert "self_checks    0 lines: nothing was measured" in said and "3 left out" in capsys.readouterr().out


def test_an_item_that_will_not_fit_the_time_that_is_left_is_not_begun(tmp_path):
    done = []
    late = journal(tmp_path, seconds=5.0)
    late.begin("exactness", "")
    assert late.attempt("short", lambda: done.append("short"), 1.0) < 1.0
    assert late.attempt("long", lambda: done.append("long"), 60.0) == 60.0
    assert done == ["short"] and len(late.left_out) == 1 and "it may take 60" in late.left_out[0]


def test_a_distance_that_is_no_rounding_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exactness, "ALLOWED", {"float32": 0.0, "bfloat16": 0.25})
    own = journal(tmp_path)
    exactness.exactness(own, replace(SMALL, policies=("knorm",)), CPU)
    assert own.failed == ["exactness: reference-llama float32 knorm: more than 0 nats a token is no rounding"]
    assert summary(own, CPU, 1.0) == 1 and "1 failed" in capsys.readouterr().out
    assert "FAILED: reference-llama float32" in (tmp_path / "exactness.txt").read_text()


def test_what_an_item_raises_is_a_failure_of_it_and_the_next_has_its_turn(tmp_path):
    own, done = journal(tmp_path), []
    own.begin("generation", "")

    def broken():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    own.attempt("8 prompts", broken)
    own.attempt("1 prompt", lambda: done.append(1))
    said = "out of memory: CUDA out of memory. Tried to allocate 2 GiB"
    assert own.failed == [f"generation: 8 prompts: {said}"] and done == [1]


@pytest.mark.parametrize(("kind", "failures"), [("cuda", 1), ("cpu", 0)])
def test_memory_beyond_the_plan_fails_where_the_counter_counts_nothing_else(tmp_path, kind, failures):
    own = journal(tmp_path)
    lines = [
        Taken("within", 200, 150, "counter"),
        Taken("beyond", 200, 201, "counter"),
        Taken("unknown", 200, None, None),
    ]
    memory(own, torch.device(kind), lines)
    assert len(own.failed) == failures and all("beyond took 201 bytes" in line for line in own.failed)
    assert "unknown: no counter here" in (tmp_path / "memory.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_cuda_device_it_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path / "gpu")])
    assert command.main() == 2 and "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()
