"""Text to ids as the harness's own ``hf`` model does it,
by AutoTokenizer, and the token that a text begins with."""

from __future__ import annotations

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.models.bos import Bos
from workers.models.model_files import ModelFacts


def load_tokenizer(facts: ModelFacts, model: nn.Module) -> PreTrainedTokenizerBase:
    """The model's tokenizer; where its files name no end of text, the one of the model's configuration."""
    tokenizer = AutoTokenizer.from_pretrained(
        facts.source, revision=facts.commit, trust_remote_code=facts.trust_remote_code
    )
    end = model.config.eos_token_id  # pyright: ignore
    if tokenizer.eos_token_id is None and isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


def ids_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    add_special_tokens: bool | None,
    *,
    begun: bool,
    bos: Bos,
    first: int | None,
) -> list[int]:
    """Ids of a text, with what the tokenizer puts first where ``add_special_tokens`` leaves it open.

    ``begun``: the text says its first token itself, and gets no second one. ``bos`` overrides the tokenizer:
    ``never`` puts nothing first, ``always`` the token ``first``.
    """
    if add_special_tokens is not None:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    if begun or bos == "never":
        return tokenizer.encode(text, add_special_tokens=False)

    ids: list[int] = tokenizer.encode(text)
    return ids if first is None or ids[:1] == [first] else [first, *ids]
