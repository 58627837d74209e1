"""Feed made-up and damaged input to everything that reads what others have written, and keep what ends in
anything but a refusal.

    python -m tools.fuzz_readers --minutes 10

Five readers: a sweep file with ``--set`` options, run.json, the parts of a run directory, config.json of a
model, and a foreign table of ``audit --table``. Each gets an equal share of the time. Input is a valid file,
changed: by values of other types and sizes, by pieces that are known to go wrong, and by bytes. What counts
as a finding: an exception that the reader does not promise, or more than ``--slowest`` seconds for one input.
Exit status 1 where there was one; its input is kept under ``--keep``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from analysis.audit.table_audit import TableError, describe
from analysis.load import load
from analysis.page.page import contents
from analysis.page.provenance import facts
from pipeline.commands.run_status import status_lines
from pipeline.driving.planned_cells import COLUMNS
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import EMBEDDED_SWEEPS, load_spec
from pipeline.store.place import PlaceError
from pipeline.store.run_json import parsed
from pipeline.store.run_store import STORE_ERRORS, RunStore
from pipeline.store.schema import schema, to_arrow
from pipeline.store.store_errors import RunUnreadableError
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import FIELDS
from workers.models.model_files import ModelError, find_model

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "workers" / "reference" / "reference-neox"
SWEEPS = [file.read_text() for file in sorted(EMBEDDED_SWEEPS.glob("*.yaml"))]

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**400,
    "",
    " ",
    "x",
    "0",
    "-",
    "nan",
    "\ud800",
    "\x00",
    "\u202e",
    "a\nb",
    "=1+1",
    "<script>",
    "9" * 5000,
    "ä" * 300,
    [],
    [[]],
    {},
    {"": None},
    [None],
    ["x"] * 50,
    {"a": {"b": []}},
]
"""Values that go wrong somewhere."""

YAML_PIECES = (
    "&a [*a]",
    "*a",
    "&a",
    "&b [*b, *b]",
    "!!set {1, 2}",
    "!!python/object/apply:os.system [id]",
    "!!binary aGk=",
    "!!omap [a: 1]",
    "!x [1]",
    "? [a]\n: 1",
    "<<: *a",
    "- - - -",
    "[" * 50,
    "{a: " * 50,
    "|\n  x",
    ">-",
    "'",
    '"\\ud800"',
    '"\\x00"',
    "---",
    "...",
    "%YAML 1.1",
    "\t",
    "@",
    "`",
    "1e400",
    "0x7fffffffffffffff",
    "2026-11-27",
    ".inf",
    "~",
    "yes",
    "1:30",
    "0o7",
    "\ufeff",
    "\u0085",
    "\u2028",
    "\x07",
)
CSV_PIECES = (
    ";",
    ",",
    "\t",
    '"',
    '""',
    "\n",
    "\r",
    "%",
    "1.234,5",
    "1,234.5",
    "0,5",
    "50%",
    "50 %",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-",
    "\x00",
    "ms",
    "µ",
    "=1",
    "9" * 400,
    "0x10",
    "1_0",
    "'",
    "full cache",
    "dense",
)


@dataclass
class Tally:
    """What became of one reader's inputs."""

    tried: int = 0
    refused: int = 0
    slowest: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)


