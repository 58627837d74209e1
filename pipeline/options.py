"""What several commands ask for alike, and how they refuse what they cannot take."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

Sweep = Annotated[
    str | None,
    typer.Argument(help="Sweep file, or the name of an embedded sweep; none: the embedded default."),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Also run cells again that failed in an earlier run.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, e.g. perplexity.windows=4."),
]


def refuse(faults: list[str]) -> NoReturn:
    """Say what is wrong, a line each, and end with exit status 2."""
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    raise typer.Exit(2)


def give_up(error: Exception) -> NoReturn:
    """Say why a command that took its input could not do its work, and end with exit status 1."""
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(1) from None
