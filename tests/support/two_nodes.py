"""Ray on two private machines, ``head`` and ``worker``, with one CPU each; the worker comes and goes as a
test wants."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.private_machine import NAMESPACES, PrivateMachine, environment

POLICIES = """\
import os, platform, time
from pathlib import Path

def waits(view):
    hold = Path({folder!r}) / f"hold-{{platform.node()}}"
    while hold.exists():
        (hold.parent / f"reached-{{platform.node()}}").write_text(str(os.getppid()))
        time.sleep(0.1)
    return -view.positions.float()
"""
"""A module of a user's own: units wait on a machine while it has a file of this name, and tell their raylet's
number."""
SETTINGS = (
    "export RAY_AUTH_MODE=token RAY_worker_niceness=0 RAY_health_check_period_ms=2000"
    " RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3; unset OMP_NUM_THREADS;"
)
"""As ray_cluster.yaml has them."""
NODE = "--num-cpus=1 --resources='{\"timing\": 1}' --object-store-memory=100000000"


class TwoNodes:
    """``folder``: where sweeps and runs lie, on both machines."""

    def __init__(self, folder: Path, head: PrivateMachine, worker: PrivateMachine) -> None:
        self.folder, self.head, self.worker = folder, head, worker
        worker.plug_into(head)
        token = head.home / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text("0123456789abcdef" * 4)
        shutil.copytree(token.parent, worker.home / ".ray")
        (folder / "node_policy.py").write_text(POLICIES.format(folder=str(folder)))
        self._do(head, f"ray start --head --port=6379 --include-dashboard=false {NODE}")

    def _do(self, machine: PrivateMachine, command: str) -> None:
        done = machine.here(f"{SETTINGS} {command}")
        assert done.returncode == 0, done.stdout

    def join(self, gpus: int = 0) -> None:
        """The worker's node joins, in place of an earlier one."""
        self._do(
            self.worker,
            f"ray stop --force; ray start --address={self.head.address}:6379 --num-gpus={gpus} {NODE}",
        )

    def leave(self) -> None:
        """The worker's node ends, also one that hangs."""
        self._do(self.worker, "ray stop --force")

    def hold(self, *machines: PrivateMachine) -> None:
        """Units with the policy ``node_policy:waits`` wait on these from now on."""
        for machine in machines:
            (self.folder / f"reached-{machine.name}").unlink(missing_ok=True)
            (self.folder / f"hold-{machine.name}").touch()

    def release(self) -> None:
        """None wait any more."""
        for file in self.folder.glob("hold-*"):
            file.unlink()

    def raylet_of_held(self, machine: PrivateMachine, run: Run) -> str:
        """Process id, as the machine counts, of the raylet whose worker waits there; once one does."""
        reached = self.folder / f"reached-{machine.name}"

        def tells_a_raylet() -> bool:
            """A worker that has just lost its raylet lives on for a moment and tells the number of who took
            it over."""
            number = reached.read_text() if reached.exists() else ""
            return number != "" and machine.here(f"cat /proc/{number}/comm").stdout.strip() == "raylet"

        run.until(tells_a_raylet, 60)
        return reached.read_text()

    def run(self, sweep: Path, *options: str) -> Run:
        """``kvsweep run`` on the head, to ``out`` beside the sweep file."""
        return Run(self, sweep, options)


class Run:
    """A driver on the head, as a context."""

    def __init__(self, nodes: TwoNodes, sweep: Path, options: tuple[str, ...]) -> None:
        self.out, self._errors = sweep.parent / "out", sweep.parent / "stderr"
        enter = ["nsenter", "--target", str(nodes.head.init), *NAMESPACES, f"--wd={nodes.folder}"]
        command = [str(Path(sys.executable).parent / "kvsweep"), "run", str(sweep), "--out", str(self.out)]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*enter, *command, "--address", f"{nodes.head.address}:6379", *options],
                cwd=nodes.folder,
                env=environment(nodes.head.home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()

    def until(self, reached: Callable[[], bool], seconds: float) -> None:
        """Wait for something while the run goes on."""
        self._wait(lambda: self.process.poll() is not None or reached(), seconds)
        assert reached(), self.said()

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {self.said()}"
            time.sleep(0.1)

    def end(self, seconds: float = 240) -> int:
        """The exit status, which comes in this time; otherwise the test fails with what the run said."""
        self._wait(lambda: self.process.poll() is not None, seconds)
        return self.process.returncode

    def said(self) -> str:
        """What stands on stderr so far."""
        return self._errors.read_text()
