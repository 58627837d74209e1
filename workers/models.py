"""Load a model by its facts, checked."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from workers.model_files import ModelError, ModelFacts
from workers.self_check import check_once

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(facts: ModelFacts, dtype: str, device: torch.device) -> nn.Module:
    """The model in evaluation mode on ``device``, under our attention, self-checked.

    Raises ModelError where it cannot be loaded or fails the self-check.
    """
    transformers_logging.disable_progress_bar()  # the driver alone draws
    try:
        model = AutoModelForCausalLM.from_pretrained(
            facts.source, revision=facts.commit, dtype=DTYPES[dtype], trust_remote_code=False, use_safetensors=True
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {facts.name!r} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
    model.eval().requires_grad_(False)
    nn.Module.to(model, device)
    check_once(model, facts, dtype)
    return model
