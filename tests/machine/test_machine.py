"""What this process may use of its machine: affinity, control groups, GPUs that torch can use, a folder for
Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from analysis.page.provenance import _hardware as printed_hardware
from pipeline.cluster import cluster_head
from pipeline.cluster import ray_folder as folders
from pipeline.cluster.inline import InlineExecutor
from pipeline.driving.provenance import _hardware
from pipeline.planning.plan import make_plan
from pipeline.planning.resolve import check_cuda_here, find_device
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import ROOT, kvsweep
from workers.machine import gpus
from workers.machine.host import this_machine

GIB = 2**30
V2 = "0::/jobs/mine\n"
V1 = "4:memory:/docker/abc\n3:cpuset:/\n2:cpu,cpuacct:/docker/abc/inner\n1:name=systemd:/x\n0::/\n"


@pytest.fixture
def proc(tmp_path):
    """(lines of cgroup, mounts: (root, kind, options), files by place) -> a folder like /proc with what it
    speaks of."""

    def made(groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]) -> Path:
        folder = tmp_path / "proc" / "self"
        folder.mkdir(parents=True)
        (folder / "cgroup").write_text(groups)
        lines = [
            f"3{n} 23 0:2{n} {root} {tmp_path}/{kind}{n} rw,relatime - {kind} {kind} rw,{options}\n"
            for n, (root, kind, options) in enumerate(mounts)
        ]
        (folder / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))
        for place, content in files.items():
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text(content)
        return tmp_path / "proc"

    return made


@pytest.fixture
def large(monkeypatch):
    """A machine of 64 CPUs and 512 GiB, all of them open to this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    memory = psutil.virtual_memory()._replace(total=512 * GIB, available=500 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize(
    ("files", "cpus", "usable", "free"),
    [
        ({"cgroup20/jobs/mine/cpu.max": "250000 100000\n"}, 2, 512, 500),
        ({"cgroup20/jobs/mine/cpu.max": "50000 100000\n"}, 1, 512, 500),
        (
            {"cgroup20/jobs/mine/cpu.max": "max 100000\n", "cgroup20/jobs/cpu.max": "800000 100000\n"},
            8,
            512,
            500,
        ),
        (
            {"cgroup20/jobs/mine/cpu.max": "1600000 100000\n", "cgroup20/jobs/cpu.max": "800000 100000\n"},
            8,
            512,
            500,
        ),
        ({"cgroup20/cpu.max": "400000 100000\n"}, 4, 512, 500),
        (
            {
                "cgroup20/jobs/mine/memory.max": f"{4 * GIB}\n",
                "cgroup20/jobs/mine/memory.current": f"{GIB}\n",
            },
            64,
            4,
            3,
        ),
        (
            {"cgroup20/jobs/memory.max": f"{8 * GIB}\n", "cgroup20/jobs/memory.current": f"{7 * GIB}\n"},
            64,
            8,
            1,
        ),
        ({"cgroup20/jobs/mine/memory.max": "max\n"}, 64, 512, 500),
        ({"cgroup20/jobs/mine/memory.max": "nonsense\n", "cgroup20/jobs/mine/cpu.max": "1\n"}, 64, 512, 500),
        ({}, 64, 512, 500),
    ],
)
def test_limits_of_version_2_hold_for_all_that_is_below(proc, large, files, cpus, usable, free):
    found = this_machine(proc(V2, [("/", "cgroup2", "nsdelegate")], files))
    assert (found.cpus, found.usable_cpus, found.memory_bytes) == (64, cpus, 512 * GIB)
    assert (found.usable_memory_bytes, found.free_memory_bytes) == (usable * GIB, free * GIB)
    assert found.is_limited_in_memory == (usable < 512)


def test_limits_of_version_1_and_a_mount_that_begins_at_the_own_group(proc, large):
    files = {
        "cgroup1/inner/cpu.cfs_quota_us": "-1\n",
        "cgroup1/inner/cpu.cfs_period_us": "100000\n",
        "cgroup1/cpu.cfs_quota_us": "300000\n",
        "cgroup1/cpu.cfs_period_us": "100000\n",
        "cgroup0/docker/abc/memory.limit_in_bytes": f"{6 * GIB}\n",
        "cgroup0/docker/abc/memory.usage_in_bytes": f"{2 * GIB}\n",
        "cgroup0/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = this_machine(
        proc(V1, [("/", "cgroup", "memory"), ("/docker/abc", "cgroup", "cpu,cpuacct")], files)
    )
    assert (found.usable_cpus, found.usable_memory_bytes, found.free_memory_bytes) == (3, 6 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (f"anon {GIB}\ninactive_file {6 * GIB}\nactive_file {GIB}\n", 7),
        (f"inactive_file {99 * GIB}\n", 8),
        (f"total_inactive_file {6 * GIB}\n", 1),
        ("inactive_file -1\n", 1),
        ("inactive_file", 1),
        ("", 1),
    ],
)
def test_files_that_are_only_cached_are_free_memory(proc, large, stat, free):
    group = "cgroup20/jobs/mine/memory"
    files = {f"{group}.max": f"{8 * GIB}\n", f"{group}.current": f"{7 * GIB}\n", f"{group}.stat": stat}
    assert this_machine(proc(V2, [("/", "cgroup2", "")], files)).free_memory_bytes == free * GIB


