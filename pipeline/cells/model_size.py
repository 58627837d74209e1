"""A model as far as bytes go, from what its files say: nothing is loaded."""

from __future__ import annotations

from pipeline.cells.cell import Cell
from workers.footprint.shape import Shape
from workers.models.model_files import ModelFacts

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def shape_of(facts: ModelFacts, cell: Cell) -> Shape:
    """A model as far as bytes go, in a cell's dtype on its device; what its config.json does not say is taken
    from its keys."""
    heads = facts.heads or facts.kv_heads
    hidden = facts.hidden or heads * facts.head_dim
    inner, width = facts.inner or 4 * hidden, WIDTHS[cell.dtype]

    return Shape(
        facts.layers,
        heads,
        facts.kv_heads,
        facts.head_dim,
        hidden,
        inner,
        facts.vocabulary or 0,
        width,
        cell.device,
    )


def weight_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Of the weights as loaded; roughly, by the shape, where their files are not here yet."""
    return (facts.parameters or shape_of(facts, cell).parameters) * WIDTHS[cell.dtype]
