"""kvsweep against one token per pass, and against stock dense passes, side by side: ``python -m
benchmarks.perplexity``.

Per model, policy and threshold, in one process and in turns, a line of the whole grid of keep_ratios:
- reference: the protocol that defines the numbers, as public scripts run it: one token per forward pass, one
  window at a time. It is timed on the first ``--reference-windows`` windows and multiplied up (its windows do
  not share anything); 0 leaves it out.
- kvsweep: ``workers.perplexity.evaluation.evaluate``, all cells and all windows.
- floor: stock dense passes with streamed cross-entropy, one over all tokens for what the cells share, and for
  each cell one over the tokens behind its first prune event, with the ones before it in a stock cache. floor
  / kvsweep is the efficiency. Next to each: the largest difference of a token's NLL between kvsweep and the
  reference. Where it is above 1e-4, a rounding error decided a cut between two nearly equal scores: the line
  below says how many cuts, and the difference with the same cuts.

Then a line of each cell that prunes, run with no other: its own seconds (what it takes beyond the dense pass
that all cells share), the same of its floor, floor / own, and where both spend their time (``time_spent``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks import cells_alone
from benchmarks.cuts import Cuts
from benchmarks.time_spent import best_clock
from workers.corpora import read_text, tokenize
from workers.loaded.load import load
from workers.loaded.self_check import check
from workers.models.model_files import ModelError, find_model
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference, schedule_of
from workers.policies.eviction import _OWN, POLICIES
from workers.policies.settings import PruneSettings
from workers.texts.windows import plan_windows

STRICT = 1e-4
"""Largest difference of a token's NLL, in nats, that rounding may explain when the same entries are kept."""

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)


def pythia_70m_shape() -> torch.nn.Module:
    """Random weights in Pythia-70M's shape; figures of speed depend on the shape alone."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
        rope_parameters=rope,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    check(model, "pythia-70m-shape", "float32")
    return model


def model_and_ids(name: str) -> tuple[Any, torch.Tensor]:
    """A model and the ids of pydocs by its own tokenizer; the made-up shape has that of reference-neox."""
    made_up = name == "pythia-70m-shape"
    facts = find_model("reference-neox" if made_up else name)
    ids = torch.from_numpy(tokenize(read_text("pydocs"), facts.tokenizer_file).ids).long()
    return pythia_70m_shape() if made_up else load(facts, "float32", torch.device("cpu")), ids


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    clock = best_clock()
    begin = clock()
    result = work()
    return clock() - begin, result


def speeds(
    model: Any, tokens: torch.Tensor, starts: list[int], cells: list[PruneSettings], rounds: int
) -> tuple[float, float, float, list[CellScores]]:
    """Medians of seconds (kvsweep, floor) and of floor / kvsweep, in turns; and what kvsweep found for each
    cell."""
    steps = tokens.shape[1] - 1
    firsts = [first for cell in cells if (first := schedule_of(cell, steps).first_event) is not None]
    floors, ours, scores = [], [], []
    for _ in range(rounds):
        model.set_attn_implementation("sdpa")
        floors.append(timed(lambda: cells_alone.dense_passes(model, tokens, firsts))[0])
        model.set_attn_implementation("kvsweep")
        seconds, (dense, results) = timed(lambda: evaluate(model, tokens, cells, starts))
        ours.append(seconds)
        scores = [dense if result is None else result for result in results]
    for failed in (x for x in scores if isinstance(x, Exception)):
        raise failed
    return median(ours), median(floors), median(f / o for f, o in zip(floors, ours, strict=True)), scores


def with_the_same_cuts(
    model: Any, tokens: torch.Tensor, start: int, cell: PruneSettings
) -> tuple[Cuts, float]:
    """kvsweep and the reference made to keep the same entries: the cuts, and the largest difference of a
    token's NLL."""
    policy, cuts = _OWN[cell.policy], Cuts()
    try:
        _OWN[cell.policy] = cuts.recording(policy)
        _, (ours,) = evaluate(model, tokens, [cell], [start])
        _OWN[cell.policy] = cuts.imposed(policy)
        reference = evaluate_reference(model, tokens, cell, [start])
    finally:
        _OWN[cell.policy] = policy
    assert isinstance(ours, CellScores)
    return cuts, float((ours.nll - reference.nll).abs().max())


