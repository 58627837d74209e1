"""Where a model is and what it is, without torch:
embedded name, local path or hub name -> facts for planning and loading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workers.machine.cache_folder import cache_folder
from workers.models.architecture import Limit, read_architecture
from workers.models.gguf.converted import converted, quantization_of
from workers.models.model_json import checked_size, is_file, one_line, read_json, read_json_if_there, shown
from workers.models.model_settings import count_of, hidden_width, inner_width, text_settings
from workers.models.positions import Positions, positions_of
from workers.models.weight_files import (
    ADAPTER,
    IDENTITY_FILES,
    TEMPLATES,
    find_weights,
    identity,
    settings_files,
)

EMBEDDED = Path(__file__).parents[1] / "reference"
EMBEDDED_NAMES = ("reference-neox", "reference-llama")
FETCHED_NAMES = ("smollm2",)
"""Models that ``kvsweep fetch`` puts into the cache folder under these names."""
GGUF = ".gguf"
SETTINGS_READ = ("generation_config.json", "tokenizer_config.json")
"""Files that transformers or kvsweep read beside config.json, where they are there."""


class ModelError(ValueError):
    """A model that cannot be found or used, with what to do."""


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model;
    ``revision`` changes whenever weights, configuration or tokenizer do."""

    name: str
    revision: str
    source: str
    """Directory for embedded and local models, hub name otherwise."""
    commit: str | None
    """The hub commit; None for local files."""
    architecture: str
    layers: int
    context: int | None
    """Trained context in tokens; None where the configuration does not say."""
    positions: Positions
    """With learned ones nothing can be computed beyond ``context``."""
    limits: tuple[Limit, ...]
    """Longer texts cannot be measured, whatever the sweep allows; see ``workers.models.architecture``."""
    refusals: tuple[str, ...]
    """Why it cannot be measured at all: a sentence each, to go behind its name; empty where it can."""
    kv_heads: int
    head_dim: int
    parameters: int
    """Numbers in the weight files, from their headers (of pickles from their sizes);
    0 where they are not here yet."""
    tokenizer_file: str
    trust_remote_code: bool = False
    """Whether Python files that come with the weights may run."""
    allow_pickle: bool = False
    """Whether weights may be read from formats that can run code."""
    vocabulary: int | None = None
    """Ids that the model has embeddings for: those below it. None where the configuration does not say."""
    heads: int = 0
    """Query heads."""
    hidden: int = 0
    """Width of a hidden state."""
    inner: int = 0
    """Width of the layers' middle (``model_settings.inner_width``)."""
    stored_bytes: int = 0
    """Of the weight files; 0 where they are not here yet."""
    quantization: str | None = None
    """How the GGUF file stored the weights that this model was made of, such as ``Q4_K_M``; None for one of
    no such file."""

    def limit_exceeded(self, length: int) -> str:
        """What a text of ``length`` tokens exceeds, in words; empty where it can be measured."""
        for limit in sorted(self.limits, key=lambda limit: limit.tokens):
            if length > limit.tokens:
                return f"the {limit.tokens} tokens up to which {self.name} can be measured: {limit.why}"
        return ""

    def longest(self, otherwise: int) -> int:
        """Tokens that may go through at most, by context and limits; ``otherwise`` stands for a context that
        is not known."""
        return min([self.context or otherwise, *(limit.fed for limit in self.limits)])


