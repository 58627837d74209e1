"""Names of a sweep -> facts: which weights, which text, how many layers and tokens.

What cannot work is refused here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.cells.resolved import Resolved, Target
from pipeline.planning.planning_progress import SILENT, PlanningProgress
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks import TASKS, tasks_asked
from workers.corpora import Collection, Corpus, CorpusError, Tokens, read_corpus, tokens_of
from workers.machine.gpus import cuda
from workers.models.bos import begins_by_itself, bos_token
from workers.models.model_files import ModelError, ModelFacts, find_model
from workers.models.model_json import one_line
from workers.models.positions import PLAIN_ROTARY
from workers.policies.eviction import turns_keys
from workers.policies.policy_files import OwnModules, PolicyError
from workers.policies.skip_rule import check_count
from workers.texts.text_tokens import TokenizerError


def resolve(spec: SweepSpec, auto_device: str | None = None, said: PlanningProgress = SILENT) -> Resolved:
    """Find models and datasets and check the sweep against them. Raises SweepError with every fault found."""
    names = [ref.name for ref in spec.models]
    listed = Counter(names)
    faults = [
        f"models: {name!r} is listed with several revisions; one to a sweep"
        for name in names
        if listed[name] > 1
    ][:1]
    models = _find_models(spec, faults, said)
    corpora = _read_datasets(spec, faults, said)

    tokens: dict[tuple[str, str], Tokens] = {}
    bos: dict[str, int | None] = {}
    own_bos: dict[str, bool] = {}
    known: dict[tuple[str, str], Tokens] = {}
    """By the content of a tokenizer's file and the dataset: models of one family share their tokens."""
    said.now("texts tokenized", lambda: len(tokens))
    for name, facts in models.items():
        faults += _model_faults(spec, facts)
        try:
            bos[name] = bos_token(facts, spec.bos)
            own_bos[name] = begins_by_itself(facts)
            for task in tasks_asked(spec):
                faults += task.model_faults(spec, facts, bos[name])
            vocabulary = hashlib.sha256(Path(facts.tokenizer_file).read_bytes()).hexdigest()
            for dataset, corpus in corpora.items():
                if (vocabulary, dataset) not in known:
                    known[vocabulary, dataset] = tokens_of(
                        corpus, facts.tokenizer_file, spec.special_tokens_in_text
                    )
                tokens[name, dataset] = known[vocabulary, dataset]
                faults += _text_faults(spec, name, dataset, tokens[name, dataset], bos[name] is not None)
                faults += _vocabulary_faults(facts, dataset, tokens[name, dataset], bos[name])
        except ModelError as error:
            faults.append(f"models: {error}")
        except CorpusError as error:
            faults.append(f"datasets: {error} (model {name})")
        except (TokenizerError, OSError) as error:  # of its files; a dataset's are a CorpusError
            faults.append(f"models: model {name!r}: its tokenizer.json cannot be used ({one_line(error)})")
    texts = [text for task in TASKS.values() for text in task.texts(spec, faults)]
    if faults:
        raise SweepError(faults)

    said.now("devices")
    devices = list(dict.fromkeys((auto_device or find_device()) if d == "auto" else d for d in spec.devices))
    fingerprints = [(name, corpus.fingerprint) for name, corpus in corpora.items()]
    fingerprints += [("", "")] if texts else []
    targets = [
        Target(m, facts.revision, facts.layers, d, fingerprint, device, dtype, bos[m])
        for m, facts in models.items()
        for d, fingerprint in fingerprints
        for device in devices
        for dtype in spec.dtypes
    ]
    return Resolved(models, corpora, tokens, targets, texts, bos, own_bos, _device_notes(spec, auto_device))


def _find_models(spec: SweepSpec, faults: list[str], said: PlanningProgress) -> dict[str, ModelFacts]:
    """By name; adds to ``faults`` what cannot be found."""
    models: dict[str, ModelFacts] = {}
    said.now("models found", lambda: len(models))
    for ref in spec.models:
        try:
            models[ref.name] = find_model(
                ref.name, ref.revision, trust_remote_code=ref.trust_remote_code, allow_pickle=ref.allow_pickle
            )
        except ModelError as error:
            faults.append(f"models: {error}")
    return models


def _read_datasets(
    spec: SweepSpec, faults: list[str], said: PlanningProgress
) -> dict[str, Corpus | Collection]:
    """By the name that rows have of them; adds to ``faults`` what cannot be read."""
    corpora: dict[str, Corpus | Collection] = {}
    said.now("datasets read", lambda: len(corpora))
    for ref in spec.datasets:
        try:
            corpora[ref.entry.label] = read_corpus(ref.entry, spec.seed)
        except CorpusError as error:
            faults.append(f"datasets: {error}")
    return corpora


def with_own_policies(spec: SweepSpec) -> SweepSpec:
    """The sweep with ``module:function`` policies named by their code's hash too. Raises SweepError where one
    is not there.

    Modules of the working directory are found, here and
    in the workers, which get this process's ``sys.path``.
    """
    if not any(":" in name for name in spec.policies):
        return spec
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    faults, names, modules = [], {}, OwnModules()
    for name in spec.policies:
        try:
            names[name] = modules.resolved(name)
        except PolicyError as error:
            faults.append(f"policies: {name!r}: {error}")
    if faults:
        raise SweepError(faults)

    def renamed(chosen: CellFilter | None) -> CellFilter | None:
        if chosen is None or chosen.policies is None:
            return chosen
        return chosen.model_copy(update={"policies": [names.get(name, name) for name in chosen.policies]})

    changes: dict[str, Any] = {
        "policies": list(names.values()),
        "exclude": [renamed(block) for block in spec.exclude],
    }
    changes |= {task.block: renamed(task.block_of(spec)) for task in tasks_asked(spec)}
    return spec.model_copy(update=changes)


