"""What a call of transformers' ``generate`` is about to do with the cache that it was given.

``generate`` tells a cache neither how the prompt comes nor whether it is padded. Both would go wrong
silently, or end in an error about shapes, so they are read where the call stands when it takes the cache up.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class GenerateCall:
    """Of one call;
    where transformers keeps these things otherwise one day, nothing is known and nothing refused."""

    chunk_size: int | None
    """Tokens of a pass over the prompt, where it comes in several."""
    is_padded: bool
    """Whether its attention mask leaves out tokens."""

    @classmethod
    def at(cls, frame: FrameType | None) -> GenerateCall:
        """``frame``: of the function of transformers that takes up the cache."""
        told: dict[str, Any] = dict(frame.f_locals) if frame is not None else {}
        arguments = told.get("model_kwargs")
        mask = arguments.get("attention_mask") if isinstance(arguments, dict) else None
        padded = isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all())
        return cls(getattr(told.get("generation_config"), "prefill_chunk_size", None), padded)