class Maker:
    """Random changes to valid input, from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, node: Any, depth: int = 0) -> Any:
        """A tree of plain data with some of its values replaced, keys lost, renamed or doubled."""
        roll = self.rng.random
        if roll() < (0.04 if depth else 0.01):
            return self.rng.choice(ODD)
        if isinstance(node, dict):
            items = [(key, self.value(value, depth + 1)) for key, value in node.items() if roll() > 0.02]
            if roll() < 0.05:
                items.append(
                    (self.rng.choice(["", "x", "a.b", "\x00", *map(str, node)]), self.rng.choice(ODD))
                )
            return dict(items)
        if isinstance(node, list):
            found = [self.value(value, depth + 1) for value in node if roll() > 0.02]
            return found * 2 if roll() < 0.02 else found
        if isinstance(node, int | float) and roll() < 0.1:
            return self.rng.choice([-node, node * 10**9, str(node), node + 0.5, [node]])
        return node

    def text(self, text: str, pieces: tuple[str, ...]) -> str:
        """A text with pieces put in, cut out, doubled or exchanged."""
        for _ in range(self.rng.randint(1, 4)):
            at, end = sorted(self.rng.randrange(len(text) + 1) for _ in range(2))
            end = min(end, at + 40)
            text = self.rng.choice(
                [
                    text[:at] + self.rng.choice(pieces) + text[at:],
                    text[:at] + text[end:],
                    text[:end] + text[at:],
                    text[:at] + self.rng.choice(pieces) + text[end:],
                ]
            )
        return text

    def bytes(self, content: bytes) -> bytes:
        """Content with bytes changed, lost or put in."""
        changed = bytearray(content)
        for _ in range(self.rng.randint(1, 12)):
            at = self.rng.randrange(len(changed) + 1)
            match self.rng.randrange(4):
                case 0:
                    changed[at : at + 1] = self.rng.randbytes(1)
                case 1:
                    del changed[at : at + self.rng.randint(1, 30)]
                case 2:
                    changed[at:at] = self.rng.randbytes(self.rng.randint(1, 8))
                case _:
                    changed[at : at + 8] = self.rng.choice([b"\0" * 8, b"\xff" * 8, b"[{\"'&!*", b"PAR1PAR1"])
        return bytes(changed)


@dataclass(frozen=True)
class Reader:
    """How input is made and read, and which exceptions are a refusal."""

    make: Callable[[Maker], bytes]
    read: Callable[[bytes, Path], None]
    refusals: tuple[type[BaseException], ...]


def make_sweep(maker: Maker) -> bytes:
    text = maker.rng.choice(SWEEPS)
    if maker.rng.random() < 0.5:
        buffer = io.StringIO()
        with contextlib.suppress(Exception):  # what cannot be written as YAML is no input
            YAML(typ="safe").dump(maker.value(YAML(typ="safe").load(text)), buffer)
            text = buffer.getvalue() or text
    else:
        text = maker.text(text, YAML_PIECES)
    content = text.encode("utf-8", "surrogatepass")
    return maker.bytes(content) if maker.rng.random() < 0.3 else content


def read_sweep(content: bytes, folder: Path) -> None:
    """The file, then its first lines as options; a sweep that is understood is planned where that is
    cheap."""
    (folder / "sweep.yaml").write_bytes(content)
    for line in content.decode("utf-8", "replace").splitlines()[:3]:
        with contextlib.suppress(SweepError):
            load_spec("default", [line.replace(": ", "=", 1)])
    spec = load_spec(str(folder / "sweep.yaml"))
    few = sum(len(getattr(spec, axis)) for axis in FIELDS) < 40
    if few and {ref.name for ref in spec.models} == {"reference-neox"} and spec.datasets == ["pydocs"]:
        make_plan(spec, "cpu")


RUN: dict[str, Any] = {
    "run_id": "r",
    "name": "n",
    "started_at": "2026-01-01T00:00:00+00:00",
    "resumed_at": ["t"],
    "kvsweep_version": "0.1.0",
    "protocol_version": 1,
    "schema_version": 1,
    "spec": {"name": "n"},
    "argv": ["kvsweep", "run"],
    "code_digest": "d",
    "seed": 0,
    "git": {"commit": "abc", "dirty": False},
    "versions": {"torch": "2"},
    "notes": ["n"],
    "hardware": {"platform": "p", "cpu": "c", "cpu_count": 2, "memory_bytes": 2**30, "gpus": ["g"]},
    "models": [
        {
            "name": "m",
            "revision": "r",
            "layers": 6,
            "context": 2048,
            "bos": False,
            "positions": {"kind": "rotary"},
        }
    ],
    "datasets": [{"name": "d", "fingerprint": "f", "model": "m", "tokens": 9, "special_tokens_spelled": 0}],
    "planned": {"perplexity": 2},
    "planned_rows": {"perplexity": 4},
    "dropped": [{"reason": "r", "count": 1}],
}


def make_run_json(maker: Maker) -> bytes:
    content = json.dumps(maker.value(RUN)).encode()
    return maker.bytes(content) if maker.rng.random() < 0.4 else content


def read_run_json(content: bytes, folder: Path) -> None:
    """The reader, and what status and report make of what it lets through."""
    parsed(content, "run.json")
    (folder / "run.json").write_bytes(content)
    if not (folder / "cells.parquet").exists():
        pl.DataFrame(schema=COLUMNS).write_parquet(folder / "cells.parquet")
    status_lines(RunStore(str(folder)))
    for run in load([str(folder)]).runs:
        facts(run)


TABLES = ("perplexity", "generation", "retrieval", "tasks", "failures")
ROW: dict[str, Any] = {
    "cell_id": "c",
    "dense_cell_id": "d",
    "policy": "knorm",
    "keep_ratio": 0.5,
    "model": "m",
    "dataset": "t",
    "window_index": 0,
}


def make_part(maker: Maker) -> bytes:
    """A table's name in the first line, then a part: values of any kind in any column, columns lost or of
    other types, bytes."""
    task = maker.rng.choice(TABLES)
    wanted = schema(task)
    rows = [
        {name: _filled(maker, name, kind) for name, kind in wanted.items()}
        for _ in range(maker.rng.randint(1, 4))
    ]
    frame = pl.DataFrame(to_arrow(task, rows))
    if maker.rng.random() < 0.3:
        name = maker.rng.choice(frame.columns)
        kind = maker.rng.choice(
            [pl.String, pl.Float32, pl.Int64, pl.Int8, pl.Boolean, pl.List(pl.Int32), pl.Null, pl.UInt32]
        )
        frame = (
            frame.drop(name)
            if maker.rng.random() < 0.4
            else frame.with_columns(pl.lit(None, kind).alias(name))
        )
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    content = buffer.getvalue()
    return f"{task}\n".encode() + (maker.bytes(content) if maker.rng.random() < 0.4 else content)


def _filled(maker: Maker, name: str, kind: pl.DataType) -> Any:
    """A value of a column: a usual one, an odd one of its type, or none."""
    roll = maker.rng.random()
    if roll < 0.3:
        return ROW.get(name)
    if roll < 0.4:
        return None
    if kind == pl.String:
        return maker.rng.choice(["c", "d", "dense", "knorm", "passkey", "acc", "", "\x00", "<b>", "x" * 500])
    if kind == pl.Boolean:
        return maker.rng.random() < 0.5
    if isinstance(kind, pl.List):
        return [_number(maker, kind.inner) for _ in range(maker.rng.randint(0, 4))]
    return _number(maker, kind)


def _number(maker: Maker, kind: Any) -> float | int | None:
    if kind.is_integer():
        return maker.rng.choice([0, 1, 2, 64, 512, -1, 2**31 - 1, -(2**31)])
    return maker.rng.choice(
        [0.0, 0.5, 1.0, 7.25, -1.0, 1e30, -1e30, float("nan"), float("inf"), -float("inf"), 1e-300]
    )


def read_part(content: bytes, folder: Path) -> None:
    """Checks, status and the whole report of a run that holds the part; then what a resumed run sets
    aside."""
    task, _, part = content.partition(b"\n")
    name = f"{task.decode()}/part.parquet"
    for known in TABLES:
        shutil.rmtree(folder / known, ignore_errors=True)
    (folder / name).parent.mkdir()
    (folder / name).write_bytes(part)
    (folder / "run.json").write_text(json.dumps(RUN | {"planned": dict.fromkeys(TABLES[:4], 2)}))
    cells = {"task": [task.decode()], "cell_id": ["c"], "rows": [2], "never_prunes": [False]}
    pl.DataFrame(cells, schema=COLUMNS).write_parquet(folder / "cells.parquet")
    store = RunStore(str(folder))
    try:
        status_lines(store)
        contents(load([str(folder)]), 0.01, with_audit=True)
    finally:
        store.set_aside_unreadable(task.decode(), thorough=True)
        for known in TABLES:
            store.scan(known).collect()


CONFIG: dict[str, Any] = json.loads((MODEL / "config.json").read_text())


def make_config(maker: Maker) -> bytes:
    content = json.dumps(maker.value(CONFIG)).encode()
    return maker.bytes(content) if maker.rng.random() < 0.3 else content


def read_config(content: bytes, folder: Path) -> None:
    """The model's folder, and a plan of it."""
    if not (folder / "model").exists():
        shutil.copytree(MODEL, folder / "model")
    (folder / "model" / "config.json").write_bytes(content)
    find_model(str(folder / "model"), None)
    sweep = f"name: t\nmodels: ['{folder / 'model'}']\ndatasets: [pydocs]\nkeep_ratios: [0.5]\n"
    sweep += "prune_after: [64]\nperplexity: {window: 128}\n"
    (folder / "sweep.yaml").write_text(sweep)
    make_plan(load_spec(str(folder / "sweep.yaml")), "cpu")


