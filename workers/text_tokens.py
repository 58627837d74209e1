"""Text to token ids and back by a model's tokenizer.json, without torch: the one place that opens such a file.

What a text spells is what is encoded: truncation and padding that were saved with a tokenizer are for batches of its training,
and would cut a corpus off or fill it up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from workers.text_cuts import TextCuts

CUT_EVERY = 50_000
"""Characters of a text that go through a tokenizer at once, where it may be cut."""


@dataclass(frozen=True)
class EncodedText:
    """Ids of a text's tokens, and where each begins."""

    ids: np.ndarray
    """[tokens] int32."""
    first_characters: np.ndarray | None
    """[tokens] int64, offsets into the text; None where nobody asked for them."""


class TextTokens:
    """One tokenizer.json: text to ids without special tokens before or behind, and ids to text."""

    def __init__(self, file: str) -> None:
        """Raises Exception, the only type that the tokenizers library knows, where the file cannot be used."""
        self._tokenizer: Tokenizer = Tokenizer.from_file(file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._cuts: TextCuts | None = None

    def ids(self, text: str) -> list[int]:
        """Ids of a text that stands alone."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, without special tokens."""
        return self._tokenizer.decode(ids)

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

    def _places(self, text: str, every: int) -> Iterator[int]:
        if len(text) <= every:
            return iter(())
        self._cuts = self._cuts or TextCuts(self._tokenizer)
        return self._cuts.places(text, every)

    def _part(self, text: str, start: int, end: int) -> tuple[Encoding, int, int]:
        """``text[start:end]`` encoded as it stands in the whole text: the encoding, its first token, characters too many.

        The character before it goes through as well: what a tokenizer puts before a text ("▁") goes to that one's tokens.
        """
        lead = min(start, 1)
        encoding = self._tokenizer.encode(text[start - lead : end], add_special_tokens=False)
        first = encoding.char_to_token(lead) if lead else 0
        assert first is not None, "cuts are allowed only where no character gets lost"
        return encoding, first, lead


def open_tokenizer(file: str) -> TextTokens:
    """The tokenizer of a file; opened once, for a large one takes seconds, until the file changes."""
    stat = Path(file).stat()
    return _opened(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _opened(file: str, changed: int, size: int) -> TextTokens:
    return TextTokens(file)
