"""How far figures are from exact in each dtype, by the old rules and by the new: ``python -m
benchmarks.rounding``.

Per model, dtype and policy, over some windows of pydocs: NLLs of the fast evaluation against one token per
pass, token by token, and the perplexity that follows from each. Beside them, how many cuts one token per pass
would have made otherwise, had it held what the fast evaluation held (``benchmarks/cuts.py``), and how often a
cut fell on a tie. Per number of significant bits, also how many repetitions of a token, whose keys in layer 0
have mathematically one norm, got one score there, and how much of what knorm's first prune drops is what it
drops in float32. Rules side by side:
- old: scores of 12 significant bits whatever the dtype, logits multiplied in the model's dtype.
- now: what the product does. ``--bits 9 7`` adds rules that differ from it in the significant bits of scores.
  ``--device cuda`` runs on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.cuts import Cuts
from workers.cache import scoring
from workers.cache.scoring import body_of
from workers.cache.shared_prefix import SharedPrefix
from workers.corpora import read_text, tokenize
from workers.loaded.load import DTYPES, load
from workers.models.model_files import find_model
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies.budget import kept_count
from workers.policies.cache_view import SIGNIFICANT_BITS, round_significant
from workers.policies.eviction import _OWN
from workers.policies.selection import select
from workers.policies.settings import PruneSettings
from workers.texts.windows import plan_windows


@dataclass(frozen=True)
class Rule:
    """How scores are rounded and logits multiplied."""

    name: str
    bits: int
    own_logits: bool = False
    """Multiplied in the model's own dtype."""


def rules(dtype: str, tried: list[int]) -> list[Rule]:
    """Those to compare in a dtype: in float32 old and new are the same."""
    now = SIGNIFICANT_BITS[dtype]
    others = [Rule(f"{bits} bits", bits) for bits in tried]
    if dtype == "float32":
        return [Rule("now", now), *others]
    return [Rule("old", 12, own_logits=True), Rule("now", now), *others]


@contextmanager
def in_force(rule: Rule, dtype: str) -> Iterator[None]:
    """The product under a rule."""
    with mock.patch.dict(SIGNIFICANT_BITS, {dtype: rule.bits}):
        if not rule.own_logits:
            yield
            return
        with mock.patch.object(scoring, "upcast", lambda values: values):
            yield


@dataclass(frozen=True)
class Windows:
    """Token ids [windows, length] and where the windows start."""

    tokens: Tensor
    starts: list[int]


def windows_of(model_name: str, count: int, length: int, device: torch.device) -> Windows:
    ids = torch.from_numpy(tokenize(read_text("pydocs"), find_model(model_name).tokenizer_file).ids).long()
    planned = plan_windows(len(ids), length, length, count)
    return Windows(
        torch.stack([ids[w.start : w.start + w.length] for w in planned]).to(device),
        [w.start for w in planned],
    )


@torch.inference_mode()
def key_norms(model: Any, tokens: Tensor) -> Tensor:
    """[layers, windows, kv_heads, length] float32, of one dense pass over tokens [windows, length]."""
    prefix = SharedPrefix(model.config)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    body_of(model)(input_ids=tokens, position_ids=positions, past_key_values=prefix, use_cache=True)
    keys = [layer.keys for layer in prefix.prefix_layers if layer.keys is not None]
    return torch.stack([torch.linalg.vector_norm(each, dim=-1, dtype=torch.float32) for each in keys])


def repetitions_tied(norms: Tensor, tokens: Tensor, bits: int) -> float:
    """Share of the pairs of places of one token whose norms in layer 0, rounded, are equal; tokens [windows,
    length]."""
    scores = round_significant(norms[0], bits)
    pairs = (tokens[:, :, None] == tokens[:, None]).triu(1)[:, None]
    equal = (scores[..., None] == scores[..., None, :]) & pairs
    return float(equal.sum() / (pairs.sum() * scores.shape[1]))


def dropped(norms: Tensor, bits: int, keep: int) -> Tensor:
    """Which entries the highest norms cost their place: bool in the shape of norms [layers, windows,
    kv_heads, n]."""
    flat = -round_significant(norms, bits).flatten(0, 1)
    kept, _ = select(flat, keep)
    return torch.ones_like(flat, dtype=torch.bool).scatter_(2, kept, False).view(norms.shape)


