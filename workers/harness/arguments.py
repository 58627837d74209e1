"""Arguments of the harness's model ``kvsweep``, checked:
what it does not know or what is of another kind is refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from workers.harness.tasks import HarnessError
from workers.models.bos import Bos
from workers.policies.settings import PruneSettings
from workers.policies.skip_rule import AUTO, Skip, checked_rule

DTYPES = ("float32", "bfloat16", "float16")
AUTO_BATCH = 16
"""What ``batch_size=auto`` means where no ``max_batch_size`` is given; a batch that is too large for the
memory is halved."""
PRUNING = tuple(each.name for each in fields(PruneSettings))


@dataclass(frozen=True)
class Arguments:
    """What ``--model_args`` and the harness's own options say."""

    pretrained: str
    settings: PruneSettings = field(default_factory=PruneSettings)
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 1
    """Contexts that go through the model together; figures do not depend on it."""
    max_length: int | None = None
    """Tokens of context and continuation at most; the model's own limit where left out."""
    bos: Bos = "auto"


KINDS: dict[str, Any] = {
    "pretrained": str, "revision": str | int, "trust_remote_code": bool, "dtype": str, "device": str,
    "batch_size": int | str, "max_batch_size": int, "max_length": int, "policy": str,
    "keep_ratio": float | int, "prune_after": int, "skip_layers": int | str | list | tuple,
    "protect_sink": int, "protect_recent": int, "schedule": str, "position_mode": str, "seed": int,
    "bos": str,
}  # fmt: skip
"""Argument -> what it may be, as the harness's parser leaves it."""


def parse(given: Mapping[str, Any], options: Mapping[str, Any]) -> Arguments:
    """Arguments from ``--model_args`` (``given``) and from what the harness passes besides:
    device, batch_size, max_batch_size.

    ``given`` goes before. Raises HarnessError with what is wrong and what is allowed.
    """
    values = {
        **{k: v for k, v in options.items() if v is not None},
        **{k: v for k, v in given.items() if v is not None},
    }
    for name, value in values.items():
        _check(name, value)
    if "pretrained" not in values:
        raise HarnessError(
            "pretrained is required: an embedded model (reference-neox), a folder or a name on the hub"
        )
    pruning = {name: values[name] for name in PRUNING if name in values}
    pruning["skip_layers"] = layers(values.get("skip_layers", ()))
    try:
        settings = PruneSettings(**pruning)
    except ValueError as error:
        raise HarnessError(str(error)) from error
    _check_protection(settings)
    dtype = values.get("dtype", "float32")
    if dtype not in DTYPES:
        raise HarnessError(f"dtype must be one of {', '.join(DTYPES)} (got {dtype!r})")
    bos: Any = values.get("bos", "auto")
    if bos not in get_args(Bos):
        raise HarnessError(f"bos must be one of {', '.join(get_args(Bos))} (got {bos!r})")
    trust_remote_code = values.get("trust_remote_code", False)  # as the user said
    return Arguments(
        pretrained=values["pretrained"],
        settings=settings,
        revision=str(values["revision"]) if "revision" in values else None,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=values.get("device", "cpu"),
        batch_size=_batch_size(values.get("batch_size", 1), values.get("max_batch_size")),
        max_length=values.get("max_length"),
        bos=bos,
    )


def layers(value: int | str | list[Any] | tuple[Any, ...]) -> Skip:
    """``0``, ``0+1``, a list of layers or ``auto:k``. Raises HarnessError for anything else."""
    if isinstance(value, str) and value.startswith(AUTO[:-1]):
        try:
            return checked_rule(value)
        except ValueError as error:
            raise HarnessError(f"skip_layers {error}") from error

    if isinstance(value, str):
        items: Sequence[Any] = value.split("+")
    else:
        items = value if isinstance(value, list | tuple) else [value]
    numbers = [str(item).strip() for item in items]
    if not all(number.isdecimal() for number in numbers):
        raise HarnessError(
            "skip_layers must be layers joined by +, such as 0+1, or a list such as [0,1], or auto:2 (got "
            f"{value!r})"
        )
    return tuple(sorted({int(number) for number in numbers}))


def _check(name: str, value: Any) -> None:
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HarnessError(f"kvsweep knows no argument {name!r}; {hint}it takes {', '.join(KINDS)}")
    kinds = get_args(KINDS[name]) or (KINDS[name],)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise HarnessError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)} (got {value!r})")


def _check_protection(settings: PruneSettings) -> None:
    """Refuse protected entries for which a prune has no room, as planning a sweep does."""
    first, kept = settings.budget.next_event(0), settings.budget.first_kept(1)
    if first is None or kept is None:
        return
    if settings.protect_sink + settings.protect_recent > kept:
        raise HarnessError(
            f"protect_sink + protect_recent exceed the {kept} entries that a prune at {first} keeps"
        )


def _batch_size(given: int | str, largest: int | None) -> int:
    if isinstance(given, str) and given.startswith("auto"):
        return largest or AUTO_BATCH
    if not str(given).isdecimal() or int(given) < 1:
        raise HarnessError(f"batch_size must be a number from 1 on, or auto (got {given!r})")
    return int(given)
