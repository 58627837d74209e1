"""Where a text may be cut so that the tokens of its parts are, one by one, those of the whole.

A tokenizer whose pre-tokenizer splits nothing (Llama 2, Mistral, Gemma) merges a whole text as one word,
which takes more than linear time. Byte-pair merges only ever make tokens of the vocabulary. So where no token
of the vocabulary holds two characters side by side, no merge joins them: what stands before has no influence
on what stands behind.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

BYTE = re.compile("<0x[0-9A-F]{2}>")
REACH = 5_000
"""Characters that are looked through for a cut before the next one is tried."""


class TextCuts:
    """The cuts that a tokenizer allows;
    none where it is of a kind of which nothing is known, or splits texts itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._replaced: dict[str, str] = {}
        self.allowed = _is_plain(tokenizer.model) and self._takes(tokenizer)
        if not self.allowed:
            return

        added = tokenizer.get_added_tokens_decoder().values()
        active = [token for token in added if _is_read(tokenizer, token)]
        self.allowed = not any(token.lstrip or token.rstrip or token.single_word for token in active)
        # whether matched before or behind the normalizer
        self._raw = _Neighbours([token.content for token in active])
        self._normal = _Neighbours([self._normalized(token.content) for token in active if token.normalized])

        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self._pairs = {pair for token in vocabulary for pair in map("".join, itertools.pairwise(token))}
        self._known = {token for token in vocabulary if len(token) == 1}
        every_byte = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        joined = any(
            BYTE.search(token) and not BYTE.fullmatch(token) for token in vocabulary if "<0x" in token
        )
        self._spells_all = bool(tokenizer.model.byte_fallback) and every_byte and not joined

    def places(self, text: str, every: int) -> Iterator[int]:
        """Offsets at which ``text`` may be cut, about every so many characters, in order."""
        at = every
        while self.allowed and at < len(text):
            found = next(
                (i for i in range(at, min(at + REACH, len(text))) if self.separates(text[i - 1], text[i])),
                None,
            )
            if found is not None:
                yield found
            at = (found or at) + every

    def separates(self, before: str, behind: str) -> bool:
        """Whether two characters are never in one token, whatever stands around them."""
        if self._raw.touches(before, behind):
            return False
        before, behind = self._normalized(before), self._normalized(behind)
        if self._normal.touches(before, behind) or before + behind in self._pairs:
            return False
        return self._spells_all or {before, behind} <= self._known  # unknown ones may be fused into one token

    def _normalized(self, text: str) -> str:
        return "".join(self._replaced.get(character, character) for character in text)

    def _takes(self, tokenizer: Tokenizer) -> bool:
        """Whether all that happens before the merges is known here:
        characters replaced one by one, something put before."""
        return all(map(self._takes_normalizer, _parts(tokenizer.normalizer, "normalizers"))) and all(
            map(self._takes_pre_tokenizer, _parts(tokenizer.pre_tokenizer, "pretokenizers"))
        )

    def _takes_normalizer(self, step: dict[str, Any]) -> bool:
        if step["type"] == "Prepend":
            return True
        pattern = step.get("pattern", {}).get("String", "")
        if step["type"] != "Replace" or len(pattern) != 1 or len(step["content"]) != 1:
            return False
        self._replace(pattern, step["content"])
        return True

    def _takes_pre_tokenizer(self, step: dict[str, Any]) -> bool:
        if step["type"] == "Metaspace" and not step["split"]:
            self._replace(" ", step["replacement"])
            return True
        absent = step.get("pattern", {}).get("String", "")
        return step["type"] == "Split" and absent in self._replaced and absent not in self._replaced.values()

    def _replace(self, old: str, new: str) -> None:
        self._replaced = {key: new if value == old else value for key, value in self._replaced.items()}
        self._replaced.setdefault(old, new)


class _Neighbours:
    """Added tokens, which are cut out of a text before anything else: no cut may be in one or at its edge."""

    def __init__(self, contents: list[str]) -> None:
        self._edges = {character for content in contents for character in (content[0], content[-1])}
        self._pairs = {content[i : i + 2] for content in contents for i in range(len(content) - 1)}

    def touches(self, before: str, behind: str) -> bool:
        """Whether an added token may end, begin or go on between two characters."""
        return before in self._edges or behind in self._edges or before + behind in self._pairs


def _is_plain(model: models.Model) -> bool:
    """Byte-pair merges without chance and without marks on parts of words."""
    return isinstance(model, models.BPE) and not (
        model.dropout or model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix
    )


def _is_read(tokenizer: Tokenizer, token: AddedToken) -> bool:
    """Whether an added token is looked for in a text."""
    return bool(token.content) and not (token.special and tokenizer.encode_special_tokens)


def _parts(step: object | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer as they are written in a tokenizer.json."""
    if step is None:
        return []
    written: dict[str, Any] = json.loads(step.__getstate__())  # pyright: ignore
    return written[name] if written["type"] == "Sequence" else [written]
