"""Load a model by its facts, whole and under our attention."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from workers.loaded.self_check import use_own_attention
from workers.messages.work import FromOutside
from workers.models.model_files import ModelError, ModelFacts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HubError(ModelError, FromOutside):
    """The model hub did not give this machine a model's files:
    too many requests, no connection, a fault of its own."""


def load(facts: ModelFacts, dtype: str, device: torch.device) -> nn.Module:
    """The model in evaluation mode on ``device``, under our attention.

    ``self_check.check_once`` is the caller's business, who knows how long the texts will be.

    Raises ModelError where it is of no use here, cannot be loaded, or computes attention in its own code.
    """
    if facts.refusals:
        raise ModelError(f"model {facts.name!r}: {'; '.join(facts.refusals)}")

    transformers_logging.disable_progress_bar()  # the driver alone draws
    transformers_logging.set_verbosity_error()  # what matters of its report on the weights is checked below
    try:
        model, found = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            facts.source,
            revision=facts.commit,
            dtype=DTYPES[dtype],
            trust_remote_code=facts.trust_remote_code,
            use_safetensors=None if facts.allow_pickle else True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        words = f"model {facts.name!r} cannot be loaded: {str(error).splitlines()[0][:300]}"
        asked = _hub_answer(error) or (facts.commit and _weights_answer(facts.source, facts.commit))
        if asked:
            raise HubError(
                f"{words} (the model hub {asked}); download it before, or run again later"
            ) from error
        raise ModelError(words) from error
    _check_complete(facts.name, found)
    model.eval().requires_grad_(False)
    nn.Module.to(model, device)
    use_own_attention(model, facts.name)
    return model


def _hub_answer(error: BaseException | None) -> str | None:
    """What the hub did where it is what failed and may work another time;
    None for whatever else went wrong."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return f"answered {status}" if status in (408, 429) or status >= 500 else None
        # which of its clients the hub's library has differs
        transport = type(error).__module__.split(".")[0].startswith("httpx")
        if transport or isinstance(error, LocalEntryNotFoundError):
            return "cannot be reached"
        error = error.__cause__ or error.__context__
    return None


def _weights_answer(repository: str, commit: str) -> str | None:
    """As ``_hub_answer``, by asking again for the weights: transformers takes a hub that is too busy for one
    that has none."""
    for file in ("model.safetensors", "model.safetensors.index.json"):
        try:
            get_hf_file_metadata(hf_hub_url(repository, file, revision=commit))
        except Exception as error:
            if answer := _hub_answer(error):
                return answer
    return None


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Raises ModelError where weights are not from the files, which transformers fills with random numbers,
    and where weights of the files are not in the model, which it leaves out: it goes on in both."""
    lacking = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if lacking:
        raise ModelError(
            f"model {name!r} cannot be loaded: its files lack {len(lacking)} of the weights that its "
            f"config.json asks for, or have them in another shape, such as {min(lacking)}"
        )

    left_out = sorted(found["unexpected_keys"])
    if left_out:
        raise ModelError(
            f"model {name!r} cannot be used: its files hold {len(left_out)} weights that its config.json "
            f"leaves out, such as {left_out[0]}; without them it is another model, so mend config.json, or "
            "save the model anew without them"
        )
