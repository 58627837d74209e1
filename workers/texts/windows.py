"""Pure integers: which tokens a window holds and which of them are scored."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

from workers.texts.sampling import Sample, in_order, spread


@dataclass(frozen=True)
class Window:
    """``length`` positions that hold the tokens from ``start`` on, behind BOS where texts begin with one.

    Positions from ``first_scored`` on are scored.
    """

    index: int
    start: int
    length: int
    first_scored: int
    document: int | None = None
    """Which of a dataset's documents it lies in, and ``start`` counts from;
    None where the dataset is one text."""

    @property
    def text_id(self) -> int:
        """What tells a window from the others of its dataset:
        its start, that of a document's window with the document."""
        if self.document is None:
            return self.start
        return int(hashlib.sha256(f"{self.document} {self.start}".encode()).hexdigest()[:12], 16)

    @property
    def tokens_scored(self) -> int:
        """How many tokens of the window enter the perplexity."""
        return self.length - self.first_scored


def plan_windows(
    tokens: int,
    window: int,
    stride: int,
    limit: int | None = None,
    *,
    bos: bool = False,
    sample: Sample = "spread",
    seed: int = 0,
) -> list[Window]:
    """Windows ``[i*stride, i*stride + window)`` of a text of ``tokens`` tokens, whole ones only, at most
    ``limit``.

    Where there are more than ``limit``, those taken are spread evenly over the text: its beginning (a
    preface, the letter A) speaks for nothing else; or they are its first, or drawn by chance. A window keeps
    its number i in the text. With ``bos`` a window is BOS and ``[i*stride, i*stride + window - 1)``; BOS is
    never scored. Scored: all but the first position of window 0; of later windows the last ``stride``, so
    that each token is scored once (with ``stride == window`` all but the first). Source: Hugging Face,
    "Perplexity of fixed-length models". Raises ValueError for a stride outside 1..window or a window under 2.
    """
    if window < 2 or not 1 <= stride <= window:
        raise ValueError(f"need window >= 2 and 1 <= stride <= window (got window {window}, stride {stride})")
    count = max(0, (tokens + bos - window) // stride + 1)
    numbers = sampled_numbers(count, count if limit is None else limit, sample, seed)
    return [Window(i, i * stride, window, 1 if i == 0 else max(1, window - stride)) for i in numbers]


def sampled_numbers(count: int, limit: int, sample: Sample = "spread", seed: int = 0) -> list[int]:
    """At most ``limit`` of the numbers under ``count``, in rising order."""
    if sample == "spread":
        return spread(count, limit)
    return sorted(itertools.islice(in_order(count, limit, sample, seed), limit))
