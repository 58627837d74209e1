"""What is global in a process and changes numbers: kept, and put back after other people's code has run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as modules

AUTOCAST_DEVICES = ("cpu", "cuda")
HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
"""Where torch keeps hooks that run around every module."""


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES]


def _set_autocast(enabled: list[bool]) -> None:
    for device, is_on in zip(AUTOCAST_DEVICES, enabled, strict=True):
        torch.set_autocast_enabled(device, is_on)


def _attention_kernels() -> list[bool]:
    kernels = torch.backends.cuda
    return [
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.math_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
    ]


def _set_attention_kernels(enabled: list[bool]) -> None:
    kernels = torch.backends.cuda
    for switch, is_on in zip(
        (
            kernels.enable_flash_sdp,
            kernels.enable_mem_efficient_sdp,
            kernels.enable_math_sdp,
            kernels.enable_cudnn_sdp,
        ),
        enabled,
        strict=True,
    ):
        switch(is_on)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _hooks() -> list[dict[Any, Any]]:
    return [dict(getattr(modules, name)) for name in HOOKS]


def _set_hooks(hooks: list[dict[Any, Any]]) -> None:
    for name, before in zip(HOOKS, hooks, strict=True):
        now = getattr(modules, name)
        now.clear()
        now.update(before)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def _set_cudnn(state: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = state


SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (_cudnn, _set_cudnn),
    (_autocast, _set_autocast),
    (_attention_kernels, _set_attention_kernels),
    (_hooks, _set_hooks),
)
"""How each setting is read, and set where it was changed."""


@contextmanager
def whole_process_state() -> Iterator[None]:
    """The block may change the settings of ``SWITCHES`` and draw or seed numbers of Python, numpy and torch.

    Afterwards all are as they were before, whatever it raised.
    """
    before = [read() for read, _ in SWITCHES]
    numbers, numpy_numbers, torch_numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_numbers = (
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    )
    try:
        yield
    finally:
        for (read, write), value in zip(SWITCHES, before, strict=True):
            if read() != value:
                write(value)
        random.setstate(numbers)
        np.random.set_state(numpy_numbers)
        torch.set_rng_state(torch_numbers)
        if cuda_numbers:
            torch.cuda.set_rng_state_all(cuda_numbers)
