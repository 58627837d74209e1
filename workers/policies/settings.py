"""How a cache prunes: plain data that planning and workers share; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from workers.policies.budget import SCHEDULES, Budget
from workers.policies.eviction import POLICIES
from workers.policies.policy_files import PATTERN
from workers.policies.skip_rule import Skip, checked_rule

POLICY_NAMES = ("dense", *POLICIES)
"""``dense`` never prunes; the others are kvsweep's own.

``module:function`` names a policy of the user's own."""


@dataclass(frozen=True)
class PruneSettings:
    """How a cache prunes. ``policy`` "dense" or keep_ratio 1.0 never drops anything."""

    policy: str = "knorm"
    keep_ratio: float = 1.0
    prune_after: int = 1
    skip_layers: Skip = ()
    """Layers that never prune; ``auto:k`` until the model that resolves it is loaded (``diagnosis``)."""
    protect_sink: int = 0
    protect_recent: int = 0
    schedule: str = "every_step"
    position_mode: str = "absolute"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError with the setting, its value and what is allowed."""
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1] (got {self.keep_ratio})")
        if self.prune_after < 1:
            raise ValueError(f"prune_after must be at least 1 (got {self.prune_after})")

        if isinstance(self.skip_layers, str):
            checked_rule(self.skip_layers)
        layers = () if isinstance(self.skip_layers, str) else self.skip_layers
        if min(self.protect_sink, self.protect_recent, *layers, 0) < 0:
            raise ValueError("protect_sink, protect_recent and skip_layers must not be negative")

        policies = (*POLICY_NAMES, self.policy) if PATTERN.fullmatch(self.policy) else POLICY_NAMES
        for name, value, allowed in (
            ("policy", self.policy, policies),
            ("schedule", self.schedule, SCHEDULES),
            ("position_mode", self.position_mode, ("absolute", "cache_length")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)} (got {value!r})")

        if self.policy == "streaming_rolled" and self.position_mode == "cache_length":
            raise ValueError("policy streaming_rolled places its keys itself; position_mode must be absolute")

    @property
    def protects(self) -> bool:
        """Whether any entry stays whatever its score is."""
        return self.protect_sink > 0 or self.protect_recent > 0

    @property
    def budget(self) -> Budget:
        """How many entries a pruning layer holds and when it is looked at."""
        return Budget(self.keep_ratio if self.policy != "dense" else 1.0, self.prune_after, self.schedule)

    @property
    def skipped(self) -> tuple[int, ...]:
        """The layers that never prune. Raises ValueError for a rule that no model has resolved yet."""
        if isinstance(self.skip_layers, str):
            raise ValueError(
                f"skip_layers {self.skip_layers} names no layers before a model was diagnosed: `kvsweep "
                "diagnose MODEL` shows which they are"
            )
        return self.skip_layers

    def prunes(self, layer: int) -> bool:
        """Whether this layer ever drops entries. Raises ValueError for a rule that no model resolved yet."""
        return layer not in self.skipped and self.policy != "dense" and self.keep_ratio < 1


def in_words(settings: PruneSettings) -> str:
    """A cell in a few words."""
    if settings.policy == "dense":
        return "dense"
    protected = (
        f" +{settings.protect_sink}/{settings.protect_recent}"
        if settings.protect_sink or settings.protect_recent
        else ""
    )
    return f"{settings.policy} {settings.keep_ratio:g}{protected}"
