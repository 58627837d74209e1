"""What only a GPU can show, in one script of about eight minutes: ``make gpu-check``, ``python -m
benchmarks.gpu_check``.

Nothing is downloaded: the models are the embedded ones, and random weights in Llama 3.2 1B's shape. Sections,
in this order:
- self_checks: our attention and caches against the stock models, float32 and bfloat16.
- exactness: one pass per event against one token per pass, float32 and bfloat16, policy by policy.
- large_model: the 1B shape is made, and checked like the others, in bfloat16.
- perplexity: of the 1B shape at 2k and 32k tokens, beside its dense floor and one token per pass (of which
  the first are timed).
- generation: of the 1B shape, prompts of 4k to 32k, batches of 1 and 8, dense and pruned to 0.5 and 0.1.
- memory: what was planned for each line of the two before, against the allocator's peak.

Each line is written into the folder as soon as it is known, one file per section, and a summary last, which
names what the time did not reach. Exit status 1 where a check fails, 2 where there is no such device.
``--small`` runs all of it at small size.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.exactness import exactness, self_checks
from benchmarks.gpu_check.generation import generation
from benchmarks.gpu_check.journal import Journal, summary
from benchmarks.gpu_check.memory import GIB, Taken, memory
from benchmarks.gpu_check.models import large_model, weight_bytes, words_of
from benchmarks.gpu_check.perplexity import perplexity
from benchmarks.gpu_check.sizes import FULL, SMALL, Sizes
from workers.footprint.model_shape import shape_of


def large_sections(journal: Journal, sizes: Sizes, device: torch.device) -> list[Taken]:
    """The sections of the large model, which is in memory for them alone."""
    journal.begin("large_model", "random weights in Llama 3.2 1B's shape, bfloat16")
    made: list[Any] = []
    gc.collect()  # what the sections before left behind would count for these
    journal.attempt(
        "the model", lambda: made.append(large_model(sizes, "bfloat16", device, sizes.check_tokens))
    )
    if not made:
        return []
    model, shape = made[0], shape_of(made[0])
    journal.say(
        f"{weight_bytes(model) / GIB:.2f} GiB of weights, {shape.cached} bytes of keys and values a token; "
        "checked"
    )

    ids = words_of("reference-llama") % shape.vocabulary
    return [*perplexity(journal, sizes, model, ids), *generation(journal, sizes, model, ids)]


def main() -> int:
    """Every section in turn; what one raises does not keep the next from its turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="small models and short texts, in seconds")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/gpu"), help="a folder for the results"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="what is not begun by then is left out, and named"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch finds no CUDA device here; --device cpu --small tries the script on a CPU",
            file=sys.stderr,
        )
        return 2

    begin = time.monotonic()
    device, sizes = torch.device(args.device), SMALL if args.small else FULL
    args.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.out, begin + 60 * args.minutes)

    self_checks(journal, sizes, device)
    exactness(journal, sizes, device)
    memory(journal, device, large_sections(journal, sizes, device))
    return summary(journal, device, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
