"""Two experiment trackers on this machine, trackio and MLflow, behind the same four methods; no server, no
network, no browser.

Both are optional and imported only when used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.results import is_remote, placed

ELSEWHERE = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_DATASET_ID",
    "TRACKIO_WEBHOOK_URL",
)
"""Settings of the environment by which trackio would read or write over the network."""

BATCH = 100
"""Params that MLflow takes at once."""


class TrackingError(ValueError):
    """A tracker is not installed or its store cannot be used. The message says which, why, and what to do."""


@dataclass(frozen=True)
class Record:
    """What a tracker holds of a setting of a run: settings and words as params, figures as metrics (seconds,
    bytes, ratios).

    ``key`` names setting and run, ``digest`` the content. All text is short and printable, whatever the rows
    say.
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


class TrackioStore:
    """A trackio project: one SQLite file in the directory ``store`` (default: where trackio looks by itself).

    Writes by trackio's storage class: a run opened by ``trackio.init`` starts threads, logs this machine's
    load beside the figures, asks the Hugging Face hub for the user's name, and turns a failed write into a
    warning.
    """

    def __init__(self, project: str, store: str | None) -> None:
        _need("trackio", project)
        store = None if store is None else placed(store)
        if store is not None and is_remote(store):
            raise TrackingError(f"--store {store}: trackio keeps runs in a local directory; give a path")
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        if store is not None:
            os.environ["TRACKIO_DIR"] = str(Path(store).resolve())
        with _explained("trackio", store or "its own directory"):
            self._storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            self._directory = Path(importlib.import_module("trackio.utils").TRACKIO_DIR).resolve()
            self._storage.validate_project_name(project)
        if store is not None and self._directory != Path(store).resolve():
            raise TrackingError(
                f"--store {store}: trackio already uses {self._directory} in this process; start another"
            )
        self._project, self._names = project, dict[str, str]()
        self.place = f"trackio project {project} in {self._directory}"

    def open(self) -> dict[str, str]:
        """See Tracker."""
        with self._explained():
            self._storage.init_db(self._project)
            found = self._storage.get_run_records(self._project)
            self._names = {str(run["id"]): str(run["name"]) for run in found}
            configs = {
                key: self._storage.get_run_config(self._project, run_id=key) or {} for key in self._names
            }
        return {key: str(config.get("digest")) for key, config in configs.items()}

    def write(self, record: Record) -> None:
        """See Tracker. One transaction; of two that write the same record at once, the second adds
        nothing."""
        # The dashboard reads names with an underscore: when a run was made, and what it is shown together
        # with.
        shown = {"_Created": datetime.now(UTC).isoformat(), "_Group": record.params.get("run_id")}
        with self._explained():
            self._storage.bulk_log(
                project=self._project,
                run=record.name,
                run_id=record.key,
                metrics_list=[record.metrics],
                steps=[0],
                config={**record.params, **shown, "digest": record.digest},
                log_ids=[record.key],
            )

    def delete(self, key: str) -> None:
        """See Tracker."""
        with self._explained():
            self._storage.delete_run(self._project, self._names[key], run_id=key)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained("trackio", str(self._directory))


class MlflowStore:
    """An MLflow experiment in a directory (MLflow's file store) or, where SQLAlchemy is installed, in
    ``sqlite:///FILE``."""

    def __init__(self, project: str, store: str | None) -> None:
        _need("mlflow", project)
        self._store = store or "mlruns"
        scheme = self._store.split(":", 1)[0] if ":/" in self._store else ""
        if scheme not in ("", "sqlite"):
            raise TrackingError(
                f"--store {store}: give a directory or sqlite:///FILE; only stores on this machine are "
                "written"
            )
        if scheme == "sqlite" and not all(
            importlib.util.find_spec(name) for name in ("sqlalchemy", "alembic")
        ):
            raise TrackingError(
                f"--store {store}: needs SQLAlchemy: pip install sqlalchemy alembic, or give a directory"
            )
        if not scheme and Path(self._store).exists() and not Path(self._store).is_dir():
            raise TrackingError(f"--store {store}: is a file; give a directory or sqlite:///FILE")
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it MLflow 3.17 refuses directories
        os.environ.setdefault(
            "MLFLOW_LOGGING_LEVEL", "WARNING"
        )  # making a database is told in lines of a log
        self._address = self._store if scheme else Path(self._store).resolve().as_uri()
        self._project, self._experiment = project, ""
        self._runs: dict[str, str] = {}
        self.place = f"MLflow experiment {project} in {self._store}"

    def open(self) -> dict[str, str]:
        """See Tracker. What an export that was cut off left behind is deleted."""
        with self._explained():
            self._client = importlib.import_module("mlflow.tracking").MlflowClient(self._address)
            self._entities = importlib.import_module("mlflow.entities")
            experiment = self._client.get_experiment_by_name(self._project)
            if experiment is not None and experiment.lifecycle_stage != "active":
                raise TrackingError(f"{self.place}: was deleted there; restore it, or give another --project")
            self._experiment = (
                experiment.experiment_id if experiment else self._client.create_experiment(self._project)
            )
            whole = {}
            for run in list(self._every_run()):
                key = run.data.tags.get("kvsweep.key")
                if key is not None and run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                elif key is not None:
                    whole[key] = run.data.tags.get("kvsweep.digest", "")
                    self._runs[key] = run.info.run_id
        return whole

    def _every_run(self) -> Iterator[Any]:
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self._experiment], page_token=token or None, max_results=1000)
            yield from page
            token = page.token or None

    def write(self, record: Record) -> None:
        """See Tracker. The run's end is written last."""
        entities, now = self._entities, int(1000 * time.time())
        tags = {"kvsweep.key": record.key, "kvsweep.digest": record.digest, "kvsweep.verdict": record.verdict}
        metrics = [entities.Metric(name, value, now, 0) for name, value in record.metrics.items()]
        params = [entities.Param(name, str(value)) for name, value in record.params.items()]
        with self._explained():
            run_id = self._client.create_run(self._experiment, run_name=record.name, tags=tags).info.run_id
            for start in range(0, len(params), BATCH):
                self._client.log_batch(run_id, params=params[start : start + BATCH])
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            self._client.set_terminated(run_id, "FAILED" if "FAILED" in record.verdict else "FINISHED")

    def delete(self, key: str) -> None:
        """See Tracker."""
        with self._explained():
            self._client.delete_run(self._runs[key])

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained("MLflow", self._store)


TRACKERS: dict[str, Callable[[str, str | None], Tracker]] = {"trackio": TrackioStore, "mlflow": MlflowStore}


def _need(package: str, project: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise TrackingError(f"--to {package}: {package} is not installed; pip install 'kvsweep[{package}]'")
    if not project.strip() or not project.isprintable():
        raise TrackingError(f"--project {project!r}: give a name of printable characters")


@contextlib.contextmanager
def _explained(tracker: str, store: str) -> Iterator[None]:
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
