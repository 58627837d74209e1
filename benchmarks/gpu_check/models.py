"""The texts and the large model, which is random weights in Llama 3.2 1B's shape."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.gpu_check.sizes import Sizes
from benchmarks.memory import LARGE
from workers.corpora import read_text, tokenize
from workers.loaded.load import DTYPES
from workers.loaded.self_check import check
from workers.models.model_files import find_model


@functools.cache
def words_of(model_name: str) -> Tensor:
    """The ids of pydocs."""
    return torch.from_numpy(tokenize(read_text("pydocs"), find_model(model_name).tokenizer_file).ids).long()


def windows_of(ids: Tensor, count: int, length: int, device: torch.device) -> Tensor:
    """[count, length] from the beginning of the text, which begins anew where it ends."""
    times = math.ceil(count * length / len(ids))
    return ids.repeat(times)[: count * length].view(count, length).to(device)


def large_model(sizes: Sizes, dtype: str, device: torch.device, length: int) -> Any:
    """Random weights in Llama 3.2 1B's shape, made on the device, checked on random text, under our
    attention."""
    settings: dict[str, Any] = LARGE | sizes.large | {"attn_implementation": "sdpa"}
    settings = {key: value for key, value in settings.items() if key not in ("architectures", "dtype")}
    config = transformers.LlamaConfig(**settings)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with device:
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model = model.eval().requires_grad_(False)
    check(model, "llama-1b-shape", dtype, torch.randint(0, config.vocab_size, (1, length)))
    return model


def weight_bytes(model: Any) -> int:
    """Of the weights, each once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())
