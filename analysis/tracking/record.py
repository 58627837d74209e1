"""What the stores of trackers share: a record, the four
methods of a store, and what a person is told of faults.

Trackers are optional and imported only when used; no server, no network, no browser.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class TrackingError(ValueError):
    """A tracker is not installed or its store cannot be used. The message says which, why, and what to do."""


@dataclass(frozen=True)
class Record:
    """What a tracker holds of a setting of a run: settings and
    words as params, figures as metrics (seconds, bytes, ratios).

    ``key`` names setting and run, ``digest`` the content.
    All text is short and printable, whatever the rows say.
    """

    key: str
    digest: str
    name: str
    params: dict[str, str | int | float]
    metrics: dict[str, float]
    verdict: str


class Tracker(Protocol):
    """A store of records. Every method raises TrackingError where the store cannot be used."""

    place: str
    """Project and store, for people."""

    def open(self) -> dict[str, str]:
        """Make the store if need be; what is whole in it: key -> digest."""
        ...

    def write(self, record: Record) -> None:
        """Add a record, whole or not at all: one that was cut off is not among those that ``open``
        returns."""
        ...

    def delete(self, key: str) -> None:
        """Remove a record."""
        ...


def need(package: str, project: str) -> None:
    """Raises TrackingError where a tracker's package is not installed, or its project has no name."""
    if importlib.util.find_spec(package) is None:
        raise TrackingError(f"--to {package}: {package} is not installed; pip install 'kvsweep[{package}]'")
    if not project.strip() or not project.isprintable():
        raise TrackingError(f"--project {project!r}: give a name of printable characters")


@contextlib.contextmanager
def explained(tracker: str, store: str) -> Iterator[None]:
    """What a tracker's library raises, as TrackingError in one line."""
    try:
        yield
    except TrackingError:
        raise
    except (OSError, ValueError, sqlite3.Error, ImportError) as error:
        raise _fault(tracker, store, error) from error
    except Exception as error:
        # Their own classes cannot be named here without importing them.
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "alembic", "trackio"):
            raise
        raise _fault(tracker, store, error) from error


def _fault(tracker: str, store: str, error: Exception) -> TrackingError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return TrackingError(f"{store}: {tracker} cannot use it ({said}); give another --store or --project")