CSV = (
    "policy,keep_ratio,ppl,ttft,total,cache_tokens,tokens,samples\n"
    "dense,1.0,7.41,0.5,1.3,512,512,10\nknorm,0.5,7.90,0.45,1.2,256,512,10\n"
)


def make_table(maker: Maker) -> bytes:
    text = CSV.replace(",", maker.rng.choice([",", ";", "\t"])) if maker.rng.random() < 0.3 else CSV
    text = maker.text(text, CSV_PIECES)
    content = text.encode(maker.rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
    return maker.bytes(content) if maker.rng.random() < 0.3 else content


def read_table(content: bytes, folder: Path) -> None:
    (folder / "table.csv").write_bytes(content)
    describe(str(folder / "table.csv"))


READERS = {
    "sweep file": Reader(make_sweep, read_sweep, (SweepError,)),
    "run.json": Reader(make_run_json, read_run_json, (RunUnreadableError, PlaceError, *STORE_ERRORS)),
    "parts": Reader(make_part, read_part, (RunUnreadableError,)),
    "config.json": Reader(make_config, read_config, (ModelError, SweepError)),
    "foreign table": Reader(make_table, read_table, (TableError,)),
}


def inputs(reader: Reader, seed: int, seconds: float, most: int | None) -> Iterator[tuple[int, bytes]]:
    """Numbered inputs until the time, or their number, is over."""
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends and (most is None or number < most):
        yield number, reader.make(Maker(seed + number))
        number += 1


def fuzz(
    name: str, seed: int, seconds: float, slowest: float, keep: Path | None = None, most: int | None = None
) -> Tally:
    """Try one reader; findings are named by their exception and the last line of ours that raised it."""
    reader, tally = READERS[name], Tally()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, content in inputs(reader, seed, seconds, most):
            started, tally.tried, finding = time.monotonic(), tally.tried + 1, None
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    reader.read(content, folder)
            except reader.refusals as error:
                tally.refused += 1
                finding = None if str(error).strip() else "a refusal without words"
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                finding = f"{type(error).__name__} at {_ours(error)}: {' '.join(str(error).split())[:100]}"
            took = time.monotonic() - started
            tally.slowest = max(tally.slowest, took)
            finding = finding or (f"slower than {slowest:g} s" if took > slowest else None)
            if finding:
                tally.findings[finding] += 1
                if keep and tally.findings[finding] == 1:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name.replace(' ', '-')}-{seed + number}").write_bytes(content)
    return tally


def _ours(error: BaseException) -> str:
    """The innermost line of this project in a traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if str(ROOT) in frame.filename and ".venv" not in frame.filename
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def main() -> int:
    """Print a line for each reader."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz"), help="where inputs of findings go (default: fuzz)"
    )
    given = parser.parse_args()
    chosen = given.reader or list(READERS)

    print(f"{'reader':<14} {'inputs':>8} {'refused':>8} {'slowest s':>10} {'findings':>9}")
    found = 0
    for name in chosen:
        tally = fuzz(name, given.seed, given.minutes * 60 / len(chosen), given.slowest, given.keep)
        print(
            f"{name:<14} {tally.tried:>8} {tally.refused:>8} {tally.slowest:>10.2f}"
            f" {tally.findings.total():>9}",
            flush=True,
        )
        for finding, count in tally.findings.most_common():
            print(f"    {count} x {finding}")
        found += tally.findings.total()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
