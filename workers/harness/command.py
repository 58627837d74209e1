"""The harness's own command line with the model ``kvsweep`` registered:
``python -m workers.harness.command ARGUMENTS``.

lm_eval 0.4.13 has no way for another package to announce a model (its registry takes entry points but reads
none), so ``lm_eval --model kvsweep`` cannot find it; everything else of its command line is its own.
"""

from __future__ import annotations

import os
import sys

from workers.harness.tasks import HarnessError, require_harness
from workers.models.model_files import ModelError


def main() -> None:
    """Run the harness; our own refusals are one line and exit status 2."""
    try:
        require_harness()
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry

        sys.path.append(os.getcwd())  # where policies of one's own are, module:function
        # by its name, so that it is imported when it is asked for
        model_registry.register("kvsweep", target="workers.harness.model:PrunedModel")
        cli_evaluate()
    except (HarnessError, ModelError) as error:
        print(f"kvsweep: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
