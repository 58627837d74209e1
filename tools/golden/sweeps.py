"""The four sweeps of a golden run: three embedded ones cut down by ``--set``, so they follow their files, and
tasks."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.golden.command import ROOT

TEXT = "text.txt"
"""The dataset: the licence, which nobody edits. That of the embedded sweeps differs between versions of
Python."""

HERE = (f"datasets=[text:{TEXT}]",)
SHORT_TIMING = ("generation.new_tokens=8", "generation.repeats=6", "generation.max_repeats=6")
"""As many rounds whatever the clock says."""


@dataclass(frozen=True)
class Sweep:
    """``source``: the name of an embedded sweep, or a file of the inputs."""

    name: str
    source: str
    overrides: tuple[str, ...] = ()
    audit: bool = False
    """Whether its report judges what the seed reports claimed."""
    fails: bool = False
    """Whether cells fail, so that the run ends with 1."""

    @property
    def arguments(self) -> list[str]:
        """What ``kvsweep plan`` and ``kvsweep run`` are given."""
        return [self.source, *(word for override in self.overrides for word in ("--set", override))]


SWEEPS = (
    Sweep(
        "default",
        "default",
        (
            *HERE,
            *SHORT_TIMING,
            "perplexity.window=128",
            "perplexity.stride=128",
            "perplexity.windows=2",
            "perplexity.keep_ratios=[0.9,0.5]",
            "retrieval.context_tokens=[128]",
            "retrieval.depths=[0.1,0.9]",
            "retrieval.questions=1",
            "retrieval.keep_ratios=[0.5]",
            "retrieval.prune_after=[32]",
            "generation.prompt_tokens=[48]",
            "generation.prune_after=[32]",
        ),
    ),
    Sweep(
        "retrieval",
        "retrieval",
        (
            *HERE,
            "keep_ratios=[0.7,0.3]",
            "prune_after=[64]",
            "schedules=[every_step,prefill_once,constant]",
            "perplexity={window: 96, stride: 48, windows: 2, keep_ratios: [0.7]}",
            "retrieval.context_tokens=[128]",
            "retrieval.depths=[0.1,0.9]",
            "retrieval.questions=1",
            "retrieval.distractors=[1]",
            "retrieval.skip_layers=[[],auto:1]",
            "retrieval.schedules=[prefill_once,constant]",
            "retrieval.keep_ratios=[0.3]",
        ),
    ),
    Sweep(
        "seed_reports",
        "seed_reports",
        (
            *HERE,
            *SHORT_TIMING,
            "perplexity.window=128",
            "perplexity.stride=128",
            "perplexity.windows=2",
            "perplexity.keep_ratios=[0.9,0.8,0.5]",
            "perplexity.prune_after=[32,512]",
            "perplexity.protect_recent=[0,8]",
            "perplexity.skip_layers=[[],[0]]",
            "generation.prompt_tokens=[48]",
            "generation.prune_after=[32]",
            "retrieval.context_tokens=[128]",
            "retrieval.depths=[0.1,0.9]",
            "retrieval.questions=1",
            "retrieval.prune_after=[32]",
            "retrieval.keep_ratios=[0.5]",
        ),
        audit=True,
    ),
    Sweep("tasks", "tasks.yaml", fails=True),
)

TASKS_SWEEP = """\
# Tasks of lm-evaluation-harness, the policies that no embedded sweep has, one of a user's own,
# and one that fails.
name: tasks
models: [reference-llama]
datasets: ["text:text.txt"]
devices: [cpu]
policies: [knorm, streaming_rolled, snapkv_max7, "golden_policies:newest", "golden_policies:broken"]
keep_ratios: [0.5]
prune_after: [16]
protect_sink: [4]
perplexity: {window: 96, stride: 96, windows: 2}
lm_eval: {tasks: [golden_choice, golden_words], include_path: tasks, limit: 2}
"""

POLICIES = '''\
"""Policies of a user's own."""


def newest(view):
    """Keeps the newest entries."""
    return view.positions.float()


def broken(view):
    """Fails as soon as it is asked."""
    raise RuntimeError("this policy is broken on purpose")
'''

DOCUMENTS = (
    {
        "text": (
            "Seven silver stones lie under the green bridge, and seven silver stones lie beside the harbour;"
            " the stones are"
        ),
        "choices": ["seven and silver", "one and red"],
        "answer": 0,
    },
    {
        "text": (
            "The morning paper never came because the engine of the small boat had stopped, so nobody on the"
            " island read"
        ),
        "choices": ["a lamp", "the morning paper"],
        "answer": 1,
    },
)
TASKS = {
    "golden_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "golden_words": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["."], "max_gen_toks": 24, "do_sample": False},
    },
}


def write_inputs(folder: Path) -> None:
    """Everything that the sweeps name, into the folder that their commands are started in."""
    shutil.copyfile(ROOT / "LICENSE", folder / TEXT)
    (folder / "tasks.yaml").write_text(TASKS_SWEEP, encoding="utf-8")
    (folder / "golden_policies.py").write_text(POLICIES, encoding="utf-8")

    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "data.jsonl").write_text(
        "".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8"
    )
    for name, own in TASKS.items():
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "tasks/data.jsonl"}},
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "metadata": {"version": 1.0},
            **own,
        }
        (tasks / f"{name}.yaml").write_text(json.dumps(whole), encoding="utf-8")  # which YAML understands
