"""Bytes that a model, its caches and its passes take, from shapes and settings alone: plain integers, without torch.

The one accounting. A worker sizes its batches of windows, cells, questions and contexts by it; the plan adds up the
same figures, so that a place is found that holds them. Nothing here asks what memory is free, because a batch of
another size has other last bits: a row must not depend on what else its machine was doing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from workers.budget import Budget, Schedule
from workers.eviction import POLICIES
from workers.model_settings import count_of, hidden_width, inner_width
from workers.observation import NOTHING, Anything, Observation, widest
from workers.skip_rule import Skip, skipped_count

AT_ONCE_BYTES = 2 * 2**30
"""What goes through a model together takes so much beside the weights, or is one window, cell, question or context.

Of SmolLM2 135M that is 16 windows of 1,024 tokens and three cells of half of them: more at a time is no faster on a
CPU, whose caches are full with less, shows nothing of how far a unit is for longer, and keeps a second worker off a
machine of 8 GB."""
MAX_AT_ONCE = 16
"""Windows, questions and contexts that go through together at most."""
ROWS = 16
"""Continuations that go on together from the contexts of a batch of the harness, at least, where they fit."""
SHORT_PASS_TOKENS = 512
"""Cells whose passes bring fewer tokens than this (over their windows) share passes; longer ones fill the machine alone."""
PROBABILITY_BYTES = 64 * 2**20
"""Where probabilities are needed themselves they are made for so many queries at a time."""
CHECK_LOGITS_BYTES = 512 * 2**20
"""What the stock model's logits may take at a time in the self-check."""
ROOM_STEP, ROOM_SHARE = 32, 16
"""A buffer has room for so many entries, or for one more of every so many, beyond what it holds when it is made: appending copies
what is held once in so many passes, and the room costs a sixteenth at most."""

STARTED_BYTES = 480 * 2**20
"""A worker as it starts: measured 415 MiB alone, 460 beside the driver, 480 as a Ray actor."""
PROCESS_BYTES = STARTED_BYTES + 80 * 2**20
"""The same with the code of a model and what else is imported when it is used (measured: 35 to 60 MiB)."""
HARNESS_BYTES = 224 * 2**20
"""What lm-evaluation-harness and what it reads its datasets with add to it (measured: 80 MiB, and tables), and what is kept of
freed memory beyond FRAGMENT_BYTES where many caches are pruned at once (measured: 80 MiB behind 16 contexts of SmolLM2)."""
HARNESS_LONGEST = 8192
"""Contexts of the harness's tasks are planned as if they were as long as the model takes, and no longer than this: only running a
task tells. Longer ones make a worker exceed its plan, which it says."""
QUESTION_TOKENS = 64
"""Tokens of a question and its answer at most, roughly."""
CHECK_RATIOS = (0.5, 0.9, 0.3)
"""What the cells of the self-check keep; the first is the one that is judged."""
CHECK_LATE = 128
"""They prune where so many tokens of a long text are still to come, or half of a short one."""
FRAGMENT_BYTES = 208 * 2**20
"""What glibc keeps of freed memory at most, beside what is in use: it takes blocks below ``heap.OWN_PAGES_BYTES`` from its heap,
where those that live on part the free ones (measured: 40 to 130 MiB behind a unit, up to 210 in a worker that has done many)."""


class Prunes(Protocol):
    """What of a cell says how much it keeps: cells of a grid have it, and ``PruneSettings``."""

    @property
    def policy(self) -> str:
        """Its name."""
        ...

    @property
    def skip_layers(self) -> Skip:
        """Layers that never prune, or the rule that will choose them."""
        ...

    @property
    def budget(self) -> Budget:
        """How many entries the others hold."""
        ...


