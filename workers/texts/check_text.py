"""The texts on which a unit's model is checked:
as long as what the unit measures, and made of its own tokens (``work``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TEXTS = 3
"""Of the longest ones so many at most."""


def continued(prompt: Sequence[int], length: int) -> np.ndarray:
    """The prompt, begun again at its end until it is as long as what will have been generated."""
    return np.resize(np.asarray(prompt, dtype=np.int64), length)
