"""What a sweep file may say: its keys, their types and
defaults, and the filters that choose cells of its grid."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WrapValidator,
    model_validator,
)

from workers.corpora.entry import DatasetEntry, Documents
from workers.models.bos import Bos
from workers.policies.policy_files import PATTERN
from workers.policies.settings import POLICY_NAMES
from workers.policies.skip_rule import checked_rule
from workers.texts.sampling import Sample
from workers.texts.text_tokens import SpecialTokens

T = TypeVar("T")


class _Strict(BaseModel):
    """A block of a sweep file: no unknown keys, no values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _no_duplicates(values: list[Any]) -> list[Any]:
    """The values as they are. Raises ValueError where one is listed twice."""
    seen = [json.dumps(v.model_dump() if isinstance(v, BaseModel) else v) for v in values]
    twice = sorted(value for value, count in Counter(seen).items() if count > 1)
    if twice:
        raise ValueError(f"listed twice: {', '.join(twice[:20])}{', ...' if len(twice) > 20 else ''}")
    return values


def _policy(name: str) -> str:
    if name in POLICY_NAMES or PATTERN.fullmatch(name):
        return name
    raise ValueError(f"must be one of {', '.join(POLICY_NAMES)}, or module:function of your own")


Axis = Annotated[list[T], Field(min_length=1), AfterValidator(_no_duplicates)]
"""A list of which each value makes cells of its own."""

