"""ray_cluster.yaml brought up by ``ray up`` over ssh: its own commands, mounts and rsync rules on private
machines, no cloud."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.support.command import ROOT
from tests.support.private_machine import PrivateMachine

SSHD = """\
HostKey {key}
AuthorizedKeysFile {key}.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
"""
SMALL = "--object-store-memory=200000000"


def on_own_machines(shipped: dict[str, Any], head: str, workers: list[str], key: Path) -> dict[str, Any]:
    """The shipped file for machines that are there: other provider, no node types, nothing downloaded; all
    else as it stands.

    The head keeps the head type's resources, workers get the GPU type's, with no more cores than there are.
    """
    config = copy.deepcopy(shipped)
    types, head_type = config.pop("available_node_types"), config.pop("head_node_type")
    config["cluster_name"] = f"kvsweep-{secrets.token_hex(4)}"
    config["provider"] = {"type": "local", "head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    config["max_workers"] = len(workers)
    kept = [command for command in config["setup_commands"] if "pip install" not in command]
    config["setup_commands"] = [
        *kept,
        "echo 'export PYTHONPATH=$HOME/kvsweep' >> ~/.bashrc",
    ]  # as pip install -e would
    config["head_setup_commands"] = []
    worker_type = next(kind for kind in types.values() if "GPU" in kind["resources"])
    config["head_start_ray_commands"][-1] += _flags(types[head_type]["resources"])
    config["worker_start_ray_commands"][-1] += _flags(worker_type["resources"])
    # Ray's second autoscaler never starts a worker of this provider; the first looks every second here, for
    # quick tests
    autoscaler = "export RAY_enable_autoscaler_v2=0 AUTOSCALER_UPDATE_INTERVAL_S=1; "
    config["head_start_ray_commands"][-1] = autoscaler + config["head_start_ray_commands"][-1]
    return config


def _flags(resources: dict[str, float]) -> str:
    cores = min(resources["CPU"], os.cpu_count() or 1)
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return (
        f" --num-cpus={cores} --num-gpus={resources.get('GPU', 0)} --resources='{json.dumps(others)}' {SMALL}"
    )


def checkout(folder: Path) -> Path:
    """A copy of the project with what a checkout also holds and no node needs, marked by files
    ``left_out``."""
    copied, without = folder / "checkout", (".git", ".venv*", "results", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(*without))
    for name in (".git", ".venv", "results", "pipeline/__pycache__"):
        (copied / name).mkdir()
        (copied / name / "left_out").touch()
    return copied


class SshCluster:
    """Somebody with a checkout, a token and a key, and the machines that they reach by ssh."""

    def __init__(self, folder: Path, head: PrivateMachine, *workers: PrivateMachine) -> None:
        self.head, self.machines = head, (head, *workers)
        self.home, self.file = folder / "launcher", folder / "cluster.yaml"
        (self.home / ".ray").mkdir(parents=True)
        self.token = secrets.token_hex(32)
        (self.home / ".ray" / "auth_token").write_text(self.token)
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (folder / "sshd.conf").write_text(SSHD.format(key=key))
        for machine in self.machines:
            started = machine.here(f"/usr/sbin/sshd -f {folder / 'sshd.conf'}")
            assert started.returncode == 0, started.stdout
        self.checkout = checkout(folder)
        shipped = YAML(typ="safe").load((self.checkout / "ray_cluster.yaml").read_text())
        config = on_own_machines(shipped, head.address, [worker.address for worker in workers], key)
        with self.file.open("w") as file:
            YAML(typ="safe").dump(config, file)

    def start(
        self, command: str, *arguments: str | Path, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """``ray COMMAND cluster.yaml ARGUMENTS`` in the checkout."""
        short = {"RAY_TMPDIR": str(self.home), "TMPDIR": str(self.home)}  # where the launcher keeps its state
        command_line = ("ray", command, self.file, *arguments)
        return self.head.client(*command_line, home=self.home, folder=self.checkout, stdin=stdin, **short)

    def ray(self, command: str, *arguments: str | Path, seconds: float = 120) -> tuple[int, str]:
        """The same to its end: exit status and what it printed."""
        process = self.start(command, *arguments)
        printed, _ = process.communicate(timeout=seconds)
        return process.returncode, printed

    def up(self) -> None:
        """``ray up``, and until every worker has joined: the autoscaler on the head starts them."""
        status, printed = self.ray("up", "-y")
        assert status == 0, printed
        deadline = time.monotonic() + 90
        while '"GPU"' not in (nodes := self.nodes()):
            assert time.monotonic() < deadline, nodes
            time.sleep(1)

    def nodes(self) -> str:
        """Resources of the nodes, asked on the head with its token."""
        code = (
            f"import json, ray._raylet as r; g = r.GcsClient(address='{self.head.address}:6379');"
            " print(json.dumps(["
        )
        code += "dict(n.resources_total) for n in g.get_all_node_info().values()]))"
        return self.head.here(f"RAY_AUTH_MODE=token python -c {shlex.quote(code)}").stdout
