"""From no worker nodes to as many as a sweep needs and back: Ray's own autoscaler on a private machine, its
nodes processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.cluster.node_types import BOOTSTRAP_FILE
from tests.support.command import ROOT
from tests.support.private_machine import PrivateMachine, needs

pytestmark = pytest.mark.slow

CLUSTER = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "auth": {},
    "docker": {},
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu_worker": {
            "resources": {"CPU": 1, "timing": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
"""As `ray up` leaves it on a head, with Ray's provider for tests in the place of a cloud."""
START = (
    "export RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_enable_autoscaler_v2=0 RAY_AUTH_MODE=token "
    "RAY_worker_niceness=0; ray start --head --port=6379 --num-cpus=0 --include-dashboard=false "
    "--object-store-memory=100000000 --autoscaling-config=ray_bootstrap_config.yaml"
)
NODES = """\
import ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
print("nodes", sum(node["Alive"] for node in ray.nodes()))
"""


@pytest.fixture
def machine(tmp_path_factory):
    """A head with no CPU of its own and an autoscaler."""
    needs("ray")
    folder = Path(tmp_path_factory.mktemp("m"))
    with PrivateMachine(folder) as machine:
        (machine.home / ".ray").mkdir()
        (machine.home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
        (machine.home / BOOTSTRAP_FILE.name).write_text(json.dumps(CLUSTER))
        started = machine.here(START)
        assert started.returncode == 0, started.stdout
        yield machine


def nodes(machine: PrivateMachine) -> int:
    asked = machine.here(f"RAY_AUTH_MODE=token python -c '{NODES}'")
    return int(asked.stdout.rpartition("nodes ")[2])


def test_a_sweep_waits_for_the_nodes_it_asks_for_runs_on_them_and_lets_them_go(machine, sweep_file, tmp_path):
    sweep = sweep_file(
        policies="[knorm, random, streaming, recent, knorm_high]",
        keep_ratios="[0.9, 0.8, 0.7, 0.6, 0.5]",
        prune_after="[8, 16]",
    )
    assert nodes(machine) == 1
    run = machine.here(f"PYTHONPATH={ROOT} kvsweep run {sweep} --address auto --out {tmp_path / 'out'}", 120)
    assert run.returncode == 0, run.stdout
    assert "units wait for a node with" in run.stdout, run.stdout
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    waited = next(i for i, line in enumerate(log) if line["event"] == "waiting")
    ran = [i for i, line in enumerate(log) if line["event"] == "unit"]
    assert ran and waited < ran[0]
    assert log[-1]["reason"] == "all units ended" and log[-1]["failed"] == 0
    deadline = time.monotonic() + 90
    while nodes(machine) > 1:
        assert time.monotonic() < deadline, "nodes are kept though nobody needs them"
        time.sleep(2)
