"""The console scripts. Before anything is imported they look whether other files stand in the way of
kvsweep's packages."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "workers", "analysis")
BAD_INPUT = 2


def in_the_way() -> str | None:
    """What Python would import instead of one of the packages beside this one, in words; None where nothing
    is."""
    for name in PACKAGES:
        found = find_spec(name)
        places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
        if not any(place and Path(place).resolve() == ROOT / name / "__init__.py" for place in places):
            what = next((place for place in places if place), "nothing")
            return (
                f"kvsweep's package {name!r} lies in {ROOT / name}, and Python finds {what} in its place; rename that, start in "
                "another directory, or take its folder off PYTHONPATH"
            )
    return None


def _refuse_others() -> None:
    words = in_the_way()
    if words:
        print(f"error: {words}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def main() -> None:
    """``kvsweep``."""
    _refuse_others()
    from pipeline.cli import main as command

    command()


def lm_eval_main() -> None:
    """``kvsweep-lm-eval``."""
    _refuse_others()
    from workers.harness.command import main as command

    command()
