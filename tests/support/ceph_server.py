"""A one-node Ceph with its S3 gateway on this machine, for tests: objects in memory, everything else in a
folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3

from tests.support import s3_server

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")

START_SECONDS = 90.0
"""Usually 15; two slow cores that do something else need more."""

CONFIGURATION = """
    [global]
    fsid = {fsid}
    mon_host = [v2:127.0.0.1:{port}]
    mon_initial_members = a
    public_addr = 127.0.0.1
    cluster_addr = 127.0.0.1
    keyring = {folder}/keyring
    run_dir = {folder}
    crash_dir = {folder}
    admin_socket = {folder}/$name.asok
    pid_file = {folder}/$name.pid
    log_file = {folder}/$name.log
    mon_data = {folder}/mon
    osd_data = {folder}/osd
    rgw_data = {folder}/rgw
    mon_data_avail_crit = 1
    osd_objectstore = memstore
    memstore_device_bytes = 1073741824
    osd_pool_default_size = 1
    osd_pool_default_min_size = 1
    mon_allow_pool_size_one = true
    osd_pool_default_pg_num = 1
    osd_pool_default_pg_autoscale_mode = off
    osd_crush_chooseleaf_type = 0
"""

KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "client.rgw": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}
"""Who may do what in the cluster; the monitor takes them over when it is made."""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def ceph_server() -> Iterator[dict[str, str]]:
    """A server with the empty bucket ``bucket``; the environment of somebody whose store is there.

    Ends with its processes killed and its folder removed: nothing in it is worth an orderly end.
    """
    folder = Path(tempfile.mkdtemp(prefix="ceph", dir="/tmp"))  # the path of a socket has a limit
    running: list[subprocess.Popen[bytes]] = []
    try:
        environment = _start(folder, running)
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="bucket")
        yield environment
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def _start(folder: Path, running: list[subprocess.Popen[bytes]]) -> dict[str, str]:
    """Monitor, store, user, gateway, in this order; each is added to ``running`` as soon as it is there."""
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    cluster, disk, monitor, gateway = str(uuid.uuid4()), str(uuid.uuid4()), _free_port(), _free_port()
    text = textwrap.dedent(CONFIGURATION).format(fsid=cluster, port=monitor, folder=folder)
    (folder / "ceph.conf").write_text(text)
    for number, (name, rights) in enumerate(KEYS.items()):
        allowed = [word for right in rights.items() for word in ("--cap", *right)]
        create = [] if number else ["--create-keyring"]
        _run(folder, "ceph-authtool", *create, str(folder / "keyring"), "--gen-key", "-n", name, *allowed)
    map_ = str(folder / "monmap")
    _run(
        folder, "monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", map_
    )
    _run(folder, "ceph-mon", "-i", "a", "--mkfs", "--monmap", map_)
    running.append(_daemon(folder, "ceph-mon", "-i", "a"))
    _run(folder, "ceph", "osd", "new", disk, "0")
    _run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
    running.append(_daemon(folder, "ceph-osd", "-i", "0"))
    environment = s3_server.settings(f"http://127.0.0.1:{gateway}")
    keys = [
        "--access-key",
        environment["AWS_ACCESS_KEY_ID"],
        "--secret-key",
        environment["AWS_SECRET_ACCESS_KEY"],
    ]
    _run(folder, "radosgw-admin", "user", "create", "--uid", "tester", "--display-name", "tester", *keys)
    front = f"beast endpoint=127.0.0.1:{gateway}"
    running.append(_daemon(folder, "radosgw", "-n", "client.rgw", "--rgw-frontends", front))
    _wait_for(environment["AWS_ENDPOINT_URL"], running[-1], folder)
    return environment


def _own_environment() -> dict[str, str]:
    """Ceph's command is a Python script of the system's, which our paths would confuse."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "CEPH_", "VIRTUAL_ENV"))
    }


def _run(folder: Path, program: str, *arguments: str) -> None:
    configuration = [] if program in ("ceph-authtool", "monmaptool") else ["-c", str(folder / "ceph.conf")]
    command = [program, *configuration, *arguments]
    done = subprocess.run(
        command, env=_own_environment(), capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"


def _daemon(folder: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A server that stays in the foreground and dies with the thread that started it, even where that one is
    killed."""
    command = ["setpriv", "--pdeathsig", "KILL", program, "-c", str(folder / "ceph.conf"), "-f", *arguments]
    with (folder / f"{program}.out").open("wb") as output:
        return subprocess.Popen(command, env=_own_environment(), stdout=output, stderr=output)


def _wait_for(address: str, gateway: subprocess.Popen[bytes], folder: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            direct.open(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            said = (folder / "radosgw.out").read_text(errors="replace")[-2000:]
            assert gateway.poll() is None and time.monotonic() < deadline, f"radosgw does not answer: {said}"
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
