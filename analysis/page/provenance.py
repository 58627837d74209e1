"""What run.json says about a run, as label and text; what an old or partial file lacks is said to be
lacking."""

from __future__ import annotations

from typing import Any

from analysis.load import Run

MISSING = "not recorded"


def facts(run: Run) -> dict[str, str]:
    """The lines of the page's head for one run. Any part of run.json may be missing or of another type."""
    info = run.info
    argv = info.get("argv")

    return {
        "run": f"{_text(info.get('run_id'))} ({_text(info.get('name'))})",
        "started": _text(info.get("started_at")) + _resumed(info),
        "models": _listed(info.get("models"), _model),
        "datasets": _listed(info.get("datasets"), _dataset),
        "hardware": _hardware(info.get("hardware")),
        "versions": _versions(info),
        "protocol": f"version {_text(info.get('protocol_version'))}, seed {_text(info.get('seed'))}",
        "code": _code(info.get("git")),
        "command": " ".join(map(str, argv)) if isinstance(argv, list) else MISSING,
        "left out at planning": _dropped(info.get("dropped")),
        "notes of the plan": _listed(info.get("notes"), str),
        "directory": run.directory,
    }


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING


def _listed(items: Any, sentence: Any) -> str:
    if not isinstance(items, list) or not items:
        return MISSING
    return "; ".join(sentence(item) if isinstance(item, dict) else str(item) for item in items)


def _model(model: dict[str, Any]) -> str:
    bos = model.get("bos")
    begins = f"texts begin {'with' if bos else 'without'} BOS" if isinstance(bos, bool) else f"BOS {MISSING}"
    stored = f", converted from {model['quantization']}" if model.get("quantization") else ""
    return (
        f"{model.get('name')} (revision {model.get('revision')}, {model.get('layers')} layers, "
        f"{begins}{stored})"
    )


def _dataset(dataset: dict[str, Any]) -> str:
    tokenizer = f" of {dataset['model']}" if dataset.get("model") else ""
    return f"{dataset.get('name')} ({_count(dataset.get('tokens'))} tokens{tokenizer})"


def _resumed(info: dict[str, Any]) -> str:
    times = info.get("resumed_at")
    return f", resumed {', '.join(map(str, times))}" if isinstance(times, list) and times else ""


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, dict) or not hardware:
        return MISSING
    gpus = hardware.get("gpus")
    listed = gpus if isinstance(gpus, list) else []
    parts = [
        hardware.get("platform"),
        hardware.get("cpu"),
        _cores(hardware),
        _memory(hardware),
        *[str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in listed],
    ]
    return ", ".join(str(part) for part in parts if part)


def _cores(hardware: dict[str, Any]) -> str:
    cores, usable = hardware.get("cpu_count"), hardware.get("usable_cpus")
    of = "" if usable in (None, cores) else f"{_text(usable)} of "
    return f"{of}{_text(cores)} cores"


def _memory(hardware: dict[str, Any]) -> str | None:
    memory, usable = hardware.get("memory_bytes"), hardware.get("usable_memory_bytes")
    if not isinstance(memory, int):
        return None
    of = f"{usable / 2**30:.1f} of " if isinstance(usable, int) and usable != memory else ""
    return f"{of}{memory / 2**30:.1f} GiB memory"


def _versions(info: dict[str, Any]) -> str:
    found = info.get("versions")
    known = found if isinstance(found, dict) else {}
    return ", ".join(
        f"{name} {version}"
        for name, version in {"kvsweep": _text(info.get("kvsweep_version")), **known}.items()
    )


def _code(git: Any) -> str:
    if not isinstance(git, dict) or not git.get("commit"):
        return MISSING
    states = {None: ", uncommitted changes not recorded", True: ", with uncommitted changes", False: ""}
    dirty = git.get("dirty")
    return f"commit {str(git['commit'])[:12]}{states[None if dirty is None else bool(dirty)]}"


def _dropped(dropped: Any) -> str:
    if not isinstance(dropped, list):
        return MISSING
    return (
        "; ".join(f"{d.get('count')} × {d.get('reason')}" for d in dropped if isinstance(d, dict))
        or "nothing"
    )
