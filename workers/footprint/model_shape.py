"""The shape of a loaded model, by which its batches are sized."""

from __future__ import annotations

from torch import nn

from workers.footprint.shape import Shape


def shape_of(model: nn.Module) -> Shape:
    """From the model's configuration, dtype and device."""
    config = model.config.get_text_config()  # pyright: ignore
    weight = next(model.parameters())
    return Shape.of(config.to_dict(), weight.element_size(), weight.device.type)
