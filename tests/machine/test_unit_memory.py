"""A unit that takes more memory than its plan is said to, with the figures; one that does not is not."""

import json
from dataclasses import replace

import pytest
import torch

from pipeline.cluster.placement import Need
from pipeline.driving.unit_memory import GIB, beyond_plan
from tests.support.command import run_inline
from workers.footprint.worker import PROCESS_BYTES
from workers.machine.peak_memory import PeakMemory

NEED = Need("cpu", False, 4 * GIB, "m float32", GIB)
POLICY = (
    "import torch\n\n\ndef score(view):\n    waste = torch.ones({numbers})\n    return view.positions.float()"
    " + 0 * waste[0]\n"
)


@pytest.mark.parametrize(
    ("device", "peak", "said"),
    [
        ("cpu", 4 * GIB, None),
        ("cpu", 4 * GIB + 2**29, "retrieval of m took 4.5 GiB where 4 were planned"),
        ("cuda", 4 * GIB - PROCESS_BYTES, None),
        ("cuda", 4 * GIB, "retrieval of m took 4 GiB where 3.45 were planned"),
        ("mps", None, None),
    ],
)
def test_what_was_planned_is_held_against_what_was_taken(device, peak, said):
    warning = beyond_plan("retrieval", "m", replace(NEED, device=device), peak)
    assert (warning is None) == (said is None)
    assert said is None or (warning and warning.startswith(said))


@pytest.mark.parametrize("numbers", [1, pytest.param(2**28, marks=pytest.mark.slow)])
def test_a_run_warns_of_a_unit_that_takes_more_than_its_plan(
    numbers, sweep_file, out, tmp_path, monkeypatch, capsys
):
    """A policy of a user's own that takes a gibibyte, which no plan can know."""
    (tmp_path / f"wasteful{numbers}.py").write_text(POLICY.format(numbers=numbers))
    monkeypatch.syspath_prepend(str(tmp_path))
    sweep = sweep_file(
        policies=f"['wasteful{numbers}:score']", perplexity="{window: 32, stride: 32, windows: 2}"
    )
    assert run_inline(sweep, out) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "were planned" in line]
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (unit,) = (line for line in logged if line["event"] == "unit")
    assert (unit["peak_bytes"] > unit["planned_bytes"]) == (numbers > 1)
    assert len(said) == (numbers > 1) and all("perplexity" in line and "GiB" in line for line in said)


def test_a_run_that_is_measured_within_a_unit_hides_no_peak_from_it():
    """The counter is one: the inner start forgets what the outer one must still know."""
    outer, inner = PeakMemory(torch.device("cpu")), PeakMemory(torch.device("cpu"))
    outer.start()
    block = torch.ones(2**26)
    del block
    inner.start()
    inside, around = inner.result()[0], outer.result()[0]
    assert inside is not None and around is not None and around - inside > 2**27
