"""Text generated through a pruned cache until it ends or says a stop sequence, as the harness's own ``hf``
model does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from workers.cache.scoring import check_chosen, next_logits
from workers.footprint.harness import rows_at_once
from workers.footprint.model_shape import shape_of
from workers.harness.counts import Counts
from workers.harness.rows import Contexts, Rows, context_batches, in_halves, text_id
from workers.harness.tasks import HarnessError
from workers.messages.kept_answers import AnswerBook
from workers.policies.settings import PruneSettings

LOOKBACK = 2
"""Tokens looked at beyond a stop sequence's own: the model may cut it into tokens in another way."""
MEANINGLESS = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Options of transformers' generate that ask for what is done anyway."""


@dataclass(frozen=True)
class Decoding:
    """How to generate. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 leave all tokens."""

    until: tuple[str, ...]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, generation: Mapping[str, Any], max_tokens: int, end_of_text: str) -> Decoding:
        """From a task's ``generation_kwargs``. Raises HarnessError for what is not supported."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation), max_tokens))
        until = handle_stop_sequences(options.pop("until"), end_of_text)
        sample = options.pop("do_sample")
        count = options.pop("max_gen_toks")
        temperature = float(options.pop("temperature", 0.0))
        top_k, top_p = options.pop("top_k", None) or 0, options.pop("top_p", None) or 1.0
        other = {name: value for name, value in options.items() if MEANINGLESS.get(name, ...) != value}
        if other:
            raise HarnessError(
                f"generation_kwargs {other}: kvsweep decodes greedily or samples with temperature, top_k and "
                "top_p"
            )
        if sample and temperature <= 0:
            raise HarnessError("generation_kwargs: do_sample needs a temperature above 0")
        return cls(
            tuple(stop for stop in until if stop),
            count,
            temperature if sample else 0.0,
            int(top_k),
            float(top_p),
        )


@dataclass(frozen=True)
class Generated:
    """The new tokens, with the one that ended them, and what they went through."""

    tokens: list[int]
    counts: Counts

    def plain(self) -> list[Any]:
        """As JSON can hold it; ``of_plain`` reads it."""
        return [self.tokens, self.counts.plain()]

    @classmethod
    def of_plain(cls, values: Any) -> Generated:
        """Raises ValueError for what is no generated text."""
        if not isinstance(values, list) or len(values) != 2:
            raise ValueError("no generated text")
        tokens, counts = values
        if (
            not isinstance(tokens, list)
            or not tokens
            or not all(type(token) is int and 0 <= token < 2**31 for token in tokens)
        ):
            raise ValueError("no tokens")
        return cls(tokens, Counts.of_plain(counts))


class Writer:
    """Generates with one model, tokenizer and way of pruning."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        settings: PruneSettings,
        device: torch.device,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.device = device
        ends: Any = model.generation_config.eos_token_id  # pyright: ignore
        self.ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}

    @torch.inference_mode()
    def write(
        self,
        contexts: Sequence[list[int]],
        decoding: Decoding,
        batch_size: int = 1,
        done: Callable[[int], object] = lambda count: None,
        book: AnswerBook | None = None,
    ) -> list[Generated]:
        """One text for each context, in order;
        a context that comes n times gives n draws where sampling is asked for.

        ``done`` is told of texts as they are finished; what ``book`` knows is not computed.
        """
        book = book or AnswerBook()
        generated: dict[int, Generated] = {}
        for batch in context_batches(contexts, batch_size, shape_of(self.model)):
            generated |= in_halves(partial(self._batch, contexts, decoding, book), batch)
            done(sum(map(len, batch)))
        return [generated[i] for i in range(len(contexts))]

    def _batch(
        self, texts: Sequence[list[int]], decoding: Decoding, book: AnswerBook, batch: list[list[int]]
    ) -> dict[int, Generated]:
        contexts = Contexts(self.model, [texts[group[0]] for group in batch], self.settings, self.device)
        rows = [(place, i, draw) for place, group in enumerate(batch) for draw, i in enumerate(group)]
        generated: dict[int, Generated] = {}
        size = rows_at_once(shape_of(self.model), len(contexts.ids[0]), len(batch))
        for start in range(0, len(rows), size):
            places, indices, draws = zip(*rows[start : start + size], strict=True)
            asked = [contexts.name, places, indices, draws, asdict(decoding)]
            compute = partial(self._write_places, contexts, places, draws, decoding)
            written = book.answers(asked, len(places), Generated, compute)
            generated |= dict(zip(indices, written, strict=True))
        return generated

    def _write_places(
        self, contexts: Contexts, places: Sequence[int], draws: Sequence[int], decoding: Decoding
    ) -> list[Generated]:
        """Texts that go on, each from the context at its place."""
        seeds = [
            hash((self.settings.seed, text_id(contexts.ids[place]), draw))
            for place, draw in zip(places, draws, strict=True)
        ]
        going = Rows(contexts, places)
        tokens = self._decode(going, contexts.prefill.logits[list(places)], decoding, seeds)
        return [Generated(*text) for text in zip(tokens, going.counts, strict=True)]

    def _decode(
        self, rows: Rows, logits: Tensor, decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[int]]:
        """New tokens of each row; logits [rows, vocabulary] of the first."""
        generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
        windows = [
            len(self.tokenizer.encode(stop, add_special_tokens=False)) + LOOKBACK for stop in decoding.until
        ]
        out: list[list[int]] = [[] for _ in seeds]

        while True:
            chosen = _choose(logits.float(), decoding, [generators[row] for row in rows.active])
            for row, token in zip(rows.active, chosen, strict=True):
                out[row].append(token)
            going = [row for row in rows.active if not self._is_over(out[row], decoding, windows)]
            if not going:
                return out

            rows.keep(going)
            newest = torch.tensor([[out[row][-1]] for row in going], device=self.device)
            hidden = rows.feed(newest, [1] * len(going))
            logits = next_logits(self.model, hidden[:, -1])

    def _is_over(self, tokens: list[int], decoding: Decoding, windows: Sequence[int]) -> bool:
        if len(tokens) >= decoding.max_tokens or tokens[-1] in self.ends:
            return True
        pairs = zip(decoding.until, windows, strict=True)
        return any(stop in str(self.tokenizer.decode(tokens[-window:])) for stop, window in pairs)


def _choose(logits: Tensor, decoding: Decoding, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row of logits [rows, vocabulary]: the highest, or a draw by the row's generator.

    Order of temperature, top_k and top_p as in transformers' generate. Raises FloatingPointError for NaN or
    infinite logits.
    """
    highest, best = logits.max(-1)
    check_chosen(highest)
    if not decoding.temperature:
        return best.tolist()

    logits = logits.cpu() / decoding.temperature
    if decoding.top_k:
        lowest = logits.topk(min(decoding.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if decoding.top_p < 1:
        ordered, index = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= decoding.top_p).gather(1, index.argsort(1)), -torch.inf)
    chances = logits.softmax(-1)
    return [
        int(torch.multinomial(row, 1, generator=each)) for row, each in zip(chances, generators, strict=True)
    ]
