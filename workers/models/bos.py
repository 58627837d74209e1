"""The token that a model's texts begin with, by its files alone:
the one that AutoTokenizer of transformers puts there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from workers.models.model_files import ModelError, ModelFacts
from workers.models.model_json import read_json_if_there
from workers.texts.text_tokens import TextTokens, open_tokenizer

Bos = Literal["auto", "always", "never"]
"""Whether each text begins with BOS: as the model's own tokenizer has it, or whatever it has."""

OWN_POST_PROCESSOR = ("GPTNeoXTokenizer",)
"""Classes of transformers that put another post-processor in the place of the one in tokenizer.json: nothing
is put first."""
OWN_BY_TYPE = ("gpt_neox", "falcon_mamba", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv", "xlstm")
"""Model types whose tokenizer is of such a class where its files do not say."""
GENERAL_BY_TYPE = (
    "beam", "bigbird_pegasus", "ernie4_5", "ernie4_5_moe", "flex_olmo", "fuyu", "glm", "glm4", "glm4_moe",
    "glm4_moe_lite", "got_ocr2", "gpt_bigcode", "granite", "granitemoe", "granitemoehybrid",
    "granitemoeshared", "hyperclovax", "internlm3", "iquestcoder", "jamba", "kimi_linear", "mimo_v2_flash",
    "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder",
    "nemotron", "olmo2", "olmo3", "olmo_hybrid", "persimmon", "phi3", "phimoe", "qwen2", "qwen3_5",
    "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "stablelm", "xlm-roberta-xl",
)  # fmt: skip
"""Model types that get a tokenizer of the general class,
which takes tokenizer.json as it is, whatever class is declared."""


def bos_token(facts: ModelFacts, how: Bos) -> int | None:
    """The id that each text of the model begins with; None where it begins with its own first token.

    Raises ModelError where BOS is asked for and the model names none, and where its tokenizer puts several
    tokens first.
    """
    if how == "never":
        return None
    tokens = open_tokenizer(facts.tokenizer_file)
    tokenizer_config, config = _configs(facts)
    first = _first_tokens(tokens, tokenizer_config, config)
    if len(first) > 1:
        raise ModelError(
            f"model {facts.name!r}: its tokenizer begins every text with {len(first)} tokens "
            f"({tokens.names(first)}), and kvsweep puts one at most; bos: never leaves them out"
        )
    if first or how == "auto":
        return first[0] if first else None

    named = _named(tokens, tokenizer_config, config)
    if named is None:
        raise ModelError(
            f"model {facts.name!r}: bos: always needs a BOS token, and neither its tokenizer_config.json "
            "(bos_token) nor its config.json (bos_token_id) names one; say bos: auto or bos: never"
        )
    return named


def begins_by_itself(facts: ModelFacts) -> bool:
    """Whether the model's own tokenizer puts something before every text."""
    return bool(_first_tokens(open_tokenizer(facts.tokenizer_file), *_configs(facts)))


def _configs(facts: ModelFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer_config.json and config.json."""
    folder = Path(facts.tokenizer_file).parent
    return _read(folder / "tokenizer_config.json"), _read(folder / "config.json")


def _first_tokens(tokens: TextTokens, tokenizer_config: dict[str, Any], config: dict[str, Any]) -> list[int]:
    return [] if _has_own_post_processor(tokenizer_config, config) else tokens.first_tokens()


def _has_own_post_processor(tokenizer_config: dict[str, Any], config: dict[str, Any]) -> bool:
    declared = str(
        tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class") or ""
    ).removesuffix("Fast")
    kind = config.get("model_type")
    return declared in OWN_POST_PROCESSOR and kind not in GENERAL_BY_TYPE if declared else kind in OWN_BY_TYPE


def _named(tokens: TextTokens, tokenizer_config: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The id of the token that the files call BOS."""
    token = tokenizer_config.get("bos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str) and (found := tokens.id_of(content)) is not None:
        return found
    text = config.get("text_config")
    number = config.get("bos_token_id", text.get("bos_token_id") if isinstance(text, dict) else None)
    return number if type(number) is int and number >= 0 else None


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        return read_json_if_there(file)
    except ValueError as error:
        raise ModelError(str(error)) from error
