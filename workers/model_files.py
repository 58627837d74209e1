"""Where a model is and what it is, without torch: embedded name, local path or hub name -> facts for planning and loading."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

EMBEDDED = Path(__file__).parent / "reference"
EMBEDDED_NAMES = ("reference-neox", "reference-llama")

LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "openai-gpt", "biogpt")
"""Model types with one learned vector per position: past the last there is none."""
ALIBI = ("bloom", "mpt")
"""Model types that always add a penalty for distance to the logits; ``falcon`` says in its configuration whether it does."""
ROTARY_SHARES = {
    "llama": 1.0, "falcon": 1.0, "gpt_neox": 0.25, "stablelm": 0.25, "qwen3_next": 0.25, "phi": 0.5, "persimmon": 0.5,
    "nemotron": 0.5, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5,
}  # fmt: skip
"""Share of the head dimension that is rotated where a configuration leaves it to the type's default; all of it elsewhere."""
ROTARY_KEYS = (
    "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rotary_dim",
)  # fmt: skip
"""Keys of which rotary models, of one version of transformers or another, have one at least."""


class ModelError(ValueError):
    """A model that cannot be found or used, with what to do."""


@dataclass(frozen=True)
class Positions:
    """How a model tells positions apart."""

    kind: Literal["rotary", "learned", "alibi", "unknown"]
    share: float | None = None
    """Of the head dimension that is rotated; None where nothing is, or where layers differ."""


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
    positions: Positions
    """With learned ones nothing can be computed beyond ``context``."""
    sliding_window: int | None
    """Some layers attend to so many of the last tokens only."""
    kv_heads: int
    head_dim: int
    parameters: int
    """From the sizes of the weight files, at their stored width; 0 where they are not here yet."""
    tokenizer_file: str
    trust_remote_code: bool = False
    """Whether Python files that come with the weights may run."""
    allow_pickle: bool = False
    """Whether weights may be read from formats that can run code."""


def find_model(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelFacts:
    """Resolve a model name. Raises ModelError where it does not exist, cannot be reached or lacks what is needed."""
    found = _find(name, revision, trust_remote_code, allow_pickle)
    return replace(found, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)


def _find(name: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool) -> ModelFacts:
    is_local = name in EMBEDDED_NAMES or name.startswith((".", "/", "~")) or Path(name).expanduser().is_dir()
    if is_local and revision is not None:
        raise ModelError(f"model {name!r}: revision {revision!r} is for models of a hub; local files have their hash")
    if name in EMBEDDED_NAMES:
        return _local(name, EMBEDDED / name)
    if is_local:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ModelError(f"model {name!r}: there is no such directory")
        return _local(name, folder, trust_remote_code, allow_pickle)
    return _hub(name, revision)


def _local(name: str, folder: Path, trust_remote_code: bool = False, allow_pickle: bool = False) -> ModelFacts:
    weights = sorted(folder.glob("*.safetensors")) or (sorted(folder.glob("*.bin")) if allow_pickle else [])
    if not weights:
        kinds = "*.safetensors or *.bin" if allow_pickle else "*.safetensors"
        hint = "" if allow_pickle else "; convert the weights: other formats can run code (allow_pickle: true reads them)"
        raise ModelError(f"model {name!r}: no {kinds} in {folder}{hint}")
    code = sorted(folder.glob("*.py")) if trust_remote_code else []  # it is part of the model then
    digest = hashlib.sha256()
    for path in [*weights, *code, folder / "config.json", folder / "tokenizer.json"]:
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
        head_dim = int(config.get("head_dim") or width // heads)
        positions = positions_of(config, head_dim)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
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
        positions=positions,
        sliding_window=config.get("sliding_window") if config.get("use_sliding_window") is not False else None,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        parameters=size // stored_bytes,
        tokenizer_file=str(folder / "tokenizer.json"),
    )


def positions_of(config: dict[str, Any], head_dim: int) -> Positions:
    """How the model of a config.json tells positions apart; ``unknown`` where it does not say and the type is not known here."""
    kind = config.get("model_type")
    if kind in LEARNED_POSITIONS:
        return Positions("learned")
    if kind in ALIBI or config.get("alibi"):
        return Positions("alibi")
    if kind in ROTARY_SHARES or any(config.get(key) is not None for key in ROTARY_KEYS):
        return Positions("rotary", _rotated_share(config, head_dim))
    return Positions("unknown")


def _rotated_share(config: dict[str, Any], head_dim: int) -> float | None:
    """From ``rope_parameters``, one for all layers or one for each kind of layer; in older files, from keys of their own."""
    parameters = config.get("rope_parameters") or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    shares = {float(value.get("partial_rotary_factor") or _older_share(config, head_dim)) for value in by_layer}
    return shares.pop() if len(shares) == 1 else None


def _older_share(config: dict[str, Any], head_dim: int) -> float:
    for key in ("partial_rotary_factor", "rotary_pct"):
        if config.get(key) is not None:
            return float(config[key])
    if config.get("rotary_dim"):
        return config["rotary_dim"] / head_dim
    if config.get("qk_rope_head_dim") and config.get("qk_nope_head_dim"):  # latent attention: a part with positions, one without
        return config["qk_rope_head_dim"] / (config["qk_rope_head_dim"] + config["qk_nope_head_dim"])
    return ROTARY_SHARES.get(config.get("model_type", ""), 1.0)
