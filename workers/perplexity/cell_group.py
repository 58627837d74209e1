"""Cells that share their passes: how a group of them goes from its first events to the last token."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.cache.batch.batch_cache import BatchCache
from workers.cache.batch.pass_plan import Pass, Track
from workers.cache.scoring import NOT_FINITE, Twin, body_of, score, tile_size
from workers.cache.shared_prefix import SharedPrefix
from workers.cache.validity import Validity
from workers.footprint.perplexity import SHORT_PASS_TOKENS
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.watch import Watch


def is_short(track: Track, windows: int) -> bool:
    """Whether the cell's passes bring few tokens."""
    events = track.schedule.events
    stride = events[1][0] - events[0][0] if len(events) > 1 else track.schedule.steps
    return stride * windows < SHORT_PASS_TOKENS


def check_finite(nll: Tensor) -> None:
    """Raises FloatingPointError for an NLL that is NaN or infinite."""
    if not bool(torch.isfinite(nll).all()):
        raise FloatingPointError(NOT_FINITE)


class CellGroup:
    """Cells that go through together, one pass per event, until each has seen all tokens."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        prefix: SharedPrefix,
        dense: tuple[CellScores, Twin | None],
        tracks: list[Track],
        row_ids: Sequence[int],
        watch: Watch,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.dense, self.twin = dense
        self.tracks = tracks
        self.watch = watch

        begin = time.perf_counter()
        short = is_short(tracks[0], tokens.shape[0])
        self.cache = BatchCache(prefix.prefix_layers, tracks, row_ids, short, model.config)  # pyright: ignore[reportArgumentType]

        shape = (len(tracks), *self.dense.nll.shape)
        self.nll, self.kl = torch.zeros(2, *shape, device=tokens.device)
        self.correct, self.agreed = torch.zeros(2, *shape, dtype=torch.bool, device=tokens.device)
        self.passes = [0] * len(tracks)
        self.validity = [Validity(0)] * len(tracks)
        self.seconds = [(time.perf_counter() - begin) / len(tracks)] * len(tracks)
        self.unscored: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def run(self) -> list[CellScores]:
        """All passes. Raises FloatingPointError for NaN logits, and what a policy raises."""
        active = list(range(len(self.tracks)))
        starts = [track.seen for track in self.tracks]
        windows = self.tokens.shape[0]
        body = body_of(self.model)
        while active := self._retire(active):
            begin = time.perf_counter()
            plan = Pass([self.tracks[i] for i in active], windows, self.tokens.device)
            self.cache.begin(plan)
            ids = self.tokens[plan.window, plan.step][None]
            hidden = body(
                input_ids=ids, position_ids=plan.positions, past_key_values=self.cache, use_cache=True
            ).last_hidden_state
            self.cache.end()

            self._note(plan, active, hidden[0], begin)
            del hidden  # not beside those of the next pass
        self._score()
        return [self._result(i, start) for i, start in enumerate(starts)]

    def _note(self, plan: Pass, active: list[int], hidden: Tensor, begin: float) -> None:
        """Keep what a pass gave, hidden states [tokens, width], and score it where enough waits;
        ``active`` move on."""
        windows = self.tokens.shape[0]
        cells = torch.tensor(active, device=self.tokens.device)[plan.rows // windows]
        self.unscored.append((hidden, cells, plan.window, plan.step))
        if sum(len(part[0]) for part in self.unscored) >= tile_size(self.tokens.device)[0]:
            self._score()
        self.watch.worked(int(plan.counts.sum()) * windows, self.tracks[active[0]].index)
        per_token = (time.perf_counter() - begin) / int(plan.counts.sum())
        for i, count in zip(active, plan.counts.tolist(), strict=True):
            self.tracks[i].advance()
            self.passes[i] += 1
            self.seconds[i] += per_token * count

    def _score(self) -> None:
        """Tokens of several short passes at once: nothing waits for their logits, and the output layer is
        read less often."""
        if not self.unscored:
            return

        hidden, cells, rows, at = (torch.cat(parts) for parts in zip(*self.unscored, strict=True))
        assert self.twin is not None
        scored = score(
            self.model, hidden[None], self.tokens[rows, at + 1][None], self.twin.at(rows[None], at[None])
        )
        assert scored.kl is not None and scored.agreed is not None

        self.nll[cells, rows, at] = scored.nll[0]
        self.correct[cells, rows, at] = scored.correct[0]
        self.kl[cells, rows, at] = scored.kl[0]
        self.agreed[cells, rows, at] = scored.agreed[0]
        self.unscored = []

    def _retire(self, active: list[int]) -> list[int]:
        """Take the cells that are done out of the cache; returns those that go on."""
        done = [i for i in active if self.tracks[i].seen == self.tracks[i].schedule.steps]
        if not done:
            return active

        windows = self.tokens.shape[0]
        layers = [layer for layer in self.cache.batch_layers if layer.prunes]
        sums = torch.stack([layer.sums for layer in layers]).mean(0).mean(-1)  # [3, rows]
        for place, i in enumerate(active):
            if i in done:
                events = self.tracks[i].schedule.count
                shares = (sums[:, place * windows : (place + 1) * windows] / events).tolist()
                self.validity[i] = Validity(events, *shares)

        going = [place for place, i in enumerate(active) if i not in done]
        rows = torch.tensor(
            [place * windows + w for place in going for w in range(windows)], dtype=torch.long
        )
        self.cache.drop_rows(rows.to(self.tokens.device))
        return [active[place] for place in going]

    def _result(self, i: int, start: int) -> CellScores:
        track = self.tracks[i]
        dense = self.dense
        nll, correct, kl, agreed = (x[i].cpu() for x in (self.nll, self.correct, self.kl, self.agreed))
        nll[:, :start] = dense.nll[:, :start]
        correct[:, :start] = dense.correct[:, :start]
        agreed[:, :start] = True  # up to its first event the cell is the dense one
        check_finite(nll)

        prunes = tuple(track.settings.prunes(layer) for layer in range(len(dense.pruned_layers)))
        return CellScores(
            nll,
            correct,
            track.schedule,
            prunes,
            dense.kv_bytes_per_entry,
            self.validity[i],
            self.passes[i],
            self.seconds[i],
            kl,
            agreed,
        )
