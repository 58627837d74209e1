"""Memory of a long window with twelve thresholds, by its length: ``python -m benchmarks.long_windows``.

A tiny random Llama (3 layers, 4 heads, hidden width 32), keep_ratio 0.5, prune_after from 3/16 to 14/16 of
the window. Each length in a process of its own; printed is the peak resident set less what the process had
before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.cache.attention import NAME
from workers.machine.peak_memory import PeakMemory, resident_bytes
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings


def peak_here(policy: str, length: int) -> int:
    """Peak bytes of the window in this process, beyond what it held before."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_key_value_heads=2,
        max_position_embeddings=2**16,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.set_attn_implementation(NAME)
    cells = [PruneSettings(policy, 0.5, length * part // 16) for part in range(3, 15)]
    memory, before = PeakMemory(torch.device("cpu")), resident_bytes()
    memory.start()
    _, found = evaluate(model, torch.randint(1, 97, (1, length)), cells, [0])
    failed = [each for each in found if isinstance(each, Exception)]
    peak = memory.result()[0]
    if failed or peak is None or before is None:
        raise SystemExit(f"no figure: {failed}")
    return peak - before


def peaks_of(policy: str, *lengths: int) -> list[int]:
    """Peak bytes of windows, each in a process of its own."""
    peaks = []
    for length in lengths:
        command = [sys.executable, "-m", "benchmarks.long_windows", "--child", policy, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(json.loads(done.stdout.splitlines()[-1])))
    return peaks


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(peak_here(sys.argv[2], int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=["knorm", "h2o"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    args = parser.parse_args()
    print("policy   tokens  peak MiB  bytes per token")
    for policy in args.policies:
        for length in args.lengths:
            (peak,) = peaks_of(policy, length)
            print(f"{policy:8} {length:6} {peak / 2**20:9.0f} {peak / length:16.0f}", flush=True)


if __name__ == "__main__":
    main()
