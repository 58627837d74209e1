"""Where a model is and what it is, without torch: embedded name, local path or hub name -> facts for planning and loading."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "reference"
EMBEDDED_NAMES = ("reference-neox", "reference-llama")


LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "openai-gpt", "biogpt")
"""Model types with one learned vector per position: past the last there is none."""


class ModelError(ValueError):
    """A model that cannot be found or used, with what to do."""


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model; ``revision`` changes whenever weights, configuration or tokenizer do."""

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
    learned_positions: bool
    """Nothing can be computed beyond ``context``."""
    sliding_window: int | None
    """Some layers attend to so many of the last tokens only."""
    kv_heads: int
    head_dim: int
    parameters: int
    """From the sizes of the weight files, at their stored width; 0 where they are not here yet."""
    tokenizer_file: str


def find_model(name: str, revision: str | None = None) -> ModelFacts:
    """Resolve a model name. Raises ModelError where it does not exist, cannot be reached or lacks what is needed."""
    is_local = name in EMBEDDED_NAMES or name.startswith((".", "/", "~")) or Path(name).expanduser().is_dir()
    if is_local and revision is not None:
        raise ModelError(f"model {name!r}: revision {revision!r} is for models of a hub; local files have their hash")
    if name in EMBEDDED_NAMES:
        return _local(name, EMBEDDED / name)
    if is_local:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ModelError(f"model {name!r}: there is no such directory")
        return _local(name, folder)
    return _hub(name, revision)


def _local(name: str, folder: Path) -> ModelFacts:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"model {name!r}: no *.safetensors in {folder}; convert the weights, other formats can run code")
    digest = hashlib.sha256()
    for path in [*weights, folder / "config.json", folder / "tokenizer.json"]:
        if not path.is_file():
            raise ModelError(f"model {name!r}: {path.name} is missing in {folder}")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    size = sum(path.stat().st_size for path in weights)
    return _facts(name, f"sha256:{digest.hexdigest()[:16]}", str(folder.resolve()), None, folder, size)


def _hub(name: str, revision: str | None) -> ModelFacts:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", "tokenizer.json"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"model {name!r}: not one of {', '.join(EMBEDDED_NAMES)}, not a local directory, and the model hub did not "
            f"give it ({type(error).__name__}: {reason[:160]}); check the name, or download it and give its path"
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"model {name!r}: its repository has no tokenizer.json, which kvsweep needs")
    return _facts(name, folder.name, name, folder.name, folder, 0)


def _facts(name: str, revision: str, source: str, commit: str | None, folder: Path, size: int) -> ModelFacts:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        layers = int(config.get("num_hidden_layers") or config["n_layer"])
        heads = int(config.get("num_attention_heads") or config["n_head"])
        width = int(config.get("hidden_size") or config["n_embd"])
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {name!r}: config.json in {folder} is not one of a causal language model ({error})") from error
    stored_bytes = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    return ModelFacts(
        name=name,
        revision=revision,
        source=source,
        commit=commit,
        architecture=str(config.get("model_type", "unknown")),
        layers=layers,
        context=config.get("max_position_embeddings", config.get("n_positions")),
        learned_positions=config.get("model_type") in LEARNED_POSITIONS,
        sliding_window=config.get("sliding_window") if config.get("use_sliding_window") is not False else None,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or width // heads),
        parameters=size // stored_bytes,
        tokenizer_file=str(folder / "tokenizer.json"),
    )
