"""Many variants of one test: a few of them in the fast set, all of them in the slow one's run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from workers.texts.sampling import spread


def thinned(values: Iterable[Any], fast: int) -> list[Any]:
    """The values for ``parametrize``; all but ``fast`` of them, spread evenly, are marked slow."""
    given = list(values)
    kept = set(spread(len(given), fast))
    return [
        value if i in kept else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(given)
    ]
