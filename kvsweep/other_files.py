"""Whether other files stand in the way of kvsweep's packages, whose names others use too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "workers", "analysis")


def in_the_way() -> str | None:
    """What Python would import in place of a package beside this one, in words; None where it finds them."""
    for name in PACKAGES:
        found = find_spec(name)
        places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
        if not any(place and Path(place).resolve() == ROOT / name / "__init__.py" for place in places):
            what = next((place for place in places if place), "nothing")
            return (
                f"kvsweep's package {name!r} lies in {ROOT / name}, and Python finds {what} in its place; "
                "rename that, start in another directory, or take its folder off PYTHONPATH"
            )
    return None
