"""Bytes of windows and of the cells that go on from them:
how many go through together, and what a unit takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.footprint.shape import AT_ONCE_BYTES, MAX_AT_ONCE, Prunes, Shape, observation_of
from workers.policies.budget import Schedule
from workers.policies.eviction import POLICIES
from workers.policies.observation import Observation, widest
from workers.policies.skip_rule import Skip, skipped_count

SHORT_PASS_TOKENS = 512
"""Cells whose passes bring fewer tokens than this (over their windows) share passes;
longer ones fill the machine alone."""


def _in_slots(policy: str) -> bool:
    return policy in POLICIES and POLICIES[policy].in_slots


def windows_at_once(shape: Shape, length: int) -> int:
    """Windows of ``length`` tokens that go through together.

    Their dense pass stays within AT_ONCE_BYTES, and what is kept of it leaves half of that to cells.
    """
    whole, kept = dense_pass(shape, length), dense_kept(shape, length)
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // whole, AT_ONCE_BYTES // 2 // kept))


def dense_pass(shape: Shape, length: int) -> int:
    """Of a window:
    the cache, and the pass or, behind it, hidden states with what is kept of their distributions, twice."""
    return length * (shape.cached + max(shape.passing, shape.hidden * (2 * shape.width + 8)))


def dense_kept(shape: Shape, length: int) -> int:
    """Of a window, while cells go on from it: the cache, and an expected output embedding for each token."""
    return length * (shape.cached + 4 * shape.hidden + 32)


@dataclass(frozen=True)
class Group:
    """Cells that may share passes, as far as bytes go; all figures are the largest of any of them."""

    windows: int
    steps: int
    """Tokens that go through, of each window."""
    room: int
    """Entries that a pruning layer has room for."""
    skipped: int
    """Layers that never prune."""
    stride: int
    """Tokens that a pass brings to a window."""
    observes: Observation
    in_slots: bool
    is_even: bool
    """Whether all cells prune at the same tokens, so that no mask is needed."""

    @classmethod
    def of(
        cls,
        schedules: Sequence[Schedule],
        windows: int,
        skipped: int,
        observes: Observation,
        *,
        in_slots: bool,
        is_even: bool,
    ) -> Group:
        """Of cells with these schedules."""
        first = schedules[0]
        stride = max(stride_of(schedule) for schedule in schedules)
        room = max(schedule.peak for schedule in schedules)

        return cls(windows, first.steps, room, skipped, stride, observes, in_slots, is_even)


def stride_of(schedule: Schedule) -> int:
    """Tokens from one prune to the next, or to the end."""
    first = schedule.first_event or 0
    return (
        min(schedule.full - schedule.kept, schedule.steps)
        if schedule.count > 1 and schedule.full
        else schedule.steps - first
    )


def cells_at_once(shape: Shape, group: Group) -> int:
    """Cells of a group that go through together:
    with the dense pass that they go on from they stay within AT_ONCE_BYTES."""
    left = AT_ONCE_BYTES - group.windows * dense_kept(shape, group.steps) - _group_bytes(shape, group, 0)
    each = _group_bytes(shape, group, 1) - _group_bytes(shape, group, 0)
    return max(1, left // each)


def _group_bytes(shape: Shape, group: Group, cells: int) -> int:
    """Of so many cells of a group: what they keep, and the larger of a pass and a prune."""
    rows = cells * group.windows
    pruned = shape.layers - group.skipped
    kv = shape.kv_heads
    sharing = shape.heads // kv

    entry = shape.entry + 4 * kv + group.observes.of_entry(shape)
    entries = pruned * group.room * entry + group.skipped * group.steps * shape.entry
    stored = rows * (entries + pruned * group.observes.of_row(shape))
    passing = rows * group.stride * (shape.passing + shape.hidden * shape.width)
    widest = max(group.room, group.steps if group.skipped else 0)

    # copies of an entry's key, in 16 bits another in float32, and numbers of 64 bits that order it
    narrow = 4 if shape.width < 4 else 0
    score_of_one = shape.head_dim * (shape.width + narrow) + 64
    if group.in_slots:
        masks = (
            rows * group.stride * group.room * (pruned * kv * (shape.width + 1) + shape.heads * shape.width)
        )
        choosing = rows * pruned * kv * group.room * score_of_one
    else:
        masks = 0 if group.is_even else rows * group.stride * widest * (5 + sharing * shape.width)
        choosing = rows * kv * group.room * (score_of_one + 2 * shape.head_dim * shape.width)

    if group.in_slots and group.skipped:
        masks += rows * group.stride * widest * (5 + sharing * shape.width)
    passing += group.observes.of_pass(shape, rows, group.room)
    fork = group.windows * group.room * kv * (2 * shape.head_dim * shape.width + 64)
    return stored + masks + max(passing, choosing, stored // 2) + fork


class _Shared(NamedTuple):
    """What cells that share passes have in common."""

    skip_layers: Skip
    kind: str
    in_slots: bool
    events: tuple[int | None, int] | None
    """Of cells with long passes: they prune at the same tokens. None for short passes, which all share."""


def perplexity_bytes(shape: Shape, length: int, windows: int, cells: Sequence[Prunes]) -> int:
    """Of a unit of so many windows of ``length`` tokens."""
    steps = length - 1
    windows = min(windows, windows_at_once(shape, length))
    first = windows * dense_pass(shape, length)
    going: dict[_Shared, list[tuple[Schedule, Observation]]] = {}
    points: dict[tuple[str, int], Observation] = {}
    for cell in cells:
        schedule = cell.budget.event_schedule(steps)
        skipped = skipped_count(cell.skip_layers)
        if not schedule.count or skipped >= shape.layers:
            continue
        stride = stride_of(schedule)
        seen = observation_of(cell.policy)
        is_short = stride * windows < SHORT_PASS_TOKENS
        in_slots = _in_slots(cell.policy)
        shared = _Shared(
            cell.skip_layers, seen.kind, in_slots, None if is_short else (schedule.full, schedule.kept)
        )
        going.setdefault(shared, []).append((schedule, seen))
        point = (seen.kind, schedule.first_event or 0)
        points[point] = max(points.get(point, seen), seen, key=lambda observation: observation.amount)

    noted = sum(shape.observing(seen, windows, seen_tokens) for (_, seen_tokens), seen in points.items())
    if any(seen.probes for seen in points.values()):
        first = max(first, windows * length * shape.cached + shape.pass_over(windows, length, probed=True))

    largest = 0
    for shared, cells_of_it in going.items():
        schedules = [schedule for schedule, _ in cells_of_it]
        (seen,) = widest(seen for _, seen in cells_of_it).values()
        is_short = shared.events is None
        group = Group.of(
            schedules,
            windows,
            skipped_count(shared.skip_layers),
            seen,
            in_slots=shared.in_slots and is_short,
            is_even=not is_short,
        )
        largest = max(largest, _group_bytes(shape, group, min(len(schedules), cells_at_once(shape, group))))

    return max(first, windows * dense_kept(shape, length) + largest) + noted + shape.scoring
