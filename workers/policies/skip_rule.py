"""Which layers never prune:
a list, or the rule ``auto:k`` that a model's own diagnosis turns into one. Imports nothing."""

from __future__ import annotations

Skip = tuple[int, ...] | str
"""Layers, ascending; or a rule that is not resolved yet."""

AUTO = "auto:"


def checked_rule(text: str) -> str:
    """The rule as it is written everywhere. Raises ValueError for all but ``auto:k`` with k from 1 on."""
    count = text.removeprefix(AUTO)
    if not text.startswith(AUTO) or not (count.isascii() and count.isdecimal()) or not 0 < int(count) < 2**31:
        raise ValueError(
            f"must be a list of layers, or auto:k with k from 1 on, such as auto:2 (got {text!r})"
        )
    return f"{AUTO}{int(count)}"


def skipped_count(skip: Skip) -> int:
    """How many layers are skipped, which a rule says too."""
    return int(skip.removeprefix(AUTO)) if isinstance(skip, str) else len(skip)


def check_count(skip: Skip, layers: int, model: str) -> None:
    """Raises ValueError for a rule that would skip every layer of a model."""
    if isinstance(skip, str) and skipped_count(skip) >= layers:
        raise ValueError(
            f"{skip} skips every layer of {model}, which has {layers}; {AUTO}{layers - 1} is the most"
        )