def find_model(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelFacts:
    """Resolve a model name.
    Raises ModelError where it does not exist, cannot be reached or lacks what is needed."""
    found = _find(name, revision, trust_remote_code, allow_pickle)
    return replace(found, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)


def _find(name: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool) -> ModelFacts:
    folder = Path(os.path.expanduser(name))  # which, unlike pathlib, leaves the ~ of nobody as it is
    is_local = (
        name in (*EMBEDDED_NAMES, *FETCHED_NAMES)
        or name.startswith((".", "/", "~"))
        or _is_folder(folder, name)
    )
    if is_local and revision is not None:
        raise ModelError(
            f"model {name!r}: revision {revision!r} is for models of a hub; local files have their hash"
        )

    if name in EMBEDDED_NAMES:
        return _local(name, EMBEDDED / name)
    if name in FETCHED_NAMES:
        return _fetched(name)
    if name.lower().endswith(GGUF) and not _is_folder(folder, name):
        return _gguf(name, folder)
    if is_local:
        if not _is_folder(folder, name):
            raise ModelError(f"model {shown(name)}: there is no such directory")
        return _local(name, folder, trust_remote_code, allow_pickle)
    return _hub(name, revision, trust_remote_code)


def _fetched(name: str) -> ModelFacts:
    folder = cache_folder() / name
    if not _is_folder(folder, name):
        beside = f"; the folder of this name that lies here is ./{name}" if Path(name).is_dir() else ""
        raise ModelError(
            f"model {name!r}: it is not in {folder.parent}; run `kvsweep fetch {name}` once{beside}"
        )
    return _local(name, folder)


def _gguf(name: str, file: Path) -> ModelFacts:
    """A file of llama.cpp's format,
    which becomes an ordinary folder in the cache folder if it has not yet."""
    try:
        if not file.is_file():
            raise ModelError(f"model {shown(name)}: there is no such file")
        folder = converted(file)
    except (ValueError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"model {name!r}: {words}") from error
    return _local(name, folder)


def _is_folder(path: Path, name: str) -> bool:
    """Raises ModelError for what cannot be looked at."""
    try:
        return path.is_dir()
    except OSError as error:
        raise ModelError(
            f"model {shown(name)}: cannot be looked at as a directory: {error.strerror}"
        ) from None


def _local(
    name: str, folder: Path, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelFacts:
    try:
        for needed in ("config.json", "tokenizer.json"):
            checked_size(folder / needed)
        config = _config(folder, trust_remote_code)
        weights = find_weights(folder, allow_pickle, config.get("transformers_weights"))
        code = sorted(folder.glob("*.py")) if trust_remote_code else []  # it is part of the model then
        index = [weights.index] if weights.index else []
        digest = identity(folder, [*weights.files, *index, *settings_files(folder), *code])
        stored_bytes = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
        held = weights.held(stored_bytes)
        stored = sum(file.stat().st_size for file in weights.files)
        quantization = quantization_of(folder)
    except ValueError as error:
        raise ModelError(f"model {name!r}: {error}") from error

    facts = _facts(
        name, f"sha256:{digest[:16]}", str(folder.resolve()), None, folder, config, held.parameters
    )
    if held.layers is not None and facts.layers > held.layers:
        raise ModelError(
            f"model {name!r}: config.json in {folder} says {facts.layers:,} layers (num_hidden_layers), and "
            f"the names of the weights beside it go up to layer {held.layers - 1:,}, of {held.layers:,} at "
            "most"
        )
    return replace(facts, stored_bytes=stored, quantization=quantization)


def _hub(name: str, revision: str | None, trust_remote_code: bool) -> ModelFacts:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=[*IDENTITY_FILES, TEMPLATES, ADAPTER])
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        names = ", ".join((*EMBEDDED_NAMES, *FETCHED_NAMES))
        raise ModelError(
            f"model {name!r}: not one of {names}, not a local directory, and the model hub did not give it "
            f"({type(error).__name__}: {reason[:160]}); check the name, or download it and give its path"
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"model {name!r}: its repository has no tokenizer.json, which kvsweep needs")
    try:
        config = _config(folder, trust_remote_code)
    except ValueError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    return _facts(name, folder.name, name, folder.name, folder, config, 0)


def _config(folder: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The content of config.json. Raises ValueError where it is not all that the model is made from."""
    if is_file(folder / ADAPTER):
        raise ValueError(
            f"{ADAPTER} in {folder} makes transformers load an adapter where the package peft is installed, "
            "and leave it out elsewhere, so the folder is two models; merge the adapter into the weights "
            "(merge_and_unload), or move it away"
        )
    config = read_json(folder / "config.json")
    for other in SETTINGS_READ:
        read_json_if_there(folder / other)

    classes = config.get("auto_map")
    foreign = [value for value in classes.values() if "--" in str(value)] if isinstance(classes, dict) else []
    if trust_remote_code and foreign:
        raise ValueError(
            f"config.json in {folder} takes code from another repository ({one_line(foreign[0])}), which may "
            "change while the model's identity stays; copy the code beside config.json and name it there"
        )
    return config


def _facts(
    name: str,
    revision: str,
    source: str,
    commit: str | None,
    folder: Path,
    config: Mapping[str, Any],
    parameters: int,
) -> ModelFacts:
    refusals: tuple[str, ...] = ()
    try:
        architecture = read_architecture(config)
        refusals = architecture.refusals
        text = text_settings(config)
        layers = _needed(text, "num_hidden_layers", "n_layer", "n_layers")
        heads = _needed(text, "num_attention_heads", "n_head", "n_heads")
        head_dim = count_of(text, "head_dim") or _needed(text, "hidden_size", "n_embd", "d_model") // heads
        context = count_of(text, "max_position_embeddings", "n_positions", "max_seq_len")
        kv_heads = count_of(text, "num_key_value_heads") or heads
        _check_shape(heads, kv_heads, head_dim)
        vocabulary = count_of(text, "vocab_size")
        hidden = hidden_width(text) or heads * head_dim
        positions = positions_of(text, head_dim)
    except (ValueError, ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        if refusals:  # of those there are whose shape has no place here, such as models without attention
            raise ModelError(f"model {name!r}: {'; '.join(refusals)}") from error
        told = f"config.json in {folder} is not one of a causal language model ({one_line(error)})"
        raise ModelError(f"model {name!r}: {told}") from error

    return ModelFacts(
        name=name,
        revision=revision,
        source=source,
        commit=commit,
        architecture=str(text.get("model_type", "unknown")),
        layers=layers,
        context=context,
        positions=positions,
        limits=architecture.limits,
        refusals=refusals,
        kv_heads=kv_heads,
        head_dim=head_dim,
        parameters=parameters,
        tokenizer_file=str(folder / "tokenizer.json"),
        vocabulary=vocabulary,
        heads=heads,
        hidden=hidden,
        inner=inner_width(text, hidden),
    )


def _check_shape(heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises ValueError where heads cannot be what is said of them together."""
    if heads % kv_heads:
        raise ValueError(
            f"num_key_value_heads is {kv_heads}, which does not divide num_attention_heads {heads}"
        )
    if head_dim < 1:
        raise ValueError(f"hidden_size is less than num_attention_heads {heads}")


def _needed(settings: Mapping[str, Any], *names: str) -> int:
    """A count that every causal language model has, under one of several names.
    Raises ValueError where it is not there."""
    count = count_of(settings, *names)
    if count is None:
        raise ValueError(f"it says no {names[0]}")
    return count
