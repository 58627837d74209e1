"""Whether a unit took more memory than its plan gave it: what placement counts with must hold."""

from __future__ import annotations

from pipeline.cluster.placement import Need
from workers.footprint.worker import PROCESS_BYTES

GIB = 2**30


def beyond_plan(task: str, model: str, need: Need, peak_bytes: int | None) -> str | None:
    """A warning where the worker's peak is more than was planned;
    None where it is not, or where nothing counted it.

    On a GPU its allocator counts, which knows nothing of the process.
    """
    planned = need.memory_bytes - (PROCESS_BYTES if need.device == "cuda" else 0)
    if peak_bytes is None or peak_bytes <= planned:
        return None
    return (
        f"{task} of {model} took {peak_bytes / GIB:.3g} GiB where {planned / GIB:.3g} were planned: "
        "workers beside it may find too little memory; with more --threads there are fewer workers, "
        "which leaves more to each"
    )
