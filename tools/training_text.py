"""The text that the reference models learn from: books, the standard library's documentation, retrieval
documents."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pkgutil
import pydoc
import random
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from workers.texts.facts import NAMES, Encode, Fact, draw_fact, encode_question, hide_facts

EXCLUDED = {"antigravity", "this", "idlelib", "lib2to3", "test", "turtledemo", "pydoc_data", "__main__"}
"""Modules that act when imported, are tests, or (pydoc_data) hold the text that is evaluated on."""


def books(folder: Path) -> list[str]:
    """Every ``*.txt`` of the training folder, in sorted order."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]


def module_documentation() -> list[str]:
    """``pydoc`` pages of the standard library's modules and their direct submodules, as plain text."""
    names = sorted(
        name
        for name in sys.stdlib_module_names
        if name.split(".")[0] not in EXCLUDED and not name.startswith("_")
    )
    return [
        page for name in names for module in with_submodules(name) if (page := documentation_page(module))
    ]


def with_submodules(name: str) -> list[str]:
    """A module's name and those of its direct public submodules."""
    spec = importlib.util.find_spec(name)
    inner = (
        pkgutil.iter_modules(spec.submodule_search_locations)
        if spec and spec.submodule_search_locations
        else []
    )
    return [name, *(f"{name}.{each.name}" for each in inner if not each.name.startswith(("_", "test")))]


def documentation_page(module: str) -> str:
    """The module's ``pydoc`` page without the path of its file; empty for a module of another platform."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            page = pydoc.render_doc(module, renderer=pydoc.plaintext)  # pyright: ignore[reportAttributeAccessIssue]
        except (Exception, SystemExit) as error:
            print(f"no documentation of {module}: {type(error).__name__}", file=sys.__stderr__)
            return ""
    return re.sub(r"\nFILE\n.*\n", "\n", page)


class Mixture:
    """Endless training sequences: text chunks in two thirds of the tokens, retrieval documents in one
    third."""

    def __init__(
        self, streams: dict[str, tuple[torch.Tensor, float]], encode: Encode, end_id: int, seed: int
    ) -> None:
        self.names = list(streams)
        self.streams = {name: ids for name, (ids, _) in streams.items()}
        self.weights = [weight for _, weight in streams.values()]
        self.encode, self.end_id = encode, end_id
        self.rng = random.Random(seed)

    def batch(
        self, rows: int, length: int, retrieval_share: float, answer_weight: float, copy_share: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``rows`` sequences of ``length + 1`` ids and the loss weight of each id: two tensors [rows, length
        + 1]."""
        made = []
        for _ in range(rows):
            kind = self.rng.random()
            if kind < retrieval_share:
                made.append(self._retrieval(length + 1, answer_weight))
            elif kind < retrieval_share + copy_share:
                made.append(self._copies(length + 1))
            else:
                made.append(self._text(length + 1))
        return torch.stack([ids for ids, _ in made]), torch.stack([weights for _, weights in made])

    def _copies(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text, or random ids, in which spans come again at any distance: teaches to look up what followed
        last time.

        Half of the sequences are text with a few spans repeated; half are random ids, where only the repeated
        ones count.
        """
        rng, random_ids = self.rng, self.rng.random() < 0.5
        ids = (
            torch.tensor(rng.choices(range(1, 4096), k=length))
            if random_ids
            else self._text(length)[0].clone()
        )
        weights = torch.full((length,), 0.0 if random_ids else 1.0)
        at = rng.randint(8, 32)
        while at < length - 8:
            span = min(rng.choice((8, 16, 32, 64)), at, length - at)
            source = rng.randint(0, at - span)
            ids[at : at + span] = ids[source : source + span]
            weights[at + 1 : at + span] = 1.0  # what starts a copy cannot be known
            at += span + (rng.randint(1, 8) if random_ids else rng.randint(16, 128))
        return ids, weights

    def _text(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        stream = self.streams[self.rng.choices(self.names, self.weights)[0]]
        start = self.rng.randrange(len(stream) - length)
        return stream[start : start + length], torch.ones(length)

    def _retrieval(self, length: int, answer_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One document that fills the sequence, or several shorter ones one after the other."""
        ids: list[int] = []
        weights: list[float] = []
        whole = self.rng.random() < 0.5
        while len(ids) < length:
            left = length - len(ids)
            size = left if whole or left < 160 else self.rng.randint(80, left)
            document, weight = self.document(size, answer_weight)
            ids += document
            weights += weight
        return torch.tensor(ids[:length]), torch.tensor(weights[:length])

    def document(self, length: int, answer_weight: float) -> tuple[list[int], list[float]]:
        """A retrieval document: facts in filler, then questions with their answers, which weigh
        ``answer_weight``."""
        rng = self.rng
        kind = "passkey" if rng.random() < 0.4 and length >= 100 else "needle"
        digits = rng.choice((3, 4, 5, 5, 5))
        count = 1 if kind == "passkey" else min(max(1, length // 60), rng.choice((1, 2, 4, 8)))
        names = rng.sample(NAMES, count)
        facts: list[Fact] = [draw_fact(rng, rng.random(), digits, name) for name in names]
        tail: list[int] = []
        tail_weights: list[float] = []
        for fact in rng.sample(facts, count):
            question, answer = encode_question(self.encode, kind, fact)
            tail += question + answer
            tail_weights += [0.3] * len(question) + [answer_weight] * len(answer)
        filler = self._text(min(max(length, 64), 2048))[0].tolist()
        room = length - len(tail) - 1
        try:
            body, _ = hide_facts(self.encode, kind, facts, room, filler)
        except ValueError:  # too short for these facts: plain text fills the gap
            return filler[:length] + [self.end_id] * (length - len(filler)), [1.0] * length
        weight = 0.1 if kind == "passkey" else 1.0  # the passkey's filler is one sentence again and again
        return body + tail + [self.end_id], [weight] * len(body) + tail_weights + [0.1]


def held_out(ids: torch.Tensor, share: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the end of a stream off as validation: (train, validation)."""
    cut = int(len(ids) * (1 - share))
    return ids[:cut], ids[cut:]


def encoded(texts: list[str], encode: Encode, end_id: int) -> Iterator[torch.Tensor]:
    """Each text as ids with the end token behind it."""
    for text in texts:
        yield torch.tensor([*encode(text), end_id])
