"""What a worker is planned to take, and what it takes: ``python -m benchmarks.memory``.

Per task, model, policy and length: a sweep of few cells is planned, and a fresh process loads the model and
does its largest unit. Planned is what the plan gives the unit's worker; measured is the process's peak
resident set, or on CUDA the allocator's peak, which is held against the plan less the process. Held to:
measured <= planned <= 1.5 x measured. The self-check has lines of its own, for it takes as much as a unit of
few texts. A worker does it before its first unit of a model, so of the check and the unit what takes more is
the worker's peak, and is what the unit's line says. Questions go through with their contexts, all of one
length: where lengths differ fewer go through together, and less is taken than the plan counts with.

reference-llama has a context of 2,048 tokens; here it is the same model with one of 8,192. For the harness's
tasks every model has a context of the length in question, because only running a task tells how long its
texts are, and the plan counts with as much as the model takes. Generation is timed five times at 1,024 tokens
and twice at more, where a round takes minutes: what a round takes is given back before the next. ``large``
has the shape of Llama 3.2 1B and random weights in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.cells.model_size import shape_of
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.planning.estimates import worker_bytes
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from workers.footprint.harness import contexts_at_once
from workers.footprint.shape import MAX_AT_ONCE
from workers.footprint.worker import PROCESS_BYTES
from workers.loaded.load import load
from workers.loaded.self_check import check_once
from workers.machine.cache_folder import cache_folder
from workers.machine.heap import limit_heap_blocks
from workers.machine.peak_memory import PeakMemory
from workers.messages.work import GenerationWork, WorkUnit
from workers.models.model_files import EMBEDDED
from workers.unit import run_unit

GIB = 2**30
TASKS = ("check", "perplexity", "generation", "retrieval", "tasks")
HEADER = (
    "task       model            dtype    policy  tokens texts cells  "
    "planned GiB  measured GiB  planned / measured  seconds"
)
TEXT_WORDS = 60_000
TEXTS = {
    ("reference-llama", False): 16,
    ("reference-llama", True): 4,
    ("smollm2", False): 4,
    ("large", False): 2,
}
"""Windows, questions or documents, by model and whether they are long: so few that the table takes half an
hour of two cores; one where nothing is said."""
FEW_TEXTS = 4
"""Up to so many there is one pruned cell beside the dense one, else two."""
LARGE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 0,
    "eos_token_id": 0, "dtype": "bfloat16",
}  # fmt: skip
"""Llama 3.2 1B's shape."""


def reference_with_context(folder: Path, tokens: int) -> Path:
    """reference-llama as it is, but for a context of so many tokens."""
    shutil.copytree(EMBEDDED / "reference-llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}))
    return folder


def with_context(model: Path, folder: Path, tokens: int) -> Path:
    """The same model with a context of so many tokens: the harness cuts contexts to it, and the plan counts
    with it."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for file in model.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink()
        config = json.loads((model / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}))
    return folder


def large_model(folder: Path) -> Path:
    """A model of LARGE's shape with random weights in bfloat16 and reference-llama's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{key: value for key, value in LARGE.items() if key != "architectures"})
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "reference-llama" / name, folder / name)
    return folder


def task_folder(folder: Path, words: Path, length: int) -> Path:
    """A task of the harness, 16 documents of about ``length`` tokens, each with two choices."""
    folder.mkdir(parents=True, exist_ok=True)
    text = words.read_text().split()
    size = length  # words, hence more tokens than the context takes
    rows = [{"text": " ".join(text[i * 40 : i * 40 + size]), "gold": i % 2} for i in range(16)]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "long.yaml").write_text(
        f"task: long\ndataset_path: json\ndataset_kwargs: {{data_files: {folder / 'rows.json'}}}\n"
        'test_split: train\noutput_type: multiple_choice\ndoc_to_text: "{{text}}"\n'
        'doc_to_target: gold\ndoc_to_choice: [" yes", " no"]\n'
        "metric_list: [{metric: acc}]\n"
    )
    return folder


