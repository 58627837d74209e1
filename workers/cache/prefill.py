"""One dense pass over prompts, from which caches of any settings go on as if each had taken them itself.

Nothing is dropped before the check at a prompt's end, so its keys and values, and what policies observe until
then, are the same for every cell: computed once, pruned per cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import body_of, next_logits
from workers.cache.shared_prefix import SharedPrefix
from workers.policies.own_policies import find_policy
from workers.policies.settings import PruneSettings


class Prefill:
    """``Prefill(model, prompts, policies)``: prompts [batch, n] ids; ``policies``: those of the caches that
    will be asked for."""

    @torch.inference_mode()
    def __init__(self, model: nn.Module, prompts: Tensor, policies: Iterable[str]) -> None:
        """Raises PolicyError for an unknown policy."""
        self.config = model.config
        length = prompts.shape[1]
        observations = [find_policy(policy).observes for policy in policies]
        self.prefix = SharedPrefix(model.config, [length], observations)  # pyright: ignore[reportArgumentType]
        hidden = body_of(model)(
            input_ids=prompts,
            position_ids=torch.arange(length, device=prompts.device)[None],
            past_key_values=self.prefix,
            use_cache=True,
        ).last_hidden_state

        self.prefix.check_complete(length)
        self.logits = next_logits(model, hidden[:, -1])
        """[batch, vocabulary], of the token after each prompt."""

    def cache(self, settings: PruneSettings, row_ids: Sequence[int]) -> PrunedCache:
        """The prompts' cache after its check; ``row_ids`` names the prompts for the ``random`` policy."""
        cache = PrunedCache(self.config, settings, row_ids=row_ids)  # pyright: ignore[reportArgumentType]
        for layer, prefix in zip(cache.pruned_layers, self.prefix.prefix_layers, strict=True):
            layer.go_on_from(prefix)
        return cache
