"""ray_cluster.yaml against Ray's own checks, and what must be in it so that nothing is exposed and nothing mistimed."""

from __future__ import annotations

import copy
import re

import pytest
from ruamel.yaml import YAML

from tests.command import ROOT

STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def cluster():
    return YAML(typ="safe").load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture
def ray_checks():
    """Ray's own preparation and validation, which ask no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    return lambda config: validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_file(cluster, ray_checks):
    ray_checks(cluster)


@pytest.mark.parametrize(
    "change",
    [
        {"head_node_type": "absent"},
        {"max_workers": "many"},
        {"x-own": 1},
        {"available_node_types": {"head": {"node_config": {}, "resources": {"timing": 0.5}}}},
    ],
)
def test_rays_checks_would_refuse_a_broken_file(cluster, ray_checks, change):
    with pytest.raises(Exception, match=r"."):
        ray_checks(cluster | change)


def test_every_list_that_ray_would_fill_with_its_own_is_written_out(cluster):
    assert {"setup_commands", "head_setup_commands", "worker_setup_commands", *STARTS} <= cluster.keys()
    for kind in cluster["available_node_types"].values():
        assert {"ImageId", "SecurityGroupIds", "IamInstanceProfile"} <= kind["node_config"].keys()


def test_ray_starts_with_a_token_at_full_priority_and_its_dashboard_on_loopback(cluster):
    for name in STARTS:
        start = cluster[name][-1]
        assert "RAY_AUTH_MODE=token" in start and "RAY_worker_niceness=0" in start and "unset OMP_NUM_THREADS" in start
        assert not re.search(r"--dashboard-host=(?!127\.0\.0\.1\b)", start)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])


def test_nodes_come_from_none_and_units_have_a_place_for_each_kind(cluster):
    kinds = cluster["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != cluster["head_node_type"]}
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert all(kind["resources"]["timing"] == 1 for kind in workers.values())
    assert sorted("GPU" in kind["resources"] for kind in workers.values()) == [False, True]
