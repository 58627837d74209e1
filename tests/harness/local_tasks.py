"""Tasks for lm-evaluation-harness in a folder: a question with choices, a text to score, a text to write; and
a group."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

QUESTIONS = [
    {
        "text": "A river runs under the green bridge and into the harbour, where",
        "choices": ["ships", "a lamp", "x"],
        "answer": 0,
    },
    {
        "text": "Seven silver stones, seven silver stones; how many stones? There are",
        "choices": ["seven", "two"],
        "answer": 0,
    },
    {
        "text": "Short and sweet, this context has words of its own and ends",
        "choices": ["here and now", "there"],
        "answer": 1,
    },
]


def write_tasks(folder: Path, questions: Sequence[Mapping[str, Any]] = QUESTIONS) -> Path:
    """``kv_choice``, ``kv_rolling``, ``kv_text`` and ``kv_group`` with their data; returns the folder."""
    (folder / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    common = {
        "dataset_path": "json",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "metadata": {"version": 1.0},
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "data.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
    }
    tasks = {
        "kv_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
        },
        "kv_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
        },
        "kv_text": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 40, "do_sample": False},
        },
    }
    for name, own in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, "task": name, **own}))
    (folder / "kv_group.yaml").write_text(
        yaml.safe_dump({"group": "kv_group", "task": ["kv_choice", "kv_rolling"]})
    )
    return folder
