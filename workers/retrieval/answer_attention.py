"""Which heads find an answer: the dense cache's attention to its positions from the tokens that predict it.

An answer that is erased from the one head that reads it is lost, however many other heads hold it. So what a
pruned cache still holds is weighed by what the dense one attends to. Prefill, question and the right answer
go through without pruning, once for all cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from workers.cache.attending_layer import AttendingLayer
from workers.cache.attention import attention, probabilities
from workers.cache.scoring import body_of
from workers.cache.shared_prefix import PrefixLayer, SharedPrefix
from workers.policies.attention_weights import Scale
from workers.texts.questions import Question


@dataclass(frozen=True)
class Asked:
    """What is looked at: which queries of the last ones, and which entries."""

    queries: Tensor
    """[questions, w] bool:
    whether each of the last w tokens of the pass predicts a token of its question's answer."""
    entries: Tensor
    """[questions, n] bool:
    whether each position of the text is one of its answer's own tokens, in any of its copies."""


class LookLayer(AttendingLayer):
    """A layer of the dense cache that goes on from a prefill for one pass, and notes what is asked."""

    def __init__(self, prefix: PrefixLayer, length: int, rows: Sequence[int], asked: Asked) -> None:
        """The first ``length`` entries of the prefill; ``rows``: the prompt of each question."""
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.index = prefix.index
        self.prefix = prefix
        self.rows = list(rows)
        self.asked = asked
        self.length = self.seen = length

        self.dtype = prefix.keys.dtype
        self.device = prefix.keys.device
        self.is_initialized = True
        self.weights: Tensor | None = None
        """[questions, kv_heads], after the pass: attention to the answer, summed over a head's group,
        averaged over tokens."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the prefill brought shapes and types."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Join the entries of the pass, [questions, kv_heads, q, head_dim], to those of the prefill."""
        assert self.prefix.keys is not None and self.prefix.values is not None
        self.seen += key_states.shape[2]
        stored = (x[self.rows, :, : self.length] for x in (self.prefix.keys, self.prefix.values))
        self.keys, self.values = (
            torch.cat(pair, 2) for pair in zip(stored, (key_states, value_states), strict=True)
        )
        return self.marked(self.keys), self.values

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """Causal attention; notes how much of the asked queries' goes to the asked entries,
        and forgets all entries."""
        self.clear_mark()
        assert self.keys is not None and self.values is not None
        out = attention(query, self.keys, self.values, scale).transpose(1, 2)

        count = self.asked.queries.shape[1]
        total = torch.zeros(self.keys.shape[:2], device=self.device)
        for first, chance in probabilities(query[:, :, -count:], self.keys, scale, None):
            predicts = self.asked.queries[:, first : first + chance.shape[3]]
            # [questions, kv_heads, some queries]
            on_answers = (chance * self.asked.entries[:, None, None, None]).sum((2, 4))
            total += (on_answers * predicts[:, None]).sum(2)
        self.weights = total / self.asked.queries.sum(1)[:, None]
        self.keys = self.values = None
        return out

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen after the pass, offset)."""
        return self.seen + query_length, 0


@torch.inference_mode()
def answer_attention(
    model: nn.Module,
    prefix: SharedPrefix,
    questions: Sequence[Question],
    prompt_of: Sequence[int],
    question_pruned: bool,
) -> Tensor:
    """[layers, questions, kv_heads] on the CPU:
    the share of its attention that the dense cell gives to each answer's positions.

    From the question's last token and all but the last of the right answer's, which predict the answer,
    averaged over them and summed over the query heads that share a KV head. prefix: the prefill of the
    prompts; ``prompt_of``: each question's. Its question is part of the prompt where ``question_pruned``.
    Raises WrongUseError where a layer is left out.
    """
    length = prefix.prefix_layers[0].seen - question_pruned
    device = prefix.prefix_layers[0].device
    longest = max(len(question.answer_ids) for question in questions)
    rows = [
        question.question_ids[-1 if question_pruned else 0 :]
        + (question.answer_ids + [0] * longest)[: longest - 1]
        for question in questions
    ]
    tokens = torch.tensor(rows, device=device)

    entries = torch.zeros(len(rows), length + tokens.shape[1], dtype=torch.bool)
    for row, question in enumerate(questions):
        for start, end in question.answer_spans:
            entries[row, start:end] = True
    lengths = torch.tensor([len(question.answer_ids) for question in questions])
    asked = Asked((torch.arange(longest) < lengths[:, None]).to(device), entries.to(device))

    cache = Cache(layers=[LookLayer(layer, length, prompt_of, asked) for layer in prefix.prefix_layers])
    positions = torch.arange(length, length + tokens.shape[1], device=device)[None]
    body_of(model)(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
    found = []
    for layer in cache.layers:
        assert isinstance(layer, LookLayer)
        layer.check_attended()
        assert layer.weights is not None
        found.append(layer.weights.cpu())
    return torch.stack(found)
