"""SweepSpec: what a sweep file may say, strict and typed; a fault names file, line, key, value and what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from workers.policy_files import PATTERN
from workers.settings import POLICY_NAMES

EMBEDDED_SWEEPS = Path(__file__).parent / "sweeps"


class SweepError(ValueError):
    """Bad input, found before any work started; one message per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def _no_duplicates(values: list[Any]) -> list[Any]:
    seen = [json.dumps(v.model_dump() if isinstance(v, BaseModel) else v) for v in values]
    twice = sorted({v for v in seen if seen.count(v) > 1})
    if twice:
        raise ValueError(f"listed twice: {', '.join(twice)}")
    return values


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _policy(name: str) -> str:
    if name in POLICY_NAMES or PATTERN.fullmatch(name):
        return name
    raise ValueError(f"must be one of {', '.join(POLICY_NAMES)}, or module:function of your own")


Policy = Annotated[str, AfterValidator(_policy)]


class ModelRef(_Strict):
    """A model by embedded name, local path, or hub name and revision."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
ModelEntry = Annotated[ModelRef, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class PerplexityTask(_Strict):
    """Sliding windows, ``stride`` as long as ``window`` unless given; ``windows`` is how many at most are scored per dataset."""

    @model_validator(mode="before")
    @classmethod
    def _stride_is_the_window(cls, given: Any) -> Any:
        return {"stride": given["window"], **given} if isinstance(given, dict) and "window" in given else given

    window: Annotated[int, Field(ge=2)] = 1024
    stride: Count = 1024
    windows: Count = 8


class GenerationTask(_Strict):
    """Timed greedy decoding in rounds; the filters restrict it to some cells of the grid, all of them where left out.

    At least ``repeats`` rounds, and more, up to ``max_repeats``, until the 95 % interval of every ratio of time per output token
    is narrower than ``interval_width``. ``report_2025`` is a wrong protocol, kept to show what it made of the same runs.
    """

    @model_validator(mode="before")
    @classmethod
    def _at_most_as_many_as_asked_for(cls, given: Any) -> Any:
        asked = given.get("repeats", 7) if isinstance(given, dict) else None
        return {"max_repeats": max(asked, 15), **given} if isinstance(asked, int) else given

    @model_validator(mode="after")
    def _more_are_more(self) -> GenerationTask:
        if self.max_repeats < self.repeats:
            raise ValueError(f"max_repeats {self.max_repeats} is less than repeats {self.repeats}")
        return self

    prompt_tokens: Annotated[list[Count], Field(min_length=1), AfterValidator(_no_duplicates)] = [512]
    batch_sizes: Annotated[list[Count], Field(min_length=1), AfterValidator(_no_duplicates)] = [1]
    new_tokens: Annotated[int, Field(ge=2)] = 64
    repeats: Annotated[int, Field(ge=5, le=10_000)] = 7
    max_repeats: Annotated[int, Field(ge=5, le=10_000)] = 15
    interval_width: Annotated[float, Field(gt=0, le=1)] = 0.05
    warmup: NonNegative = 2
    protocol: Literal["interleaved", "report_2025"] = "interleaved"
    policies: list[Policy] | None = None
    keep_ratios: list[Ratio] | None = None
    prune_after: list[Count] | None = None
    skip_layers: list[list[NonNegative]] | None = None


class RetrievalTask(_Strict):
    """Passkey and needle questions per length and depth."""

    kinds: Annotated[list[Literal["passkey", "needle"]], Field(min_length=1), AfterValidator(_no_duplicates)] = ["passkey"]
    context_tokens: Annotated[list[Count], Field(min_length=1), AfterValidator(_no_duplicates)] = [512]
    depths: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1), AfterValidator(_no_duplicates)] = [
        0.1,
        0.5,
        0.9,
    ]
    questions: Count = 20


class SweepSpec(_Strict):
    """A whole sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    models: Annotated[list[ModelEntry], Field(min_length=1), AfterValidator(_no_duplicates)]
    datasets: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_no_duplicates)]
    devices: Annotated[list[Literal["auto", "cpu", "cuda", "mps"]], Field(min_length=1), AfterValidator(_no_duplicates)] = [
        "auto"
    ]
    dtypes: Annotated[list[Literal["float32", "bfloat16", "float16"]], Field(min_length=1), AfterValidator(_no_duplicates)] = [
        "float32"
    ]
    policies: Annotated[list[Policy], Field(min_length=1), AfterValidator(_no_duplicates)] = ["knorm"]
    keep_ratios: Annotated[list[Ratio], Field(min_length=1), AfterValidator(_no_duplicates)]
    prune_after: Annotated[list[Count], Field(min_length=1), AfterValidator(_no_duplicates)] = [512]
    skip_layers: Annotated[list[list[NonNegative]], Field(min_length=1), AfterValidator(_no_duplicates)] = [[]]
    protect_recent: Annotated[list[NonNegative], Field(min_length=1), AfterValidator(_no_duplicates)] = [0]
    protect_sink: Annotated[list[NonNegative], Field(min_length=1), AfterValidator(_no_duplicates)] = [0]
    schedules: Annotated[list[Literal["every_step", "prefill_once"]], Field(min_length=1), AfterValidator(_no_duplicates)] = [
        "every_step"
    ]
    position_modes: Annotated[list[Literal["absolute", "cache_length"]], Field(min_length=1), AfterValidator(_no_duplicates)] = [
        "absolute"
    ]
    perplexity: PerplexityTask | None = None
    generation: GenerationTask | None = None
    retrieval: RetrievalTask | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    allow_beyond_context: bool = False
    """Also texts longer than a model was trained on; such cells are marked and enter no aggregate."""


