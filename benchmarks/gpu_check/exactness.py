"""Whether the embedded models give the figures that one token per pass gives."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu_check.journal import Journal
from benchmarks.gpu_check.models import windows_of, words_of
from benchmarks.gpu_check.sizes import Sizes
from benchmarks.perplexity import STRICT
from workers.loaded.load import load
from workers.loaded.self_check import TOLERANCE, check
from workers.models.model_files import find_model
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference
from workers.policies.settings import PruneSettings

ALLOWED = TOLERANCE | {"float32": STRICT}
"""Nats a token, on average, that rounding makes between one pass per event and one token per pass."""


def self_checks(journal: Journal, sizes: Sizes, device: torch.device) -> None:
    """Every embedded model in both types."""
    journal.begin(
        "self_checks",
        "model            dtype     tokens  nats a token from one token per pass, from cells alone",
    )

    def one(name: str, dtype: str) -> None:
        model = load(find_model(name), dtype, device)
        passed = check(model, name, dtype, windows_of(words_of(name), 2, sizes.check_tokens, device))
        found = f"{passed.from_reference:.2g}, {passed.from_company:.2g}"
        journal.say(f"{name:16} {dtype:9} {passed.tokens:6}  {found}")

    for name in sizes.models:
        for dtype in ("float32", "bfloat16"):
            journal.attempt(f"{name} {dtype}", functools.partial(one, name, dtype))


def exactness(journal: Journal, sizes: Sizes, device: torch.device) -> None:
    """``evaluate`` against ``evaluate_reference``, which feeds one token per pass through another cache."""
    journal.begin(
        "exactness", "model            dtype     policy     largest nats  mean nats  relative PPL  prunes"
    )

    def one(name: str, dtype: str) -> None:
        model = load(find_model(name), dtype, device)
        tokens = windows_of(words_of(name), 1, sizes.exact_tokens, device)
        cells = [PruneSettings(policy, 0.9, sizes.exact_tokens // 2) for policy in sizes.policies]
        _, outcomes = evaluate(model, tokens, cells, [0])
        for cell, fast in zip(cells, outcomes, strict=True):
            if not isinstance(fast, CellScores):
                journal.fail(f"{name} {dtype} {cell.policy}: was not measured ({fast})")
                continue
            reference = evaluate_reference(model, tokens, cell, [0])
            away = (fast.nll - reference.nll).double().abs()
            ppl = float((fast.nll - reference.nll).double().mean().exp()) - 1
            figures = f"{float(away.max()):12.2g} {float(away.mean()):10.2g} {abs(ppl):13.2g}"
            events = reference.validity.prune_events
            journal.say(f"{name:16} {dtype:9} {cell.policy:10} {figures} {events:7}")
            if not float(away.mean()) <= ALLOWED[dtype]:
                journal.fail(
                    f"{name} {dtype} {cell.policy}: more than {ALLOWED[dtype]:g} nats a token is no rounding"
                )

    seconds = 0.0
    for name in sizes.models:
        for dtype in ("float32", "bfloat16"):
            taken = journal.attempt(f"{name} {dtype}", functools.partial(one, name, dtype), seconds)
            seconds = max(seconds, taken)
