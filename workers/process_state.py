"""What is global in a process and changes numbers: kept, and put back after other people's code has run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def whole_process_state() -> Iterator[None]:
    """The block may change torch's default dtype, threads, gradient mode, deterministic algorithms and all random numbers.

    Afterwards they are as they were before, whatever it raised.
    """
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    numbers, numpy_numbers, torch_numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_numbers = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(numbers)
        np.random.set_state(numpy_numbers)
        torch.set_rng_state(torch_numbers)
        if cuda_numbers:
            torch.cuda.set_rng_state_all(cuda_numbers)
