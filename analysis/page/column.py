"""A column of the page's tables, and the columns that tell what every cell is set to."""

from __future__ import annotations

from dataclasses import dataclass

from analysis import keys
from pipeline.results import CELL_COLUMNS


@dataclass(frozen=True)
class Column:
    """A column of a table. ``form`` is a key of ``labels.FORMATS``, or ``interval`` with the upper end's
    column in ``upper``."""

    key: str
    label: str
    form: str = "figure"
    upper: str = ""
    setting: bool = False


def setting(key: str, label: str, form: str = "text") -> Column:
    """A column that is said above the table where it does not vary."""
    return Column(key, label, form, setting=True)


LABELS = {
    "model_revision": "revision",
    "dataset_fingerprint": "data fingerprint",
    "protocol_version": "protocol",
    "skip_layers_rule": "skipped by",
    "bos": "BOS first",
    "special_tokens_in_text": "special tokens in text",
    "device_name": "device name",
}
"""Headings of the cell's columns that are called otherwise than in the rows."""


def of_cell(*names: str) -> list[Column]:
    """Columns that every row has, in the form that their kind asks for."""
    return [setting(name, LABELS.get(name, name), _form(name)) for name in names]


def _form(name: str) -> str:
    kind = CELL_COLUMNS[name]
    if kind.is_integer():
        return "count"
    return "setting" if kind.is_float() else "text"


READING = of_cell("bos", "special_tokens_in_text")
"""How a text became ids."""

SETTINGS = [
    *of_cell("model", "model_revision", "dataset", "dataset_fingerprint", "protocol_version"),
    *of_cell(*keys.SETTINGS),
    *READING,
    *of_cell("dtype", "device", "device_name"),
]
"""The cell's settings, in reading order; columns that a frame lacks are left out."""
