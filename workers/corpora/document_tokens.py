"""The tokens of a collection: documents are looked at until as many are long enough as are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from workers.corpora.collection import BETWEEN, Collection
from workers.corpora.document_search import Document, Search
from workers.corpora.entry import unreadable
from workers.corpora.passages import MARGIN, MOST_BYTES, passages
from workers.corpora.prose import LongText
from workers.corpora.tokens import Lack, special_tokens_spelled
from workers.texts.sampling import even_shares, in_order
from workers.texts.text_tokens import SpecialTokens, TextTokens, open_tokenizer
from workers.texts.windows import Window, plan_windows

FILLER_BLOCKS = 8
"""Blocks whose documents make the text around needles, where those are enough."""


class CollectionTokens:
    """A collection under one tokenizer, read as far as windows and prompts need it."""

    def __init__(self, corpus: Collection, tokenizer_file: str, special: SpecialTokens = "literal") -> None:
        self._corpus = corpus
        self._file = tokenizer_file
        self._special: SpecialTokens = special
        self._searches: dict[tuple[int, int], Search] = {}
        self._windows: dict[tuple[int, int, int, bool], tuple[Window, ...]] = {}
        self._whole: dict[int | None, np.ndarray] = {}
        """Ids of documents that were found, each once: windows are views of them."""
        self._parts: dict[tuple[int | None, int], np.ndarray] = {}
        """Passages of long texts."""
        self._fillers: dict[int, np.ndarray] = {}
        self._counted: dict[tuple[int, int], tuple[int, int]] = {}

    @cached_property
    def _tokenizer(self) -> TextTokens:
        return open_tokenizer(self._file, self._special)

    @property
    def tokens(self) -> int:
        """How many were read."""
        return sum(tokens for tokens, _ in self._counted.values())

    @property
    def largest_id(self) -> int:
        """Of the tokens of all documents, passages and fillers that windows and prompts were asked of."""
        held = [*self._whole.values(), *self._parts.values(), *self._fillers.values()]
        return max((int(ids.max(initial=0)) for ids in held), default=0)

    @property
    def special_spelled(self) -> int:
        """Special tokens that what was read spells."""
        return sum(spelled for _, spelled in self._counted.values())

    def windows(self, window: int, stride: int, limit: int, *, bos: bool) -> tuple[Window, ...]:
        """At most ``limit`` windows, none of which crosses a document: of as many documents as can be, as
        many of each as can be.

        In the order of the documents, and numbered so. Raises CorpusError where documents cannot be read.
        """
        asked = (window, stride, limit, bos)
        if asked not in self._windows:
            search = self._search(window - bos, limit)
            room = [self._room(document, window, stride, bos=bos) for document in search.found]
            planned: list[Window] = []
            for document, share in zip(search.found, even_shares(room, limit), strict=True):
                planned += self._windows_of(document, share, window, stride, bos=bos)
            planned.sort(key=lambda w: (w.document or 0, w.start))
            numbered = (
                Window(i, w.start, w.length, w.first_scored, w.document) for i, w in enumerate(planned)
            )
            self._windows[asked] = tuple(numbered)
        return self._windows[asked]

    def held(self, window: Window, length: int) -> np.ndarray:
        """The first ``length`` tokens of a window that ``windows`` gave."""
        whole = self._whole.get(window.document)
        if whole is not None:
            return whole[window.start : window.start + length]
        return self._parts[window.document, window.start][:length]

    def document_of(self, window: Window) -> int | None:
        """The number that rows give of a window's document;
        None where documents are joined, and of one long text."""
        return window.document if self._corpus.has_documents else None

    def prompts(self, length: int, count: int) -> list[np.ndarray]:
        """At most ``count`` stretches of ``length`` tokens, each in one document, of as many as can be."""
        search = self._search(length, count)
        room = [self._room(document, length, length, bos=False) for document in search.found]
        stretches: list[np.ndarray] = []
        for document, share in zip(search.found, even_shares(room, count), strict=True):
            windows = self._windows_of(document, share, length, length, bos=False)
            stretches += [self.held(w, length) for w in windows]
        return stretches

    def filler(self, length: int) -> np.ndarray:
        """At least ``length`` tokens, where there are as many, of documents one after the other:
        text for haystacks."""
        if length not in self._fillers:
            self._fillers[length] = self._filler(length)
        return self._fillers[length]

    def beginning(self, length: int) -> np.ndarray:
        """At most ``length`` tokens of its documents."""
        return self.filler(length)[:length]

    def lacking(self, length: int, count: int, *, apart: bool) -> Lack | None:
        """Why it cannot give one stretch of ``length`` tokens, or ``count`` of them that lie ``apart``; None
        where it can."""
        needed = count if apart else 1
        given = len(self.prompts(length, count))
        if given >= needed:
            return None

        self._corpus.check_some_text()
        search = self._search(length, count)
        if given:
            return Lack(f"room for {given} texts of {length} tokens")
        if self._corpus.what == "text":
            return Lack(f"no passage of {length} tokens between its line breaks or spaces")
        if not self._corpus.has_documents:
            return Lack(f"no {length} tokens in any block of joined {self._corpus.what}")
        is_known = search.spent and self._corpus.count is not None
        of = f" of {self._corpus.count:,}" if is_known else ""
        looked = (
            f"the longest of the {len(search.short):,}{of} documents looked at has "
            f"{search.longest:,}{search.end_in_words()}"
        )
        return Lack(
            f"no document of {length} tokens ({looked})",
            "; ask for shorter texts, or join them: documents: joined",
        )

    def notes(self, name: str, model: str) -> list[str]:
        """How many of the documents that were looked at are long enough."""
        if not self._corpus.has_documents:
            return []
        notes = []
        for (length, count), search in self._searches.items():
            found = len(search.found)
            looked = found + len(search.short)
            more = "" if search.exhausted or found == count else "; no more were looked at"
            notes.append(
                f"{name}: {found:,} of {looked:,} documents looked at hold {length:,} tokens under the "
                f"tokenizer of {model}{more}"
            )

            if again := search.repeated:
                have = "has the text of another: it is no independent unit"
                if again > 1:
                    have = "have the text of another: they are no independent units"
                notes.append(f"{name}: {again:,} of these {found:,} documents {have}")
        return notes

    def _filler(self, length: int) -> np.ndarray:
        between = np.asarray(self._tokenizer.inside(BETWEEN), dtype=np.int32)
        parts: list[np.ndarray] = []
        have = 0
        for block in self._corpus.block_order(FILLER_BLOCKS):
            texts = self._corpus.texts(block)
            for i in in_order(len(texts), len(texts), self._corpus.sample, self._corpus.seed):
                for part in self._stretches(*texts[i], length - have):
                    parts += [part, between]
                    have += len(part)
                if have >= length:
                    return np.concatenate(parts)
        self._corpus.check_some_text()
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    def _search(self, length: int, count: int) -> Search:
        """Documents of at least ``length`` tokens, at most ``count``."""
        if (length, count) not in self._searches:
            search = Search(length)
            self._look(search, count)
            self._searches[length, count] = search
        return self._searches[length, count]

    def _look(self, search: Search, count: int) -> None:
        """Look at blocks in the sample's order until enough documents are found, all were seen, or too many
        are too short.

        Each block gives an equal share; where some give less, they are gone through again for more.
        """
        corpus = self._corpus
        while not search.exhausted:
            left = count - len(search.found)
            quota = count if corpus.sample == "first" else -(-left // corpus.width)
            seen_whole = True
            for block in corpus.block_order(count):
                wanted = min(quota, count - len(search.found))
                seen_whole &= self._look_at_block(search, block, wanted)
                if len(search.found) == count or search.spent:
                    return
            search.exhausted = seen_whole

    def _look_at_block(self, search: Search, block: int, wanted: int) -> bool:
        """Find at most so many documents more, in the sample's order. Whether all of it was looked at."""
        texts = self._corpus.texts(block)
        for i in in_order(len(texts), wanted, self._corpus.sample, self._corpus.seed):
            number, text = texts[i]
            if number in search.seen:
                continue
            if wanted == 0 or search.spent:
                return False
            wanted -= self._try(search, number, text)
        return True

    def _try(self, search: Search, number: int, text: str | LongText) -> bool:
        """Whether a document is long enough."""
        search.seen.add(number)
        size = 0 if isinstance(text, LongText) else len(text)
        search.characters += size
        document = self._document(number, text, search)
        if document is None:
            search.short_characters += size
            return False
        search.found.append(document)
        return True

    def _document(self, number: int, text: str | LongText, search: Search) -> Document | None:
        """None where it is too short: a token is a byte at least, so few bytes tell that by themselves."""
        if isinstance(text, LongText):
            return Document(number, None, text)
        if number in self._whole:
            return self._of_length(search, number, self._whole[number])
        size = len(text.encode()) if len(text) < search.length else search.length
        if size < search.length:
            search.short[number] = size
            return None
        return self._of_length(search, number, self._ids(number, 0, text))

    def _of_length(self, search: Search, number: int, ids: np.ndarray) -> Document | None:
        """A document whose tokens are kept, or None where they are too few."""
        if len(ids) < search.length:
            search.short[number] = len(ids)
            return None
        return Document(number, self._whole.setdefault(number, ids))

    def _ids(self, number: int, start: int, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text).ids
        self._count(number, start, text, ids)
        return ids

    def _count(self, number: int, start: int, text: str, ids: np.ndarray) -> None:
        """Note what was read.
        Raises CorpusError for spelled special tokens that cannot be read as letters."""
        if (number, start) not in self._counted:
            spelled = special_tokens_spelled(self._tokenizer, text, ids, self._corpus.name, self._special)
            self._counted[number, start] = (len(ids), spelled)

    def _room(self, document: Document, window: int, stride: int, *, bos: bool) -> int:
        """How many windows a document has."""
        if document.ids is not None:
            return (len(document.ids) + bos - window) // stride + 1
        assert document.long is not None
        return max(1, document.long.source.size // (MOST_BYTES * window + MARGIN))

    def _windows_of(
        self, document: Document, share: int, window: int, stride: int, *, bos: bool
    ) -> list[Window]:
        """So many windows of one document; passages of a long one are kept."""
        sample, seed, number = self._corpus.sample, self._corpus.seed, document.number
        if document.ids is not None:
            options = {"bos": bos, "sample": sample, "seed": seed + number}
            planned = plan_windows(len(document.ids), window, stride, share, **options)
            return [Window(w.index, w.start, w.length, w.first_scored, number) for w in planned]

        assert document.long is not None
        windows = []
        for start, ids in self._passages(number, document.long, window - bos, share):
            self._keep(number, start, ids)
            windows.append(Window(0, start, window, 1 if start == 0 else max(1, window - stride), number))
        return windows

    def _keep(self, number: int, start: int, ids: np.ndarray) -> None:
        """The longest stretch that was asked for from a place on."""
        held = self._parts.get((number, start))
        if held is None or len(held) < len(ids):
            self._parts[number, start] = ids.copy()

    def _passages(
        self, number: int, text: LongText, length: int, count: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        sample, seed = self._corpus.sample, self._corpus.seed + number
        tokenizer = self._tokenizer
        try:
            for passage, said in passages(text, tokenizer, length, count, sample, seed):
                self._count(number, passage.first_byte, said, passage.ids)
                yield passage.first_byte, passage.ids
        except OSError as error:
            raise unreadable(self._corpus.name, error) from None

    def _stretches(self, number: int, text: str | LongText, wanted: int) -> Sequence[np.ndarray]:
        """A document's tokens, of a long one about as many as are wanted."""
        if isinstance(text, str):
            return [self._ids(number, 0, text)]
        each = min(wanted, 4096)
        return [ids for _, ids in self._passages(number, text, each, -(-wanted // each))]