def test_files_that_are_only_cached_are_free_memory_in_version_1_of_the_group_and_those_below(proc, large):
    group = "cgroup0/docker/abc/memory"
    files = {
        f"{group}.limit_in_bytes": f"{8 * GIB}\n",
        f"{group}.usage_in_bytes": f"{7 * GIB}\n",
        f"{group}.stat": f"inactive_file {GIB}\ntotal_inactive_file {6 * GIB}\n",
    }
    assert this_machine(proc(V1, [("/", "cgroup", "memory")], files)).free_memory_bytes == 7 * GIB


def test_affinity_counts_and_a_system_without_groups_has_no_other_limit(monkeypatch, large, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert this_machine(tmp_path).usable_cpus == 2
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert this_machine(tmp_path).usable_cpus == 64


def test_what_may_be_used_is_counted_wherever_anything_is_counted(monkeypatch, large):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert InlineExecutor().threads == 2 and InlineExecutor(7).threads == 7
    assert cluster_head._of_this_machine()["num_cpus"] == 2
    found = _hardware()
    assert (found["cpu_count"], found["usable_cpus"]) == (64, 2)
    assert "2 of 64 cores" in printed_hardware(found)
    assert "2 cores, 8.0 GiB memory" in printed_hardware({"cpu_count": 2, "memory_bytes": 8 * GIB})
    limited = {"cpu_count": 2, "usable_cpus": 2, "memory_bytes": 8 * GIB, "usable_memory_bytes": 3 * GIB}
    assert "2 cores, 3.0 of 8.0 GiB memory" in printed_hardware(limited)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_the_affinity_of_a_process_is_what_it_was_started_with():
    one = min(os.sched_getaffinity(0))
    ask = (
        f"import os; os.sched_setaffinity(0, [{one}]); from workers.machine.host import usable_cpus;"
        " print(usable_cpus())"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        == "1\n"
    )


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """(what a file named nvidia-smi does) -> put first among the programs."""

    def made(script: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    gpus.torch_says.cache_clear()
    gpus.list_gpus.cache_clear()
    yield made
    gpus.torch_says.cache_clear()
    gpus.list_gpus.cache_clear()


LISTED = "echo 'GPU 0: NVIDIA X (UUID: GPU-1)'"


@pytest.mark.skipif(
    "torch.cuda" in sys.modules and sys.modules["torch"].cuda.is_available(),
    reason="torch can use a GPU here",
)
def test_a_gpu_that_torch_cannot_use_is_no_device_and_is_said(smi, sweep_file):
    smi(LISTED)
    assert find_device() == "cpu" and _hardware()["gpus"] == ["GPU 0: NVIDIA X"]
    plan = make_plan(load_spec(str(sweep_file(devices="[auto]"))))
    assert {cell.device for cell in plan.grid.cells} == {"cpu"}
    assert plan.notes[0].startswith("torch cannot use GPU 0: NVIDIA X (") and plan.notes[0].endswith(
        "): devices auto means cpu"
    )
    assert not any(
        "torch cannot" in note for note in make_plan(load_spec(str(sweep_file(devices="[cpu]")))).notes
    )
    spec = load_spec(str(sweep_file(devices="[cuda]")))
    assert make_plan(spec).notes[0].endswith("devices cuda needs another machine")
    with pytest.raises(SweepError, match=r"devices: cuda cannot be used on this machine \(.+\); take it out"):
        check_cuda_here(spec)


@pytest.mark.parametrize(
    "script", ["exec sleep 60", "exit 9", "echo nonsense", "kill -9 $$", "printf '\\377\\376'"]
)
def test_a_tool_that_hangs_or_fails_is_no_gpu(smi, monkeypatch, script):
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(gpus, "DEVICES", ())
    smi(script)
    assert find_device() == "cpu" and gpus.gpu_memory_bytes() is None and _hardware()["gpus"] == []
    assert gpus.cuda().why_not == ("nvidia-smi has not answered within 0.2 s" if "sleep" in script else "")


def test_torch_is_asked_once_and_only_where_something_speaks_for_a_gpu(smi, monkeypatch):
    asked = []
    monkeypatch.setattr(gpus, "DEVICES", ())
    monkeypatch.setattr(gpus, "_ask", lambda command, _: asked.append(command) or "")
    smi("exit 0")
    assert find_device() == find_device() == "cpu" and len(asked) == 1

    gpus.torch_says.cache_clear()
    gpus.list_gpus.cache_clear()
    monkeypatch.setattr(
        gpus, "_ask", lambda command, _: "GPU 0: X (UUID: 1)" if "-L" in command else "usable"
    )
    assert find_device() == "cuda" and gpus.cuda() == gpus.Cuda(True, ("GPU 0: X",), "")


def test_cuda_by_name_asks_torch_where_no_driver_is_known(smi, sweep_file, monkeypatch):
    """AMD's GPUs and NVIDIA's small boards have no nvidia-smi, and torch calls them cuda."""
    answer = "usable"
    monkeypatch.setattr(gpus, "DEVICES", ())
    monkeypatch.setattr(gpus, "_ask", lambda command, _: answer if gpus.ASK_TORCH in command else "")
    smi("exit 9")
    spec = load_spec(str(sweep_file(devices="[cuda]")))
    assert find_device() == "cpu"
    check_cuda_here(spec)

    gpus.torch_says.cache_clear()
    answer = "this torch 2 was built without CUDA"
    with pytest.raises(SweepError, match=r"on this machine \(this torch 2 was built without CUDA\)"):
        check_cuda_here(spec)


def test_signs_of_amd_and_of_small_boards_are_known():
    assert {"/dev/kfd", "/dev/nvhost-gpu"} <= set(gpus.DEVICES)


def test_a_run_with_cuda_where_there_is_none_is_refused_before_anything_is_written(
    sweep_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = kvsweep("run", sweep_file(devices="[cuda]"), "--inline", "--out", "out", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(
        "error: devices: cuda cannot be used on this machine"
    )
    assert not (tmp_path / "out").exists() and len(done.stderr.splitlines()) == 1


def test_a_folder_too_long_for_sockets_is_replaced_or_refused_before_anything_runs(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 60)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    if sys.platform.startswith("linux"):
        folder, note = folders.ray_folder()
        assert folder == "/tmp/ray" and note and f"TMPDIR has a path of {len(str(long))} bytes" in note
        assert cluster_head._of_this_machine()["_temp_dir"] == "/tmp/ray"
        monkeypatch.setattr(folders, "_is_writable", lambda folder: folder != "/tmp")
        with pytest.raises(SweepError, match="set RAY_TMPDIR to a short folder"):
            folders.ray_folder()
    monkeypatch.undo()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(
        SweepError, match=r"RAY_TMPDIR has a path of \d+ bytes, and Ray's sockets take 39 at most"
    ):
        folders.ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert folders.ray_folder() == (None, None)


def test_rays_session_fits_into_what_is_said_of_it():
    """The longest path below the folder, as Ray makes it."""
    from ray._private.utils import validate_socket_filepath

    session = "/ray/session_2026-11-27_21-03-11_123456_4194304/sockets/plasma_store"
    assert len(session) <= folders.SESSION_BYTES
    validate_socket_filepath("/" + "a" * (folders.MOST - 1) + session)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("/" + "a" * folders.MOST + session)


def test_hardware_is_json():
    assert json.loads(json.dumps(_hardware()))["usable_cpus"] >= 1
