"""How policies look: one colour for a policy in every chart of a page, dense's for dense alone."""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis.draw.marks import cycle, legend

PALETTE = [
    "knorm",
    "knorm_high",
    "random",
    "recent",
    "streaming",
    "h2o",
    "snapkv",
    "tova",
    "knorm_sorted",
    "dense",
]
"""Policies with a colour of their own (``--c-NAME`` in style.css), in the order of the legend."""

OWN_COLOURS = [f"var(--c-own-{number})" for number in range(1, 9)]
"""The colours of all others, such as those of a user's own module."""


@dataclass(frozen=True)
class PolicyLooks:
    """The looks on one page. ``others``: the policies that the palette does not know, in the order in which
    they appear on it.

    A policy that comes after all colours are taken has a colour
    of an earlier one, and shapes and dashes that name it.
    """

    others: tuple[str, ...]

    @classmethod
    def on_page(cls, *tables: pl.DataFrame) -> PolicyLooks:
        """The looks for the tables of a page, in its order."""
        named = pl.concat([table.select("policy") for table in tables])["policy"].drop_nulls()
        return cls(tuple(name for name in named.unique(maintain_order=True) if name not in PALETTE))

    def colour(self, frame: pl.DataFrame) -> alt.Color:
        """The colours of the frame's policies, with a legend."""
        found, looks = set(frame["policy"].drop_nulls()), self._colours()
        names = [name for name in looks if name in found]
        scale = alt.Scale(domain=names, range=[looks[name] for name in names])
        return alt.Color("policy:N", scale=scale, legend=legend(names, "policy", symbolType="circle"))

    def told_apart(self, frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
        """The frame with a column for ``look`` to find beside each of ``columns``, where colours come
        again."""
        again = self.others[len(OWN_COLOURS) :]
        if not set(again) & set(frame["policy"].drop_nulls()):
            return frame
        named = pl.col("policy").is_in(again)
        return frame.with_columns(
            pl.when(named)
            .then(pl.format("{}, {}", column, "policy"))
            .otherwise(column)
            .alias(f"{column}_look")
            for column in columns
        )

    def _colours(self) -> dict[str, str]:
        known = {name: f"var(--c-{name})" for name in PALETTE}
        return known | dict(zip(self.others, cycle(OWN_COLOURS, self.others), strict=True))


def look(frame: pl.DataFrame, column: str) -> str:
    """The column by which shapes and dashes go in a frame from ``told_apart``: ``column`` itself, or the one
    that also names policies whose colour is taken.
    """
    return f"{column}_look" if f"{column}_look" in frame.columns else column


def palette_rank() -> pl.Expr:
    """The place of a policy in every legend; those without a name in the palette come last."""
    known = {name: number for number, name in enumerate(PALETTE)}
    return pl.col("policy").replace_strict(known, default=len(known), return_dtype=pl.Int32)
