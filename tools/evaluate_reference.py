"""Evaluate a trained reference model and write its model card: ``python -m tools.evaluate_reference DIR
--texts EVAL_DIR``.

DIR holds config, weights, tokenizer and training.json (tools/train_reference.py makes them). Every figure in
the card comes from this run: perplexity at windows of 1,024, the curve by position up to 2,048, passkey
accuracy with the full cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from tools.train_reference import Settings
from workers.corpora import read_text, tokenize
from workers.loaded.load import load
from workers.messages.work import RetrievalWork
from workers.models.model_files import find_model
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import build_question
from workers.texts.text_tokens import TextTokens, open_tokenizer
from workers.texts.windows import plan_windows

BOUNDS = (1, 64, 128, 256, 512, 1024, 1536, 2048)
REGIONS, REGION, STEP = 4, 4096, 64
PASSKEY_LENGTHS = (512, 1024, 1900)
NOT_FORMED = (
    "Retrieval has **not** formed reliably in this model (below 95 %): use it for perplexity, and take its"
    " retrieval figures as those of a model that cannot retrieve."
)


def token_losses(model: torch.nn.Module, ids: torch.Tensor, window: int, limit: int) -> torch.Tensor:
    """NLL of tokens 1..window-1 of each window, [windows, window - 1], in batches of 8."""
    windows = plan_windows(len(ids), window, window, limit)
    parts = []
    for first in range(0, len(windows), 8):
        batch = windows[first : first + 8]
        tokens = torch.stack([ids[w.start : w.start + w.length] for w in batch])
        parts.append(evaluate(model, tokens, [], [w.start for w in batch])[0].nll)
    return torch.cat(parts)


def by_position(model: torch.nn.Module, ids: torch.Tensor) -> list[tuple[str, float]]:
    """Perplexity between each two bounds of position, of the *same* tokens everywhere.

    Windows of 2,048 start at every 64th token, so that each token of a region comes at every multiple of 64
    (plus its own remainder) once: text that happens to be hard cannot make a position look bad. Tokens that
    would be at position 0 of some window are left out.
    """
    sums, counts = torch.zeros(2048, dtype=torch.float64), torch.zeros(2048, dtype=torch.float64)
    for region in range(REGIONS):
        first = (len(ids) - REGION - 4096) * region // (REGIONS - 1)
        starts = list(range(first, first + REGION + 2048, STEP))
        for i in range(0, len(starts), 8):
            batch = starts[i : i + 8]
            nll = evaluate(model, torch.stack([ids[s : s + 2048] for s in batch]), [], batch)[0].nll.double()
            for start, row in zip(batch, nll, strict=True):
                at = torch.arange(1, 2048)
                inside = (
                    (start + at >= first + 2048) & (start + at < first + 2048 + REGION) & (at % STEP != 0)
                )
                sums[1:] += row * inside
                counts[1:] += inside
    return [
        (f"{low}-{high - 1}", math.exp(sums[low:high].sum() / counts[low:high].sum()))
        for low, high in itertools.pairwise(BOUNDS)
    ]


def passkey_accuracy(
    model: torch.nn.Module, tokenizer: TextTokens, kind: str, length: int, filler: list[int], questions: int
) -> float:
    """Share of questions answered exactly with the full cache, depths drawn evenly."""
    rng = random.Random(f"card/{kind}/{length}")
    asked = tuple(
        build_question(tokenizer.inside, kind, length, rng.random(), i, 1_000_003, filler)
        for i in range(questions)
    )
    (rows,) = answers(model, torch.device("cpu"), [PruneSettings("dense")], RetrievalWork(asked, True), 8)
    if isinstance(rows, Exception):
        raise rows
    return sum(row["correct"] for row in rows) / len(rows)


def measure(folder: Path, texts: Path, windows: int, questions: int) -> dict[str, Any]:
    """All figures of the card."""
    facts = find_model(str(folder))
    model = load(facts, "float32", torch.device("cpu"))
    tokenizer = open_tokenizer(facts.tokenizer_file)
    names = {
        "pydocs": "pydocs",
        "moby-dick.txt": f"text:{texts / 'moby-dick.txt'}",
        "wikitext-2-test.txt": f"text:{texts / 'wikitext-2-test.txt'}",
    }
    sections = ("perplexity", "positions", "accuracy")
    found: dict[str, Any] = {section: {} for section in sections}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    filler: list[int] = []
    for label, name in names.items():
        ids = torch.from_numpy(tokenize(read_text(name), facts.tokenizer_file).ids).long()
        nll = token_losses(model, ids, 1024, windows)
        found["perplexity"][label] = (math.exp(nll.double().mean()), nll.shape[0])
        found["positions"][label] = by_position(model, ids)
        filler = ids.tolist()
    for kind in ("passkey", "needle"):
        found["accuracy"][kind] = [
            passkey_accuracy(model, tokenizer, kind, n, filler, questions) for n in PASSKEY_LENGTHS
        ]
    return found


def _table(label: str, texts: dict[str, list[tuple[Any, float]]]) -> list[str]:
    """Perplexities as a Markdown table, a column per text."""
    rows = zip(*texts.values(), strict=True)
    return [
        f"| {label} | " + " | ".join(texts) + " |",
        "| ---: |" + " ---: |" * len(texts),
        *[f"| {row[0][0]} | " + " | ".join(f"{ppl:.2f}" for _, ppl in row) + " |" for row in rows],
    ]


def _run(number: int, run: dict[str, Any]) -> list[str]:
    """How one training run was made: command, tokens, minutes, what else there is to say."""
    settings, last = run["settings"], run["curve"][-1]
    defaults = Settings(
        settings["architecture"], 0, 0, -1, 0, 0
    )  # so that tokens, rate, seed and shares are always said
    options = [
        f"--{field.replace('_', '-')} {value}"
        for field, value in settings.items()
        if field not in ("architecture", "bfloat16", "start_from") and value != getattr(defaults, field)
    ]
    if not settings.get("bfloat16", True):
        options.append("--float32")
    if settings.get("start_from"):
        options.append(f"--start-from RUN{number - 1}")
    return [
        (
            f"{number}. `python -m tools.train_reference {settings['architecture']} --texts TEXTS --out OUT"
            f" {' '.join(options)}`: {last['tokens']:,} tokens in {last['seconds'] / 60:.0f} minutes on CPU,"
            " one thread."
        ),
        *run.get("notes", []),
    ]


def card(name: str, training: dict[str, Any], found: dict[str, Any], questions: int) -> str:
    """The model card as Markdown."""
    lines = [
        f"# {name}",
        "",
        (
            f"A language model of {found['parameters'] / 1e6:.1f}M parameters that kvsweep trains itself and"
            " carries, so that a sweep runs with no download. It exists to measure caches on, not to be"
            " talked to."
        ),
        "",
        "## How it was made",
        "",
        *[line for number, run in enumerate(training["runs"], 1) for line in [*_run(number, run), ""]],
        (
            "Sequences are text (eleven public-domain books and the WikiText-2 validation text, 65 %; pydoc"
            " pages of the standard library, 35 %), passkey and needle documents of"
            " `workers/texts/questions.py` (`--retrieval-share`) and texts in which spans come again"
            " (`--copy-share`). `pydoc_data.topics` (the dataset `pydocs`), Moby-Dick and the WikiText-2 test"
            " text were held out."
        ),
        "",
        "## Perplexity, windows of 1,024 (dense)",
        "",
        "| text | perplexity | windows |",
        "| --- | ---: | ---: |",
        *[f"| {text} | {ppl:.2f} | {count} |" for text, (ppl, count) in found["perplexity"].items()],
        "",
        (
            "By position in windows of 2,048, what a KV cache is for. Windows start at every 64th token, so"
            f" every row scores the same {REGIONS * REGION * 63 // 64:,} tokens ({REGIONS} stretches of"
            f" {REGION:,}) and differs only in how much text comes before them."
        ),
        "",
        *_table("positions", found["positions"]),
        "",
        f"## Retrieval with the full cache ({questions} questions of 5 digits per cell, exact match)",
        "",
        "| kind | " + " | ".join(f"{n:,} tokens" for n in PASSKEY_LENGTHS) + " |",
        "| --- |" + " ---: |" * len(PASSKEY_LENGTHS),
        *[
            f"| {kind} | " + " | ".join(f"{100 * a:.0f} %" for a in row) + " |"
            for kind, row in found["accuracy"].items()
        ],
        *([] if min(map(min, found["accuracy"].values())) >= 0.95 else ["", NOT_FORMED]),
        "",
        (
            "## Loss curve (nats per token on held-out ends of the training texts; answer digits right,"
            " teacher-forced)"
        ),
        "",
        "| run | tokens | books | documentation | 128 | 512 | 1,024 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *[
            f"| {number} | {p['tokens']:,} | {p['books']:.3f} | {p['documentation']:.3f} | "
            f"{p['answers_128']:.2f} | {p['answers_512']:.2f} | {p['answers_1024']:.2f} |"
            for number, run in enumerate(training["runs"], 1)
            for p in run["curve"]
        ],
        "",
        "License: Apache-2.0, as the project. No safety training; output is meaningless as advice.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--texts", type=Path, required=True, help="folder with moby-dick.txt and wikitext-2-test.txt"
    )
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--questions", type=int, default=50)
    args = parser.parse_args()
    training = json.loads((args.folder / "training.json").read_text())
    found = measure(args.folder.resolve(), args.texts, args.windows, args.questions)
    (args.folder / "README.md").write_text(card(args.folder.name, training, found, args.questions))
    print((args.folder / "README.md").read_text())


if __name__ == "__main__":
    main()
