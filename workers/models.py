"""Load a model by its facts, and check that our attention and cache give its own logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from workers.attention import NAME as OWN_ATTENTION
from workers.model_files import ModelError, ModelFacts
from workers.pruned_cache import PrunedCache
from workers.settings import PruneSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECK_TOKENS = 48
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Largest difference of a log-probability between our path and the stock one that is rounding and not a fault."""


def load(facts: ModelFacts, dtype: str, device: torch.device) -> nn.Module:
    """The model in evaluation mode on ``device``, under our attention, self-checked.

    Raises ModelError where it cannot be loaded, has sliding-window layers, or fails the self-check.
    """
    transformers_logging.disable_progress_bar()  # the driver alone draws
    try:
        model = AutoModelForCausalLM.from_pretrained(
            facts.source, revision=facts.commit, dtype=DTYPES[dtype], trust_remote_code=False, use_safetensors=True,
            attn_implementation="sdpa",
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {facts.name!r} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ModelError(f"model {facts.name!r} has layers of kind {', '.join(sorted(kinds))}; only full attention is exact here")
    model.eval().requires_grad_(False)
    nn.Module.to(model, device)
    check(model, facts.name, dtype)
    return model


@torch.inference_mode()
def check(model: Any, name: str, dtype: str) -> None:
    """Compare stock logits with ours, fed in two passes through an unpruned cache. Raises ModelError on a mismatch."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (1, CHECK_TOKENS), generator=generator).to(model.device)
    stock = model(tokens).logits.float().log_softmax(-1)
    model.set_attn_implementation(OWN_ATTENTION)
    try:
        cache = PrunedCache(model.config, PruneSettings("dense"))
        parts = [
            model.get_output_embeddings()(
                model.base_model(
                    input_ids=tokens[:, start:end],
                    position_ids=torch.arange(start, end, device=tokens.device)[None],
                    past_key_values=cache, use_cache=True,
                ).last_hidden_state
            )
            for start, end in ((0, CHECK_TOKENS // 3), (CHECK_TOKENS // 3, CHECK_TOKENS))
        ]  # fmt: skip
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ModelError(f"model {name!r}: its architecture does not work with the pruned cache ({error})") from error
    if any(layer.seen != CHECK_TOKENS for layer in cache.pruned_layers):
        raise ModelError(f"model {name!r}: not every layer stores its keys in the cache, so pruning would miss some")
    worst = float((torch.cat(parts, 1).float().log_softmax(-1) - stock).abs().max())
    if not worst <= TOLERANCE[dtype]:
        raise ModelError(
            f"model {name!r}: self-check failed: log-probabilities through the cache differ from the stock model's by up "
            f"to {worst:.3g} (at most {TOLERANCE[dtype]:g} is rounding in {dtype}); its figures would be wrong"
        )
