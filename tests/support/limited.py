"""Scarce things for the processes of a test: a disk of few bytes, a control group of little memory. Both need
root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


class SmallDisk:
    """A disk of ``size`` bytes at ``folder`` that only commands started through it see; gone when it is
    closed."""

    def __init__(self, folder: Path, size: int) -> None:
        if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("unshare", "nsenter", "mount")):
            pytest.skip("needs root, unshare, nsenter and mount")
        folder.mkdir()
        script = f"mount -t tmpfs -o size={size} tmpfs {folder} && echo up && read -r _"
        command = ["unshare", "--mount", "sh", "-c", script]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != "up\n":
            pytest.skip(f"cannot mount a disk of its own: {self._holder.communicate()[1]}")
        self.enter = ["nsenter", "--target", str(self._holder.pid), "--mount", "--wd=" + str(folder.parent)]
        """What stands before a command that shall see the disk."""
        self.path = Path(f"/proc/{self._holder.pid}/root{folder}")
        """The disk as this process sees it."""

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate(timeout=30)

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> Path:
        """A file that takes all but so many bytes."""
        ballast = self.path / "ballast"
        ballast.write_bytes(b"\0" * (self.free - leave))
        return ballast


@contextlib.contextmanager
def small_memory(size: int) -> Iterator[Path]:
    """The folder of a control group whose processes have ``size`` bytes of memory in all."""
    first = (CGROUPS / "cgroup.controllers").exists()
    root, limit = (CGROUPS, "memory.max") if first else (CGROUPS / "memory", "memory.limit_in_bytes")
    folder = root / f"kvsweep-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(size))
        if first:
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"cannot make a control group for memory: {error}")
    try:
        yield folder
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):  # a process in it is just ending
                folder.rmdir()
                break
            time.sleep(0.1)
