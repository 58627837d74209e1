"""What differs between tasks is asked of the task: its name is compared with nowhere else, and hardly
mentioned."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store import schema
from pipeline.tasks import TASKS

ROOT = Path(__file__).parent.parent
ROOMS = (
    "pipeline/tasks/",
    "workers/harness/",
    "workers/perplexity/",
    "workers/generation/",
    "workers/retrieval/",
    "analysis/harness/",
    "analysis/perplexity/",
    "analysis/generation/",
    "analysis/retrieval/",
)
"""Where a task's own files lie, by how their paths begin."""
MENTIONED = {
    "pipeline/store/schema.py",  # the columns of each table
    "pipeline/store/part_files.py",  # what files of the first schemas lack
    "pipeline/sweepfile/sweep_keys.py",  # the blocks of a sweep file
    "pipeline/commands/diagnose.py",  # a sweep with one block
    "analysis/load.py",  # what names a row of each table, and how it is pooled
    "analysis/impossible.py",  # what cannot be, of each table
    "analysis/tables.py",  # the tables of a report
    "analysis/page/page.py",  # in which places of the page they stand
    "analysis/page/charts.py",  # which charts a section has
    "analysis/tracking/export_runs.py",  # which figures a tracker is given
    "analysis/audit/foreign_columns.py",  # a column that others call so
}


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in TASKS


def names_in(node: ast.AST) -> bool:
    """Whether a side of a comparison is a task's name, or lists one."""
    listed = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return any(map(is_name, listed))


def compared(tree: ast.AST) -> Iterator[int]:
    """The lines on which a task's name is compared with, or matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(map(names_in, [node.left, *node.comparators])):
            yield node.lineno
        if isinstance(node, ast.MatchValue) and is_name(node.value):
            yield node.lineno


def trees(package: str) -> Iterator[tuple[str, ast.AST]]:
    """Path and syntax tree of every file but those of a task's own."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    for file in found:
        path = file.relative_to(ROOT).as_posix()
        if not path.startswith(ROOMS):
            yield path, ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", ["pipeline", "workers", "analysis"])
def test_nothing_is_decided_by_a_tasks_name(package):
    assert [(path, line) for path, tree in trees(package) for line in compared(tree)] == []


@pytest.mark.parametrize("package", ["pipeline", "workers", "analysis"])
def test_few_files_mention_a_task_by_name(package):
    mentions = {path for path, tree in trees(package) if any(map(is_name, ast.walk(tree)))}
    assert mentions == {path for path in MENTIONED if path.startswith(package)}


def test_every_task_has_a_table_and_every_table_but_that_of_failures_a_task():
    assert tuple(TASKS) == schema.TASKS and {*TASKS, "failures"} == set(schema.TASK_COLUMNS)
    for task in TASKS.values():
        assert set(task.row_keys) <= set(task.columns) <= set(schema.schema(task.name))


@pytest.mark.parametrize(
    "line",
    [
        'task == "perplexity"',
        '"tasks" in asked',
        'task in ("retrieval", other)',
        'match task:\n    case "generation":\n        pass',
    ],
)
def test_a_decision_is_seen(line):
    assert list(compared(ast.parse(line)))
