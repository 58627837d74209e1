"""The rooms of each package: which may import which, and that no name stands for two things."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "workers": (
        "machine",
        "texts",
        "policies",
        "models",
        "footprint",
        "cache",
        "corpora",
        "messages",
        "perplexity",
        "generation",
        "loaded",
        "retrieval",
        "harness",
        "unit",
        "cell_check",
        "diagnose_model",
        "worker",
        "actor",
    ),
    "pipeline": (
        "sweepfile",
        "store",
        "results",
        "cluster",
        "cells",
        "tasks",
        "planning",
        "driving",
        "commands",
        "options",
        "stored_runs",
        "cli",
        "sweep",
    ),
    "analysis": (
        "keys",
        "impossible",
        "load",
        "coverage",
        "labels",
        "verdicts",
        "draw",
        "statistics",
        "perplexity",
        "retrieval",
        "recommend",
        "generation",
        "harness",
        "tables",
        "audit",
        "page",
        "report",
        "tracking",
    ),
}
"""Of each package, its folders and the files beside them: what stands later may import what stands before."""
MANY_IMPORTERS = 2
LEAST_WORDS = 4
"""Of the first line of a module, which says what question it answers."""


def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its full name."""
    found = {}
    for package in ROOMS:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Modules of ours that a module imports at the top or inside functions, but for a type checker's sake."""
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in checked:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys()
            names |= {node.module} & MODULES.keys() if inner - MODULES.keys() else set()
        if isinstance(node, ast.Import) and id(node) not in checked:
            names |= {alias.name for alias in node.names} & MODULES.keys()
    return names


IMPORTS = {name: imported(tree) for name, tree in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_in_the_list(package):
    assert {room(name) for name in MODULES if name.startswith(f"{package}.")} == set(ROOMS[package])
    assert len(set(ROOMS[package])) == len(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_no_arrow_between_rooms_runs_up(package):
    height = {name: index for index, name in enumerate(ROOMS[package])}
    inside = [(name, used) for name in MODULES for used in IMPORTS[name] if name.startswith(f"{package}.")]
    arrows = [(name, used) for name, used in inside if used.startswith(f"{package}.")]
    assert arrows
    assert [(name, used) for name, used in arrows if height[room(name)] < height[room(used)]] == []


def test_a_cache_knows_no_batch_of_caches():
    """The one room within a room: what serves one text, below what serves many cells."""
    below = [
        name
        for name in MODULES
        if re.fullmatch(r"workers\.cache\.\w+", name) and name != "workers.cache.batch"
    ]
    assert not any(used.startswith("workers.cache.batch") for name in below for used in IMPORTS[name])


def circles() -> Iterator[list[str]]:
    """Ways from a module back to itself."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> Iterator[list[str]]:
        if name in way:
            yield way[way.index(name) :]
        elif name not in done:
            for used in sorted(IMPORTS[name]):
                yield from walk(used, [*way, name])
            done.add(name)

    for name in MODULES:
        yield from walk(name, [])


def test_no_module_imports_itself_by_a_detour():
    assert list(circles()) == []


def defined(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Public names that a module defines, and whether they are functions or classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, True
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and not name.id.startswith("_"):
                    yield name.id, False


@pytest.mark.parametrize("package", ROOMS)
def test_no_function_or_class_has_the_name_of_another_in_its_package(package):
    places = defaultdict(list)
    for module in (name for name in MODULES if name.split(".")[0] == package):
        for name, is_callable in defined(MODULES[module]):
            if is_callable and name != "main":
                places[name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("package", ROOMS)
def test_no_constant_has_the_name_of_another_in_its_room(package):
    places = defaultdict(list)
    for module in (name for name in MODULES if name.split(".")[0] == package):
        for name, _ in defined(MODULES[module]):
            if name != "main":
                places[room(module), name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_module_that_few_import_says_which_question_it_answers():
    importers = defaultdict(set)
    for name, used in IMPORTS.items():
        for each in used:
            importers[each].add(name)
    silent = [
        name
        for name, tree in MODULES.items()
        if len(importers[name]) < MANY_IMPORTERS
        and len((ast.get_docstring(tree) or "").split()) < LEAST_WORDS
    ]
    assert silent == []
