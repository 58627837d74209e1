"""Which experiment trackers there are, by name."""

from __future__ import annotations

from collections.abc import Callable

from analysis.tracking.mlflow_store import MlflowStore
from analysis.tracking.record import Tracker
from analysis.tracking.trackio_store import TrackioStore

TRACKERS: dict[str, Callable[[str, str | None], Tracker]] = {"trackio": TrackioStore, "mlflow": MlflowStore}
"""Project and store -> the store of that project; a store
that is not named is where the tracker looks by itself."""
