"""A machine of its own on this one: own processes, network, home directory and /tmp/ray.

``ray stop`` and ``ray down`` end every Ray process that they see, and Ray's usual ports may be taken: inside
the namespaces they see and take only their own, so the commands that users are told can be tested as they
stand. Closing the machine ends all on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

BOOT = """\
set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs tmpfs {folder}/etc && mkdir {folder}/etc/own {folder}/etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir={folder}/etc/own,workdir={folder}/etc/work /etc
sed -i 's|^root:.*|root:x:0:0:root:{folder}/home:/bin/bash|' /etc/passwd
printf '%s\\n' '127.0.0.1 localhost' '10.77.0.1 head' '10.77.0.2 worker' > /etc/hosts
mkdir -p /tmp/ray && mount --bind {folder}/ray /tmp/ray
mount -t tmpfs tmpfs /run && mkdir /run/sshd
ip link add eth0 type veth peer name cable
ip address add {address}/24 dev eth0
for name in lo eth0 cable; do ip link set $name up; done
ip route add default via 10.77.0.254  # leads nowhere; Ray asks for it to learn the machine's address
echo up
read -r _ || true  # to the end of the test, however that ends; the kernel then ends what else runs here
"""
NAMESPACES = ("--mount", "--net", "--pid", "--uts")


def needs(*commands: str) -> None:
    """Skip where a private machine or one of ``commands`` cannot be had."""
    missing = [
        name for name in ("unshare", "nsenter", "ip", *commands) if shutil.which(name, path=_path()) is None
    ]
    if missing:
        pytest.skip(f"needs the commands {', '.join(missing)}")
    trial = [
        "unshare",
        *NAMESPACES,
        "--fork",
        "ip",
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        "cable",
    ]
    if os.geteuid() != 0 or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("needs root that may make namespaces")


class PrivateMachine:
    """``with PrivateMachine(folder) as machine``; ``address`` is its own in 10.77.0.0/24."""

    def __init__(self, folder: Path, name: str = "head", address: str = "10.77.0.1") -> None:
        self.name, self.address, self.home = name, address, folder / "home"
        for part in ("ray", "etc", "home"):
            (folder / part).mkdir(parents=True)
        (self.home / "venv").symlink_to(sys.prefix)
        boot = BOOT.format(folder=folder, name=name, address=address)
        command = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child", "bash", "-c", boot]
        self._boot = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._boot.stdout and self._boot.stdout.readline() == "up\n"
        (init,) = psutil.Process(self._boot.pid).children()
        self.init = init.pid

    def __enter__(self) -> PrivateMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self._boot.communicate(timeout=30)

    def plug_into(self, other: PrivateMachine) -> None:
        """Replace the loose end of the other machine's cable by this one."""
        script = f"""\
            set -e
            ip link delete eth0
            nsenter --target {other.init} --net ip link set cable netns {self.init}
            ip link set cable name eth0
            ip address add {self.address}/24 dev eth0
            ip link set eth0 up
            ip route add default via 10.77.0.254"""
        entered = ["nsenter", "--target", str(self.init), "--net", "bash", "-c", script]
        subprocess.run(entered, check=True, capture_output=True)

    def here(self, command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A shell command on the machine, in its home directory."""
        entered = [
            "nsenter",
            "--target",
            str(self.init),
            *NAMESPACES,
            f"--wd={self.home}",
            "bash",
            "-c",
            command,
        ]
        return subprocess.run(
            entered,
            cwd=self.home,
            env=environment(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def processes(self, words: str) -> list[str]:
        """Command lines on the machine that hold ``words``."""
        found = []
        for process in psutil.Process(self.init).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return [line for line in found if words in line]

    def client(
        self, *command: str | Path, home: Path, folder: Path, stdin: int = subprocess.DEVNULL, **more: str
    ) -> subprocess.Popen[str]:
        """A process of somebody else, with a home of their own, who reaches the machine and its loopback, as
        by a tunnel."""
        entered = [
            "nsenter",
            "--target",
            str(self.init),
            "--mount",
            "--net",
            f"--wd={folder}",
            *map(str, command),
        ]
        return subprocess.Popen(
            entered,
            cwd=folder,
            env=environment(home) | more,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[tuple[PrivateMachine, PrivateMachine]]:
    """A head and a worker with a cable between them; their folders are ``folder``'s ``head`` and
    ``worker``."""
    with (
        PrivateMachine(folder / "head") as head,
        PrivateMachine(folder / "worker", "worker", "10.77.0.2") as worker,
    ):
        worker.plug_into(head)
        yield head, worker


def environment(home: Path) -> dict[str, str]:
    """The tests' environment as somebody else has it: another home, this Python first, nothing of Ray's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {
        "HOME": str(home),
        "PATH": _path(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1,localhost,10.77.0.1",
    }
    return kept | own


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