Policy = Annotated[str, AfterValidator(_policy)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Schedule = Literal["every_step", "prefill_once", "constant"]
PositionMode = Literal["absolute", "cache_length"]

_LAYERS = TypeAdapter(list[NonNegative])


def _rule_or_layers(value: Any, _: Any) -> list[int] | str:
    """A text as a rule, whatever else as a list of layers, so that a fault is told of the one that was
    meant."""
    return checked_rule(value) if isinstance(value, str) else _LAYERS.validate_python(value, strict=True)


SkipLayers = Annotated[list[int] | str, WrapValidator(_rule_or_layers)]
"""Layers, or ``auto:k``: the k layers in which the model's key norm and attention go together most."""

FIELDS = {
    "policies": "policy",
    "keep_ratios": "keep_ratio",
    "prune_after": "prune_after",
    "skip_layers": "skip_layers",
    "protect_recent": "protect_recent",
    "protect_sink": "protect_sink",
    "schedules": "schedule",
    "position_modes": "position_mode",
}
"""Axis of a sweep file -> the field of a cell that holds its value."""

AXES = {name: axis for axis, name in FIELDS.items()}
"""Field of a cell -> the axis that lists its values."""


def cell_value(axis: str, value: Any) -> Any:
    """A listed value as cells hold it: layers in any order,
    or named twice, are the same layers; a rule is a text."""
    return tuple(sorted(set(value))) if axis == "skip_layers" and not isinstance(value, str) else value


class CellFilter(_Strict):
    """Values on some axes of the grid; an axis that is left out allows all of its values."""

    policies: list[Policy] | None = None
    keep_ratios: list[Ratio] | None = None
    prune_after: list[Count] | None = None
    skip_layers: list[SkipLayers] | None = None
    protect_recent: list[NonNegative] | None = None
    protect_sink: list[NonNegative] | None = None
    schedules: list[Schedule] | None = None
    position_modes: list[PositionMode] | None = None

    def named(self) -> dict[str, list[Any]]:
        """The axes that are named and their values, as cells hold them."""
        given = {axis: getattr(self, axis, None) for axis in FIELDS}
        return {
            axis: [cell_value(axis, v) for v in values]
            for axis, values in given.items()
            if values is not None
        }


class Exclusion(CellFilter):
    """A block of ``exclude``: combinations that match it are left out of the grid. It must be able to match,
    but not all."""

    @model_validator(mode="after")
    def _excludes_something_but_not_all(self) -> Exclusion:
        named = self.named()
        if not named:
            raise ValueError(
                f"names no axis and would exclude everything; name at least one of {', '.join(FIELDS)}"
            )
        empty = [axis for axis, values in named.items() if not values]
        if empty:
            raise ValueError(
                f"{empty[0]} is empty, so the block would exclude nothing; list values or leave it out"
            )
        return self


class ModelRef(_Strict):
    """A model by embedded name, local path, or hub name and revision."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False
    """Whether Python files that come with this model may run, with your rights."""
    allow_pickle: bool = False
    """Whether weights of this model may be read from formats that can run code."""


ModelEntry = Annotated[ModelRef, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class DatasetRef(_Strict):
    """A dataset by name or path, and how it is read."""

    name: Annotated[str, Field(min_length=1)]
    column: Annotated[str, Field(min_length=1)] | None = None
    """The column of text, where rows have several."""
    sample: Sample = "spread"
    """Whether windows and prompts are spread evenly over the
    texts, are their first, or are drawn by chance (``seed``)."""
    documents: Documents = "separate"
    """Whether rows and files are documents that no window crosses, or one text with blank lines between
    them."""

    @property
    def entry(self) -> DatasetEntry:
        """As it is asked for where it is read."""
        return DatasetEntry(self.name, self.column, self.sample, self.documents)


DatasetList = Annotated[
    list[Annotated[DatasetRef, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]],
    AfterValidator(_no_duplicates),
]
Protocols = Annotated[
    Axis[Literal["interleaved", "report_2025"]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
]
"""One name, or a list of them."""


class PerplexityTask(CellFilter):
    """Sliding windows, ``stride`` as long as ``window`` unless given; ``windows`` is how many at most are
    scored per dataset.

    The filters restrict it to some cells of the grid.
    """

    @model_validator(mode="before")
    @classmethod
    def _stride_is_the_window(cls, given: Any) -> Any:
        return (
            {"stride": given["window"], **given} if isinstance(given, dict) and "window" in given else given
        )

    window: Annotated[int, Field(ge=2)] = 1024
    stride: Count = 1024
    windows: Count = 8


class GenerationTask(CellFilter):
    """Timed greedy decoding in rounds; the filters restrict it
    to some cells of the grid, all of them where left out.

    At least ``repeats`` rounds, and more, up to ``max_repeats``, until the 95 % interval
    of every ratio of time per output token is narrower than ``interval_width``. Each
    ``protocol`` makes cells of its own, which take turns among themselves alone;
    ``report_2025`` is a wrong one, kept to show what it made of the same runs.
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

    prompt_tokens: Axis[Count] = [512]
    batch_sizes: Axis[Count] = [1]
    new_tokens: Annotated[int, Field(ge=2)] = 64
    repeats: Annotated[int, Field(ge=5, le=10_000)] = 7
    max_repeats: Annotated[int, Field(ge=5, le=10_000)] = 15
    interval_width: Annotated[float, Field(gt=0, le=1)] = 0.05
    warmup: NonNegative = 2
    protocol: Protocols = ["interleaved"]


class RetrievalTask(CellFilter):
    """Passkey and needle questions per length and depth; the filters restrict them to some cells of the
    grid."""

    kinds: Axis[Literal["passkey", "needle"]] = ["passkey"]
    context_tokens: Axis[Count] = [512]
    depths: Axis[Annotated[float, Field(ge=0, le=1)]] = [0.1, 0.5, 0.9]
    questions: Count = 20
    """Per kind, length, depth, number of digits and number of distractors."""
    digits: Axis[Annotated[int, Field(ge=2, le=12)]] = [5]
    distractors: Axis[Annotated[int, Field(ge=0, le=60)]] = [0]
    """Facts of the same form that nobody asks for. With as many as there are
    depths less one, the needle questions about every depth ask about one
    document, which saves its prefill where ``question_pruned`` is false."""
    question_pruned: Axis[bool] = [True]
    """Whether the question goes through with the context before the first check, or after the context was
    pruned and kept whole; each makes cells of its own."""


class HarnessTask(CellFilter):
    """Tasks of EleutherAI's lm-evaluation-harness by name;
    each makes cells of its own, whatever the ``datasets``."""

    tasks: Axis[Annotated[str, Field(min_length=1)]]
    limit: Count | None = None
    """Documents of each task, from its start; all where left out."""
    num_fewshot: NonNegative | None = None
    """Examples before each document; as the task says where left out."""
    include_path: str | None = None
    """A folder with task definitions of your own; they can run code, with your rights."""


class SweepSpec(_Strict):
    """A whole sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    models: Axis[ModelEntry]
    datasets: DatasetList = []
    devices: Axis[Literal["auto", "cpu", "cuda", "mps"]] = ["auto"]
    dtypes: Axis[Literal["float32", "bfloat16", "float16"]] = ["float32"]
    policies: Axis[Policy] = ["knorm"]
    keep_ratios: Axis[Ratio]
    prune_after: Axis[Count] = [512]
    skip_layers: Axis[SkipLayers] = [[]]
    protect_recent: Axis[NonNegative] = [0]
    protect_sink: Axis[NonNegative] = [0]
    schedules: Axis[Schedule] = ["every_step"]
    position_modes: Axis[PositionMode] = ["absolute"]
    exclude: list[Exclusion] = []
    """Combinations that match any of these blocks are no cells,
    as in the matrix of a CI service; dense cells always are."""
    perplexity: PerplexityTask | None = None
    generation: GenerationTask | None = None
    retrieval: RetrievalTask | None = None
    lm_eval: HarnessTask | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    bos: Bos = "auto"
    """Whether each text, prompt and document begins with BOS: as the model's own tokenizer has it, or
    whatever it has."""
    special_tokens_in_text: SpecialTokens = "literal"
    """Whether special tokens that a dataset spells are letters, as all text is, or the tokens of that
    name."""
    allow_beyond_context: bool = False
    """Also texts longer than a model was trained on; such cells are marked and enter no aggregate."""


BLOCKS: dict[str, type[BaseModel]] = {
    "models": ModelRef,
    "datasets": DatasetRef,
    "exclude": Exclusion,
    "perplexity": PerplexityTask,
    "generation": GenerationTask,
    "retrieval": RetrievalTask,
    "lm_eval": HarnessTask,
}
"""The keys whose values have keys of their own, or are lists of such."""
