"""How much memory a machine's GPU has, without torch."""

from __future__ import annotations

import shutil
import subprocess


def gpu_memory_bytes() -> int | None:
    """Bytes of this machine's smallest GPU; None where no driver tells."""
    if not (tool := shutil.which("nvidia-smi")):
        return None
    ask = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False)
    sizes = [int(line) for line in listed.stdout.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
