"""What only a GPU can show, in one script of about eight minutes: ``make gpu-check``, ``python -m benchmarks.gpu_check``.

Nothing is downloaded: the models are the embedded ones, and random weights in Llama 3.2 1B's shape. Sections, in this order:
- self_checks: our attention and caches against the stock models, float32 and bfloat16.
- exactness: one pass per event against one token per pass, float32 and bfloat16, policy by policy.
- large_model: the 1B shape is made, and checked like the others, in bfloat16.
- perplexity: of the 1B shape at 2k and 32k tokens, beside its dense floor and one token per pass (of which the first are timed).
- generation: of the 1B shape, prompts of 4k to 32k, batches of 1 and 8, dense and pruned to 0.5 and 0.1.
- memory: what was planned for each line of the two before, against the allocator's peak.

Each line is written into the folder as soon as it is known, one file per section, and a summary last, which names what
the time did not reach. Exit status 1 where a check fails, 2 where there is no such device. ``--small`` runs all of it at
small size.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.cells_alone import dense_passes
from benchmarks.memory import LARGE
from benchmarks.perplexity import STRICT
from workers.cache.attention import NAME as OWN_ATTENTION
from workers.corpora import read_text, tokenize
from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import perplexity_bytes, windows_at_once
from workers.footprint.prompts import generation_bytes
from workers.footprint.worker import with_slack
from workers.generation.decoding import GenerationRun, generate
from workers.loaded.load import DTYPES, load
from workers.loaded.self_check import TOLERANCE, check
from workers.machine.clock import Clock, device_name
from workers.machine.peak_memory import PeakMemory
from workers.messages.out_of_memory import is_out_of_memory
from workers.models.model_files import find_model
from workers.perplexity.cell_scores import CellScores
from workers.perplexity.evaluation import evaluate, evaluate_reference, schedule_of
from workers.policies.budget import kept_count
from workers.policies.settings import PruneSettings

GIB = 2**30
SECTIONS = ("self_checks", "exactness", "large_model", "perplexity", "generation", "memory")
RATIOS = (1.0, 0.5, 0.1)
"""Kept by the cells that are timed; 1.0 is the dense one."""
ALLOWED = TOLERANCE | {"float32": STRICT}
"""Nats a token, on average, that rounding makes between one pass per event and one token per pass."""
GROWTH = 3.0
"""An item takes at most so many times what the one before took: each has about twice its tokens."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    models: tuple[str, ...]
    policies: tuple[str, ...]
    check_tokens: int
    exact_tokens: int
    large: dict[str, Any]
    """Settings of the large model that differ from LARGE."""
    windows: int
    window_lengths: tuple[int, ...]
    prune_after: int
    reference_tokens: int
    """Fed one by one to tell what one token per pass takes."""
    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    rounds: int


FULL = Sizes(
    models=("reference-neox", "reference-llama"), policies=("knorm", "random", "streaming", "h2o", "snapkv"),
    check_tokens=1024, exact_tokens=512, large={}, windows=8, window_lengths=(2048, 32768), prune_after=1024,
    reference_tokens=256, prompts=(4096, 8192, 16384, 32768), batches=(1, 8), new_tokens=32, rounds=3,
)  # fmt: skip
SMALL = Sizes(
    models=("reference-llama",), policies=("knorm", "h2o"), check_tokens=64, exact_tokens=64,
    large={
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
    },
    windows=2, window_lengths=(64, 256), prune_after=32, reference_tokens=16, prompts=(64, 128), batches=(1, 2), new_tokens=4,
    rounds=1,
)  # fmt: skip


@dataclass
class Journal:
    """The folder: a file per section, written line by line; what failed and what the time did not reach."""

    folder: Path
    deadline: float
    section: str = ""
    lines: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def begin(self, section: str, header: str) -> None:
        """A section's file, in place of one of an earlier run."""
        self.section = section
        self.lines[section] = 0
        (self.folder / f"{section}.txt").write_text("")
        self._write(header)

    def say(self, line: str) -> None:
        """A result."""
        self.lines[self.section] += 1
        self._write(line)

    def fail(self, line: str) -> None:
        """A check that failed."""
        self.failed.append(f"{self.section}: {line}")
        self._write(f"FAILED: {line}")

    def leave_out(self, line: str) -> None:
        """What is not done, and why."""
        self.left_out.append(f"{self.section}: {line}")
        self._write(f"left out: {line}")

    def attempt(self, what: str, work: Callable[[], None], expected_seconds: float = 0.0) -> float:
        """Do it if the time is there; returns the seconds that it took. What it raises is a failure of it alone."""
        left = self.deadline - time.monotonic()
        if left <= expected_seconds:
            self.leave_out(f"{what}: {max(0.0, left):.0f} s are left and it may take {expected_seconds:.0f}")
            return expected_seconds

        begin = time.monotonic()
        try:
            work()
        except Exception as error:  # whatever it is, it is this item's result, and the others still have theirs
            kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
            self.fail(f"{what}: {kind}: {next(iter(str(error).splitlines()), '')}")
        return time.monotonic() - begin

    def _write(self, line: str) -> None:
        print(line, flush=True)
        with (self.folder / f"{self.section}.txt").open("a") as file:
            file.write(f"{line}\n")


