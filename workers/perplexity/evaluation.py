"""Sliding perplexity through a pruned cache: exact and event-driven, and the one-token-per-pass reference.

The reference *defines* the numbers: one forward pass per token, a prune check after each. Between two prune
events nothing is dropped, so the tokens up to the next event go through in one pass with the same result; the
tokens before the first event are the same for every cell and are computed once, in one dense pass; and cells
whose passes are short share them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from workers.cache.batch.pass_plan import Track
from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import Scored, Twin, body_of, score, score_dense
from workers.cache.shared_prefix import SharedPrefix
from workers.cache.validity import Validity
from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import Group, cells_at_once
from workers.footprint.shape import Shape
from workers.messages.out_of_memory import is_out_of_memory, without_frames
from workers.perplexity.cell_group import CellGroup, check_finite, is_short
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.watch import UNWATCHED, Outcome, Watch
from workers.policies.budget import Budget, Schedule
from workers.policies.observation import NOTHING, widest
from workers.policies.own_policies import find_policy
from workers.policies.settings import PruneSettings


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    tokens: Tensor,
    cells: Sequence[PruneSettings],
    row_ids: Sequence[int],
    wanted: Collection[int] | None = None,
    watch: Watch = UNWATCHED,
) -> tuple[CellScores, list[Outcome]]:
    """The dense cell and every one of ``cells`` on a batch of windows, exactly as the reference scores them.

    tokens: [windows, length] ids; row_ids: [windows], the windows' starts. A cell that never prunes on this
    length is None: it *is* the dense cell. A cell that fails is its exception and takes no other down; a
    failure of the dense pass is raised (FloatingPointError for NaN logits), and so is running out of memory
    with more than one window. ``wanted``: indices of the cells that are asked for, all where left out; cells
    that share no pass with these are not computed, and they are None.
    """
    steps = tokens.shape[1] - 1
    count = model.config.get_text_config().num_hidden_layers  # pyright: ignore
    results: list[CellScores | Exception | None] = [None] * len(cells)
    tracks = []
    for i, cell in enumerate(cells):
        try:
            tracks += _tracks(i, cell, steps, count)
        except ValueError as error:
            results[i] = error
    dense, prefix, twin = _dense(model, tokens, tracks, count)
    watch.worked(steps * tokens.shape[0], -1)
    for index in sorted(set(range(len(cells))) - {track.index for track in tracks}):
        watch.ended(dense, index, results[index])

    waiting: deque[list[Track]] = deque()
    for group in _groups(tracks, tokens.shape[0], shape_of(model)):
        if wanted is None or any(track.index in wanted for track in group):
            waiting.append(group)
    while waiting:
        group = waiting.popleft()
        # copies, because a failing group must not move those that are tried alone
        started = [replace(track) for track in group]
        try:
            outcomes: Sequence[CellScores | Exception] = CellGroup(
                model, tokens, prefix, (dense, twin), started, row_ids, watch
            ).run()
        except Exception as error:
            if len(group) > 1:  # each alone, so that a failing cell takes no other down
                waiting.extendleft([track] for track in reversed(group))
                continue
            if is_out_of_memory(error) and tokens.shape[0] > 1:
                raise  # fewer windows at a time may do
            outcomes = [without_frames(error)]
        for track, outcome in zip(group, outcomes, strict=True):
            results[track.index] = outcome
            watch.ended(dense, track.index, outcome)
    return dense, results


def schedule_of(cell: PruneSettings, steps: int) -> Schedule:
    """The event schedule of a cell's pruning layers over ``steps`` steps."""
    return cell.budget.event_schedule(steps)


def _tracks(index: int, cell: PruneSettings, steps: int, layers: int) -> list[Track]:
    """The cell at its first event; nothing where it has none.
    Raises ValueError where its policy cannot be found."""
    schedule = schedule_of(cell, steps)
    if not schedule.events or not any(cell.prunes(i) for i in range(layers)):
        return []
    seen, _, held = schedule.events[0]
    return [Track(index, cell, schedule, find_policy(cell.policy), seen, held)]


