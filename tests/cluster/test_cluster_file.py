"""ray_cluster.yaml against Ray's own checks, and what must be in it so that nothing is exposed and nothing
mistimed."""

from __future__ import annotations

import copy
import re

import pytest
from jsonschema import ValidationError
from ruamel.yaml import YAML

from tests.support.command import ROOT

STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def cluster():
    return YAML(typ="safe").load((ROOT / "ray_cluster.yaml").read_text())


def prepared(config: dict) -> dict:
    """What `ray up` makes of a file before it asks a cloud: defaults filled in, everything checked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def test_ray_accepts_the_file_and_adds_nothing_that_matters(cluster):
    made = prepared(cluster)
    added = made.keys() - cluster.keys()
    assert {key: made[key] for key in added} == {
        "cluster_synced_files": [],
        "docker": {},
        "file_mounts_sync_continuously": False,
        "initialization_commands": [],
        "upscaling_speed": 1.0,
    }
    assert {name: kind["resources"] for name, kind in made["available_node_types"].items()} == {
        "head": {"CPU": 0},
        "cpu_worker": {"CPU": 8, "timing": 1},
        "gpu_worker": {"CPU": 4, "GPU": 1, "timing": 1},
    }
    most = {name: kind["max_workers"] for name, kind in made["available_node_types"].items()}
    assert most == {"head": 0, "cpu_worker": 4, "gpu_worker": 4} and made["max_workers"] == 8
    for name in STARTS:
        assert made[name] == cluster[name]
    for kind in ("head", "worker"):
        own = f"{kind}_setup_commands"
        assert made[own] == [*cluster["setup_commands"], *cluster[own]]


def test_without_our_lists_ray_would_install_another_ray_and_open_the_dashboard(cluster):
    """Why every list is written out: the test above sees Ray's defaults where they come in."""
    bare = {key: value for key, value in cluster.items() if not key.endswith("_commands")}
    made = prepared(bare)
    assert any("ray-wheels" in command for command in made["setup_commands"])
    assert "--dashboard-host=0.0.0.0" in made["head_start_ray_commands"][-1]


BROKEN = {
    "head of no type": ({"head_node_type": "absent"}, ValueError, "head_node_type` must be one of"),
    "text for a number": ({"max_workers": "many"}, ValidationError, "'many' is not of type 'integer'"),
    "unknown key": ({"x-own": 1}, ValidationError, "'x-own' was unexpected"),
    "half a slot": (
        {"available_node_types": {"head": {"node_config": {}, "resources": {"timing": 0.5}}}},
        ValidationError,
        "0.5 is not of type 'integer'",
    ),
    "unknown key below": (
        {"auth": {"ssh_user": "ubuntu", "ssh_port": 22}},
        ValidationError,
        "'ssh_port' was unexpected",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_rays_checks_would_refuse_a_broken_file(cluster, fault):
    change, kind, message = BROKEN[fault]
    with pytest.raises(kind, match=re.escape(message)):
        prepared(cluster | change)


def test_what_is_to_be_put_in_is_marked_and_nothing_else_is(cluster):
    marked = [
        value for value in leaves(cluster) if isinstance(value, str) and ("<" in value or value.endswith(">"))
    ]
    assert len(marked) == 9 and all(re.fullmatch(r"<[^<>]+>", value) for value in marked), marked


def leaves(value):
    if isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from leaves(below)
    else:
        yield value


def test_every_list_that_ray_would_fill_with_its_own_is_written_out(cluster):
    assert {"setup_commands", "head_setup_commands", "worker_setup_commands", *STARTS} <= cluster.keys()
    for kind in cluster["available_node_types"].values():
        assert {"ImageId", "SecurityGroupIds", "IamInstanceProfile"} <= kind["node_config"].keys()


def test_ray_starts_with_a_token_at_full_priority_and_its_dashboard_on_loopback(cluster):
    for name in STARTS:
        start = cluster[name][-1]
        assert (
            "RAY_AUTH_MODE=token" in start
            and "RAY_worker_niceness=0" in start
            and "unset OMP_NUM_THREADS" in start
        )
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
