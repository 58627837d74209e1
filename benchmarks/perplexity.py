"""kvsweep against one token per pass, and against the dense floor, side by side: ``python -m benchmarks.perplexity``.

Per model and threshold, over the whole grid of keep_ratios, in one process and in turns:
- reference: the protocol that defines the numbers, as public scripts run it: one token per forward pass, one window at a time.
  It is timed on the first ``--reference-windows`` windows and multiplied up (its windows do not share anything).
- kvsweep: ``workers.perplexity.evaluate``, all cells and all windows.
- floor: stock dense passes with streamed cross-entropy, one over all tokens for what the cells share, and for each cell one
  over the tokens behind its first prune event, with the ones before it in a stock cache. floor / kvsweep is the efficiency.
Next to each: the largest difference of a token's NLL between kvsweep and the reference.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.cache_utils import DynamicLayer

from workers.cell_scores import score
from workers.corpora import read_corpus, tokenize
from workers.model_files import find_model
from workers.models import load
from workers.perplexity import evaluate, evaluate_reference, schedule_of
from workers.self_check import check
from workers.settings import PruneSettings
from workers.windows import plan_windows

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)


def pythia_70m_shape() -> torch.nn.Module:
    """Random weights in Pythia-70M's shape; figures of speed depend on the shape alone."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048,
        max_position_embeddings=2048, rope_parameters=rope, attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    check(model, "pythia-70m-shape", "float32")
    return model


def load_models(names: list[str]) -> dict[str, tuple[Any, torch.Tensor]]:
    """Models with the ids of pydocs in their vocabulary."""
    facts = find_model("reference-neox")
    ids = torch.from_numpy(tokenize(read_corpus("pydocs"), facts.tokenizer_file).ids).long()
    cpu = torch.device("cpu")
    return {n: (pythia_70m_shape() if n == "pythia-70m-shape" else load(find_model(n), "float32", cpu), ids) for n in names}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


@torch.inference_mode()
def dense_passes(model: Any, tokens: torch.Tensor, firsts: list[int]) -> None:
    """A stock dense pass over all tokens, then one from each of ``firsts`` on, with streamed cross-entropy."""
    steps, shared = tokens.shape[1] - 1, DynamicCache()
    hidden = model.base_model(input_ids=tokens[:, :steps], past_key_values=shared).last_hidden_state
    score(model, hidden, tokens[:, 1:])
    for first in firsts:
        cache = DynamicCache()
        for i, layer in enumerate(shared.layers):
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            cache.update(layer.keys[:, :, :first], layer.values[:, :, :first], i)
        hidden = model.base_model(input_ids=tokens[:, first:steps], past_key_values=cache).last_hidden_state
        score(model, hidden, tokens[:, first + 1 :])


def compare(model: Any, tokens: torch.Tensor, starts: list[int], cells: list[PruneSettings], args: argparse.Namespace) -> str:
    """One line of the table."""
    steps = tokens.shape[1] - 1
    firsts = [first for cell in cells if (first := schedule_of(cell, steps).first_event) is not None]
    floors, ours, found = [], [], None
    for _ in range(args.rounds):
        model.set_attn_implementation("sdpa")
        floors.append(timed(lambda: dense_passes(model, tokens, firsts))[0])
        model.set_attn_implementation("kvsweep")
        seconds, found = timed(lambda: evaluate(model, tokens, cells, starts))
        ours.append(seconds)
    assert found is not None
    dense, results = found
    theirs, worst = 0.0, 0.0
    for cell, result in zip(cells, results, strict=True):
        scores = dense if result is None else result
        if isinstance(scores, Exception):
            raise scores
        for i in range(args.reference_windows):
            seconds, reference = timed(
                lambda i=i, cell=cell: evaluate_reference(model, tokens[i : i + 1], cell, starts[i : i + 1])
            )
            theirs += seconds
            worst = max(worst, float((scores.nll[i] - reference.nll[0]).abs().max()))
    theirs *= tokens.shape[0] / max(1, args.reference_windows)
    fast, floor = sorted(ours)[len(ours) // 2], sorted(floors)[len(floors) // 2]
    efficiency = sorted(f / o for f, o in zip(floors, ours, strict=True))[len(ours) // 2]
    return f"{theirs:11.1f} {fast:9.2f} {theirs / fast:6.1f}x {floor:8.2f} {efficiency:10.2f} {worst:22.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["reference-neox", "pythia-70m-shape"])
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--reference-windows", type=int, default=2)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--prune-after", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--policies", nargs="+", default=["knorm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.threads} threads, {args.windows} windows of {args.window} of pydocs, float32, "
        f"{len(args.keep_ratios)} keep_ratios; reference timed on {args.reference_windows} windows one at a time"
    )
    print("model            policy prune_after reference s kvsweep s   ratio  floor s efficiency largest NLL difference")
    for name, (model, ids) in load_models(args.models).items():
        windows = plan_windows(len(ids), args.window, args.window, args.windows)
        tokens = torch.stack([ids[w.start : w.start + w.length] for w in windows])
        starts = [w.start for w in windows]
        evaluate(model, tokens[:, :64], [PruneSettings("knorm", 0.5, 32)], starts)  # warm-up
        for policy in args.policies:
            for threshold in args.prune_after:
                cells = [PruneSettings(policy, ratio, threshold) for ratio in args.keep_ratios]
                line = compare(model, tokens, starts, cells, args)
                print(f"{name:16} {policy:6} {threshold:11} {line}", flush=True)


if __name__ == "__main__":
    main()
