"""run.json as it lies in a directory: read by this one
reader, which believes nothing that it has not looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.store.schema import PROTOCOL_VERSION, SCHEMA_VERSION
from pipeline.store.store_errors import RunUnreadableError

if TYPE_CHECKING:
    from pipeline.store.run_store import RunStore

RUN_NAME = "run.json"
MOST_RUN_BYTES = 256 * 2**20
"""Of a run.json; that of a million cells has a few thousand."""

Entry = dict[str, Any]
Counts = dict[str, Annotated[int, Field(ge=0)]]


class RunFile(BaseModel):
    """What is read of a run.json: what every version has written, and what some lack."""

    model_config = ConfigDict(extra="allow", strict=True)

    run_id: Annotated[str, Field(min_length=1)]
    name: str
    started_at: str
    schema_version: Annotated[int, Field(ge=1)]
    protocol_version: Annotated[int, Field(ge=0)]
    planned: Counts
    planned_rows: Counts | Annotated[int, Field(ge=0)] = {}
    """By task; the first version wrote one number."""
    resumed_at: list[str] = []
    kvsweep_version: str | None = None
    code_digest: str | None = None
    seed: int | None = None
    spec: Entry = {}
    argv: list[str] = []
    git: Entry = {}
    versions: dict[str, str] = {}
    hardware: Entry = {}
    models: list[Entry] = []
    datasets: list[Entry] = []
    dropped: list[Entry] = []
    notes: list[str] = []


def read_run(store: RunStore) -> dict[str, Any] | None:
    """The content of a directory's run.json; None where there is none.

    Raises RunUnreadableError, in one sentence, for a file that
    is none of ours, is broken, or comes from a newer kvsweep.
    """
    place = f"{store.directory}/{RUN_NAME}"
    content = store.get(RUN_NAME, MOST_RUN_BYTES)
    return None if content is None else parsed(content, place)


def required_run(store: RunStore) -> dict[str, Any]:
    """As ``read_run``, of a directory that must have one. Raises RunUnreadableError."""
    run = read_run(store)
    if run is None:
        raise RunUnreadableError(
            f"{store.directory}: holds no {RUN_NAME}, so it is no kvsweep run directory; "
            "give one that `kvsweep run --out` wrote"
        )
    return run


def parsed(content: bytes, place: str) -> dict[str, Any]:
    """The settings of a run.json by name.

    Raises RunUnreadableError; ``place`` is how its message names the file.
    """
    try:
        run = json.loads(content.decode("utf-8"), parse_constant=_no_number, parse_int=_whole)
        # An escape can spell half of a character, which nothing can print.
        json.dumps(run, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise RunUnreadableError(f"{place}: is not UTF-8 text. {_REMEDY}") from None
    except RecursionError:
        raise RunUnreadableError(
            f"{place}: is nested too deeply, so it is none of kvsweep's. {_REMEDY}"
        ) from None
    except ValueError as error:
        raise RunUnreadableError(f"{place}: is not JSON ({str(error)[:120]}). {_REMEDY}") from None
    if not isinstance(run, dict):
        raise RunUnreadableError(
            f"{place}: holds {_kind(run)} where a run's settings by name belong. {_REMEDY}"
        )

    try:
        RunFile.model_validate(run)
    except ValidationError as error:
        raise RunUnreadableError(f"{place}: {_fault(error)}. {_REMEDY}") from None
    for key, known in (("schema_version", SCHEMA_VERSION), ("protocol_version", PROTOCOL_VERSION)):
        if run[key] > known:
            raise RunUnreadableError(
                f"{place}: was written by a newer kvsweep ({run.get('kvsweep_version')}; {key} {run[key]}, "
                f"this one knows up to {known}); use that version, which nothing here was changed for"
            )
    return run


_REMEDY = "Put a copy back, or run the sweep into a new directory"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"{digits[:20]}... is larger than any number of a run")
    return int(digits)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )


def _fault(error: ValidationError) -> str:
    """The first fault, in one clause."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"has no {key}, which every run has"
    got = json.dumps(first["input"], default=str)[:60]
    return f"{key}: {first['msg'].removeprefix('Input ')} (got {got})"
