"""Seeded schedules of kills against real runs: afterwards every row must be there once, with the bits of an
undisturbed run.

    python -m tests.chaos.schedules --seeds 40 [--first 0]

runs that many and prints a table; benchmarks/results/chaos.txt keeps one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.command import ROOT

SWEEP = """\
name: chaos
models: [reference-neox]
datasets: [pydocs]
devices: [cpu]
policies: [knorm, random, streaming, h2o]
keep_ratios: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
prune_after: [64, 128, 192, 256]
perplexity: {window: 384, stride: 384, windows: 4}
retrieval:
  {kinds: [passkey], context_tokens: [256], depths: [0.5], questions: 2, prune_after: [64], policies: [knorm]}
"""
TASKS = ("perplexity", "retrieval")
SECONDS = (0.5, 20.0)
"""After the start of the driver, in which a kill happens: its plan, Ray's start, its units, its report."""
UNIT_TIMEOUT = 25.0
TURNS = 12
"""Drivers that may follow each other before a schedule counts as one that never ends."""


@dataclass(frozen=True)
class Kill:
    """One blow: after how many seconds of a driver's life, at what."""

    after: float
    what: str


KINDS = {
    "worker": 4,
    "hung worker": 1,
    "raylet": 2,
    "hung raylet": 1,
    "head": 2,
    "driver": 4,
    "interrupt": 1,
    "terminate": 1,
    "part": 2,
}
"""What is hit, and how often among others."""


def schedule(seed: int) -> list[list[Kill]]:
    """Blows for each driver's turn; turns after the last are left in peace."""
    rng = random.Random(seed)
    drivers = rng.randint(1, 3)
    turns = [
        [Kill(round(rng.uniform(*SECONDS), 2), _kind(rng)) for _ in range(rng.randint(1, 3))]
        for _ in range(drivers)
    ]
    return [sorted(turn, key=lambda kill: kill.after) for turn in turns]


def _kind(rng: random.Random) -> str:
    return rng.choices(list(KINDS), list(KINDS.values()))[0]


@dataclass
class Outcome:
    """What a schedule did, and what came of it."""

    landed: Counter[str] = field(default_factory=Counter)
    """Blows that met something."""
    statuses: list[int] = field(default_factory=list)
    """Exit status of each driver."""
    faults: list[str] = field(default_factory=list)
    """What was wrong afterwards: nothing, one hopes."""
    recorded: int = 0
    """Cells that were recorded as failed by some turn and done by a later one."""


def command(sweep: Path, out: Path) -> list[str]:
    """The run as a user starts it."""
    options = ["--out", str(out), "--address", "local", "--threads", "1", "--unit-timeout", str(UNIT_TIMEOUT)]
    return [sys.executable, "-m", "pipeline.sweep", str(sweep), *options]


