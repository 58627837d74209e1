"""The files of docs/cluster.md for Slurm and Kubernetes, as far as can be told without either; test_slurm.py
runs the first."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib

import pytest
from ruamel.yaml import YAML

from tests.support.command import ROOT

SLURM, KUBERAY = ROOT / "docs" / "slurm.sh", ROOT / "docs" / "kuberay.yaml"


@pytest.fixture
def job():
    return YAML(typ="safe").load(KUBERAY.read_text())


def containers(job) -> dict[str, dict]:
    """The one container of every group of pods."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }
    found = {}
    for name, group in groups.items():
        (found[name],) = group["template"]["spec"]["containers"]
    return found


def test_the_slurm_script_is_bash_and_has_a_token_on_every_start():
    subprocess.run(["bash", "-n", SLURM], check=True)
    lines = SLURM.read_text().splitlines()
    asked = [line for line in lines if line.startswith("#SBATCH ")]
    assert "#SBATCH --exclusive" in asked and any("--signal=B:TERM@" in line for line in asked)
    token = next(
        i for i, line in enumerate(lines) if line.startswith("export RAY_AUTH_TOKEN RAY_AUTH_MODE=token")
    )
    starts = [i for i, line in enumerate(lines) if "ray start" in line and not line.startswith("#")]
    assert len(starts) == 2 and min(starts) > token
    assert not re.search(r"--dashboard-host=(?!127\.0\.0\.1\b)", SLURM.read_text())


def test_the_manifest_is_a_job_with_a_token_that_runs_the_driver(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "pipeline.sweep"]
    assert words[words.index("--out") + 1].startswith("s3://"), "the pods' disks are thrown away"
    assert job["spec"]["shutdownAfterJobFinishes"] is True and job["spec"]["backoffLimit"] == 0
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (volume,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (mount,) = containers(job)["head"]["volumeMounts"]
    assert volume["name"] == mount["name"] and words[3].startswith(mount["mountPath"] + "/")


def test_the_manifest_has_our_ray_and_a_place_for_each_kind_of_unit(job):
    cluster = job["spec"]["rayClusterSpec"]
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert (
        f"ray=={cluster['rayVersion']}" in pins and cluster["rayVersion"] in containers(job)["head"]["image"]
    )
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert group["rayStartParams"]["resources"] == '"{\\"timing\\": 1}"', "KubeRay's way of quoting"
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0
    found = containers(job)
    assert sorted("nvidia.com/gpu" in found[name]["resources"]["limits"] for name in ("cpu", "gpu")) == [
        False,
        True,
    ]
    for container in found.values():
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]
        assert not [entry for entry in container["env"] if entry["name"].startswith("RAY_AUTH")], (
            "the operator's own"
        )


def test_the_page_names_the_files_and_they_are_there():
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in re.findall(r"\]\((?!#|http)([^)]+)\)", page):
        assert (ROOT / "docs" / name).exists(), name
    for heading in re.findall(r"\]\(#([^)]+)\)", page):
        assert re.search(rf"^#+ {heading.replace('-', ' ')}$", page, re.MULTILINE | re.IGNORECASE), heading
