"""Records in a trackio project on this machine."""

from __future__ import annotations

import contextlib
import importlib
import os
from datetime import UTC, datetime
from pathlib import Path

from analysis.tracking.record import Record, TrackingError, explained, need
from pipeline.results import is_remote, placed

ELSEWHERE = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_DATASET_ID",
    "TRACKIO_WEBHOOK_URL",
)
"""Settings of the environment by which trackio would read or write over the network."""


class TrackioStore:
    """A trackio project: one SQLite file in the directory ``store`` (default: where trackio looks by itself).

    Writes by trackio's storage class: a run opened by ``trackio.init`` starts
    threads, logs this machine's load beside the figures, asks the Hugging
    Face hub for the user's name, and turns a failed write into a warning.
    """

    def __init__(self, project: str, store: str | None) -> None:
        need("trackio", project)
        store = None if store is None else placed(store)
        if store is not None and is_remote(store):
            raise TrackingError(f"--store {store}: trackio keeps runs in a local directory; give a path")

        for name in ELSEWHERE:
            os.environ.pop(name, None)
        if store is not None:
            os.environ["TRACKIO_DIR"] = str(Path(store).resolve())

        with explained("trackio", store or "its own directory"):
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
        with self._explained():
            self._storage.init_db(self._project)
            found = self._storage.get_run_records(self._project)
            self._names = {str(run["id"]): str(run["name"]) for run in found}
            configs = {
                key: self._storage.get_run_config(self._project, run_id=key) or {} for key in self._names
            }
        return {key: str(config.get("digest")) for key, config in configs.items()}

    def write(self, record: Record) -> None:
        """One transaction; of two that write the same record at once, the second adds nothing."""
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
        with self._explained():
            self._storage.delete_run(self._project, self._names[key], run_id=key)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained("trackio", str(self._directory))
