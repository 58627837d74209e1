"""Slurm's own daemons on private machines: a controller and a node on the first, a node on each."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.support.private_machine import PrivateMachine

CONF = """\
ClusterName=test
SlurmctldHost={head}({address})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


class SlurmCluster:
    """Somebody who is logged in on the first machine."""

    def __init__(self, folder: Path, *machines: PrivateMachine) -> None:
        self.machines, self.head, self.conf = machines, machines[0], folder / "slurm.conf"
        nodes = (f"NodeName={m.name} NodeAddr={m.address} CPUs={os.cpu_count()}" for m in machines)
        values = {
            "head": self.head.name,
            "address": self.head.address,
            "folder": folder,
            "nodes": "\n".join(nodes),
        }
        self.conf.write_text(CONF.format(**values))
        (folder / "state").mkdir()
        self.here("slurmctld", self.head)
        for machine in machines:
            self.here(f"slurmd -N {machine.name}", machine)
        self._until(
            lambda: self.here("sinfo --noheader --states=idle --format=%D").split() == [str(len(machines))],
            30,
        )

    def here(self, command: str, machine: PrivateMachine | None = None) -> str:
        """A command that works, on the first machine where none is named; what it printed."""
        done = (machine or self.head).here(f"export SLURM_CONF={self.conf}; {command}")
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, command: str, folder: Path) -> str:
        """``sbatch`` in a folder; the job's number."""
        return self.here(f"cd {folder} && sbatch --parsable {command}").strip()

    def end_of(self, job: str, seconds: float = 90) -> tuple[str, str]:
        """State and exit status of a job, once it has ended and none of it is left."""
        self._until(
            lambda: not re.search(r"JobState=(PENDING|RUNNING|COMPLETING)", self._described(job)), seconds
        )
        self._until(lambda: not any(machine.processes("ray") for machine in self.machines), 20)
        found = re.search(r"JobState=(\w+).* ExitCode=(\d+)", self._described(job), re.DOTALL)
        assert found
        return found[1], found[2]

    def _described(self, job: str) -> str:
        return self.here(f"scontrol show job {job}")

    @staticmethod
    def _until(true, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.5)