def compare(
    model: Any, tokens: torch.Tensor, starts: list[int], cells: list[PruneSettings], args: argparse.Namespace
) -> str:
    """One line of the table, and one for each cell whose NLLs differ by more than STRICT from the
    reference's."""
    fast, floor, efficiency, scores = speeds(model, tokens, starts, cells, args.rounds)
    if not args.reference_windows:
        return f"{'-':>11} {fast:9.2f} {'-':>7} {floor:8.2f} {efficiency:10.2f} {'-':>22}"

    theirs, worst, notes = 0.0, 0.0, ""
    for cell, found in zip(cells, scores, strict=True):
        for i in range(args.reference_windows):
            window, start = tokens[i : i + 1], starts[i]
            seconds, reference = timed(lambda w=window, s=start, c=cell: evaluate_reference(model, w, c, [s]))
            difference = float((found.nll[i] - reference.nll[0]).abs().max())
            theirs, worst = theirs + seconds, max(worst, difference)
            if difference > STRICT:
                cuts, left = with_the_same_cuts(model, window, start, cell)
                notes += (
                    f"\n  keep_ratio {cell.keep_ratio:g}, window {i}: differs by {difference:.1e}; "
                    f"the reference would make {cuts.otherwise} of {len(cuts.kept)} cuts otherwise "
                    f"(scores within {cuts.largest_gap:.1e}); "
                    f"with the same cuts {left:.1e}"
                )
    theirs *= tokens.shape[0] / args.reference_windows
    times = f"{theirs / fast:6.1f}x {floor:8.2f} {efficiency:10.2f}"
    return f"{theirs:11.1f} {fast:9.2f} {times} {worst:22.1e}{notes}"


def show(
    model: Any, tokens: torch.Tensor, starts: list[int], threshold: int, args: argparse.Namespace
) -> None:
    """The tables of one model and threshold."""
    grids = {
        policy: [PruneSettings(policy, ratio, threshold) for ratio in args.keep_ratios]
        for policy in args.policies
    }
    if "grid" in args.lines:
        print("  policy           reference s kvsweep s   ratio  floor s efficiency largest NLL difference")
        for policy, cells in grids.items():
            print(f"  {policy:16} {compare(model, tokens, starts, cells, args)}", flush=True)
    if "cells" in args.lines:
        print(cells_alone.HEADER)
        cells = [cell for each in grids.values() for cell in each]
        for line in cells_alone.lines(model, tokens, starts, cells, args.rounds):
            print(line, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's; exit status 2 for what it cannot mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["reference-neox", "pythia-70m-shape"], help="names or paths"
    )
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--reference-windows", type=int, default=2)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--prune-after", type=int, nargs="+", default=[32, 512])
    parser.add_argument(
        "--policies", nargs="+", default=["knorm"], choices=[*POLICIES, "all"], metavar="POLICY"
    )
    parser.add_argument("--lines", nargs="+", default=["grid", "cells"], choices=["grid", "cells"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    if min(args.windows, args.rounds, args.threads, args.window - 1, *args.prune_after) < 1:
        parser.error(
            "--windows, --rounds, --threads and --prune-after must be 1 or more, and --window 2 or more"
        )
    args.reference_windows = min(args.reference_windows, args.windows)
    args.policies = list(POLICIES) if "all" in args.policies else args.policies
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    args = parsed(arguments)
    torch.set_num_threads(args.threads)
    clock = "processor's seconds" if args.threads == 1 else "seconds of the wall"
    print(
        f"torch {torch.__version__}, {args.threads} threads ({clock}), "
        f"{args.windows} windows of {args.window} of pydocs, float32, medians of {args.rounds} rounds; "
        f"reference on {args.reference_windows} windows one at a time"
    )
    for name in args.models:
        try:
            model, ids = model_and_ids(name)
        except ModelError as error:
            sys.exit(f"{name}: {error}")
        windows = plan_windows(len(ids), args.window, args.window, args.windows)
        tokens = torch.stack([ids[w.start : w.start + w.length] for w in windows])
        starts = [w.start for w in windows]
        evaluate(model, tokens[:, :64], [PruneSettings("knorm", 0.5, 32)], starts)  # warm-up
        for threshold in args.prune_after:
            print(f"{name}, prune_after {threshold}, {len(args.keep_ratios)} keep_ratios")
            show(model, tokens, starts, threshold, args)


if __name__ == "__main__":
    main()