@dataclass(frozen=True)
class Taken:
    """What one line was planned to take beside the process, and its counter's peak; bytes."""

    what: str
    planned: int
    peak: int | None
    method: str | None


@functools.cache
def words_of(model_name: str) -> Tensor:
    """The ids of pydocs."""
    return torch.from_numpy(tokenize(read_text("pydocs"), find_model(model_name).tokenizer_file).ids).long()


def windows_of(ids: Tensor, count: int, length: int, device: torch.device) -> Tensor:
    """[count, length] from the beginning of the text, which begins anew where it ends."""
    times = math.ceil(count * length / len(ids))
    return ids.repeat(times)[: count * length].view(count, length).to(device)


def large_model(sizes: Sizes, dtype: str, device: torch.device, length: int) -> Any:
    """Random weights in Llama 3.2 1B's shape, made on the device, checked on random text, under our attention."""
    settings = {key: value for key, value in LARGE.items() if key not in ("architectures", "dtype")} | sizes.large
    config = transformers.LlamaConfig(**settings, attn_implementation="sdpa")  # pyright: ignore[reportCallIssue]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with device:
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model = model.eval().requires_grad_(False)
    check(model, "llama-1b-shape", dtype, torch.randint(0, config.vocab_size, (1, length)))
    return model


def weight_bytes(model: Any) -> int:
    """Of the weights, each once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def self_checks(journal: Journal, sizes: Sizes, device: torch.device) -> None:
    """Every embedded model in both types."""
    journal.begin("self_checks", "model            dtype     tokens  nats a token from one token per pass, from cells alone")

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
    journal.begin("exactness", "model            dtype     policy     largest nats  mean nats  relative PPL  prunes")

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
            line = f"{name:16} {dtype:9} {cell.policy:10} {float(away.max()):12.2g} {float(away.mean()):10.2g} {abs(ppl):13.2g}"
            journal.say(f"{line} {reference.validity.prune_events:7}")
            if not float(away.mean()) <= ALLOWED[dtype]:
                journal.fail(f"{name} {dtype} {cell.policy}: more than {ALLOWED[dtype]:g} nats a token is no rounding")

    seconds = 0.0
    for name in sizes.models:
        for dtype in ("float32", "bfloat16"):
            taken = journal.attempt(f"{name} {dtype}", functools.partial(one, name, dtype), seconds)
            seconds = max(seconds, taken)


def perplexity(journal: Journal, sizes: Sizes, model: Any, ids: Tensor) -> list[Taken]:
    """Seconds of all cells, of the dense floor, and of one token per pass, multiplied up from its first tokens."""
    cells = [PruneSettings("knorm", ratio, sizes.prune_after) for ratio in (0.9, *RATIOS[1:])]
    ratios = ", ".join(f"{cell.keep_ratio:g}" for cell in cells)
    journal.begin(
        "perplexity",
        f"the 1B shape, dense and knorm at {ratios}, prune_after {sizes.prune_after}; one token per pass: from its first "
        f"{sizes.reference_tokens} tokens, which are its cheapest\n"
        "tokens windows  what                 seconds  scored tokens/s  over kvsweep",
    )
    device, shape, clock, taken = model.device, shape_of(model), Clock(model.device), []
    ours: dict[int, float] = {}

    def said(length: int, windows: int, what: str, seconds: float) -> None:
        scored = windows * (length - 1) * (1 + len(cells))
        line = f"{length:6} {windows:7}  {what:18} {seconds:9.2f} {scored / seconds:16.0f}"
        journal.say(f"{line} {seconds / ours[length]:13.2f}")

    def kvsweep(length: int, windows: int) -> None:
        tokens, peaks = windows_of(ids, windows, length, device), PeakMemory(device)
        peaks.start()
        begin = clock()
        _, outcomes = evaluate(model, tokens, cells, [length * i for i in range(windows)])
        ours[length] = clock() - begin
        peak, method = peaks.result()
        said(length, windows, "kvsweep", ours[length])
        planned = weight_bytes(model) + with_slack(perplexity_bytes(shape, length, windows, cells))
        taken.append(Taken(f"perplexity, {windows} windows of {length}", planned, peak, method))
        for cell, outcome in zip(cells, outcomes, strict=True):
            if not isinstance(outcome, CellScores):
                journal.fail(f"{length} tokens, keep_ratio {cell.keep_ratio:g}: was not measured ({outcome})")

    def floor(length: int, windows: int) -> None:
        firsts = [first for cell in cells if (first := schedule_of(cell, length - 1).first_event) is not None]
        tokens = windows_of(ids, windows, length, device)
        model.set_attn_implementation("sdpa")
        try:
            begin = clock()
            dense_passes(model, tokens, firsts)
            said(length, windows, "dense floor", clock() - begin)
        finally:
            model.set_attn_implementation(OWN_ATTENTION)

    def one_by_one(length: int, windows: int) -> None:
        tokens = windows_of(ids, 1, sizes.reference_tokens + 1, device)
        begin = clock()
        evaluate_reference(model, tokens, cells[0], [0])
        times = windows * (length - 1) * (1 + len(cells)) / sizes.reference_tokens
        said(length, windows, "one token per pass", (clock() - begin) * times)

    expected = dict.fromkeys((kvsweep, floor, one_by_one), 0.0)
    for length in sizes.window_lengths:
        windows = min(sizes.windows, windows_at_once(shape, length))
        for work in expected:
            what, do = f"{work.__name__}, {length} tokens", functools.partial(work, length, windows)
            seconds = journal.attempt(what, do, expected[work])
            expected[work] = GROWTH * seconds
            if length not in ours:
                break  # the others are told as multiples of it
    return taken


def generation(journal: Journal, sizes: Sizes, model: Any, ids: Tensor) -> list[Taken]:
    """Dense and pruned cells in turns, each round in another order, behind one run that is thrown away."""
    journal.begin(
        "generation",
        f"the 1B shape, {sizes.new_tokens} new tokens, knorm pruned once behind the prompt; medians of {sizes.rounds} rounds\n"
        "prompt batch keep_ratio   TTFT ms  TPOT ms  TPOT / dense  KV held MiB  held / dense  peak GiB",
    )
    device, shape, taken = model.device, shape_of(model), []
    clock = Clock(device)

    def one(prompt: int, batch: int) -> None:
        tokens = windows_of(ids, batch, prompt, device)
        cells = {ratio: _timed(ratio, prompt) for ratio in RATIOS}
        planned = generation_bytes(shape, prompt, batch, sizes.new_tokens, list(cells.values()), 0)
        planned = weight_bytes(model) + with_slack(planned)
        if device.type == "cuda" and planned > torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device):
            journal.leave_out(f"{batch} prompts of {prompt} tokens: planned to take {planned / GIB:.1f} GiB, which are not free")
            return

        generate(model, tokens, cells[1.0], 2, clock)
        runs: dict[float, list[GenerationRun]] = {ratio: [] for ratio in cells}
        for turn in range(sizes.rounds):
            for ratio in RATIOS[turn % len(RATIOS) :] + RATIOS[: turn % len(RATIOS)]:
                runs[ratio].append(generate(model, tokens, cells[ratio], sizes.new_tokens, clock))
        for ratio, own in runs.items():
            _line(journal, prompt, batch, ratio, own, runs[1.0])
            held = batch * shape.cached * kept_count(ratio, prompt)
            if own[0].kv_bytes_prompt != held:
                journal.fail(f"{batch} prompts of {prompt} at {ratio:g} hold {own[0].kv_bytes_prompt} bytes, not {held}")
            what = f"generation, {batch} prompts of {prompt}, keep_ratio {ratio:g}"
            peak = max((run.peak_memory_bytes for run in own if run.peak_memory_bytes is not None), default=None)
            taken.append(Taken(what, planned, peak, own[0].peak_memory_method))

    for batch in sizes.batches:
        seconds = 0.0
        for prompt in sizes.prompts:
            do = functools.partial(one, prompt, batch)
            seconds = GROWTH * journal.attempt(f"{batch} prompts of {prompt} tokens", do, seconds)
    return taken


def _timed(ratio: float, prompt: int) -> PruneSettings:
    """A cell that prunes once, behind the prompt."""
    if ratio == 1.0:
        return PruneSettings("dense")
    return PruneSettings("knorm", ratio, prompt, schedule="prefill_once")


def _line(
    journal: Journal, prompt: int, batch: int, ratio: float, runs: list[GenerationRun], dense: list[GenerationRun]
) -> None:  # fmt: skip
    """The medians of a cell beside the dense one's, paired by round."""
    ttft, tpot = median(run.ttft_seconds for run in runs), median(run.tpot_seconds or math.nan for run in runs)
    over = median((a.tpot_seconds or math.nan) / (b.tpot_seconds or math.nan) for a, b in zip(runs, dense, strict=True))
    held, whole = runs[0].kv_bytes_final, dense[0].kv_bytes_final
    peak = runs[0].peak_memory_bytes
    journal.say(
        f"{prompt:6} {batch:5} {ratio:10g} {1000 * ttft:9.1f} {1000 * tpot:8.2f} {over:13.3f} {held / 2**20:12.2f} "
        f"{held / whole:13.3f} {'-' if peak is None else f'{peak / GIB:.2f}':>9}"
    )


