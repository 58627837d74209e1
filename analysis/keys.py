"""Columns by which cells are told apart, compared, pooled and sorted, derived from what the schema says of
each column once."""

from __future__ import annotations

from pipeline.results import PRUNING, TARGET, VERSIONS

__all__ = ["CELL", "CURVE", "GROUP", "PRUNING", "SAME", "SCORED", "SETTINGS", "TARGET", "VARIANT", "VERSIONS"]
"""VERSIONS make numbers incomparable (another method, weights,
text, or way to read it): part of every key, beside ids."""

_TITLE = ["model", "dataset"]

GROUP = [*_TITLE, *VERSIONS, *[name for name in TARGET if name not in _TITLE]]
"""What is compared as one grid: one model, text, way to read it, device and dtype. Titles name the first
two."""

SCORED = [*GROUP, "window", "stride"]
"""A grid of perplexity: what was scored on the same windows."""

_BUT_THE_RULE = [name for name in PRUNING if name != "skip_layers_rule"]
_BEHIND_LAYERS = _BUT_THE_RULE.index("skip_layers") + 1

SETTINGS = [*_BUT_THE_RULE[:_BEHIND_LAYERS], "skip_layers_rule", *_BUT_THE_RULE[_BEHIND_LAYERS:]]
"""What a cell of one grid is set to, in reading order: a rule stands beside the layers that it chose."""

CURVE = [name for name in SETTINGS if name != "keep_ratio"]
"""The settings of a curve over keep_ratio."""

VARIANT = [name for name in CURVE if name not in ("policy", "prune_after")]
"""The settings that charts and findings put in words; policies have colours, thresholds panels of their
own."""

_NOT_SHARED = ("skip_layers_rule", "schedule")
"""The same layers are skipped, whatever chose them, and perplexity is scored
under a schedule of its own (``retrieval_tables.scored_schedule``)."""

SAME = [*GROUP, *[name for name in SETTINGS if name not in _NOT_SHARED], "scored_schedule"]
"""What a cell that was scored and one that was asked share."""

CELL = [
    "cell_id",
    "dense_cell_id",
    *TARGET,
    "device_name",
    *SETTINGS,
    "beyond_context",
]
"""The columns that a pooled cell takes over from its rows; they
are equal within a pool, but for the id of a seed's cell."""
