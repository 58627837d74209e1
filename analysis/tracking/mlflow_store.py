"""Records in an MLflow experiment on this machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.tracking.record import Record, TrackingError, explained, need

BATCH = 100
"""Params that MLflow takes at once."""


class MlflowStore:
    """An MLflow experiment in a directory (MLflow's file store)
    or, where SQLAlchemy is installed, in ``sqlite:///FILE``."""

    def __init__(self, project: str, store: str | None) -> None:
        need("mlflow", project)
        self._store = store or "mlruns"
        scheme = self._store.split(":", 1)[0] if ":/" in self._store else ""
        if scheme not in ("", "sqlite"):
            raise TrackingError(
                f"--store {store}: give a directory or sqlite:///FILE; only stores on this machine are "
                "written"
            )
        lacks_database = not all(importlib.util.find_spec(name) for name in ("sqlalchemy", "alembic"))
        if scheme == "sqlite" and lacks_database:
            raise TrackingError(
                f"--store {store}: needs SQLAlchemy: pip install sqlalchemy alembic, or give a directory"
            )
        if not scheme and Path(self._store).exists() and not Path(self._store).is_dir():
            raise TrackingError(f"--store {store}: is a file; give a directory or sqlite:///FILE")

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # Without it MLflow 3.17 refuses directories.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Making a database is told in lines of a log.
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

        self._address = self._store if scheme else Path(self._store).resolve().as_uri()
        self._project = project
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self.place = f"MLflow experiment {project} in {self._store}"

    def open(self) -> dict[str, str]:
        """What an export that was cut off left behind is deleted."""
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
        """The run's end is written last."""
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
        with self._explained():
            self._client.delete_run(self._runs[key])

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained("MLflow", self._store)