Position = tuple[str, int, int]
"""(file or option, line, column), lines from 1; line 0 for an option."""


def load_spec(path: str | None, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep file (None: the embedded default; a bare name: an embedded sweep) and apply ``key=value`` overrides.

    Raises SweepError with one message per fault.
    """
    file = _find(path)
    try:
        document = YAML().load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SweepError([f"{file}: not UTF-8 text (byte {error.start})"]) from None
    except OSError as error:
        raise SweepError([f"{file}: cannot be read: {error.strerror}"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise SweepError([f"{where}: not valid YAML: {error.problem or error.context}"]) from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # the last three: what ruamel.yaml lets through
        raise SweepError([f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}"]) from None
    if not isinstance(document, CommentedMap):
        raise SweepError([f"{file}: a sweep file is a mapping of keys to values, like 'name: my-sweep'"])
    positions: dict[tuple[Any, ...], Position] = {}
    plain = _plain(document, (), str(file), positions)
    for override in overrides:
        _apply(plain, override, positions)
    return _validated(plain, str(file), positions)


def _find(path: str | None) -> Path:
    if path is None:
        return EMBEDDED_SWEEPS / "default.yaml"
    file = Path(path).expanduser()
    embedded = EMBEDDED_SWEEPS / f"{path}.yaml"
    if not file.exists() and "/" not in path and embedded.exists():
        return embedded
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in EMBEDDED_SWEEPS.glob("*.yaml")))
        raise SweepError([f"{path}: there is no such sweep file (embedded sweeps by name: {names})"])
    return file


def _plain(node: Any, at: tuple[Any, ...], file: str, positions: dict[tuple[Any, ...], Position]) -> Any:
    """The node as dicts and lists; remembers where each key and item stands."""
    if isinstance(node, CommentedMap):
        for key in set(node) & set(node.lc.data or ()):  # a key merged in with << has no place of its own
            line, column = node.lc.key(key)
            positions[(*at, str(key))] = (file, line + 1, column + 1)
        return {str(key): _plain(value, (*at, str(key)), file, positions) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for i in range(len(node)):
            line, column = node.lc.item(i)
            positions[(*at, i)] = (file, line + 1, column + 1)
        return [_plain(value, (*at, i), file, positions) for i, value in enumerate(node)]
    return node


def _apply(plain: dict[str, Any], override: str, positions: dict[tuple[Any, ...], Position]) -> None:
    """``a.b=value`` with a YAML value. Raises SweepError where it is malformed."""
    key, equals, text = override.partition("=")
    try:
        value = json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
    except (YAMLError, ValueError, TypeError, RecursionError):
        raise SweepError([f"--set {override}: the value is not valid YAML"]) from None
    if not equals or not key:
        raise SweepError([f"--set {override}: write key=value, like --set perplexity.windows=4"])
    path = tuple(key.split("."))
    target = plain
    for depth, parent in enumerate(path[:-1], 1):
        positions.setdefault(path[:depth], (f"--set {override}", 0, 0))
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise SweepError([f"--set {override}: {parent} is not a block of keys"])
    target[path[-1]] = value
    for replaced in [at for at in positions if at[: len(path)] == path]:
        del positions[replaced]
    positions[path] = (f"--set {override}", 0, 0)


def _validated(plain: dict[str, Any], file: str, positions: dict[tuple[Any, ...], Position]) -> SweepSpec:
    try:
        spec = SweepSpec.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        raise SweepError([_fault(fault, file, positions) for fault in error.errors()]) from None
    faults = []
    if not (spec.perplexity or spec.generation or spec.retrieval):
        faults.append(f"{file}: nothing to measure; add at least one block of perplexity, generation, retrieval")
    if spec.perplexity and spec.perplexity.stride > spec.perplexity.window:
        faults.append(
            f"{_where(('perplexity', 'stride'), file, positions)}: must be <= perplexity.window "
            f"{spec.perplexity.window} (got {spec.perplexity.stride})"
        )
    if faults:
        raise SweepError(faults)
    return spec


def _where(at: tuple[Any, ...], file: str, positions: dict[tuple[Any, ...], Position]) -> str:
    """``file:line:column: a.b.3`` of a key, or of the nearest enclosing key that has a position."""
    name = ".".join(map(str, at)) or "the file"
    for length in range(len(at), 0, -1):
        if at[:length] in positions:
            source, line, column = positions[at[:length]]
            return f"{source}:{line}:{column}: {name}" if line else f"{source}: {name}"
    return f"{file}: {name}"


def _fault(fault: Any, file: str, positions: dict[tuple[Any, ...], Position]) -> str:
    at = tuple(fault["loc"])
    where = _where(at, file, positions)
    kind, got = fault["type"], json.dumps(fault.get("input"), default=str)[:80]
    if kind == "extra_forbidden":
        known = _known_keys(at[:-1])
        near = difflib.get_close_matches(str(at[-1]), known, 1)
        return f"{where}: unknown key{f'; did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"
    if kind == "missing":
        return f"{where}: is required"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "string_pattern_mismatch":
        message = "must be letters, digits, '.', '_' and '-' only, 64 at most"
    return f"{where}: {message} (got {got})"


def _known_keys(at: tuple[Any, ...]) -> list[str]:
    blocks = {"perplexity": PerplexityTask, "generation": GenerationTask, "retrieval": RetrievalTask, "models": ModelRef}
    return list((blocks[at[0]] if at else SweepSpec).model_fields)
