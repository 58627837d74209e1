"""Models of a busy hub: a server of the hub's protocol on this machine gives the description, and then not
the weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.store.run_store import RunStore
from tests.support.command import kvsweep
from tests.support.hub_server import hub

pytestmark = pytest.mark.slow


def settings(url: str, folder: Path) -> dict[str, str]:
    """Somebody whose hub is there and whose cache is empty."""
    names = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    return (
        os.environ
        | names
        | {
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
    )


@pytest.fixture
def sweep(tmp_path, text_file) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"name: t\nmodels: [org/set]\ndatasets: ['text:{text_file}']\ndevices: [cpu]\nkeep_ratios:"
        " [0.5]\nprune_after: [16]\nperplexity: {window: 64, windows: 2}\n"
    )
    return file


def test_a_model_that_a_busy_hub_did_not_give_runs_by_the_same_command_later(sweep, tiny_model_dir, tmp_path):
    files = {file.name: file.read_bytes() for file in Path(tiny_model_dir).iterdir()}
    weights = {name: content for name, content in files.items() if name.endswith(".safetensors")}
    command = ["run", sweep, "--inline", "--threads", "1", "--out", tmp_path / "out"]

    with hub(files, kind="models") as server:
        server.refused = tuple(weights)
        done = kvsweep(*command, folder=tmp_path, environment=settings(server.url, tmp_path))
        assert done.returncode == 1, done.stderr
        assert "failed: 2 cells: HubError: model 'org/set' cannot be loaded" in done.stderr
        assert "(the model hub answered 429)" in done.stderr or "cannot be reached" in done.stderr, (
            done.stderr
        )
        failures = RunStore(str(tmp_path / "out")).scan("failures").collect()
        assert set(failures["traceback"]) == {""} and failures.height == 2

        server.refused = ()
        again = kvsweep(*command, folder=tmp_path, environment=settings(server.url, tmp_path))
        assert again.returncode == 0, again.stderr
    assert RunStore(str(tmp_path / "out")).scan("perplexity").collect().height == 4
    (model,) = json.loads((tmp_path / "out" / "run.json").read_text())["models"]
    assert model["name"] == "org/set"
