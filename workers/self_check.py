"""The check of a model when it is loaded: our attention and caches against the model itself, a pruned cell against the reference.

What passed once is remembered per model revision, dtype, kind of device, library versions and the code of this package, in the
user's cache directory, so that a large model is not checked by every actor of a sweep.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from workers.attention import NAME as OWN_ATTENTION
from workers.model_files import ModelError, ModelFacts
from workers.perplexity import evaluate, evaluate_reference
from workers.settings import PruneSettings

TOKENS, KEEP_RATIO, PRUNE_AFTER = 48, 0.5, 16
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Largest difference of a token's NLL that is rounding and not a fault. For a pruned cell in 16 bits it holds for the mean:
passes of other lengths round keys differently, and a key that falls to the other side of a cut changes single tokens by more."""
DRAWS = 3
"""Texts tried: a norm on the edge between two rounded values can differ once; a wrong cache differs on every text."""


def check_once(model: Any, facts: ModelFacts, dtype: str) -> None:
    """``check`` unless this very combination passed before. Raises ModelError."""
    mark = _marks() / _key(facts, dtype, model.device.type)
    if mark.exists():
        model.set_attn_implementation(OWN_ATTENTION)
        return
    check(model, facts.name, dtype)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # a read-only home only means that the check runs again


def _marks() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvsweep" / "self-checks"


def _key(facts: ModelFacts, dtype: str, device: str) -> str:
    digest = hashlib.sha256(f"{facts.revision} {dtype} {device} {torch.__version__} {transformers.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def check(model: Any, name: str, dtype: str) -> None:
    """Put the model under our attention and compare. Raises ModelError with what differs, or why it cannot work."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    texts = [
        torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(seed)).to(model.device)
        for seed in range(DRAWS)
    ]
    stock = [_stock_nll(model, tokens) for tokens in texts]
    model.set_attn_implementation(OWN_ATTENTION)
    if model.config._attn_implementation != OWN_ATTENTION:
        raise ModelError(
            f"model {name!r}: {type(model).__name__} computes attention in its own code instead of calling it by name "
            "(transformers' AttentionInterface), so what a pruned layer holds cannot be attended to; use another architecture"
        )
    faults = []
    for tokens, expected in zip(texts, stock, strict=True):
        try:
            fault = _fault(model, tokens, expected, dtype)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise ModelError(f"model {name!r}: its architecture does not work with the pruned cache ({error})") from error
        if not fault:
            return
        faults.append(fault)
    raise ModelError(f"model {name!r}: self-check failed: {faults[0]}; its figures would be wrong")


@torch.inference_mode()
def _stock_nll(model: Any, tokens: Tensor) -> Tensor:
    logits = model(tokens, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")[None].cpu()


def _fault(model: Any, tokens: Tensor, stock: Tensor, dtype: str) -> str:
    """What differs on one text; empty where nothing does."""
    cell, dense_cell = PruneSettings("knorm", KEEP_RATIO, PRUNE_AFTER), PruneSettings("dense")
    dense, (pruned,) = evaluate(model, tokens, [cell], [0])
    if pruned is None or isinstance(pruned, Exception):
        return f"a pruned cell failed ({pruned})"
    for what, found in (("one dense pass", dense), ("one token per pass", evaluate_reference(model, tokens, dense_cell, [0]))):
        worst = float((found.nll - stock).abs().max())
        if not worst <= TOLERANCE[dtype]:
            return (
                f"NLLs of {what} through our attention and cache differ from the stock model's by up to {worst:.3g} "
                f"(at most {TOLERANCE[dtype]:g} is rounding in {dtype})"
            )
    difference = (pruned.nll - evaluate_reference(model, tokens, cell, [0]).nll).abs()
    worst = float(difference.max() if dtype == "float32" else difference.mean())
    if not worst <= TOLERANCE[dtype]:
        return f"a pruned cell differs from one token per pass by {worst:.3g} nats ({TOLERANCE[dtype]:g} is rounding)"
    return ""