def undisturbed(folder: Path) -> tuple[Path, Path]:
    """The sweep file and the directory of a run that nobody disturbs."""
    sweep, out = folder / "sweep.yaml", folder / "undisturbed"
    sweep.write_text(SWEEP)
    done = subprocess.run(
        command(sweep, out), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return sweep, out


def run(seed: int, sweep: Path, whole: Path, out: Path) -> Outcome:
    """One schedule to its end, and the comparison."""
    outcome = Outcome()
    blows = schedule(seed)
    for turn in range(TURNS):
        status = _one_driver(command(sweep, out), out, blows[turn] if turn < len(blows) else [], outcome)
        outcome.statuses.append(status)
        if status == 0 and turn >= len(blows) - 1:
            break
    else:
        outcome.faults.append(f"not done after {TURNS} drivers")
    if outcome.statuses[-1] == 0:
        outcome.faults += differences(whole, out)
    return outcome


def _one_driver(command: list[str], out: Path, blows: list[Kill], outcome: Outcome) -> int:
    begin = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        own = psutil.Process(process.pid)
        relatives: set[psutil.Process] = set()
        queue = list(blows)
        while process.poll() is None:
            relatives.update(_descendants(own))
            if queue and time.monotonic() - begin >= queue[0].after:
                what = queue[0].what
                if _strike(what, own, out):  # else its target is yet to come
                    outcome.landed[what] += 1
                    queue.pop(0)
            if time.monotonic() - begin > 240:
                outcome.faults.append("a driver did not end within 240 s")
                process.kill()
            time.sleep(0.05)
        _end(relatives)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    status = process.returncode
    if status in (0, 1, 2, 130) and "Traceback" in text:
        outcome.faults.append(f"a traceback on stderr: {text[text.index('Traceback') :][:600]}")
    if status == 2:
        outcome.faults.append(f"refused: {text[-600:]}")
    return status


def _descendants(own: psutil.Process) -> list[psutil.Process]:
    try:
        return own.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(processes: set[psutil.Process]) -> None:
    """What a driver that was killed left behind; a machine's next driver must not share the cores with it."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


def _strike(what: str, own: psutil.Process, out: Path) -> bool:
    """Deliver a blow; False where there was nothing to hit yet."""
    if what == "part":
        return _damage(out)
    own_signals = {"driver": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
    if what in own_signals:
        os.kill(own.pid, own_signals[what])
        return True
    names = {"worker": "ray::WorkerActor", "raylet": "raylet", "head": "gcs_server"}
    wanted = names[what.removeprefix("hung ")]
    found = [process for process in _descendants(own) if _is_called(process, wanted)]
    if not found:
        return False
    found[0].send_signal(signal.SIGSTOP if what.startswith("hung") else signal.SIGKILL)
    return True


def _is_called(process: psutil.Process, name: str) -> bool:
    try:
        return process.name().startswith(name) or " ".join(process.cmdline()).startswith(name)
    except psutil.Error:
        return False


def _damage(out: Path) -> bool:
    """Cut off the end of a stored part, as a disk that fails or a copy that breaks off would."""
    parts = sorted(out.glob("*/*.parquet"))
    if not parts:
        return False
    part = parts[len(parts) // 2]
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    return True


def differences(whole: Path, out: Path) -> list[str]:
    """Rows that are missing, doubled or of other bits than those of the undisturbed run."""
    import polars as pl

    from pipeline.store.schema import ROW_KEYS

    faults = []
    for task in TASKS:
        keys = ["cell_id", *ROW_KEYS[task]]
        own = [
            name
            for name in pl.read_parquet_schema(next((whole / task).glob("*.parquet")))
            if name not in ("run_id", "seconds")
        ]
        a, b = (
            pl.read_parquet(folder / task / "*.parquet").select(own).sort(keys) for folder in (whole, out)
        )
        if a.select(keys).equals(b.select(keys)):
            faults += [
                f"{task}.{name} differs" for name in own if not a[name].equals(b[name], null_equal=True)
            ]
        else:
            faults.append(
                f"{task}: {b.height} rows, {b.select(keys).n_unique()} different, {a.height} wanted"
            )
    left = [name for name in os.listdir(out) if name.startswith("driver")]
    return faults + ([f"left behind: {left}"] if left else [])


def main() -> None:
    """Run many schedules and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    landed: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="chaos") as name:
        folder = Path(name)
        sweep, whole = undisturbed(folder)
        for seed in range(given.first, given.first + given.seeds):
            begin = time.monotonic()
            outcome = run(seed, sweep, whole, folder / f"run{seed}")
            landed += outcome.landed
            statuses += Counter(outcome.statuses)
            bad += bool(outcome.faults)
            line = {
                "seed": seed,
                "blows": dict(outcome.landed),
                "statuses": outcome.statuses,
                "faults": outcome.faults,
            }
            print(json.dumps(line), f"{time.monotonic() - begin:.0f} s", flush=True)
    print(
        f"{given.seeds} schedules, {sum(landed.values())} blows landed ({dict(landed)}),"
        f" {sum(statuses.values())} drivers"
    )
    print(
        f"exit statuses: {dict(statuses)}; schedules whose rows were not those of an undisturbed run, each"
        f" once: {bad}"
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
