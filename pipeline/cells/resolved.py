"""What a sweep's names turned out to be: weights, texts,
tokens, and the targets that groups of cells are about."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.corpora import Collection, Corpus, Tokens
from workers.models.model_files import ModelFacts


@dataclass(frozen=True)
class Target:
    """What a group of cells shares before the axes of pruning: resolved model, dataset, device."""

    model: str
    model_revision: str
    layers: int
    dataset: str
    dataset_fingerprint: str
    device: str
    dtype: str
    bos: int | None = None
    """The token that the model's texts begin with."""


@dataclass(frozen=True)
class OwnText:
    """A text that a task brings itself, as what a cell reads: its name, and the digest of how it is
    defined."""

    task: str
    name: str
    fingerprint: str


@dataclass(frozen=True)
class Resolved:
    """Everything that a plan needs of the outside world."""

    models: dict[str, ModelFacts]
    corpora: dict[str, Corpus | Collection]
    """By the name that rows have of a dataset."""
    tokens: dict[tuple[str, str], Tokens]
    """By (model, dataset)."""
    targets: list[Target]
    """One without a dataset per model, device and type where a task is asked for that brings its own
    texts."""
    texts: list[OwnText] = field(default_factory=list)
    """Of the tasks that bring their own."""
    bos: dict[str, int | None] = field(default_factory=dict)
    """By model: the token that its texts begin with."""
    own_bos: dict[str, bool] = field(default_factory=dict)
    """By model: whether its own tokenizer puts one first."""
    notes: list[str] = field(default_factory=list)
    """Of the machine, to be told before anything runs."""
