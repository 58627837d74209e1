"""One cell in two ways, token by token: in the passes that a run gives it, and through the reference, one
token per pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import windows_at_once
from workers.loaded.layer_choice import choose_layers
from workers.loaded.load import load
from workers.loaded.self_check import use_own_attention
from workers.machine.process_state import whole_process_state
from workers.messages.work import PerplexityWork, WorkUnit
from workers.models.model_files import ModelError
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference, storage_of


@dataclass(frozen=True)
class Way:
    """What one way gave: plain numbers."""

    nll: np.ndarray
    """[windows, length - 1] float64, NLL of tokens 1 ... length - 1 in nats."""
    passes: int
    prune_events: int

    @classmethod
    def of(cls, scores: CellScores, windows: int) -> Way:
        """Of the first windows."""
        return cls(scores.nll[:windows].double().numpy(), scores.forward_passes, scores.validity.prune_events)


@dataclass(frozen=True)
class CellCheck:
    """What both ways gave of the first windows of a unit, and which cache served the first way."""

    events: Way
    """In the company of the unit's other cells and of as many windows as go through together."""
    reference: Way
    windows: int
    """That went through together by events."""
    storage: str
    """How the cell's entries were stored between its passes, in words."""

    @property
    def differences(self) -> np.ndarray:
        """[windows, length - 1] NLL by events less that of the reference, in nats."""
        return self.events.nll - self.reference.nll


def check_cell(unit: WorkUnit, cell_id: str, compared: int) -> CellCheck:
    """Load the unit's model and evaluate one of its cells in both ways, by the reference on ``compared``
    windows at most.

    Raises ModelError for a model that cannot be measured and for ``skip_layers`` that it cannot choose, and
    what makes the cell fail.
    """
    work = unit.work
    assert isinstance(work, PerplexityWork)
    device = torch.device(unit.device)

    with whole_process_state(), torch.inference_mode():
        model = load(unit.model, unit.dtype, device)
        use_own_attention(model, unit.model.name)
        chosen = choose_layers(unit, model)
        for failure in chosen.failures:
            if failure.cell_id == cell_id:
                raise ModelError(failure.message)

        cells = [cell.settings for cell in chosen.unit.cells]
        place = [cell.cell_id for cell in chosen.unit.cells].index(cell_id)
        together = windows_at_once(shape_of(model), work.tokens.shape[1])
        tokens = torch.from_numpy(work.tokens[:together].astype(np.int64)).to(device)
        row_ids = [window.text_id for window in work.windows[:together]]

        dense, outcomes = evaluate(model, tokens, cells, row_ids, {place})
        outcome = outcomes[place]
        if isinstance(outcome, Exception):
            raise outcome
        reference = evaluate_reference(model, tokens[:compared], cells[place], row_ids[:compared])

    storage = storage_of(cells[place], *tokens.shape, layers=unit.model.layers)
    both = (Way.of(scores, len(reference.nll)) for scores in (outcome or dense, reference))
    return CellCheck(*both, windows=len(tokens), storage=storage)
