"""A unit of perplexity -> rows: batches of windows as large as memory holds, each cell's rows as it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import windows_at_once
from workers.messages.out_of_memory import is_out_of_memory
from workers.messages.telling import Telling
from workers.messages.work import Failure, PerplexityWork, UnitCell, UnitResult, WorkUnit
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, schedule_of
from workers.perplexity.watch import Outcome, Watch
from workers.policies.settings import PruneSettings, in_words
from workers.texts.windows import Window


def perplexity_rows(
    unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling
) -> None:
    """Tell ``telling`` the rows of every window and cell; cells that fail go into ``result``.
    Raises as ``evaluate`` does."""
    work = unit.work
    assert isinstance(work, PerplexityWork)
    steps = work.tokens.shape[1] - 1

    telling.expect(
        len(work.windows) * (steps + sum(_own_tokens(cell.settings, steps) for cell in unit.cells))
    )
    made = _PerplexityRows(unit, work, result, telling)

    start = 0
    size = windows_at_once(shape_of(model), work.tokens.shape[1])
    while start < len(work.windows):
        part = slice(start, start + size)
        windows = work.windows[part]
        cells = made.cells_left()
        settings = [cell.settings for cell in cells]
        row_ids = [window.text_id for window in windows]
        wanted = {i for i, cell in enumerate(cells) if cell.cell_id not in unit.complete}
        ids = torch.from_numpy(work.tokens[part].astype(np.int64))
        try:
            evaluate(model, ids.to(device), settings, row_ids, wanted, made.watch(cells, part))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(windows) == 1:
                raise
            size = (len(windows) + 1) // 2
            continue
        start += len(windows)


def _own_tokens(settings: PruneSettings, steps: int) -> int:
    """Of a window, the tokens that a cell puts through a model itself: those behind its first event."""
    first = schedule_of(settings, steps).first_event
    return 0 if first is None else steps - first


class _PerplexityRows:
    """What is made of a unit's cells as they end, batch of windows after batch."""

    def __init__(self, unit: WorkUnit, work: PerplexityWork, result: UnitResult, telling: Telling) -> None:
        self.unit = unit
        self.work = work
        self.result = result
        self.telling = telling
        self.failed: set[str] = set()
        self.given: set[tuple[str, int]] = set()
        """(cell, window) of rows that were given: a batch too large for memory is tried again in halves."""

    def cells_left(self) -> list[UnitCell]:
        """Those that did not fail."""
        return [cell for cell in self.unit.cells if cell.cell_id not in self.failed]

    def watch(self, cells: Sequence[UnitCell], part: slice) -> Watch:
        """Who takes what an evaluation of ``cells`` on the windows of ``part`` tells."""

        def worked(tokens: int, cell: int) -> None:
            self.telling.worked(tokens, "dense" if cell < 0 else in_words(cells[cell].settings))

        def ended(dense: CellScores, cell: int, outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                self._fail(cells[cell].cell_id, outcome)
            else:
                self._give(cells[cell], part, dense, outcome)

        return Watch(ended, worked)

    def _fail(self, cell_id: str, error: Exception) -> None:
        self.failed.add(cell_id)
        self.result.failures.append(Failure.of(cell_id, error))
        self.telling.forget(cell_id)

    def _give(self, cell: UnitCell, part: slice, dense: CellScores, own: CellScores | None) -> None:
        """A cell's rows; without scores of its own it *is* the dense one."""
        scores = own or dense
        reused = own is None and cell.settings.policy != "dense"
        windows = zip(self.work.windows[part], self.work.documents[part], strict=True)
        rows = []
        for i, (window, document) in enumerate(windows):
            if (cell.cell_id, window.index) not in self.given:
                self.given.add((cell.cell_id, window.index))
                row = _perplexity_row(window, i, scores, reused=reused)
                rows.append(
                    {"cell_id": cell.cell_id, **row, "document": document, "stride": self.work.stride}
                )
        self.telling.give(rows)


def _perplexity_row(window: Window, i: int, scores: CellScores, *, reused: bool) -> dict[str, Any]:
    """One (cell, window);
    ``reused`` marks a cell that never prunes and so *is* the dense cell (no passes of its own)."""

    def scored(values: Tensor | None) -> Tensor:
        assert values is not None  # None without a dense cell beside it, and here it always is
        return values[i, window.first_scored - 1 :]

    nll = scored(scores.nll).numpy()
    validity = scores.validity
    return {
        "window_index": window.index,
        "window_start": window.start,
        "window": window.length,
        "tokens_scored": window.tokens_scored,
        "nll_sum": float(nll.astype(np.float64).sum()),
        "nll": nll,
        "tokens_correct": int(scored(scores.correct).sum()),
        "prune_events": validity.prune_events,
        "tokens_scored_pruned": scores.schedule.scored_pruned(window.first_scored),
        "cache_tokens_mean": scores.entries_mean(window.first_scored),
        "cache_tokens_peak": scores.entries_peak(),
        "cache_tokens_final": scores.entries_final(),
        "kv_bytes_mean": scores.kv_bytes_mean(window.first_scored),
        "kv_bytes_peak": scores.kv_bytes_peak(),
        "recent_retained": validity.recent_retained[i] if validity.recent_retained else None,
        "sink_retained": validity.sink_retained[i] if validity.sink_retained else None,
        "score_ties": validity.score_ties[i] if validity.score_ties else None,
        "forward_passes": 0 if reused else scores.forward_passes,
        "seconds": 0.0 if reused else scores.seconds / scores.nll.shape[0],
        "event_steps": [seen for seen, _, _ in scores.schedule.events],
        "kl_sum": float(scored(scores.kl).double().sum()),
        "tokens_agreed": int(scored(scores.agreed).sum()),
        "event_kept": [after for _, _, after in scores.schedule.events],
    }