@dataclass(frozen=True)
class Shape:
    """A model as far as bytes go: ``width`` bytes a number, on a kind of device ("cpu", "cuda", "mps")."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    """Width of the layers' middle, where a token is widest."""
    vocabulary: int
    width: int
    device: str = "cpu"

    @classmethod
    def of(cls, text: Mapping[str, Any], width: int, device: str) -> Shape:
        """From the settings of a language model (config.json). Raises ValueError where they are not whole numbers."""
        layers = count_of(text, "num_hidden_layers", "n_layer", "n_layers") or 1
        heads = count_of(text, "num_attention_heads", "n_head", "n_heads") or 1
        hidden = hidden_width(text) or heads
        head_dim = count_of(text, "head_dim") or max(1, hidden // heads)
        kv_heads = count_of(text, "num_key_value_heads") or heads
        vocabulary = count_of(text, "vocab_size") or 0
        return cls(layers, heads, kv_heads, head_dim, hidden, inner_width(text, hidden), vocabulary, width, device)

    @property
    def parameters(self) -> int:
        """Roughly, from the widths alone: layers of attention and a gated middle, and embeddings that are shared."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.vocabulary * self.hidden

    @property
    def entry(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.width

    @property
    def cached(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * self.entry

    @property
    def passing(self) -> int:
        """What one token takes on its way through a layer at most, its hidden state included.

        In the middle its widest state three times (one factor, the other, their product); in attention queries and keys with what
        turning them takes; in 16 bits three copies in float32 where it is normalised.
        """
        middle = (2 * self.hidden + 3 * self.inner) * self.width
        normal = 2 * self.hidden * self.width + 3 * 4 * self.hidden
        return max(middle, self.attending, normal)

    @property
    def attending(self) -> int:
        """The part of it in attention."""
        return (2 * self.hidden + (5 * self.heads + 4 * self.kv_heads) * self.head_dim) * self.width

    @property
    def scoring(self) -> int:
        """Tiles of logits, of the output layer and of hidden states in float32."""
        rows, columns = tile_of(self.device)
        columns = min(columns, self.vocabulary) if self.vocabulary else columns
        return 4 * (4 * rows * columns + columns * self.hidden + 3 * rows * self.hidden)

    def probing(self, rows: int, entries: int) -> int:
        """Probabilities of as many queries of a layer over so many entries, slice by slice, three slices at a time,
        and keys in float32 where they are not."""
        of_a_query = 4 * rows * self.heads * entries
        return 3 * max(of_a_query, min(PROBABILITY_BYTES, of_a_query * entries)) + self.keys_in_float32(rows, entries)

    def keys_in_float32(self, rows: int, entries: int) -> int:
        """Copies of a layer's keys that probabilities are made of; none where they are in float32 already."""
        return 4 * rows * entries * self.kv_heads * self.head_dim if self.width < 4 else 0

    def pass_over(self, rows: int, length: int, *, probed: bool) -> int:
        """A dense pass over prompts without their cache; ``probed``: one that notes what each entry is attended to."""
        tokens = rows * length
        probing = tokens * self.attending + self.probing(rows, length) if probed else 0
        return max(tokens * self.passing, probing)

    def observing(self, observed: Observation, rows: int, entries: int) -> int:
        """What a cache keeps of what its policy observes, in all layers."""
        return self.layers * rows * (entries * observed.of_entry(self) + observed.of_row(self))


def tile_of(device: str) -> tuple[int, int]:
    """Tokens and words whose logits exist at one time on a kind of device: on a CPU as many as its cache holds."""
    return (1024, 2048) if device == "cpu" else (8192, 8192)


def observation_of(policy: str) -> Observation:
    """What is noted for a policy; for a user's own, of which only its code tells, what takes most."""
    if ":" in policy:
        return Anything()
    return POLICIES[policy].observes if policy in POLICIES else NOTHING


def _in_slots(policy: str) -> bool:
    return policy in POLICIES and POLICIES[policy].in_slots


def with_room(entries: int) -> int:
    """Entries that a growing buffer has room for when it holds so many."""
    return entries + max(ROOM_STEP, entries // ROOM_SHARE)


# ---- perplexity


def windows_at_once(shape: Shape, length: int) -> int:
    """Windows of ``length`` tokens that go through together.

    Their dense pass stays within AT_ONCE_BYTES, and what is kept of it leaves half of that to cells.
    """
    whole, kept = _dense_pass(shape, length), _dense_kept(shape, length)
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // whole, AT_ONCE_BYTES // 2 // kept))


def _dense_pass(shape: Shape, length: int) -> int:
    """Of a window: the cache, and the pass or, behind it, hidden states with what is kept of their distributions, twice."""
    return length * (shape.cached + max(shape.passing, shape.hidden * (2 * shape.width + 8)))


def _dense_kept(shape: Shape, length: int) -> int:
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
        cls, schedules: Sequence[Schedule], windows: int, skipped: int, observes: Observation, *, in_slots: bool, is_even: bool
    ) -> Group:  # fmt: skip
        """Of cells with these schedules."""
        first = schedules[0]
        stride = max(stride_of(schedule) for schedule in schedules)
        room = max(schedule.peak for schedule in schedules)
        return cls(windows, first.steps, room, skipped, stride, observes, in_slots, is_even)


def stride_of(schedule: Schedule) -> int:
    """Tokens from one prune to the next, or to the end."""
    first = schedule.first_event or 0
    return min(schedule.full - schedule.kept, schedule.steps) if schedule.count > 1 and schedule.full else schedule.steps - first


def cells_at_once(shape: Shape, group: Group) -> int:
    """Cells of a group that go through together: with the dense pass that they go on from they stay within AT_ONCE_BYTES."""
    left = AT_ONCE_BYTES - group.windows * _dense_kept(shape, group.steps) - _group_bytes(shape, group, 0)
    each = _group_bytes(shape, group, 1) - _group_bytes(shape, group, 0)
    return max(1, left // each)


def _group_bytes(shape: Shape, group: Group, cells: int) -> int:
    """Of so many cells of a group: what they keep, and the larger of a pass and a prune."""
    rows, pruned = cells * group.windows, shape.layers - group.skipped
    kv, sharing, narrow = shape.kv_heads, shape.heads // shape.kv_heads, 4 if shape.width < 4 else 0
    entry = shape.entry + 4 * kv + group.observes.of_entry(shape)
    entries = pruned * group.room * entry + group.skipped * group.steps * shape.entry
    stored = rows * (entries + pruned * group.observes.of_row(shape))
    passing = rows * group.stride * (shape.passing + shape.hidden * shape.width)
    widest = max(group.room, group.steps if group.skipped else 0)
    score_of_one = shape.head_dim * (shape.width + narrow) + 64  # copies of its key, and numbers of 64 bits that order it
    if group.in_slots:
        masks = rows * group.stride * group.room * (pruned * kv * (shape.width + 1) + shape.heads * shape.width)
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
    """Of cells whose passes are long: they prune at the same tokens. None for short passes, which all share."""


def perplexity_bytes(shape: Shape, length: int, windows: int, cells: Sequence[Prunes]) -> int:
    """Of a unit of so many windows of ``length`` tokens."""
    steps, windows = length - 1, min(windows, windows_at_once(shape, length))
    first = windows * _dense_pass(shape, length)
    going: dict[_Shared, list[tuple[Schedule, Observation]]] = {}
    points: dict[tuple[str, int], Observation] = {}
    for cell in cells:
        schedule, skipped = cell.budget.event_schedule(steps), skipped_count(cell.skip_layers)
        if not schedule.count or skipped >= shape.layers:
            continue
        stride, seen = stride_of(schedule), observation_of(cell.policy)
        is_short, in_slots = stride * windows < SHORT_PASS_TOKENS, _in_slots(cell.policy)
        shared = _Shared(cell.skip_layers, seen.kind, in_slots, None if is_short else (schedule.full, schedule.kept))
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
            schedules, windows, skipped_count(shared.skip_layers), seen, in_slots=shared.in_slots and is_short,
            is_even=not is_short,
        )  # fmt: skip
        largest = max(largest, _group_bytes(shape, group, min(len(schedules), cells_at_once(shape, group))))

    return max(first, windows * _dense_kept(shape, length) + largest) + noted + shape.scoring


# ---- prompts that caches go on from


def fork_bytes(shape: Shape, cell: Prunes, length: int, rows: int) -> int:
    """A cache of ``rows`` texts behind a prompt of ``length`` tokens: entries with their room, what its policy observes."""
    skipped = min(shape.layers, skipped_count(cell.skip_layers))
    kept = cell.budget.kept(length)
    positions = 4 * shape.kv_heads
    pruned = (shape.layers - skipped) * with_room(kept) * (shape.entry + positions)
    return rows * (pruned + skipped * with_room(length) * shape.entry) + shape.observing(observation_of(cell.policy), rows, kept)


def questions_at_once(shape: Shape, length: int) -> int:
    """Questions about prompts of ``length`` tokens that go through together, whatever cells answer them.

    The dense one's cache holds each prompt twice, beside the one that all cells go on from.
    """
    each = max(
        length * (shape.cached + shape.passing), length * shape.cached + 2 * with_room(length + QUESTION_TOKENS) * shape.cached
    )
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // each))


def retrieval_bytes(shape: Shape, length: int, questions: int, cells: Sequence[Prunes]) -> int:
    """Of a unit of so many questions about prompts of ``length`` tokens."""
    rows = min(questions, questions_at_once(shape, length))
    prompts = rows * length * shape.cached
    forks = max((fork_bytes(shape, cell, length + QUESTION_TOKENS, 2 * rows) for cell in cells), default=0)
    layer = 4 * rows * length * shape.entry  # of the dense cache, with the entries of the question, once joined and once apart
    asking = 2 * rows * (QUESTION_TOKENS * shape.passing + 12 * shape.vocabulary)
    return prompts + max(_prefill(shape, cells, rows, length), max(forks, layer) + asking) + _noted(shape, cells, rows, length)


def _prefill(shape: Shape, cells: Iterable[Prunes], rows: int, length: int) -> int:
    """A pass over prompts for these cells, without its cache."""
    return shape.pass_over(rows, length, probed=any(observation_of(cell.policy).probes for cell in cells))


def _noted(shape: Shape, cells: Iterable[Prunes], rows: int, length: int) -> int:
    """What a pass over prompts notes for the policies of cells."""
    observed = widest(observation_of(cell.policy) for cell in cells)
    return sum(shape.observing(each, rows, length) for each in observed.values())


def generation_bytes(shape: Shape, prompt: int, batch: int, new_tokens: int, cells: Sequence[Prunes], weights: int) -> int:
    """Of a timed unit; ``weights``: the working set in which the memory's bandwidth is measured before it."""
    length = prompt + new_tokens
    held = batch * with_room(length) * shape.cached
    noted = max((shape.observing(observation_of(cell.policy), batch, length) for cell in cells), default=0)
    logits = 3 * batch * shape.vocabulary * 4
    return max(held + _prefill(shape, cells, batch, prompt) + noted + logits, weights)


def contexts_at_once(shape: Shape, length: int) -> int:
    """Contexts of ``length`` tokens of the harness that go through together, each with a continuation that goes on from it."""
    each = max(length * (shape.cached + shape.passing), length * shape.cached + with_room(length) * shape.cached)
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // each))


def rows_at_once(shape: Shape, length: int, contexts: int) -> int:
    """Continuations that go on together from a batch of so many contexts."""
    left = AT_ONCE_BYTES - contexts * length * shape.cached
    return max(1, min(max(ROWS, contexts), left // (with_room(length) * shape.cached)))


def harness_bytes(shape: Shape, longest: int, cell: Prunes) -> int:
    """Of one of the harness's tasks with contexts of up to ``longest`` tokens, which need not be the ones that take most."""
    lengths = {min(longest, HARNESS_LONGEST) // part or 1 for part in (1, 2, 4, 8)}
    return max(_contexts_bytes(shape, length, cell) for length in lengths) + HARNESS_BYTES


def _contexts_bytes(shape: Shape, length: int, cell: Prunes) -> int:
    contexts = contexts_at_once(shape, length)
    rows = rows_at_once(shape, length, contexts)
    prompts = contexts * length * shape.cached
    going = fork_bytes(shape, cell, length, rows) + rows * (QUESTION_TOKENS * shape.passing + 12 * shape.vocabulary)
    noted = _noted(shape, [cell], contexts, length)
    return prompts + max(_prefill(shape, [cell], contexts, length), going) + noted + shape.scoring


# ---- a worker


def check_prune_after(length: int) -> int:
    """Tokens that the self-check's cells see of a text before they prune."""
    return max((length - 1) // 2, length - 1 - CHECK_LATE)


def check_bytes(shape: Shape, length: int) -> int:
    """Of the self-check on a text of ``length`` tokens: the stock model's logits twice, or one window and the cells on it."""
    logits = min(4 * length * shape.vocabulary, CHECK_LOGITS_BYTES)
    stock = length * (shape.hidden * shape.width + shape.passing) + 2 * logits
    after = check_prune_after(length)
    entries = length + sum(math.ceil(ratio * after) + length - after for ratio in CHECK_RATIOS)
    cells = _dense_kept(shape, length) + entries * shape.cached
    return max(stock, _dense_pass(shape, length), cells) + shape.scoring


def with_slack(size: int) -> int:
    """With what an allocator keeps of it beyond need."""
    return size + min(size, FRAGMENT_BYTES)
