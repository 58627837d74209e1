"""Bad input of every kind: what is asked for, and how the command refuses it, word for word."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.golden.command import ROOT, kvsweep, unframed
from tools.golden.sweeps import TEXT

REFUSALS = "refusals.json"

GOOD = {
    "name": "refused",
    "models": "[reference-neox]",
    "datasets": f'["text:{TEXT}"]',
    "devices": "[cpu]",
    "keep_ratios": "[0.5]",
    "prune_after": "[16]",
    "perplexity": "{window: 64, stride: 64, windows: 2}",
}
"""A sweep that works, key by key."""


def sweep(**changes: str | None) -> str:
    """The good sweep's text with other values; None leaves a key out."""
    return "".join(f"{key}: {value}\n" for key, value in {**GOOD, **changes}.items() if value is not None)


@dataclass(frozen=True)
class Case:
    """A command and the files that it finds where it is started, by name."""

    arguments: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)


def bad(**changes: str | None) -> Case:
    """``kvsweep plan`` of the good sweep with wrong values."""
    return Case(("plan", "sweep.yaml"), {"sweep.yaml": sweep(**changes)})


def text(content: str | bytes) -> Case:
    """``kvsweep plan`` of a file that is no sweep."""
    return Case(("plan", "sweep.yaml"), {"sweep.yaml": content})


def run(*arguments: str, **files: str) -> Case:
    """``kvsweep run`` of the good sweep with these options; in names of files ``__`` stands for a slash."""
    named = {name.replace("__", "/"): content for name, content in files.items()}
    return Case(("run", "sweep.yaml", "--inline", *arguments), {"sweep.yaml": sweep(), **named})


RUN_OF_LATER = {
    "run_id": "0",
    "name": "x",
    "started_at": "",
    "schema_version": 10**6,
    "protocol_version": 1,
    "planned": {},
    "kvsweep_version": "99.0",
}

MANY = json.dumps(list(range(1, 4000)))

CASES: dict[str, Case] = {
    "unknown key": bad(keep_ratio="[0.5]"),
    "ratio of nothing": bad(keep_ratios="[0]"),
    "ratio above one": bad(keep_ratios="[1.2]"),
    "ratio that is a text": bad(keep_ratios='["abc"]'),
    "several faults": bad(keep_ratios="[2]", prune_after="[-1]", seed="-1"),
    "value twice": bad(keep_ratios="[0.5, 0.5]"),
    "unknown policy": bad(policies="[knorn]"),
    "module that is not there": bad(policies='["none_such:score"]'),
    "layer that is not there": bad(skip_layers="[[99]]"),
    "rule that is none": bad(skip_layers='["auto:0"]'),
    "rule of every layer": bad(skip_layers='["auto:99"]'),
    "excluded value of no axis": bad(exclude="[{keep_ratios: [0.4]}]"),
    "exclusion of everything": bad(exclude="[{}]"),
    "stride beyond the window": bad(perplexity="{window: 64, stride: 65, windows: 2}"),
    "window beyond the context": bad(perplexity="{window: 9000, stride: 64, windows: 2}"),
    "fewer rounds than rounds": bad(generation="{repeats: 9, max_repeats: 8}"),
    "unknown protocol": bad(generation="{protocol: fair}"),
    "context of no room": bad(retrieval="{context_tokens: [8]}"),
    "nothing to measure": bad(perplexity=None),
    "no dataset": bad(datasets=None),
    "unknown model": bad(models="[no-such/model]"),
    "model folder of a broken file": Case(
        ("plan", "sweep.yaml"), {"sweep.yaml": sweep(models="[./broken]"), "broken/config.json": "{"}
    ),
    "text of nothing": Case(
        ("plan", "sweep.yaml"), {"sweep.yaml": sweep(datasets='["text:empty.txt"]'), "empty.txt": ""}
    ),
    "text that is not there": bad(datasets='["text:none.txt"]'),
    "harness folder that is not there": bad(lm_eval="{tasks: [x], include_path: none}"),
    "too many combinations": bad(prune_after=MANY, protect_recent=MANY),
    "open bracket": text("name: [x\n"),
    "key twice": text(sweep() + "name: y\n"),
    "two documents": text(sweep() + "---\nname: y\n"),
    "nested too deep": text(sweep() + "seed: " + "[" * 500 + "]" * 500),
    "no UTF-8": text(sweep().encode() + b"\xff\xfe"),
    "a list": text("- name\n"),
    "no such sweep": Case(("plan", "none.yaml")),
    "override without value": Case(("plan", "sweep.yaml", "--set", "seed"), {"sweep.yaml": sweep()}),
    "override of no block": Case(("plan", "sweep.yaml", "--set", "seed.x=1"), {"sweep.yaml": sweep()}),
    "unknown option": run("--inlin"),
    "no threads": run("--threads", "0"),
    "place of other files": run("--out", "mine", mine__notes="x"),
    "place that is a file": run("--out", "mine", mine="x"),
    "store of no kind": run("--out", "nosuchstore://bucket/run"),
    "broken run.json": run("--out", "mine", **{"mine__run.json": "{"}),
    "run.json of a newer version": run("--out", "mine", **{"mine__run.json": json.dumps(RUN_OF_LATER)}),
    "status of nothing": Case(("status", "none")),
    "report of a folder of others": Case(("report", "mine"), {"mine/notes": "x"}),
    "report of too large a share": Case(
        ("report", "mine", "--max-ppl-increase", "200%"), {"mine/notes": "x"}
    ),
    "table that is not there": Case(("audit", "--table", "none.csv")),
    "table of no known column": Case(("audit", "--table", "mine.csv"), {"mine.csv": "a,b\n1,2\n"}),
    "model to diagnose that is not there": Case(("diagnose", "no-such-model")),
    "model to fetch that is not there": Case(("fetch", "no-such-model")),
}


def keep_refusals(place: Path, cache: Path) -> None:
    """Ask for all of them and write down what was said."""
    said = {name: _refused(case, cache) for name, case in CASES.items()}
    (place / REFUSALS).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _refused(case: Case, cache: Path) -> dict[str, object]:
    """The command, its exit status and every line that it wrote, from a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="refused") as name:
        folder = Path(name)
        shutil.copyfile(ROOT / "LICENSE", folder / TEXT)
        for file, content in case.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        before = _files(folder)
        said = kvsweep(*case.arguments, folder=folder, cache=cache)
        left = sorted(_files(folder) ^ before)
    return {
        "command": f"kvsweep {' '.join(case.arguments)}",
        "status": said.status,
        "out": unframed(said.out),
        "err": unframed(said.err),
        "files made or gone": left,
    }


def _files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}
