"""Which code runs:
a digest of kvsweep's three packages, by which a driver and its workers know each other. Torch-free."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages lie that this process runs."""
PACKAGES = ("pipeline", "workers", "analysis")


class OtherCodeError(RuntimeError):
    """A worker runs other code than its driver, so its rows would be called what they are not."""


@lru_cache(maxsize=4)
def code_digest(packages: tuple[str, ...] = PACKAGES) -> str:
    """32 hex digits of all Python files of these packages, their folders and names included, as they lay at
    the first call."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def check_same_code(driver: str, driver_root: str) -> None:
    """Raises OtherCodeError where the driver's digest is not this process's own, with both places."""
    own = code_digest()
    if own != driver:
        raise OtherCodeError(
            f"this worker runs kvsweep's code from {ROOT} ({own[:8]}) and its driver that from {driver_root} "
            f"({driver[:8]}), which differs: another kvsweep, or files named like its packages, lie in the "
            "current directory or on PYTHONPATH, or the node has another version; remove them, or install "
            "the driver's version on every node"
        )
