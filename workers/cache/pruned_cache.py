"""A Hugging Face Cache whose layers prune themselves; owns positions, records what was dropped.

Drop-in: ``model.generate(..., past_key_values=PrunedCache(model.config, keep_ratio=0.9, prune_after=512))``.

One text at a time: the first pass is the prompt, then comes one token per pass. A prompt that comes in
several passes, or another one behind what is held (a second turn), is announced (``prompt_tokens``,
``begin_prompt``); each prompt is followed by a check, under ``prefill_once`` too. ``reset()`` begins a new
text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from workers.cache.attending_layer import WrongUseError
from workers.cache.generate_calls import GenerateCall
from workers.cache.pruned_layer import PrunedLayer
from workers.cache.rotary import Rotary
from workers.cache.shared_state import SharedState, Stretch
from workers.cache.validity import Validity
from workers.models.architecture import usable
from workers.policies.own_policies import find_policy
from workers.policies.settings import PruneSettings


class PrunedCache(Cache):
    """KV cache that prunes by ``PruneSettings``; see the module's and the layer's docstring.

    ``prompt_tokens``: how many tokens the prompt has, where it comes in several passes. ``row_ids`` names the
    texts of the batch for the ``random`` policy. ``stopwatch``, where given, is entered around every prune;
    without it nothing is measured.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        settings: PruneSettings | None = None,
        *,
        prompt_tokens: int | None = None,
        row_ids: Sequence[int] | None = None,
        stopwatch: AbstractContextManager[Any] | None = None,
        **options: Any,
    ) -> None:
        """``options`` are the fields of PruneSettings, for use without one.

        Raises ValueError for a layer out of range, for a rule (``auto:k``) that no model has resolved, and
        for a model that cannot be measured, with the reason.
        """
        skip = options.get("skip_layers", ())
        options["skip_layers"] = skip if isinstance(skip, str) else tuple(skip)
        self.settings = settings or PruneSettings(**options)
        count = config.get_text_config().num_hidden_layers
        if any(layer >= count for layer in self.settings.skipped):
            raise ValueError(
                f"skip_layers {list(self.settings.skipped)}: the model has layers 0..{count - 1}"
            )
        architecture = usable(config)

        policy = find_policy(self.settings.policy)
        rotary = Rotary.of(config) if policy.rolls else None
        self._rows = row_ids
        self.state = SharedState(
            config, self.settings, policy, architecture, row_ids, stopwatch or nullcontext(), rotary
        )
        super().__init__(layers=[PrunedLayer(i, self.state) for i in range(count)])
        if prompt_tokens is not None:
            self.begin_prompt(prompt_tokens)

    @property
    def pruned_layers(self) -> list[PrunedLayer]:
        """The layers, typed."""
        return self.layers  # pyright: ignore[reportReturnType]

    @property
    def seen(self) -> int:
        """Tokens seen by every layer.
        Raises WrongUseError where layers have seen different numbers, or one still waits."""
        numbers = [layer.seen for layer in self.pruned_layers]
        for layer in self.pruned_layers:
            layer.check_attended()
        if len(set(numbers)) > 1:
            left = [i for i, number in enumerate(numbers) if number < max(numbers)]
            raise WrongUseError(
                f"layers {left} of the cache were not given the tokens that the other layers were: the model "
                "does not use them, or a pass broke off; after that only reset() helps"
            )
        return numbers[0]

    def begin_prompt(self, tokens: int) -> None:
        """The next ``tokens`` tokens are a prompt, in one pass or several; a check follows the last one."""
        self._announce(tokens, is_checked=True)

    def begin_steps(self, tokens: int) -> None:
        """The next ``tokens`` tokens are steps of which none but the last can drop anything
        (``Budget.next_event``)."""
        self._announce(tokens, is_checked=self.settings.budget.checks_steps)

    def begin_outside(self, tokens: int) -> None:
        """The next ``tokens`` tokens are kept out of pruning:
        neither dropped nor counted, and no check follows them.

        For the question to a context that is pruned before it is known; there is one such stretch to a text.
        """
        if self.outside != (0, 0):
            raise ValueError(
                f"positions {self.outside[0]} to {self.outside[1]} are kept out already; there is one such "
                "stretch to a text"
            )
        seen = self._announce(tokens, is_checked=False)
        self.state.outside = (seen, seen + tokens)

    def _announce(self, tokens: int, *, is_checked: bool) -> int:
        seen, end = self.seen, self.state.stretch.end
        if tokens < 1:
            raise ValueError(f"at least one token has to be announced (got {tokens})")
        if seen < end:
            raise ValueError(f"{end - seen} tokens of what was announced before are still to come")
        self.state.architecture.check_length(seen + tokens)
        self.state.stretch = Stretch(seen, seen + tokens, is_checked)
        return seen

    def take_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone; a row may come more than once."""
        if not self.is_initialized:
            raise ValueError("the cache holds no batch yet; give it a prompt first")
        first = self.pruned_layers[0]
        names = self.state.rows(first.batch_size, first.device).tolist()
        self.state.name_rows([names[row] for row in rows])
        for layer in self.pruned_layers:
            layer.take_rows(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times, one copy behind the other."""
        self.take_rows([row for row in range(self.batch_size) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with the rows that ``indices`` names, or marks where it is boolean."""
        self.take_rows(torch.arange(self.batch_size)[indices.cpu()].tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search goes on with other rows. What a row drops follows from its own text alone."""
        self.take_rows(beam_idx.tolist())

    def crop(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ValueError: what was dropped cannot be brought back."""
        raise ValueError(
            "PrunedCache does not support cropping, which assisted generation needs, because dropped entries "
            "cannot be restored; use greedy decoding, sampling or beams"
        )

    def offload(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ValueError: what prunes is where attention is computed."""
        raise ValueError("a PrunedCache cannot be offloaded; leave offloading out")

    def prefetch(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ValueError: there is nothing to fetch back from another device."""
        self.offload()

    @property
    def _is_user_defined(self) -> bool:
        """``generate`` of transformers sets this at the start of each call on a cache that it was given."""
        return True

    @_is_user_defined.setter
    def _is_user_defined(self, _: bool) -> None:
        """Raises ValueError for a further call on a cache that holds a text,
        unless what comes behind it was announced.

        And for what this call would do wrong: a padded batch, chunks, and a long prompt for which the model
        would not use the cache, unless the prompt's length was given, and was checked.
        """
        frame = inspect.currentframe()
        call = GenerateCall.at(frame.f_back if frame is not None else None)
        if call.is_padded and self.state.prunes_anything:
            raise ValueError(
                "a pruned cache takes no padded batches, whose rows would be at different positions: group "
                "the prompts by length, or give an attention_mask of ones where it is no padding"
            )
        is_announced = self.seen < self.state.stretch.end
        thrown_away = [limit for limit in self.state.architecture.limits if limit.last_is_predicted]
        if thrown_away and not is_announced:
            raise ValueError(
                f"generate of this model does not use its cache for texts of more than {thrown_away[0].fed} "
                "tokens: give the prompt's length as prompt_tokens=..., so that a longer one is refused"
            )
        if call.chunk_size is not None and not is_announced:
            raise ValueError(
                "prefill_chunk_size brings the prompt in several passes, and the cache is to be pruned at "
                "its end: give the prompt's length as prompt_tokens=..., or announce it with "
                "begin_prompt(tokens)"
            )
        if self.seen and not is_announced:
            raise ValueError(
                f"the cache holds a text of {self.seen} tokens: call its reset() before a new text, or "
                "begin_prompt(tokens) where that many tokens come behind what it has seen"
            )

    def reset(self) -> None:
        """Forget the text: the next pass is the prompt of a new one."""
        super().reset()
        self.state.name_rows(self._rows)
        self.state.stretch = Stretch(0, 0, False)
        self.state.outside = (0, 0)

    @property
    def outside(self) -> tuple[int, int]:
        """Positions [start, end) that are kept out of pruning."""
        return self.state.outside

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """[batch] ids of the texts in the batch, on a layer's device."""
        return self.state.rows(batch, device)

    def next_position(self) -> int:
        """Position id of the next token: tokens seen; under ``cache_length`` entries of a pruning layer."""
        if self.settings.position_mode == "cache_length":
            return next(
                (layer.held for layer in self.pruned_layers if layer.prunes), self.pruned_layers[0].seen
            )
        return self.pruned_layers[0].seen

    def inputs(self, tokens: Tensor) -> dict[str, Any]:
        """With what a model is called so that ``tokens``, [batch, q] ids, follow what the cache has seen."""
        first = self.next_position()
        positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)[None]
        return {"input_ids": tokens, "position_ids": positions, "past_key_values": self, "use_cache": True}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """``next_position`` as one layer has it: some models ask in each layer, while a pass goes through."""
        layer = self.pruned_layers[layer_idx]
        if layer_idx == 0:
            return self.next_position()
        return layer.held if self.settings.position_mode == "cache_length" and layer.prunes else layer.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    @property
    def max_cache_len(self) -> int:
        return -1

    @property
    def max_batch_size(self) -> int:
        """Texts in the batch; -1 before the first pass."""
        return self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None, None]]:
        """Keys, values and no window of each layer, as ``DynamicCache`` gives them: what is held now."""
        return ((layer.keys, layer.values, None) for layer in self.pruned_layers)

    @property
    def events(self) -> int:
        """Prunes so far, of all layers. Raises WrongUseError where no model has used the cache, or not as it
        must be used."""
        if self.seen == 0:
            raise WrongUseError(
                "the cache was given no token yet: either nothing was run, or the model did not use this "
                "cache but one of its own"
            )
        return sum(layer.record.events for layer in self.pruned_layers)

    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now, by tensor sizes (per KV head, not per query head)."""
        held = [
            tensor
            for layer in self.pruned_layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        ]
        return sum(tensor.nbytes for tensor in held)

    def kv_bytes_met(self) -> int:
        """Bytes of the keys and values that the last pass attended to: what was stored just before its prune,
        in all layers."""
        return sum(layer.met * layer.entry_bytes() for layer in self.pruned_layers)

    def bytes_allocated(self) -> int:
        """Bytes of memory that the layers keep:
        buffers with the room behind their entries, positions, what policies observe.

        Memory that several layers or tensors lie in counts once, and whole.
        """
        parts = [storage for layer in self.pruned_layers for storage in layer.storages()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in parts}.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held now, under the name that tensors have for it."""
        return self.kv_bytes()

    def validity(self) -> Validity:
        """What was dropped so far, averaged over events, layers and heads, for each row (synchronises)."""
        records = [layer.record for layer in self.pruned_layers if layer.record.events]
        if not self.events:
            return Validity(0)
        events = sum(record.events for record in records)
        return Validity(
            max(record.events for record in records),
            recent_retained=_mean([record.recent for record in records], events),
            sink_retained=_mean([record.sink for record in records], events),
            score_ties=_mean([record.ties for record in records], events),
        )


def _mean(sums: Sequence[Tensor | None], events: int) -> list[float]:
    """[rows], over the events of all layers, which may lie on several devices, and heads; sums [rows, heads]
    of each layer, none of them None where there were events."""
    there = [of_layer.cpu() for of_layer in sums if of_layer is not None]
    return (torch.stack(there).sum(0).mean(-1) / events).tolist()
