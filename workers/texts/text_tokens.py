"""Text to token ids and back by a model's tokenizer.json, without torch: the one place that opens one.

What a text spells is what is encoded: truncation and padding that were saved with a tokenizer are for batches
of its training, and would cut a corpus off or fill it up; ``<|endoftext|>`` in prose is letters, unless it is
asked to be the token of that name. Added tokens that are no special ones (Gemma's line breaks) are part of
the vocabulary like any other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer, models

from workers.texts.text_cuts import TextCuts

SpecialTokens = Literal["literal", "parse"]
"""How special tokens that a text spells are read: as the letters that they are, or as the tokens."""
CUT_EVERY = 50_000
"""Characters of a text that go through a tokenizer at once, where it may be cut."""

ANCHORS = ("a", "\n", ".")
"""What a text may stand behind: one of them ends where the text begins in nearly any tokenizer."""


class TokenizerError(ValueError):
    """A tokenizer.json that cannot be used. The message says why, in the words of the tokenizers library."""


@contextmanager
def _in_use() -> Iterator[None]:
    """The library knows no narrower type than Exception, and nothing else may stand below this."""
    try:
        yield
    except Exception as error:
        raise TokenizerError(str(error)) from error


@dataclass(frozen=True)
class EncodedText:
    """Ids of a text's tokens, and where each begins."""

    ids: np.ndarray
    """[tokens] int32."""
    first_characters: np.ndarray | None
    """[tokens] int64, offsets into the text; None where nobody asked for them."""


class TextTokens:
    """One tokenizer.json: text to ids without special tokens before or behind, and ids to text."""

    def __init__(self, file: str, special: SpecialTokens = "literal") -> None:
        """Raises TokenizerError where the file cannot be used, as whatever encodes does."""
        with _in_use():
            self._tokenizer: Tokenizer = Tokenizer.from_file(file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = special == "literal"
        self._added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._cuts: TextCuts | None = None

    def ids(self, text: str) -> list[int]:
        """Ids of a text that stands alone."""
        if len(text) > CUT_EVERY:
            return self.encode(text).ids.tolist()
        return self._encoding(text).ids

    def inside(self, text: str) -> list[int]:
        """Ids of a text as it stands inside another: what a tokenizer puts before every text ("▁") is not put
        before this one.

        It is encoded behind something that shares no token with it and is taken off again.
        """
        for anchor in ANCHORS:
            before, joined = self.ids(anchor), self.ids(anchor + text)
            if joined[: len(before)] == before:
                return joined[len(before) :]
        return self.ids(text)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, without special tokens."""
        return self._tokenizer.decode(ids)

    def text_before_end(self, ids: Sequence[int]) -> str:
        """What ids say up to the first special token, which ends a text or begins another."""
        special = {id_ for id_, token in self._added.items() if token.special}
        return self.text(list(itertools.takewhile(lambda id_: id_ not in special, ids)))

    def encode(self, text: str, *, with_offsets: bool = False, cut_every: int = CUT_EVERY) -> EncodedText:
        """A whole corpus, in time linear in its length wherever a cut provably changes no id."""
        bounds = [0, *self._places(text, cut_every), len(text)]
        ids: list[np.ndarray] = []
        offsets: list[np.ndarray] = []

        for start, end in itertools.pairwise(bounds):
            encoding, first, lead = self._part(text, start, end)
            ids.append(np.asarray(encoding.ids[first:], dtype=np.int32))
            if with_offsets:
                starts = [begin for begin, _ in encoding.offsets[first:]]
                offsets.append(np.asarray(starts, dtype=np.int64) + start - lead)

        return EncodedText(np.concatenate(ids), np.concatenate(offsets) if with_offsets else None)

    def first_tokens(self) -> list[int]:
        """What the file's post-processor puts before every text."""
        encoding = self._encoding("a", add_special_tokens=True)
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [id_ for id_, _ in itertools.takewhile(lambda pair: pair[1], pairs)]

    def id_of(self, token: str) -> int | None:
        """The id of a token by its content."""
        return self._tokenizer.token_to_id(token)

    def names(self, ids: Sequence[int]) -> str:
        """The tokens of ids, for messages."""
        return " ".join(str(self._tokenizer.id_to_token(id_)) for id_ in ids)

    def spelled_special(self, text: str) -> int:
        """How many special tokens a text spells: as many as would be read as tokens by ``parse``."""
        finder = _finder(self._tokenizer, list(self._added.values()))
        special = {finder.token_to_id(token.content) for token in self._added.values() if token.special}
        return sum(id_ in special for id_ in finder.encode(text, add_special_tokens=False).ids)

    def misread(self, ids: np.ndarray) -> list[str]:
        """Special tokens among ids of a text whose spellings should be letters; not the one for the unknown.

        A tokenizer whose own vocabulary lists them, and that looks for whole words or pieces in it, cannot
        read them as letters.
        """
        unknown = _unknown_token(self._tokenizer.model)
        special = [id_ for id_, token in self._added.items() if token.special and token.content != unknown]
        return [
            self._added[id_].content
            for id_ in np.intersect1d(ids, np.asarray(special, dtype=ids.dtype)).tolist()
        ]

    def _encoding(self, text: str, *, add_special_tokens: bool = False) -> Encoding:
        with _in_use():
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _places(self, text: str, every: int) -> Iterator[int]:
        if len(text) <= every:
            return iter(())
        self._cuts = self._cuts or TextCuts(self._tokenizer)
        return self._cuts.places(text, every)

    def _part(self, text: str, start: int, end: int) -> tuple[Encoding, int, int]:
        """``text[start:end]`` encoded as it stands in the whole text: the encoding, its first token,
        characters too many.

        The character before it goes through as well: what a tokenizer puts before a text ("▁") goes to that
        one's tokens.
        """
        lead = min(start, 1)
        encoding = self._encoding(text[start - lead : end])
        first = encoding.char_to_token(lead) if lead else 0
        assert first is not None, "cuts are allowed only where no character gets lost"
        return encoding, first, lead


def open_tokenizer(file: str, special: SpecialTokens = "literal") -> TextTokens:
    """The tokenizer of a file; opened once, for a large one takes seconds, until the file changes."""
    try:
        stat = Path(file).stat()
    except OSError as error:
        raise TokenizerError(error.strerror) from None
    return _opened(file, special, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _opened(file: str, special: SpecialTokens, changed: int, size: int) -> TextTokens:
    return TextTokens(file, special)


def _finder(tokenizer: Tokenizer, added: list[AddedToken]) -> Tokenizer:
    """A tokenizer that knows nothing but the added tokens, and finds them as the other does."""
    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    if tokenizer.normalizer is not None:
        finder.normalizer = tokenizer.normalizer
    finder.add_special_tokens([token for token in added if token.special])
    finder.add_tokens([token for token in added if not token.special])
    return finder


def _unknown_token(model: models.Model) -> str | None:
    """The token for what a vocabulary cannot spell."""
    if isinstance(model, models.Unigram):
        unknown = json.loads(model.__getstate__())["unk_id"]
        return None if unknown is None else model.id_to_token(unknown)
    return getattr(model, "unk_token", None)