def memory(journal: Journal, device: torch.device, taken: list[Taken]) -> None:
    """Planned against measured; judged where a counter counts this alone, which on a CPU none does."""
    judged = device.type == "cuda"
    journal.begin(
        "memory",
        (
            "planned holds where it is at least the peak"
            if judged
            else "a process's peak holds other things: nothing is judged here"
        )
        + f"; planned without the process\ncounter: {next((each.method for each in taken if each.method), 'none')}"
        + "\nplanned GiB  peak GiB  planned / peak  of",
    )
    for each in taken:
        if each.peak is None:
            journal.say(f"{each.planned / GIB:11.2f} {'-':>9} {'-':>15}  {each.what}: no counter here")
            continue
        times = each.planned / each.peak
        journal.say(f"{each.planned / GIB:11.2f} {each.peak / GIB:9.2f} {times:15.2f}  {each.what}")
        if judged and each.peak > each.planned:
            journal.fail(f"{each.what} took {each.peak} bytes, more than the {each.planned} that were planned")


def large_sections(journal: Journal, sizes: Sizes, device: torch.device) -> list[Taken]:
    """The sections of the large model, which is in memory for them alone."""
    journal.begin("large_model", "random weights in Llama 3.2 1B's shape, bfloat16")
    made: list[Any] = []
    gc.collect()  # what the sections before left behind would count for these
    journal.attempt("the model", lambda: made.append(large_model(sizes, "bfloat16", device, sizes.check_tokens)))
    if not made:
        return []
    model, shape = made[0], shape_of(made[0])
    journal.say(f"{weight_bytes(model) / GIB:.2f} GiB of weights, {shape.cached} bytes of keys and values a token; checked")

    ids = words_of("reference-llama") % shape.vocabulary
    return [*perplexity(journal, sizes, model, ids), *generation(journal, sizes, model, ids)]


