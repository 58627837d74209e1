"""``prefill_once`` with knorm against kvpress's KnormPress, entry by entry: ``python -m tools.compare_kvpress
--venv DIR``.

kvpress needs an older transformers than kvsweep, so it runs in a virtual environment of its own, which is
made in DIR if it is not there. On ``reference-llama`` (KnormPress hooks Llama's attention, not GPT-NeoX's)
both compress the same prompts to the same count. Exit status 1 where they keep different entries for another
reason than equal scores at 12 bits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.cache.notes import Observed
from workers.cache.pruned_cache import PrunedCache
from workers.corpora import read_text, tokenize
from workers.generation.decoding import forward
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.policies.attention_weights import Scale
from workers.policies.budget import kept_count
from workers.policies.cache_view import CacheView, view_of
from workers.policies.eviction import knorm

NEEDS = ["kvpress==0.5.5", "transformers<5.3", "pandas<3", "torch==2.13.0"]
KEPT_BY_KVPRESS = Path(__file__).with_name("kvpress_kept.py")


def unrounded(view: CacheView) -> Tensor:
    """knorm as kvpress scores it, without rounding."""
    return -torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32)


def environment(folder: Path) -> Path:
    """The Python of kvpress's environment."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS], check=True)
    return python


@torch.inference_mode()
def kept(model: Any, ids: list[int], policy: str, ratio: float) -> tuple[list[Tensor], list[Tensor]]:
    """Positions [kv_heads, kept] that kvsweep keeps in each layer, and the scores [kv_heads, n] of all
    entries."""
    scores: list[Tensor] = []
    full = PrunedCache(model.config)
    forward(model, torch.tensor([ids]), full)
    for layer in full.pruned_layers:
        keys, values = layer.stored()
        view = view_of(
            keys=keys,
            values=values.clone,
            positions=layer.stored_positions(),
            seen=0,
            keep=0,
            layer=0,
            seed=0,
            row_ids=torch.zeros(1),
            scale=Scale(1.0, None),
            observed=Observed(),
        )
        scores.append(knorm(view)[0])
    cache = PrunedCache(model.config, policy=policy, keep_ratio=ratio, prune_after=1, schedule="prefill_once")
    forward(model, torch.tensor([ids]), cache)
    return [layer.stored_positions()[0] for layer in cache.pruned_layers], scores


def compare(ours: list[Tensor], theirs: list[list[list[int]]], scores: list[Tensor]) -> tuple[int, int, int]:
    """Heads with the same entries, heads in which only equal 12-bit scores were chosen otherwise, other
    heads."""
    same = ties = wrong = 0
    for layer, (mine, others, score) in enumerate(zip(ours, theirs, scores, strict=True)):
        for head, (a, b) in enumerate(zip(mine.tolist(), others, strict=True)):
            if len(a) != len(b):
                raise SystemExit(f"layer {layer}, head {head}: {len(a)} entries here, {len(b)} in kvpress")
            swapped = [float(score[head, position]) for position in set(a) ^ set(b)]
            same, ties = same + (not swapped), ties + (len(swapped) > 0 and len(set(swapped)) == 1)
            wrong += len(set(swapped)) > 1
    return same, ties, wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True, help="where kvpress's environment is, or is made")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.9, 0.5, 0.1])
    args = parser.parse_args()
    facts = find_model("reference-llama")
    model = load(facts, "float32", torch.device("cpu"))
    text = tokenize(read_text("pydocs"), facts.tokenizer_file).ids.tolist()
    grid = [(text[:length], ratio) for length in args.prompt_tokens for ratio in args.keep_ratios]
    prompts = [{"ids": ids, "keep": kept_count(ratio, len(ids))} for ids, ratio in grid]
    answer = subprocess.run(
        [environment(args.venv), KEPT_BY_KVPRESS],
        input=json.dumps({"model": facts.source, "prompts": prompts}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(
        "prompt keep_ratio kept | knorm of kvsweep: same, ties at 12 bits, otherwise | without rounding:"
        " same, ties, otherwise"
    )
    failed = 0
    for (ids, ratio), prompt, theirs in zip(grid, prompts, json.loads(answer.stdout), strict=True):
        found = []
        for policy in ("knorm", f"{__spec__.name}:unrounded"):
            ours, scores = kept(model, ids, policy, ratio)
            found.append(compare(ours, theirs, scores))
        failed += found[0][2]
        columns = " | ".join("{:4} {:4} {:4} heads".format(*counts) for counts in found)
        print(f"{len(ids):6} {ratio:10g} {prompt['keep']:4} | {columns}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
