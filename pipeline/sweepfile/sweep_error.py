"""What a person is told of a sweep that cannot be run."""

from __future__ import annotations

from collections.abc import Sequence


class SweepError(ValueError):
    """Bad input, found before any work started; one message per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)