def summary(journal: Journal, device: torch.device, seconds: float) -> int:
    """The last file. Returns the exit status."""
    counts = {section: journal.lines.get(section, 0) for section in SECTIONS}
    journal.begin(
        "summary", f"torch {torch.__version__}, transformers {transformers.__version__}, {device.type}: {device_name(device)}"
    )
    for section, lines in counts.items():
        journal.say(f"{section:12} {lines:3} lines" + ("" if lines else ": nothing was measured"))
    for line in journal.left_out:
        journal.say(f"left out: {line}")
    for line in journal.failed:
        journal.say(f"FAILED: {line}")
    outcome = f"{len(journal.failed)} failed" if journal.failed else "every check that was made passed"
    journal.say(f"{outcome}; {len(journal.left_out)} left out; {seconds:.0f} s; {journal.folder}")
    return 1 if journal.failed else 0


def main() -> int:
    """Every section in turn; what one raises does not keep the next from its turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="small models and short texts, in seconds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="what is not begun by then is left out, and named")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no CUDA device here; --device cpu --small tries the script on a CPU", file=sys.stderr)
        return 2

    begin = time.monotonic()
    device, sizes = torch.device(args.device), SMALL if args.small else FULL
    args.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.out, begin + 60 * args.minutes)

    self_checks(journal, sizes, device)
    exactness(journal, sizes, device)
    memory(journal, device, large_sections(journal, sizes, device))
    return summary(journal, device, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
