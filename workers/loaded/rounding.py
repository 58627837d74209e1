"""How far figures are from exact by rounding alone: one pass per event against one token per pass, alone
against in company.

In float32 both are about 1e-6 nats a token. In 16 bits a key is rounded otherwise in a long pass than alone,
another entry may go at a cut, and differences between cells that are smaller than these distances say
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import windows_at_once
from workers.loaded.reference_pass import reference_nll
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings

MEASURED = 2
"""Of the cells that share passes, so many are compared."""


@dataclass(frozen=True)
class Distance:
    """Of the NLLs of one evaluation from those of another, token by token."""

    nats: float
    """Mean absolute difference of a token, in nats."""
    ppl: float
    """Relative difference of the perplexities, |exp(mean difference) - 1|."""

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> Distance:
        """Of NLLs of one shape."""
        differences = (one - other).double()
        return cls(float(differences.abs().mean()), abs(math.expm1(float(differences.mean()))))

    def or_larger(self, other: Distance) -> Distance:
        """The larger of both, by each measure."""
        return Distance(max(self.nats, other.nats), max(self.ppl, other.ppl))


def distances(model: Any, tokens: Tensor, cells: Sequence[PruneSettings]) -> tuple[Distance, Distance, int]:
    """(from one token per pass, from the cell alone, texts compared):
    the largest of the first ``MEASURED`` cells.

    Over the tokens that saw a pruned cache; the others would dilute them.

    tokens: [texts, length] on the model's device, of which so many are taken as a unit would take together.
    Raises what makes a cell fail.
    """
    rows = min(len(tokens), windows_at_once(shape_of(model), tokens.shape[1]))
    found = list(_distances(model, tokens[:rows], cells))
    reference, company = found[0]
    for other_reference, other_company in found[1:]:
        reference, company = reference.or_larger(other_reference), company.or_larger(other_company)
    return reference, company, rows


def _distances(
    model: Any, tokens: Tensor, cells: Sequence[PruneSettings]
) -> Iterator[tuple[Distance, Distance]]:
    names = list(range(len(tokens)))
    _, together = evaluate(model, tokens, cells, names)

    for cell, in_company in zip(cells[:MEASURED], together, strict=False):
        _, (alone,) = evaluate(model, tokens, [cell], names)
        for outcome in (in_company, alone):
            if isinstance(outcome, Exception):
                raise outcome
        assert in_company is not None and not isinstance(in_company, Exception)
        assert alone is not None and not isinstance(alone, Exception)

        exact = reference_nll(model, tokens, cell)
        pruned = slice(cell.prune_after, None)  # the tokens before saw all that was there
        pruned_nll = in_company.nll[:, pruned]
        yield (
            Distance.between(pruned_nll, exact[:, pruned]),
            Distance.between(pruned_nll, alone.nll[:, pruned]),
        )