def _dense(
    model: nn.Module, tokens: Tensor, tracks: Sequence[Track], layers: int
) -> tuple[CellScores, SharedPrefix, Twin | None]:
    """One pass over everything, and what cells, where there are any, are compared with.

    Raises FloatingPointError for NaN logits.
    """
    begin = time.perf_counter()
    steps = tokens.shape[1] - 1
    observing = [track for track in tracks if track.policy.observes != NOTHING]
    observations = [track.policy.observes for track in observing]
    points = [track.seen for track in observing]
    prefix = SharedPrefix(model.config, points, observations)  # pyright: ignore[reportArgumentType]
    hidden = body_of(model)(
        input_ids=tokens[:, :steps],
        position_ids=torch.arange(steps, device=tokens.device)[None],
        past_key_values=prefix,
        use_cache=True,
    ).last_hidden_state
    prefix.check_complete(steps)

    twin = None
    if tracks:
        scored, twin = score_dense(model, hidden, tokens[:, 1:])
    else:
        scored = score(model, hidden, tokens[:, 1:])
    nll = scored.nll.cpu()
    correct = scored.correct.cpu()
    check_finite(nll)

    layer = prefix.prefix_layers[0]
    assert layer.keys is not None and layer.values is not None
    entry = layer.keys.shape[1] * (layer.keys.shape[3] + layer.values.shape[3]) * layer.keys.element_size()
    seconds = time.perf_counter() - begin
    dense = CellScores(
        nll,
        correct,
        Budget(1.0, 1).event_schedule(steps),
        (False,) * layers,
        entry,
        Validity(0),
        1,
        seconds,
        torch.zeros_like(nll),
        torch.ones_like(correct),
    )
    return dense, prefix, twin


def _groups(tracks: Sequence[Track], windows: int, shape: Shape) -> Iterator[list[Track]]:
    """Cells that share passes:
    same skipped layers, observation and order of entries, and short passes or the same schedule."""
    groups: dict[object, list[Track]] = {}
    for track in tracks:
        policy, events = track.policy, track.schedule.events
        how = (policy.entrywise, policy.observes.kind, policy.temporal, policy.rolls)
        key = (track.settings.skip_layers, how, is_short(track, windows) or events)
        groups.setdefault(key, []).append(track)

    for group in groups.values():
        first = group[0]
        (observes,) = widest(track.policy.observes for track in group).values()
        together = Group.of(
            [track.schedule for track in group],
            windows,
            len(first.settings.skipped),
            observes,
            in_slots=first.policy.in_slots and is_short(first, windows),
            is_even=not is_short(first, windows),
        )
        size = cells_at_once(shape, together)
        group.sort(key=lambda track: track.settings.policy)  # cells of a policy are scored together
        for start in range(0, len(group), size):
            yield group[start : start + size]


def storage_of(cell: PruneSettings, windows: int, length: int, layers: int) -> str:
    """In words, how ``evaluate`` stores a cell's entries between passes over windows [windows, length]."""
    tracks = _tracks(0, cell, length - 1, layers)
    if not tracks:
        return "the dense pass alone, for it never prunes on this length"
    if not is_short(tracks[0], windows):
        return "rows of one length, from which dropped entries are taken out (cell_batch)"
    if tracks[0].policy.in_slots:
        return "entries that stay where they are, new ones in the places of dropped ones (slot_layer)"
    return "rows of unequal length, padded, from which dropped entries are taken out (cell_batch)"


@torch.inference_mode()
def evaluate_reference(
    model: nn.Module, tokens: Tensor, cell: PruneSettings, row_ids: Sequence[int]
) -> CellScores:
    """The protocol that defines the numbers: one forward pass per token, a prune check after each.
    Slow; for judging.

    It shares no cache with ``evaluate``: each token goes through ``PrunedCache``, the one that
    ``model.generate`` takes.
    """
    begin = time.perf_counter()
    steps = tokens.shape[1] - 1
    cache = PrunedCache(model.config, cell, row_ids=row_ids)  # pyright: ignore[reportArgumentType]
    scored = []
    for step in range(steps):
        hidden = body_of(model)(**cache.inputs(tokens[:, step : step + 1])).last_hidden_state
        scored.append(score(model, hidden, tokens[:, step + 1 : step + 2]))
    joined = Scored.joined(scored, 1)
    nll = joined.nll.cpu()
    correct = joined.correct.cpu()
    check_finite(nll)

    prunes = tuple(cell.prunes(i) for i in range(len(cache.layers)))
    layer = cache.pruned_layers[0]
    keys, values = layer.stored()
    entry = keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()
    scores = CellScores(
        nll,
        correct,
        schedule_of(cell, steps),
        prunes,
        entry,
        cache.validity(),
        steps,
        time.perf_counter() - begin,
    )
    held = [layer.held for layer in cache.pruned_layers]
    if held != scores.entries_final():
        raise RuntimeError(
            f"the cache holds {held} entries per layer where its schedule says {scores.entries_final()}"
        )
    return scores
