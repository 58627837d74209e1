"""Event-driven evaluation against one token per pass, side by side: ``python -m benchmarks.perplexity``.

The reference gets all windows in one batch, which is kinder to it than the batch of 1 that public scripts use. Both are run in
turns, cell by cell, in one process; the ratio of their times and the largest difference of a token's NLL are printed.
"""

from __future__ import annotations

import argparse
import time

import torch

from workers.corpora import read_corpus, tokenize
from workers.model_files import EMBEDDED_NAMES, find_model
from workers.models import load
from workers.perplexity import evaluate, evaluate_reference
from workers.settings import PruneSettings
from workers.windows import plan_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(EMBEDDED_NAMES[:1]))
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.95, 0.75, 0.5])
    parser.add_argument("--prune-after", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.windows} windows of {args.window} of pydocs, float32")
    print("model            prune_after cells reference s kvsweep s  ratio largest NLL difference")
    for name in args.models:
        facts = find_model(name)
        model = load(facts, "float32", torch.device("cpu"))
        ids = torch.from_numpy(tokenize(read_corpus("pydocs"), facts.tokenizer_file).ids).long()
        windows = plan_windows(len(ids), args.window, args.window, args.windows)
        tokens = torch.stack([ids[w.start : w.start + w.length] for w in windows])
        starts = [w.start for w in windows]
        evaluate(model, tokens[:, :64], [], starts)  # warm-up
        for threshold in args.prune_after:
            cells = [PruneSettings("knorm", ratio, threshold) for ratio in args.keep_ratios]
            begin = time.perf_counter()
            dense, fast = evaluate(model, tokens, cells, starts)
            ours = time.perf_counter() - begin
            theirs = worst = 0.0
            for cell, result in zip(cells, fast, strict=True):
                begin = time.perf_counter()
                reference = evaluate_reference(model, tokens, cell, starts)
                theirs += time.perf_counter() - begin
                scores = dense if result is None else result
                if isinstance(scores, Exception):
                    raise scores
                worst = max(worst, float((scores.nll - reference.nll).abs().max()))
            print(
                f"{name:16} {threshold:11} {len(cells):5} {theirs:11.1f} {ours:9.2f} {theirs / ours:5.1f}x {worst:22.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
