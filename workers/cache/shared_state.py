"""What the layers of a PrunedCache share: how they prune, which texts they hold, where a prompt ends.

The layers hold this and not their cache, so that a cache which nobody holds is freed at once, without the
cycle collector.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from workers.cache.attention import NAME as OWN_ATTENTION
from workers.cache.rotary import Rotary
from workers.models.architecture import Architecture
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings


@dataclass(frozen=True)
class Stretch:
    """Tokens [start, end) that belong together, in one pass or several: no check comes before their last."""

    start: int
    end: int
    is_checked: bool
    """Whether a check follows the last of them."""


@dataclass
class SharedState:
    """How a cache's layers prune, which texts they hold, and what was announced of the tokens to come."""

    config: PretrainedConfig
    settings: PruneSettings
    policy: Policy
    architecture: Architecture
    row_ids: Sequence[int] | None
    stopwatch: AbstractContextManager[Any]
    rotary: Rotary | None = None
    """How keys are turned, for a policy that rolls."""
    stretch: Stretch = Stretch(0, 0, False)
    """The one that was announced last."""
    outside: tuple[int, int] = (0, 0)
    """Positions [start, end) that are kept out of pruning: neither dropped nor counted."""
    _rows: dict[torch.device, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedState:
        """A copy for a copied cache. The configuration stays the model's own, which knows by what attention
        it is called."""
        new = copy.copy(self)
        new._rows = {}
        memo[id(self)] = new
        return new

    @property
    def own_attention(self) -> bool:
        """Whether the model calls our attention function, which prunes after attending."""
        return self.config._attn_implementation == OWN_ATTENTION

    @property
    def prunes_anything(self) -> bool:
        """Whether any layer may ever drop an entry."""
        return self.settings.policy != "dense" and self.settings.keep_ratio < 1

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """[batch] ids of the texts in the batch, on a layer's device.
        Raises ValueError where they are not as many."""
        found = self._rows.get(device)
        if found is None or found.shape[0] != batch:
            names = list(range(batch)) if self.row_ids is None else list(self.row_ids)
            if len(names) != batch:
                raise ValueError(f"row_ids names {len(names)} texts and the batch has {batch}")
            found = self._rows[device] = torch.tensor(names, device=device)
        return found

    def name_rows(self, names: Sequence[int] | None) -> None:
        """The batch holds these texts from now on; None: they are numbered."""
        self.row_ids = names
        self._rows = {}

    def is_checked(self, seen: int, new: int) -> bool:
        """Whether a check follows a pass of ``new`` tokens behind ``seen``.

        The first pass is a prompt and a single token is a step. Anything else has to be announced, because a
        pass of several tokens may be the rest of a prompt, another turn or several steps. Raises ValueError
        where it was not.
        """
        start, end = self.stretch.start, self.stretch.end
        if start <= seen < end:
            if seen + new > end:
                raise ValueError(f"{end - seen} tokens were announced to the cache and {new} came")
            return self.stretch.is_checked and seen + new == end
        if seen == 0 and not (new == 1 and not self.settings.budget.checks_steps and self.prunes_anything):
            return True
        if seen == 0:
            raise ValueError(
                "under prefill_once the prompt is pruned at its end, and a first pass of one token does not "
                "tell where that is: give its length as prompt_tokens=..., or announce it with "
                "begin_prompt(tokens)"
            )
        if new == 1:
            return self.settings.budget.checks_steps
        raise ValueError(
            f"a pass of {new} tokens behind the {seen} that the cache has seen: say first what they are, "
            "with begin_prompt(tokens) for a further prompt (prompt_tokens=... at the start for one that "
            "comes in chunks), or call reset() before a new text"
        )