def sweep(
    args: argparse.Namespace,
    folder: Path,
    task: str,
    model: Path,
    dtype: str,
    policy: str,
    length: int,
    texts: int,
) -> Plan:
    """The plan of one line: the dense cell, and one or two of the policy's."""
    words = folder / "words.txt"
    blocks = {
        "perplexity": {"window": length, "stride": length, "windows": texts},
        "generation": {
            "prompt_tokens": [length - 16],
            "batch_sizes": [1],
            "new_tokens": 8,
            "repeats": 5,
            "max_repeats": 5,
            "warmup": 0,
        },
        "retrieval": {
            "kinds": ["needle"],
            "context_tokens": [length],
            "depths": [0.5],
            "questions": texts,
            "question_pruned": [True],
            "prune_after": [length // 2],
        },
        "tasks": {"tasks": ["long"], "limit": texts, "include_path": str(folder / f"task-{length}")},
    }
    if task == "tasks":
        task_folder(folder / f"task-{length}", words, length)
    keys = {
        "name": "memory",
        "models": [str(model)],
        "datasets": [f"text:{words}"],
        "devices": [args.device],
        "dtypes": [dtype],
        "policies": [policy],
        "keep_ratios": [0.9, 0.5] if texts > FEW_TEXTS else [0.5],
        "prune_after": [length // 2],
        "allow_beyond_context": True,
        "lm_eval" if task == "tasks" else task: blocks[task],
    }
    file = folder / "sweep.yaml"
    file.write_text(json.dumps(keys))  # which YAML understands
    return make_plan(load_spec(str(file)))


def largest(plan: Plan) -> PlannedUnit:
    """The unit of a plan with the most cells, pruned ones among them."""
    return max(plan.units, key=lambda unit: (len(unit.cells), unit.cells[-1].policy != "dense"))


def child(path: str, what: str) -> None:
    """Do a unit in this process and print its peak in bytes and the seconds without loading."""
    unit: WorkUnit = pickle.loads(Path(path).read_bytes())
    torch.set_num_threads(os.cpu_count() or 1)
    limit_heap_blocks()
    device = torch.device(unit.device)
    memory = PeakMemory(device)
    memory.start()
    model = load(unit.model, unit.dtype, device)
    with torch.inference_mode():
        for (
            weight
        ) in model.parameters():  # a worker's self-check reads them; until then a mapped file takes no memory
            weight.sum()
    begin, failures = time.perf_counter(), []
    if what == "check":
        text = unit.work.check_text()
        assert text is not None
        check_once(model, unit.model, unit.dtype, torch.from_numpy(text), own_text=unit.task == "perplexity")
    else:
        failures = [failure.message for failure in run_unit(unit, model, device).failures]
    peak = memory.result()[0]
    print(json.dumps({"peak": peak, "seconds": time.perf_counter() - begin, "failures": failures}))


def measured(unit: WorkUnit, folder: Path, what: str) -> tuple[int, float]:
    """Peak bytes and seconds of a fresh process."""
    file = folder / "unit.pickle"
    file.write_bytes(pickle.dumps(unit))
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HOME": str(folder / "home"),
        "XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder),
    }
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(file), what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    if found["failures"]:
        raise SystemExit(f"a cell failed: {found['failures'][0]}")
    return found["peak"], found["seconds"]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["reference-llama", "smollm2", "large"])
    parser.add_argument(
        "--smollm2", type=Path, default=cache_folder() / "smollm2", help="the folder of SmolLM2 135M"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--policies", nargs="+", default=["knorm", "h2o", "snapkv"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from workers.corpora import read_text

        (folder / "words.txt").write_text(" ".join(read_text("pydocs").text.split()[:TEXT_WORDS]))
        print(HEADER)
        for model in args.models:
            if model == "smollm2" and not args.smollm2.is_dir():
                hint = "`kvsweep fetch smollm2` brings it, or give --smollm2 FOLDER"
                print(f"smollm2 is left out: {args.smollm2} is not there; {hint}")
                continue
            path, dtype = prepared(folder, model, args)
            for length in args.lengths:
                check_peak = 0
                for task in sorted(args.tasks, key=TASKS.index):
                    if task == "check":
                        check_peak = line(args, folder, task, model, path, dtype, "knorm", length)
                        continue
                    for policy in args.policies:
                        line(args, folder, task, model, path, dtype, policy, length, check_peak)


def prepared(folder: Path, model: str, args: argparse.Namespace) -> tuple[Path, str]:
    if model == "reference-llama":
        return reference_with_context(folder / model, 8192), "float32"
    if model == "large":
        return large_model(folder / model), "bfloat16"
    return args.smollm2, "float32"


def line(
    args: argparse.Namespace,
    folder: Path,
    task: str,
    model: str,
    path: Path,
    dtype: str,
    policy: str,
    length: int,
    check_peak: int = 0,
) -> int:
    """Print a line; the peak in bytes. ``check_peak``: that of the model's self-check on a text of this
    length."""
    texts = 1 if task == "generation" else TEXTS.get((model, length > 1024), 1)
    if task == "tasks":
        path = with_context(path, folder / f"{model}-{length}", length)
        texts = MAX_AT_ONCE
    plan = sweep(args, folder, "perplexity" if task == "check" else task, path, dtype, policy, length, texts)
    if task == "tasks":  # as many documents as go through at once: more would only take longer
        cell = plan.units[0].cells[0]
        texts = contexts_at_once(shape_of(plan.resolved.models[cell.model], cell), length)
        plan = sweep(args, folder, task, path, dtype, policy, length, texts)
    planned = largest(plan)
    unit = work_unit(plan, planned)
    if task == "tasks":
        unit = replace(unit, cells=unit.cells[-1:])
    if isinstance(unit.work, GenerationWork) and length > 1024:
        unit = replace(unit, work=replace(unit.work, repeats=2, max_repeats=2))
    own_peak, seconds = measured(unit, folder, "check" if task == "check" else "unit")
    peak = max(own_peak, check_peak)
    allowed = planned.need.memory_bytes if task != "check" else worker_bytes(unit.model, planned.cells[:1])
    allowed -= PROCESS_BYTES if args.device == "cuda" else 0
    mark = "" if peak <= allowed <= 1.5 * peak else "  <-- outside"
    figures = f"{allowed / GIB:12.2f} {peak / GIB:13.2f} {allowed / peak:19.2f} {seconds:8.1f}{mark}"
    print(
        f"{task:10} {model:16} {dtype:8} {policy:7} {length:6} {texts:5} {len(unit.cells):5} {figures}",
        flush=True,
    )
    return own_peak


if __name__ == "__main__":
    main()
