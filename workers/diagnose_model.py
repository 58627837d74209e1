"""A model that no sweep runs, diagnosed: loaded as a worker loads it, checked, looked at once."""

from __future__ import annotations

import numpy as np
import torch

from workers.loaded.diagnosis import Diagnosis, diagnose
from workers.loaded.load import load
from workers.loaded.self_check import SHORT, check_once
from workers.models.model_files import ModelError, ModelFacts


def diagnose_model(facts: ModelFacts, ids: np.ndarray, device: str, dtype: str) -> Diagnosis:
    """The model on ids [length] int64, after a check against the stock model on the same text's beginning.

    Raises ModelError for a device that is not there and whatever else keeps the model from being diagnosed,
    in words.
    """
    try:
        tokens = torch.from_numpy(ids).to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device}: cannot be used here ({str(error).splitlines()[0]})") from error

    try:
        model = load(facts, dtype, tokens.device)
        check_once(model, facts, dtype, tokens[None, :SHORT])
        return diagnose(model, tokens)
    except ModelError:
        raise
    except (ValueError, RuntimeError, FloatingPointError, MemoryError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {facts.name!r}: {said}") from error
