"""What whoever reads runs needs of the pipeline, and may import:
a run's directory, its columns, what reading may raise."""

from pipeline.store.place import PlaceError, is_remote, placed
from pipeline.store.run_json import required_run
from pipeline.store.run_store import STORE_ERRORS, RunStore
from pipeline.store.schema import ANSWER_TOKENS, CELL_COLUMNS, PRUNING, TARGET, TASKS, VERSIONS
from pipeline.store.store_errors import RunUnreadableError

__all__ = [
    "ANSWER_TOKENS",
    "CELL_COLUMNS",
    "PRUNING",
    "STORE_ERRORS",
    "TARGET",
    "TASKS",
    "VERSIONS",
    "PlaceError",
    "RunStore",
    "RunUnreadableError",
    "is_remote",
    "placed",
    "required_run",
]
