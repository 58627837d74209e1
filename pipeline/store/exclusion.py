"""Whether a store lets only the first writer of a name win: what leases rest on, tried out rather than taken
from its maker."""

from __future__ import annotations

import contextlib
import time
import uuid

import obstore

from pipeline.store.run_store import CREATE_ATTEMPTS, STORE_ERRORS, RunStore
from pipeline.store.store_errors import repeats
from pipeline.sweepfile.sweep_error import SweepError

PROBE = "probe-"
"""How names begin that are put for this alone."""

ADVICE = (
    "so two drivers could work on one run without knowing of each other; "
    "give a local directory and copy it afterwards, or a store with conditional writes (If-None-Match: *), "
    "such as Amazon S3, Google Cloud Storage, Azure, or a newer MinIO or Ceph"
)


def require_exclusion(store: RunStore) -> None:
    """Put one name twice under the condition that it is not there, and look which content stays.

    Leaves nothing behind.

    Raises SweepError where both puts succeed, where the second takes the first one's place, or where the
    store does not know such a condition; and what the store raises where it cannot be written at all.
    """
    name = f"{PROBE}{uuid.uuid4().hex}"
    try:
        words = _fault(store, name)
    finally:
        with contextlib.suppress(*STORE_ERRORS):
            store.delete(name)
    if words:
        raise SweepError([f"--out {store.directory}: {words}, {ADVICE}"])


def _fault(store: RunStore, name: str) -> str | None:
    first, second = b"first", b"second"
    try:
        store.put(name, first)
    except STORE_ERRORS:
        store.put(name, first, overwrite=True)  # raises where nothing at all can be written
        return "this store refuses to write under the condition that a name is free"
    taken = _second_put(store, name, second)
    kept = store.get(name)
    if taken or kept != first:
        return "this store lets a second writer take the place of the first, whatever condition it is given"
    return None


def _second_put(store: RunStore, name: str, content: bytes) -> bool:
    """Whether the store takes a second put. One whose answer is lost on the way is tried again."""
    for attempt in range(1, CREATE_ATTEMPTS + 1):
        try:
            obstore.put(store.store, name, content, mode="create")
            return True
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            return False
        except obstore.exceptions.GenericError as error:
            if attempt == CREATE_ATTEMPTS or repeats(str(error)):
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
