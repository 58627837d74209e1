"""What a pruned cache cannot do under attention of transformers' own, which is not kvsweep's."""

from __future__ import annotations

from workers.cache.attention import NAME as OWN_ATTENTION
from workers.cache.shared_state import SharedState
from workers.policies.observation import NOTHING


def check_stock_attention(state: SharedState, new: int, *, has_dropped: bool) -> None:
    """For a pass of ``new`` tokens through a layer that has dropped entries or has not. Raises ValueError.

    A policy sees no queries there, and the mask, made once for all layers, is right for one length only.
    """
    name = state.config._attn_implementation
    remedy = f"call model.set_attn_implementation({OWN_ATTENTION!r}) first"

    if state.prunes_anything and state.policy.observes != NOTHING:
        raise ValueError(
            f"policy {state.settings.policy!r} observes queries, and attention {name!r} shows none; {remedy}"
        )
    if has_dropped and not (name == "sdpa" and new == 1):
        raise ValueError(
            f"attention {name!r} cannot take {new} tokens after pruning (its mask is for one length); "
            f"{remedy}"
        )
