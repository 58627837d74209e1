"""What running out of memory looks like."""

from __future__ import annotations

import traceback

import torch

from workers.messages.work import TRACE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: by type on accelerators, by its words on CPU."""
    words = ("not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def without_frames(error: Exception) -> Exception:
    """The error with its traceback as text alone: the frames would hold what their functions held, caches,
    logits, a model."""
    setattr(error, TRACE, "".join(traceback.format_exception(error)))
    left: BaseException | None = error
    while left is not None:
        left.__traceback__ = None
        left = left.__cause__ or left.__context__
    return error
