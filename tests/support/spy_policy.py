"""A policy that asserts what the contract of policies promises of every view."""

import torch
from transformers import DynamicCache


class Spy:
    """Asserts what the contract promises of every view, and notes that it was asked.

    ``texts``: [texts, tokens] by which the first layer's keys and values are judged, for they follow from
    tokens alone: those of transformers' own cache. ``places``: row_ids -> text.
    """

    def __init__(self, stock=None, texts=None, places=None):
        self.views, self.judged, self.places = 0, 0, places or {}
        if stock is not None:
            cache = DynamicCache()
            stock(texts, past_key_values=cache)
            self.stock = cache.layers[0].keys, cache.layers[0].values

    def __call__(self, view):
        batch, heads, n = view.positions.shape
        assert view.keys.shape[:3] == (batch, heads, n) and view.positions.dtype == torch.int32
        assert bool((view.positions.diff(dim=-1) > 0).all()), "temporal order"
        assert bool((view.positions[..., -1:] == view.seen - 1).all()), "the newest entry is the last one"
        assert bool(((view.positions >= 0) & (view.positions < view.seen)).all()), (
            "every place holds an entry"
        )
        assert bool((view.keep < n).all() and (view.keep == view.keep[0]).all()), (
            "asked only where something goes"
        )
        for row, layer, name in zip(
            range(batch), view.layer.flatten(), view.row_ids.flatten().tolist(), strict=True
        ):
            if layer == 0 and name in self.places:
                self._judge(view, row, self.places[name])
        self.views += 1
        return -view.keys.norm(dim=-1)

    def _judge(self, view, row, text):
        positions = view.positions[row].long()
        known = positions < self.stock[0].shape[2]
        for own, stock in zip((view.keys, view.values), self.stock, strict=True):
            place = positions.clamp(max=stock.shape[2] - 1)[..., None].expand(-1, -1, stock.shape[3])
            wanted = stock[text].gather(1, place)
            assert torch.allclose(own[row][known], wanted[known], atol=1e-5), (
                "each position's own key and value"
            )
        self.judged += 1
