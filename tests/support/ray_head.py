"""A cluster of one node, started as docs/cluster.md says, and the clients of its job API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.support.command import ROOT
from tests.support.private_machine import PrivateMachine

DASHBOARD = "http://127.0.0.1:8265"
ASK = """\
import sys, urllib.error, urllib.request
address, method, token, body = sys.argv[1:]
headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
request = urllib.request.Request(address, body.encode() or None, headers, method=method)
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def documented(name: str, heading: str) -> list[str]:
    """The command lines of a file's section that are indented, as they stand there."""
    section = re.split(r"\n#+ ", (ROOT / name).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1])[0]
    return re.findall(r"^ {4}(\S.*)$", section, re.MULTILINE)


class RayHead:
    """Ray's head on a private machine, with somebody elsewhere who has the token."""

    def __init__(self, machine: PrivateMachine, folder: Path) -> None:
        self.machine, self.home = machine, folder / "elsewhere"
        self.home.mkdir()
        commands = documented("docs/cluster.md", "Own machines")
        wanted = [
            line
            for line in commands
            if line.startswith(("(umask", "export RAY_AUTH_MODE", "ray start --head"))
        ]
        assert len(wanted) == 3, wanted
        small = " --num-cpus=2 --object-store-memory=200000000"
        done = machine.here("\n".join(wanted) + small)
        assert done.returncode == 0, done.stdout
        file = machine.home / ".ray" / "auth_token"
        assert file.stat().st_mode & 0o777 == 0o600
        self.token = file.read_text()

    def client(self, *command: str | Path, folder: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
        """A process of somebody who has the token, or what ``variables`` say."""
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return self.machine.client(*command, home=self.home, folder=folder, **known | variables)

    def submit(
        self, name: str, *arguments: str | Path, folder: Path = ROOT, **variables: str
    ) -> subprocess.Popen[str]:
        """``ray job submit`` of the driver, with ``folder`` as the job's working directory."""
        options = ("--address", DASHBOARD, "--submission-id", name, "--working-dir", ".")
        driver = ("python", "-m", "pipeline.sweep", *arguments)
        return self.client("ray", "job", "submit", *options, "--", *driver, folder=folder, **variables)

    def ask(
        self, path: str, method: str = "GET", token: str | None = None, body: str = ""
    ) -> tuple[int, str]:
        """One request to the dashboard with the token, or another one, or none: status and content."""
        sent = self.token if token is None else token
        asked = self.client(sys.executable, "-c", ASK, DASHBOARD + path, method, sent, body)
        status, _, content = asked.communicate(timeout=60)[0].partition(" ")
        return int(status), content

    def job(self, name: str) -> dict:
        """What Ray knows of a job."""
        status, content = self.ask(f"/api/jobs/{name}")
        assert status == 200, content
        return json.loads(content)

    def log(self, name: str) -> str:
        """What a job has printed so far."""
        status, content = self.ask(f"/api/jobs/{name}/logs")
        assert status == 200, content
        return json.loads(content)["logs"]

    def wait_for_log(self, name: str, words: str, seconds: float = 60) -> str:
        """The log, once it holds ``words``."""
        deadline = time.monotonic() + seconds
        while words not in (log := self.log(name)):
            assert time.monotonic() < deadline, log
            time.sleep(0.5)
        return log
