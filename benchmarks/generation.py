"""What pruning costs while decoding, in interleaved rounds: ``python -m benchmarks.generation [--kvpress-venv
DIR]``.

Per model, prompt 1,024 and 256 new tokens, batch 1, greedy: our dense loop, knorm at keep_ratio 0.9 and 0.5
with prune_after 512, and ``model.generate`` of transformers with its dynamic cache. With ``--kvpress-venv``
(tools/compare_kvpress.py) also kvpress's KnormPress at the prompt and its DecodingPress after it, with the
same sizes and intervals, in its own process, on a model of Llama's architecture. Every round runs every
contestant once, in random order. Ratios are of time per output token to our dense loop in the same round,
with a 95 % interval of the median between order statistics. The dense loop runs twice, A against A.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.perplexity import pythia_70m_shape
from benchmarks.ratios import median_in_words
from workers.corpora import read_text, tokenize
from workers.generation.decoding import generate
from workers.loaded.load import load
from workers.machine.bandwidth import memory_bandwidth, weight_bytes
from workers.machine.clock import Clock, no_garbage_collection
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")
DENSE = "kvsweep dense"
Timing = tuple[float, float]
"""Seconds to the first token, seconds per later token."""

Contestant = Callable[[], Timing]


def llama_shape() -> torch.nn.Module:
    """Random weights in the shape of a small Llama with grouped queries; speed depends on the shape alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50_304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1376,
        max_position_embeddings=2048,
        eos_token_id=None,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


MODELS: dict[str, Callable[[], Any]] = {
    "reference-neox": lambda: load(find_model("reference-neox"), "float32", CPU),
    "pythia-70m-shape": pythia_70m_shape,
    "llama-shape": llama_shape,
}


class Stamps:
    """A streamer for ``model.generate``: when each token was known."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Part of a streamer; the last token was stamped already."""

    def timing(self) -> Timing:
        """The first stamp is of the prompt, put back by generate before it starts."""
        return self.at[1] - self.at[0], (self.at[-1] - self.at[1]) / (len(self.at) - 2)


def ours(model: Any, prompt: torch.Tensor, settings: PruneSettings, new: int) -> Timing:
    model.set_attn_implementation("kvsweep")
    run = generate(model, prompt, settings, new, Clock(CPU))
    assert run.tpot_seconds is not None
    return run.ttft_seconds, run.tpot_seconds


@torch.inference_mode()
def transformers_generate(model: Any, prompt: torch.Tensor, new: int) -> Timing:
    model.set_attn_implementation("sdpa")
    stamps = Stamps()
    with no_garbage_collection():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=DynamicCache(),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            streamer=stamps,
        )
    return stamps.timing()


@contextmanager
def kvpress_process(
    python: Path, model: Any, prompt: torch.Tensor, new: int, prune_after: int
) -> Iterator[Callable[[float], Timing]]:
    """A process in kvpress's environment that times one generation at a time when told to."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        script = Path(__file__).with_name("kvpress_contestant.py")
        options = {
            "model": folder,
            "prompt": prompt[0].tolist(),
            "new_tokens": new,
            "prune_after": prune_after,
            "threads": torch.get_num_threads(),
        }
        with subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            pipe_in, pipe_out = child.stdin, child.stdout

            def ask(message: Any) -> Any:
                pipe_in.write(json.dumps(message) + "\n")
                pipe_in.flush()
                return json.loads(pipe_out.readline())

            ask(options)
            yield lambda ratio: tuple(ask(ratio))
            pipe_in.close()


def rounds(contestants: dict[str, Contestant], count: int) -> dict[str, np.ndarray]:
    """Per contestant [rounds, 2]: seconds to the first token, seconds per later token; after one round that
    is thrown away."""
    rng, found = random.Random(0), {name: [] for name in contestants}
    for number in range(count + 1):
        for name in rng.sample(list(contestants), len(contestants)):
            timing = contestants[name]()
            if number:
                found[name].append(timing)
    return {name: np.array(timings) for name, timings in found.items()}


def table(name: str, found: dict[str, np.ndarray]) -> None:
    """Medians, and ratios of time per output token to our dense loop."""
    base = found[DENSE][:, 1]
    for contestant, timings in found.items():
        ratios = timings[:, 1] / base
        ttft, tpot = np.median(timings, axis=0) * 1000
        shown = "" if contestant == DENSE else median_in_words(ratios, 3)
        print(f"{name:17} {contestant:32} {ttft:9.1f} {tpot:9.3f} {shown}", flush=True)


def contestants_of(model: Any, prompt: torch.Tensor, new: int, prune_after: int) -> dict[str, Contestant]:
    """What runs in this process."""
    dense, most, half = (
        PruneSettings("dense"),
        *(PruneSettings("knorm", ratio, prune_after) for ratio in (0.9, 0.5)),
    )
    return {
        DENSE: lambda: ours(model, prompt, dense, new),
        "kvsweep dense again (A / A)": lambda: ours(model, prompt, dense, new),
        "kvsweep keep_ratio 0.9": lambda: ours(model, prompt, most, new),
        "kvsweep keep_ratio 0.5": lambda: ours(model, prompt, half, new),
        "transformers generate": lambda: transformers_generate(model, prompt, new),
    }


def shown(name: str, prompt: torch.Tensor, args: argparse.Namespace) -> None:
    """The table of one model, and what its memory gives."""
    model = MODELS[name]()
    contestants = contestants_of(model, prompt, args.new_tokens, args.prune_after)
    if args.kvpress_venv and name == "llama-shape":
        python = args.kvpress_venv / "bin" / "python"
        with kvpress_process(python, model, prompt, args.new_tokens, args.prune_after) as ask:
            more = {f"kvpress keep_ratio {ratio}": (lambda r=ratio: ask(r)) for ratio in (0.9, 0.5)}
            table(name, rounds(contestants | more, args.rounds))
    else:
        table(name, rounds(contestants, args.rounds))
    weights = weight_bytes(model)
    gives = memory_bandwidth(CPU, weights) / 1e9
    print(f"{'':17} weights read per step {weights / 2**20:.1f} MiB; memory gives {gives:.1f} GB/s")


def parsed() -> argparse.Namespace:
    """The command line's; exit status 2 for what it cannot mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--prune-after", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kvpress-venv", type=Path, help="made by tools/compare_kvpress.py")
    args = parser.parse_args()
    if min(args.rounds, args.prompt_tokens, args.prune_after, args.threads, args.new_tokens - 2) < 1:
        parser.error("--new-tokens must be 3 or more, and all other numbers 1 or more")
    if args.kvpress_venv and not (args.kvpress_venv / "bin" / "python").exists():
        parser.error(
            f"--kvpress-venv: {args.kvpress_venv} has no bin/python; tools/compare_kvpress.py makes it"
        )
    return args


def main() -> None:
    """Prints the tables."""
    args = parsed()
    torch.set_num_threads(args.threads)
    facts = find_model("reference-neox")
    ids = torch.from_numpy(tokenize(read_text("pydocs"), facts.tokenizer_file).ids).long()
    print(
        f"torch {torch.__version__}, {args.threads} threads, prompt {args.prompt_tokens}, "
        f"{args.new_tokens} new tokens, prune_after {args.prune_after}, {args.rounds} rounds"
    )
    if not args.kvpress_venv:
        print("kvpress is left out: it has an environment of its own, which --kvpress-venv names")
    columns = "TTFT ms   TPOT ms  TPOT / kvsweep dense, 95 % interval"
    print(f"model             contestant                         {columns}")
    for name in args.models:
        shown(name, ids[None, : args.prompt_tokens], args)


if __name__ == "__main__":
    main()
