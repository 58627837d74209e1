"""The tables: their schema, atomic Parquet parts on local disk or an object store, one scan function.

A part is serialised in memory and put whole, so a reader never sees half of one. Its name holds the work unit
that made it and a digest of its content, so no part can take the place of one with other rows. The driver is
the only writer; what it has put it reads back. All reading goes through ``scan``, after ``check_parts`` has
looked at every footer.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import polars as pl
import pyarrow as pa
from obstore.store import ObjectStore, from_url

from pipeline.store import part_files
from pipeline.store.part_files import LEAST_BYTES, TAIL_BYTES, NewerSchemaError, as_parquet, scan_files
from pipeline.store.place import is_remote, placed
from pipeline.store.schema import schema
from pipeline.store.store_access import Access, access
from pipeline.store.store_errors import NO_BUCKET, RunUnreadableError, StoreError, explained, repeats

if TYPE_CHECKING:
    from obstore.store import RetryConfig  # not there at run time

RETRIES: RetryConfig = {
    "max_retries": 10,
    "backoff": {
        "init_backoff": datetime.timedelta(milliseconds=100),
        "max_backoff": datetime.timedelta(seconds=5),
        "base": 2,
    },
    "retry_timeout": datetime.timedelta(seconds=30),
}
"""How often and how long obstore asks again after a 5xx or a
lost connection: seconds, since nothing is lost by stopping."""

READERS = 16
"""Requests to a store at once."""

CREATE_ATTEMPTS = 5
"""Of a put that only the first writer wins. obstore does not
repeat it after a lost connection: it may have worked."""

STORE_ERRORS = (obstore.exceptions.BaseError, OSError)
"""What an unreachable or refusing store raises."""


class RunStore:
    """One run directory: a local path or a URL of an object store (``pipeline/store/place.py`` says which).

    Raises PlaceError for a place where no run can lie, FileNotFoundError for
    a local directory that is not there, and STORE_ERRORS where the store
    cannot be reached or refuses: StoreError, in words, for an object store.
    """

    def __init__(self, directory: str, *, create: bool = False) -> None:
        self.directory = placed(directory)
        if is_remote(self.directory):
            with explained(self.directory):
                self._access = access(self.directory)
                settings = self._access.settings
                self.store: ObjectStore = from_url(self.directory, retry_config=RETRIES, **settings)
            return

        if create:
            Path(self.directory).mkdir(parents=True, exist_ok=True)
        elif not Path(self.directory).is_dir():
            raise FileNotFoundError(f"{directory}: there is no such directory")
        self._access = Access()
        self.store = from_url(Path(self.directory).as_uri())

    def put(self, name: str, content: bytes, *, overwrite: bool = False) -> bool:
        """Write a whole object at once; False where another
        one is there already and ``overwrite`` is not set."""
        with self._explained():
            if not overwrite:
                return self._create(name, content)
            obstore.put(self.store, name, content, mode="overwrite")
            return True

    def _create(self, name: str, content: bytes) -> bool:
        """In an object store a request whose answer was lost may have worked, so what is there then is
        compared with ours."""
        remote = is_remote(self.directory)

        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                obstore.put(self.store, name, content, mode="create")
                return True
            except obstore.exceptions.AlreadyExistsError:
                return remote and self.get(name) == content
            except obstore.exceptions.GenericError as error:
                if not remote or attempt == CREATE_ATTEMPTS or repeats(str(error)):
                    raise
                found = self.get(name)
                if found is not None:
                    return found == content
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def get(self, name: str, most_bytes: int | None = None) -> bytes | None:
        """The object's content, or None where there is none.

        Raises RunUnreadableError for one of more than ``most_bytes``, and for what has its name and is no
        file: a pipe would be waited for without end, and a device has no end.
        """
        if not is_remote(self.directory):
            place = Path(self.directory) / name
            if place.exists() and not place.is_file():
                raise RunUnreadableError(f"{place}: is no file (a folder, a pipe or a device); move it away")
        with self._explained():
            try:
                found = obstore.get(self.store, name)
                if most_bytes is not None and found.meta["size"] > most_bytes:
                    most = f"{most_bytes / 2**20:.3g} MiB"
                    raise RunUnreadableError(
                        f"{self.directory}/{name}: is larger than {most}, so it is none of kvsweep's"
                    )
                return bytes(found.bytes())
            except (obstore.exceptions.NotFoundError, FileNotFoundError) as error:
                if any(code in str(error) for code in NO_BUCKET):
                    raise
                return None

    def delete(self, name: str) -> None:
        """Remove one object."""
        with self._explained():
            obstore.delete(self.store, name)

    def delete_all(self, names: Sequence[str]) -> None:
        """Remove many objects, in an object store with few requests; one that is gone already is no error."""
        with self._explained():
            if is_remote(self.directory):
                obstore.delete(self.store, list(names))
                return
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self.store, name)

    def delete_empty(self, folder: str) -> None:
        """Remove a folder that holds nothing any more; an object store has none."""
        if not is_remote(self.directory):
            with contextlib.suppress(OSError):  # somebody's own file is in it
                (Path(self.directory) / folder).rmdir()

    def sizes(self, task: str) -> dict[str, int]:
        """Names of a table's parts, sorted, and their bytes."""
        return self._listed(task, ".parquet")

    def names(self, folder: str, ending: str) -> list[str]:
        """Names of the objects in a folder that end so, sorted."""
        return list(self._listed(folder, ending))

    def _listed(self, folder: str, ending: str) -> dict[str, int]:
        """Bytes by name. Raises RunUnreadableError where something else has the folder's name: nothing could
        be put there."""
        place = None if is_remote(self.directory) else Path(self.directory) / folder
        if place is not None and place.exists() and not place.is_dir():
            raise RunUnreadableError(f"{place}: is no folder; move it away")

        with self._explained():
            found = {
                meta["path"]: meta["size"]
                for batch in obstore.list(self.store, prefix=f"{folder}/")
                for meta in batch
            }
        return {name: found[name] for name in sorted(found) if name.count("/") == 1 and name.endswith(ending)}

    def parts(self, task: str) -> list[str]:
        """Names of a table's parts, sorted."""
        return list(self.sizes(task))

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.directory) if is_remote(self.directory) else contextlib.nullcontext()

    def add_part(self, task: str, unit_id: str, table: pa.Table) -> str:
        """Put one unit's rows as a part of their own, which replaces none; returns its name.

        Raises as ``add_file``.
        """
        content = as_parquet(table, {"unit_id": unit_id})
        return self.add_file(f"{task}/{unit_id}", content)

    def add_file(self, name: str, content: bytes) -> str:
        """Put a part as ``NAME-DIGEST.parquet`` and read it back, so that whatever is done upon its being
        there is done safely.

        Returns the whole name. Raises StoreError where the store does not give back what was put.
        """
        whole = f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.parquet"
        # What a writer that died, or a bad copy, left there is written anew.
        if not self.put(whole, content) and self.get(whole) != content:
            self.put(whole, content, overwrite=True)
        if self.get(whole) != content:
            raise StoreError(
                f"{self.directory}/{whole}: was stored, and is not there or has other content; "
                "the store is at fault"
            )
        return whole

    def check_parts(self, task: str) -> None:
        """Look at the footer of every part of a table.

        Raises RunUnreadableError for the first that is at fault.
        """
        for name, words in self._part_faults(task).items():
            raise RunUnreadableError(
                f"{self.directory}/{name}: {words}; `kvsweep run` with the same sweep sets it aside and does "
                "its cells again"
            )

    def set_aside_unreadable(self, task: str, *, thorough: bool = False) -> dict[str, str]:
        """Rename parts of a table that cannot be read to ``*.unreadable``; returns their names, and why.

        Looks at footers alone, unless ``thorough``: then at every value. Raises RunUnreadableError for a part
        of a newer kvsweep, which is left as it is.
        """
        faults = self._part_faults(task)
        if thorough:
            for name in self.sizes(task).keys() - faults.keys():
                words = part_files.unreadable(task, self.get(name) or b"")
                faults |= {name: words} if words else {}
        for name in faults:
            content = self.get(name) or b""
            self.put(f"{name}.unreadable", content, overwrite=True)
            if self.get(f"{name}.unreadable") == content:
                self.delete(name)
        return faults

    def _part_faults(self, task: str) -> dict[str, str]:
        """What is wrong with parts by their footers, by name.

        Raises RunUnreadableError for a newer kvsweep's part.
        """
        sizes = self.sizes(task)
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda name: self._footer_fault(task, name, sizes[name]), sizes)
            return {name: words for name, words in zip(sizes, found, strict=True) if words}

    def _footer_fault(self, task: str, name: str, size: int) -> str | None:
        if size < LEAST_BYTES:
            return "is no Parquet file: it is cut off"

        try:
            footer = part_files.footer_of(self._tail(name, size, TAIL_BYTES))
            footer = footer or part_files.footer_of(self._tail(name, size, size))
            if footer is None:
                return "is no readable Parquet file: it is cut off"
            return part_files.fault(task, footer)
        except FileNotFoundError:  # its driver has just put parts together
            return None
        except NewerSchemaError as error:
            raise RunUnreadableError(
                f"{self.directory}/{name}: {error}; use that version, which nothing here was changed for"
            ) from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, StoreError):
                raise
            return f"is no readable Parquet file ({' '.join(str(error).split())[:80]})"

    def _tail(self, name: str, size: int, most: int) -> bytes:
        """The last bytes of an object. Raises FileNotFoundError where it is gone."""
        start = max(0, size - most)
        with self._explained():
            try:
                return bytes(obstore.get_range(self.store, name, start=start, end=size))
            except (obstore.exceptions.NotFoundError, FileNotFoundError):
                gone = True
        raise FileNotFoundError(name) if gone else AssertionError

    def parts_with(self, task: str, cell_ids: Collection[str]) -> list[str]:
        """Names of the parts that hold rows of these cells."""
        found = self.scan(task, part_column="part").filter(pl.col("cell_id").is_in(list(cell_ids)))
        places = found.select(pl.col("part").unique()).collect()["part"]
        return sorted(f"{task}/{place.rsplit('/', 1)[-1]}" for place in places)

    def scan(
        self, task: str, parts: Sequence[str] | None = None, part_column: str | None = None
    ) -> pl.LazyFrame:
        """All rows of a table, or of some of its parts, lazily;
        empty with the right schema where there are none.

        ``part_column`` adds the path of each row's part under this name.
        """
        names = self.parts(task) if parts is None else parts
        if not names:
            return pl.LazyFrame(schema=schema(task) | ({part_column: pl.String} if part_column else {}))
        return scan_files(
            task, [f"{self.directory}/{name}" for name in names], part_column, **self._access.scanning
        )
