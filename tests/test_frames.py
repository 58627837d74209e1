"""How far it is from the command to the score function: the calls that a debugger walks through."""

from __future__ import annotations

import pytest

from tools.bars.__main__ import MOST_CALLS
from tools.bars.frames import SWEEPS, longest_walk

MOST_IN_THE_HARNESS = 22
"""lm-evaluation-harness asks kvsweep's model for answers, which ask the cache: steps of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_from_the_command_to_the_score_function_are_few_calls(name, tmp_path):
    walk = longest_walk(SWEEPS[name], tmp_path)
    assert len(walk) <= MOST_CALLS, "\n".join(walk)


@pytest.mark.slow
def test_tasks_of_the_harness_have_few_calls_more(tmp_path):
    pytest.importorskip("lm_eval")
    from tests.harness.local_tasks import write_tasks

    tasks = {"tasks": ["kv_choice", "kv_text"], "include_path": str(write_tasks(tmp_path))}
    walk = longest_walk({"lm_eval": tasks, "prune_after": [8], "datasets": None}, tmp_path)
    assert len(walk) <= MOST_IN_THE_HARNESS, "\n".join(walk)
