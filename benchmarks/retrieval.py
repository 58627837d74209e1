"""Questions per second against a loop of ``model.generate`` per question: ``python -m benchmarks.retrieval
[--rounds N]``.

The same questions, settings and model: needles of 5 digits in contexts of 1,024 tokens. Ours answers them in
batches, with one prefill for all cells (and, where the question is kept out of pruning, for all questions
about one document). The loop gives each question of each cell to ``model.generate(...,
past_key_values=PrunedCache(...))`` of transformers, as one would without kvsweep. The loop gives the answer's
text alone, ours its NLL too. Where the question is kept out, the loop has no counterpart in ``generate`` and
feeds context, question and answer to the model itself. Rounds are interleaved. The ratio is the median of the
rounds' ratios of questions per second, with a 95 % interval of the median between two order statistics. How
many answers are the same is printed too.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from benchmarks.ratios import median_in_words
from workers.cache.pruned_cache import PrunedCache
from workers.corpora import read_text, tokenize
from workers.generation.decoding import forward
from workers.loaded.load import load
from workers.messages.work import RetrievalWork
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question, build_questions
from workers.texts.text_tokens import open_tokenizer

CPU = torch.device("cpu")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RATIOS = (0.9, 0.7, 0.5, 0.3)


POLICIES = ("knorm", "snapkv", "streaming", "tova", "random", "h2o")


def cells(count: int, prune_after: int) -> list[PruneSettings]:
    """The dense cell, and knorm and others at several ratios."""
    grid = [
        PruneSettings(policy, ratio, prune_after, schedule="prefill_once")
        for policy in POLICIES
        for ratio in RATIOS
    ]
    return [PruneSettings("dense"), *grid][:count]


@torch.inference_mode()
def one_by_one(
    model: nn.Module, settings: PruneSettings, question: Question, question_pruned: bool
) -> list[int]:
    """The answer's ids without kvsweep's batches."""
    config: Any = model.config
    cache, count = PrunedCache(config, settings, row_ids=[question.index]), len(question.answer_ids)
    if question_pruned:
        ids = torch.tensor([question.prompt_ids])
        told = model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return told[0, ids.shape[1] :].tolist()
    forward(model, torch.tensor([question.context_ids]), cache)
    cache.begin_outside(len(question.question_ids))
    answer = [int(forward(model, torch.tensor([question.question_ids]), cache).argmax())]
    while len(answer) < count:
        answer.append(int(forward(model, torch.tensor([answer[-1:]]), cache).argmax()))
    return answer


def compare(
    model: nn.Module,
    asked: tuple[Question, ...],
    settings: list[PruneSettings],
    question_pruned: bool,
    rounds: int,
) -> None:
    """One line of the table."""
    work, many = RetrievalWork(asked, question_pruned), len(settings)
    total = many * len(asked)

    def batched() -> list[list[int]]:
        found = answers(model, CPU, settings, work, 16)
        return [row["answer"] for rows in found if isinstance(rows, list) for row in rows]

    def looped() -> list[list[int]]:
        return [one_by_one(model, cell, question, question_pruned) for cell in settings for question in asked]

    speeds: dict[str, list[float]] = {"batched": [], "looped": []}
    given: dict[str, list[list[int]]] = {}
    for turn in range(rounds):
        for contestant in (batched, looped)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            given[contestant.__name__] = contestant()
            speeds[contestant.__name__].append(total / (time.perf_counter() - begin))
    same = sum(a == b for a, b in zip(given["batched"], given["looped"], strict=True))
    ours, loop = speeds["batched"], speeds["looped"]
    ratios = [a / b for a, b in zip(ours, loop, strict=True)]
    print(
        f"{'in pruning' if question_pruned else 'kept out':>10}  {many:>5}  "
        f"{sorted(ours)[rounds // 2]:>9.1f}  {sorted(loop)[rounds // 2]:>9.1f}  "
        f"{median_in_words(ratios, 1)}  {same} of {total}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--questions", type=int, default=2, help="per depth")
    parser.add_argument("--depths", type=float, nargs="+", default=list(DEPTHS))
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--prune-after", type=int, default=512)
    parser.add_argument(
        "--cells", type=int, nargs="+", default=[1, 5, 25], help="the dense one and others, 25 at most"
    )
    parser.add_argument("--model", default="reference-neox")
    args = parser.parse_args()
    facts = find_model(args.model)
    model, encode = load(facts, "float32", CPU), open_tokenizer(facts.tokenizer_file).inside
    filler = tokenize(read_text("pydocs"), facts.tokenizer_file).ids.tolist()

    length, depths = args.context_tokens, tuple(args.depths)
    asked = tuple(build_questions(encode, "needle", length, depths, (5,), (4,), args.questions, 0, filler))
    threads = f"{torch.get_num_threads()} threads, {args.rounds} rounds"
    print(f"{args.model}, {len(asked)} needle questions of {length} tokens, {threads}")
    print("  question  cells  ours, q/s  loop, q/s  ratio [95 %]  same answers")
    for question_pruned in (True, False):
        for many in args.cells:
            compare(model, asked, cells(many, args.prune_after), question_pruned, args.rounds)


if __name__ == "__main__":
    main()