def find_device() -> str:
    """What ``auto`` means on this machine, without importing torch: cuda, where torch can use it, mps or
    cpu."""
    if cuda().usable:
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def _device_notes(spec: SweepSpec, auto_device: str | None) -> list[str]:
    """A GPU that is there and cannot be used is said, where it makes a difference."""
    if auto_device is not None or not {"auto", "cuda"} & set(spec.devices):
        return []
    found = cuda()
    if found.usable or not found.why_not:
        return []
    what = f"torch cannot use {', '.join(found.names)} ({found.why_not})" if found.names else found.why_not
    means = "devices auto means cpu" if "auto" in spec.devices else "devices cuda needs another machine"
    return [f"{what}: {means}"]


def check_cuda_here(spec: SweepSpec) -> None:
    """Raises SweepError where a sweep asks for cuda and is
    to run on this machine, on which torch cannot use any."""
    if "cuda" not in spec.devices or cuda(by_name=True).usable:
        return
    why = cuda(by_name=True).why_not or "no GPU is found"
    raise SweepError(
        [
            f"devices: cuda cannot be used on this machine ({why}); take it out of the list, "
            "repair the installation, or join a cluster that has GPUs with --address"
        ]
    )


def _model_faults(spec: SweepSpec, facts: ModelFacts) -> list[str]:
    faults = _layer_faults(spec, facts)
    wanted = [length for task in tasks_asked(spec) for length in task.lengths(spec)]
    return (
        ([f"models: model {facts.name!r}: {'; '.join(facts.refusals)}"] if facts.refusals else [])
        + faults
        + _rolled_faults(spec, facts)
        + [
            f"{key}: {length} is longer than {limit}"
            for key, length in wanted
            if (limit := _limit_exceeded(spec, facts, length))
        ]
    )


def _rolled_faults(spec: SweepSpec, facts: ModelFacts) -> list[str]:
    """What policies that turn stored keys cannot do, as far as names tell; the rotation itself only the
    loaded model tells."""
    faults = []
    for policy in filter(turns_keys, spec.policies):
        faults += [
            f"policies: {policy} turns keys at every prune, and in {dtype} the rounding adds up; "
            "it takes float32 alone"
            for dtype in spec.dtypes
            if dtype != "float32"
        ]

        if facts.architecture not in PLAIN_ROTARY:
            faults.append(
                f"policies: {policy} turns stored keys, and whether {facts.name} ({facts.architecture}) "
                f"turns its own in the plain way is not known; it knows {', '.join(PLAIN_ROTARY)}"
            )
    return faults


def _layer_faults(spec: SweepSpec, facts: ModelFacts) -> list[str]:
    listed = {layer for skip in spec.skip_layers if not isinstance(skip, str) for layer in skip}
    faults = [
        f"skip_layers: layer {n} does not exist in {facts.name}, which has layers 0..{facts.layers - 1}"
        for n in sorted(listed)
        if n >= facts.layers
    ]
    for rule in (skip for skip in spec.skip_layers if isinstance(skip, str)):
        try:
            check_count(rule, facts.layers, facts.name)
        except ValueError as error:
            faults.append(f"skip_layers: {error}")
    return faults


def _limit_exceeded(spec: SweepSpec, facts: ModelFacts, length: int) -> str:
    """The first limit that a text of ``length`` tokens exceeds, in words; empty where there is none."""
    if limit := facts.limit_exceeded(length):
        return limit
    if facts.context is None or length <= facts.context:
        return ""
    context = f"the context of {facts.name}, {facts.context} tokens"
    if facts.positions.kind == "learned":
        return f"{context}, and it has no position embeddings beyond"
    return "" if spec.allow_beyond_context else f"{context} (allow_beyond_context: true runs it, marked)"


def _vocabulary_faults(facts: ModelFacts, dataset: str, tokens: Tokens, bos: int | None) -> list[str]:
    """Ids that the model has no embedding for: its tokenizer and its config.json are not of one model."""
    largest = max(tokens.largest_id, bos or 0)
    if facts.vocabulary is None or largest < facts.vocabulary:
        return []
    return [
        f"models: model {facts.name!r}: its tokenizer.json makes the token {largest} of {dataset!r}, "
        f"and its config.json has vocab_size {facts.vocabulary}; they are not of one model"
    ]


def _text_faults(spec: SweepSpec, model: str, dataset: str, tokens: Tokens, bos: bool) -> list[str]:
    """What needs more tokens than the dataset gives; with
    ``bos`` a window or prompt takes one token less of it.

    Reads as far as the sweep needs it. Raises CorpusError where it cannot be read.
    """
    needs = [need for task in tasks_asked(spec) for need in task.text_needs(spec, tokens, bos)]
    faults = []
    for need in needs:
        lack = tokens.lacking(need.length, need.count, apart=need.all_apart)
        if lack is not None:
            needed = need.length * need.count if need.all_apart else need.length
            has = f"datasets: {dataset!r} has {lack.has} under the tokenizer of {model}"
            faults.append(f"{has}, {need.what} needs {needed}{lack.way}")
    return faults
