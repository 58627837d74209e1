"""``kvsweep diagnose``: whether key norm and attention go together in a model, layer by layer, before
anything is pruned."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis.page.norm_attention import CLEAR, meaning
from pipeline.planning.resolve import find_device, resolve
from pipeline.planning.spec import printable, spec_of
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.yaml_values import YamlError, read_yaml
from workers.models.model_files import ModelError, ModelFacts

if TYPE_CHECKING:
    from workers.loaded.diagnosis import Diagnosis

DEFAULT_TOKENS = 1024


@dataclass(frozen=True)
class Request:
    """What was asked for; ``tokens`` None: 1,024, or as many as a model takes and the text has."""

    dataset: str
    tokens: int | None
    device: str
    dtype: str


@dataclass(frozen=True)
class Subject:
    """A model and the text that it reads, BOS among its tokens where its texts begin with one."""

    facts: ModelFacts
    ids: np.ndarray


def subjects(models: Sequence[str], request: Request) -> list[Subject]:
    """Models as a sweep file names them, and the beginning of the text.

    Raises SweepError with every fault found.
    """
    window = request.tokens or 2
    block = {"window": window, "stride": window, "windows": 1}
    spec = spec_of(
        {
            "name": "diagnose",
            "models": [_model(name) for name in models],
            "datasets": [request.dataset],
            "devices": [request.device],
            "dtypes": [request.dtype],
            "keep_ratios": [1.0],
            "perplexity": block,
        },
        "kvsweep diagnose",
    )
    try:
        resolved = resolve(spec, "cpu" if request.device == "auto" else request.device)
    except SweepError as error:
        words = (
            ("one perplexity window", "--tokens"),
            ("perplexity.window", "--tokens"),
            ("datasets:", "--dataset:"),
            (" (allow_beyond_context: true runs it, marked)", ""),
        )
        raise SweepError([_replaced(fault, words) for fault in error.faults]) from None

    found = []
    for name, facts in resolved.models.items():
        bos = resolved.bos[name]
        length = request.tokens or min(DEFAULT_TOKENS, facts.longest(DEFAULT_TOKENS))
        start = np.array([] if bos is None else [bos], dtype=np.int64)
        ids = resolved.tokens[name, request.dataset].beginning(length - len(start))
        found.append(Subject(facts, np.concatenate([start, ids.astype(np.int64)])))
    return found


def _model(text: str) -> Any:
    """A name, or ``{name: NAME, revision: REVISION}``.

    Raises SweepError for a mapping that cannot be read.
    """
    if not text.startswith("{"):
        return text
    try:
        return read_yaml(text).plain()
    except YamlError as error:
        way = "write NAME or '{name: NAME, revision: REVISION}', as in a sweep file"
        raise SweepError([f"{printable(text)}: is no model ({error}); {way}"]) from None


def _replaced(text: str, words: Sequence[tuple[str, str]]) -> str:
    for old, new in words:
        text = text.replace(old, new)
    return text


def diagnoses(found: Sequence[Subject], request: Request) -> Iterator[tuple[Subject, Diagnosis]]:
    """One dense pass over each. Raises SweepError where one cannot be diagnosed."""
    from workers.diagnose_model import diagnose_model

    device = find_device() if request.device == "auto" else request.device
    for subject in found:
        try:
            yield subject, diagnose_model(subject.facts, subject.ids, device, request.dtype)
        except ModelError as error:
            raise SweepError([f"models: {error}"]) from error


def print_diagnoses(models: Sequence[str], request: Request, *, as_json: bool) -> None:
    """A table and a sentence per model, or one JSON list.

    Raises SweepError; nothing is loaded before all can be found.
    """
    found = subjects(models, request)
    described = []
    for subject, diagnosis in diagnoses(found, request):
        if as_json:
            described.append(_described(subject, diagnosis, request))
            continue
        _print(subject, diagnosis, request)
    if as_json:
        print(json.dumps(described, indent=1))


def _described(subject: Subject, diagnosis: Diagnosis, request: Request) -> dict[str, Any]:
    ranks = _ranks(diagnosis)

    return {
        "model": subject.facts.name,
        "revision": subject.facts.revision,
        "dataset": request.dataset,
        "tokens": diagnosis.tokens,
        "dtype": request.dtype,
        "layers": [
            {
                "layer": i,
                "correlation": rounded,
                "heads": list(layer.correlations),
                "alr": layer.loss,
                "rank": ranks[i],
            }
            for i, (layer, rounded) in enumerate(zip(diagnosis.layers, diagnosis.rounded, strict=True))
        ],
        "layers_together": sum(rounded >= CLEAR for rounded in diagnosis.rounded),
        "skipped_first": _order(diagnosis),
        "sentence": sentence(diagnosis, request),
    }


def _order(diagnosis: Diagnosis) -> list[int]:
    """The layers in the order in which ``auto:k`` takes them."""
    return sorted(range(len(diagnosis.layers)), key=_ranks(diagnosis).__getitem__)


def _ranks(diagnosis: Diagnosis) -> list[int]:
    """Of each layer, the least k for which ``auto:k`` skips it."""
    count = len(diagnosis.layers)
    return [next(k for k in range(1, count + 1) if layer in diagnosis.worst(k)) for layer in range(count)]


def _print(subject: Subject, diagnosis: Diagnosis, request: Request) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=110)
    print(
        f"{subject.facts.name}, {request.dtype}: key norm and attention over {diagnosis.tokens} tokens of "
        f"{request.dataset}"
    )

    table = Table()
    for name in ("layer", "correlation", "least head", "greatest head", "ALR", "rank"):
        table.add_column(name, justify="right")
    ranks = _ranks(diagnosis)
    for i, (layer, rounded) in enumerate(zip(diagnosis.layers, diagnosis.rounded, strict=True)):
        heads = (f"{min(layer.correlations):+.3f}", f"{max(layer.correlations):+.3f}")
        table.add_row(str(i), f"{rounded:+.3f}", *heads, f"{layer.loss:.3f}", str(ranks[i]))

    console.print(table)
    print(f"{sentence(diagnosis, request)}\n")


def sentence(diagnosis: Diagnosis, request: Request) -> str:
    """What the figures mean, in words."""
    count, means = len(diagnosis.rounded), meaning(diagnosis.rounded)
    if count < 2:
        return f"{means} A model of one layer has none to skip."
    order = ", ".join(map(str, _order(diagnosis)[:-1]))
    fixed = request.dataset == "pydocs" and request.tokens in (None, DEFAULT_TOKENS)
    text = "" if fixed else f", where a sweep goes by the first {DEFAULT_TOKENS:,} tokens of pydocs"
    return f"{means} skip_layers auto:k skips the first k of layers {order}{text}."
