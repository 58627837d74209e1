"""Which package may import what: planning and reading results must not cost torch, and only two files know
ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("pipeline", "workers", "analysis")
HEAVY = ("torch", "transformers")
TORCH_FREE = (
    "corpora",
    "footprint",
    "harness.arguments",
    "harness.counts",
    "harness.tasks",
    "machine.cache_folder",
    "machine.code_digest",
    "machine.gpus",
    "machine.host",
    "messages",
    "models",
    "policies.budget",
    "policies.policy_files",
    "policies.settings",
    "policies.skip_rule",
    "texts",
)
"""What of workers planning uses: whole rooms, and single modules of others."""
WITH_TORCH = ("footprint.model_shape", "messages.out_of_memory", "models.gguf.convert")
"""Modules of those rooms that planning does not use."""
SCORES = ("policies.cache_view", "policies.eviction", "policies.observation", "policies.policy")
"""Those that planning asks for policies' names and what they observe; torch is imported when a score is
computed."""


def is_torch_free(module: str) -> bool:
    """Whether planning may import it, by its name within workers."""
    known = any(module == name or module.startswith(f"{name}.") for name in (*TORCH_FREE, *SCORES))
    return known and module not in WITH_TORCH


def imports(file: Path) -> set[str]:
    """Full names of all modules a file imports anywhere, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in OURS}
    return names


def roots(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def named(*packages: str):
    return pytest.mark.parametrize(
        "file", [f for p in packages for f in files(p)], ids=lambda f: f"{f.parent.name}.{f.stem}"
    )


@named("analysis")
def test_analysis_knows_results_and_nothing_else_of_ours(file):
    assert roots(file).isdisjoint({"torch", "transformers", "ray", "workers"})
    ours = {name for name in imports(file) if name.startswith("pipeline")}
    assert ours <= {"pipeline.results"} | {name for name in ours if name.startswith("pipeline.results.")}


def test_the_front_door_imports_nothing_of_ours_before_it_has_looked():
    for file in files("kvsweep"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
        assert {str(name).partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "kvsweep"}, file


@named("workers")
def test_workers_know_neither_pipeline_nor_analysis_and_ray_in_actor_only(file):
    assert roots(file).isdisjoint({"pipeline", "analysis"})
    assert ("ray" in roots(file)) == (file.stem == "actor")


@named("pipeline")
def test_pipeline_never_imports_torch_and_ray_in_one_file_only(file):
    assert roots(file).isdisjoint(HEAVY)
    assert "ray" not in roots(file) or file.stem == "executors"


@named("workers")
def test_the_part_of_workers_that_planning_uses_is_free_of_torch(file):
    own = ".".join(file.relative_to(ROOT / "workers").with_suffix("").parts)
    if is_torch_free(own):
        names = imports(file) if own not in SCORES else imported_at_once(file)
        assert {name.partition(".")[0] for name in names}.isdisjoint(HEAVY)
        used = {name.removeprefix("workers.") for name in names if name.startswith("workers.")}
        assert all(is_torch_free(name) for name in used)


def imported_at_once(file: Path) -> set[str]:
    """Modules that are imported when the file is, not when a function is called or a checker looks."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module} | {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }


def test_policies_are_known_without_torch():
    assert (
        loaded_after("from workers.policies.settings import POLICY_NAMES\nassert 'snapkv' in POLICY_NAMES")
        == set()
    )


@named("pipeline")
def test_planning_imports_only_torch_free_workers_at_the_top(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
    used = {name.removeprefix("workers.") for name in at_top if name.startswith("workers.")}
    assert all(map(is_torch_free, used))


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Which heavy packages a fresh Python has loaded after ``code``."""
    tail = f"\nprint([m for m in {(*HEAVY, 'ray')} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}{tail}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_the_check_sees_a_heavy_import():
    assert loaded_after("sys.modules['ray'] = sys") == {"ray"}


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "pipeline.sweep", "pipeline.commands.plan_table", "analysis.report"]
)
def test_importing_is_light(module):
    assert loaded_after(f"import {module}") == set()


def test_a_plan_is_printed_without_torch_transformers_or_ray(sweep_file):
    retrieval = "{context_tokens: [240], questions: 2}"
    path = sweep_file(generation="{prompt_tokens: [32], new_tokens: 8}", retrieval=retrieval)
    code = "from pipeline.cli import app\nfrom typer.testing import CliRunner\n"
    run = (
        "result = CliRunner().invoke(app, ['plan', sys.argv[1]])\nassert result.exit_code == 0,"
        " result.output\n"
    )
    assert loaded_after(code + run + "assert '9 cells' in result.output", str(path)) == set()