def first_cut(norms: Tensor, exact: Tensor, bits: int, cell: PruneSettings) -> str:
    """How much of what the first prune drops it drops in float32 too: in layer 0, in all layers."""
    before = slice(0, cell.prune_after)
    keep = kept_count(cell.keep_ratio, cell.prune_after)
    own, wanted = (
        dropped(norms[..., before], bits, keep),
        dropped(exact[..., before], SIGNIFICANT_BITS["float32"], keep),
    )
    shares = (own & wanted).sum((1, 2, 3)) / wanted.sum((1, 2, 3))
    same = f"{float(shares[0]):.1%} in layer 0, {float(shares.mean()):.1%} in all"
    return f"the first prune drops what it drops in float32: {same}"


def line(model: Any, windows: Windows, cell: PruneSettings) -> str:
    """The figures of one cell under the rule in force."""
    policy, cuts, tokens = _OWN[cell.policy], Cuts(), windows.tokens
    try:
        _OWN[cell.policy] = cuts.recording(policy)
        _, (fast,) = evaluate(model, tokens, [cell], windows.starts)
        _OWN[cell.policy] = policy
        reference = evaluate_reference(model, tokens, cell, windows.starts)
        _OWN[cell.policy] = cuts.imposed(policy)
        evaluate_reference(model, tokens, cell, windows.starts)
    finally:
        _OWN[cell.policy] = policy
    if not isinstance(fast, CellScores):
        raise SystemExit(
            f"{cell.policy} at keep_ratio {cell.keep_ratio:g} was not measured ({fast}); use longer windows"
        )

    away = (fast.nll - reference.nll).double()
    ppl, exact = (float(x.nll.double().mean().exp()) for x in (fast, reference))
    ties = fmean(fast.validity.score_ties or [0.0])
    return (
        f"{float(away.abs().max()):9.2g} {float(away.abs().mean()):9.2g} {abs(ppl / exact - 1):9.2g} "
        f"{ppl:9.3f} {cuts.otherwise:6} of {len(cuts.kept):5} {ties:6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["reference-neox", "reference-llama"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16", "float16"], choices=list(DTYPES)
    )
    parser.add_argument(
        "--policies", nargs="+", default=["knorm", "random", "streaming", "h2o", "snapkv", "tova"]
    )
    parser.add_argument("--keep-ratio", type=float, default=0.9)
    parser.add_argument("--prune-after", type=int, default=512)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument(
        "--bits", type=int, nargs="*", default=[], help="further numbers of significant bits of scores"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    device = torch.device(args.device)
    print(
        f"torch {torch.__version__}, {args.device}, {args.windows} windows of {args.window} of pydocs, "
        f"keep_ratio {args.keep_ratio:g}, prune_after {args.prune_after}; "
        "distances of one pass per event from one token per pass"
    )
    print(
        "model           dtype    policy    rule    bits "
        "largest    mean (nats)  PPL      PPL   cuts otherwise  on a tie"
    )
    for name in args.models:
        windows = windows_of(name, args.windows, args.window, device)
        exact = key_norms(load(find_model(name), "float32", device), windows.tokens)
        for dtype in args.dtype:
            model = load(find_model(name), dtype, device)
            norms = key_norms(model, windows.tokens)
            for rule in rules(dtype, args.bits):
                tied = repetitions_tied(norms, windows.tokens, rule.bits)
                same = first_cut(
                    norms, exact, rule.bits, PruneSettings("knorm", args.keep_ratio, args.prune_after)
                )
                print(
                    f"{name:15} {dtype:8} {rule.bits} bits: "
                    f"{tied:.0%} of repetitions in layer 0 score the same; {same}"
                )
                for policy in args.policies:
                    cell = PruneSettings(policy, args.keep_ratio, args.prune_after)
                    with in_force(rule, dtype):
                        found = line(model, windows, cell)
                    print(f"{name:15} {dtype:8} {policy:9} {rule.name:7} {rule.bits:4} {found}", flush=True)


if __name__ == "__main__":
    main()
