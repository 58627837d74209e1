"""A cache layer that attends itself: what ``update`` takes waits for exactly one ``attend``.

A model calls ``update`` with its new keys, and our attention function with what ``update`` returned. Between
the two lies the model's own code, which may copy the keys, keep them for another layer, or call some other
attention: then nothing would ever be pruned, or a layer would attend to what another has already pruned. So
the returned keys carry their layer, and the layer waits.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from workers.policies.attention_weights import Scale

LAYER = "kvsweep_layer"
"""Attribute of the keys that a cache layer's ``update`` returns: the layer, which then attends."""


class _Newest(threading.local):
    """The layer whose ``update`` was called last in this thread, if it still waits."""

    layer: weakref.ref[AttendingLayer] | None = None


_newest = _Newest()


class WrongUseError(RuntimeError):
    """A model or a script used a cache in a way that would have given wrong figures."""


class AttendingLayer(CacheLayerMixin):
    """What the layers of all our caches share: keys are marked, and one ``attend`` clears the mark."""

    is_sliding = False
    is_compileable = False
    waits = False
    """Whether ``update`` took entries to which nothing has attended yet."""
    index = 0
    """The layer's place in the model."""
    seen: int
    """Tokens seen, those of this pass included."""

    def marked(self, keys: Tensor) -> Tensor:
        """The keys as ``update`` returns them. A view, because a stored tensor that names its layer would
        keep both alive."""
        view = keys.view_as(keys)
        setattr(view, LAYER, self)
        self.waits = True
        _newest.layer = weakref.ref(self)
        return view

    def check_attended(self) -> None:
        """Raises WrongUseError where our attention never attended to the entries of the last pass."""
        if self.waits:
            raise WrongUseError(
                f"layer {self.index} took keys to which no attention of kvsweep's was applied, so nothing "
                "was pruned: the model copies its keys or computes attention in another way, or its "
                "attention is not the one that the cache's configuration names; such a model cannot be "
                "measured"
            )

    def clear_mark(self) -> None:
        """For the one ``attend`` that belongs to the last ``update``. Raises WrongUseError for any other."""
        if not self.waits:
            raise WrongUseError(
                f"keys of layer {self.index} were attended to a second time, after the layer had pruned: "
                "layers of this model read other layers' keys, which a pruned cache does not support"
            )
        self.waits = False
        _newest.layer = None

    def get_max_length(self) -> int:
        return -1

    @abstractmethod
    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """query [batch, heads, q, head_dim] -> [batch, q, heads, head_dim];
        clears the mark, drops entries where due."""
        ...


def layer_of(keys: Tensor) -> AttendingLayer | None:
    """The layer that the keys come from; None for keys of no cache of ours.

    Raises WrongUseError where the keys of a layer lost their mark on the way here.
    """
    layer: AttendingLayer | None = getattr(keys, LAYER, None)
    if layer is not None:
        return layer
    waiting = _newest.layer() if _newest.layer else None
    if waiting is not None:
        waiting.check_attended()
    return None


def forget_waiting() -> None:
    """A new pass begins: one that broke off before concerns only the cache that it was made with."""
    _newest.layer = None
