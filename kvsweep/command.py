"""The console scripts. First they look whether other files stand in the way of kvsweep's packages."""

from __future__ import annotations

import sys

from kvsweep.other_files import in_the_way

BAD_INPUT = 2


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
