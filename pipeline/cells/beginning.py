"""How the texts of a cell begin: with BOS, where its model's texts do."""

from __future__ import annotations

import numpy as np

from pipeline.cells.cell import Cell


def beginning(cell: Cell, ids: np.ndarray, length: int) -> np.ndarray:
    """``length`` positions of a text whose tokens are ``ids``,
    BOS among them where the cell's texts begin with one."""
    start = np.asarray(first_ids(cell), dtype=ids.dtype)
    return np.concatenate([start, ids[: length - len(start)]])


def first_ids(cell: Cell) -> list[int]:
    """What is put before each text of a cell: BOS, or nothing."""
    return [] if cell.bos is None else [cell.bos]
