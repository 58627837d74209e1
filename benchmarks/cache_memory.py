"""Memory that a pruned cache keeps, over the dense cache's: ``python -m benchmarks.cache_memory``.

Per model and threshold, the dense cell and knorm at several keep_ratios generate the same number of tokens
through the loop that is timed. Side by side: entries held at the end, bytes allocated for them at the end and
at most between two passes (buffers with their room, positions), and the room that a cell has. Bytes are read
from the tensors' storage, the same on every machine.
"""

from __future__ import annotations

import argparse

import torch

from workers.corpora import read_text, tokenize
from workers.generation.decoding import GenerationRun, generate
from workers.loaded.load import DTYPES, load
from workers.machine.clock import Clock
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings


def line(ratio: float, run: GenerationRun, dense: GenerationRun) -> str:
    """Bytes of a cell as shares of the dense cell's."""
    held = run.kv_bytes_final / dense.kv_bytes_final
    final = run.kv_bytes_allocated_final / dense.kv_bytes_allocated_final
    peak = run.kv_bytes_allocated_peak / dense.kv_bytes_allocated_peak
    slack = run.kv_bytes_allocated_final / run.kv_bytes_final
    return f"{ratio:10g} {len(run.prune_steps):14} {held:12.3f} {final:20.3f} {peak:20.3f} {slack:22.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["reference-neox", "reference-llama"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.5])
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prune-after", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--policy", default="knorm")
    args = parser.parse_args()

    device = torch.device(args.device)
    clock = Clock(device)
    print(
        f"{args.policy}, {args.device} {args.dtype}, prompt {args.prompt_tokens}, "
        f"{args.new_tokens} new tokens; over dense"
    )
    for name in args.models:
        facts = find_model(name)
        ids = torch.from_numpy(tokenize(read_text("pydocs"), facts.tokenizer_file).ids).long()
        prompt, model = ids[None, : args.prompt_tokens].to(device), load(facts, args.dtype, device)
        dense = generate(model, prompt, PruneSettings("dense"), args.new_tokens, clock)
        slack = dense.kv_bytes_allocated_final / dense.kv_bytes_final
        print(
            f"{name}: dense allocates {dense.kv_bytes_allocated_final / 2**20:.2f} MiB, "
            f"{slack:.3f} of its entries"
        )
        for after in args.prune_after:
            for schedule in ("every_step", "prefill_once"):
                print(f"  prune_after {after}, {schedule}")
                print(
                    "keep_ratio steps pruning entries held allocated at the end allocated at most "
                    "allocated / own entries"
                )
                for ratio in args.keep_ratios:
                    settings = PruneSettings(args.policy, ratio, after, schedule=schedule)
                    print(
                        line(ratio, generate(model, prompt, settings, args.new_tokens, clock), dense),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
