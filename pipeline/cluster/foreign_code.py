"""Files of others that have the name of one of kvsweep's packages and lie where Python would look first."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.sweepfile.sweep_error import SweepError
from workers.machine.code_digest import ROOT


def check_nothing_in_the_way() -> None:
    """Raises SweepError where the current directory holds a module ``workers`` that is not kvsweep's.

    Workers of a cluster that is joined look there first: Ray tells them the driver's current directory.
    """
    found = PathFinder.find_spec("workers", [os.getcwd()])
    if found is None or found.origin is None or Path(found.origin).resolve().parent.parent == ROOT:
        return
    raise SweepError(
        [
            f"{found.origin} has the name of a package of kvsweep's, and workers of the cluster would take "
            "it for that package; start in another directory, or rename it"
        ]
    )
