"""Whether this machine and this model can do what the harness's arguments ask for."""

from __future__ import annotations

import logging

import torch
from torch import nn

from workers.harness.tasks import HarnessError
from workers.loaded.layer_choice import with_layers
from workers.models.model_files import ModelFacts
from workers.policies.own_policies import find_policy
from workers.policies.settings import PruneSettings

_log = logging.getLogger("lm_eval.kvsweep")


def usable_device(name: str, *, is_asked: bool) -> torch.device:
    """The device of this name.
    Where there is no CUDA and nobody asked for it (``is_asked``), the CPU, with a warning.

    Raises HarnessError for a name that torch does not know, and for a CUDA device that is asked for and not
    there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HarnessError(f"device {name!r}: {str(error).splitlines()[0]}") from error

    if device.type != "cuda" or torch.cuda.is_available():
        return device
    if is_asked:
        raise HarnessError(f"device {name!r}: there is no CUDA device here")
    _log.warning("there is no CUDA device here (the harness asks for %s by itself); using the CPU", name)
    return torch.device("cpu")


def usable_settings(
    settings: PruneSettings, model: nn.Module, facts: ModelFacts, max_length: int | None
) -> PruneSettings:
    """The settings with the layers that a rule of ``skip_layers`` chooses in this model.

    Raises HarnessError for a layer that the model has not, for a ``max_length`` beyond what it can be
    measured on, and for a policy that cannot be found.
    """
    try:
        chosen = with_layers(settings, model, facts)
    except ValueError as error:
        rule = settings.skip_layers if isinstance(settings.skip_layers, str) else None
        raise HarnessError(f"skip_layers {rule}: {error}") from error
    if any(layer >= facts.layers for layer in chosen.skipped):
        raise HarnessError(
            f"skip_layers {list(chosen.skipped)}: {facts.name} has layers 0..{facts.layers - 1}"
        )

    if limit := facts.limit_exceeded(max_length or 0):
        raise HarnessError(f"max_length: {max_length} is longer than {limit}")
    try:
        find_policy(chosen.policy)
    except ValueError as error:
        raise HarnessError(f"policy {chosen.policy!r}: {error}") from error
    return chosen
