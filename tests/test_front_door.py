"""``from kvsweep import ...`` works from a built wheel anywhere, and costs nothing before it is used."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kvsweep

ROOT = Path(__file__).parents[1]
SWEEP = """\
name: door
models: [{model}]
datasets: ["text:{text}"]
devices: [cpu]
policies: [knorm]
keep_ratios: [0.5]
prune_after: [8]
perplexity: {{window: 32, stride: 32, windows: 2}}
"""


def said(code: str, folder: Path, path: Path = ROOT, *arguments: str) -> str:
    """What a fresh Python in ``folder`` prints, with the packages of ``path``."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported_before_it_is_used(tmp_path):
    code = """
import sys
import kvsweep
light = [name for name in kvsweep.__all__ if name not in ("PrunedCache", "run")]
for name in light:
    getattr(kvsweep, name)
print([name for name in ("torch", "transformers", "ray", "polars") if name in sys.modules])
from kvsweep import PrunedCache
print("torch" in sys.modules)
"""
    before, after = said(code, tmp_path).splitlines()
    assert ast.literal_eval(before) == [] and after == "True"


def test_every_name_is_there_and_another_is_refused_in_words():
    assert dir(kvsweep) == sorted(kvsweep.__all__)
    assert all(getattr(kvsweep, name) is not None for name in kvsweep.__all__)
    with pytest.raises(ImportError, match="PrunedCaches"):
        exec("from kvsweep import PrunedCaches")


def test_a_module_of_others_in_the_way_is_named(tmp_path):
    (tmp_path / "workers.py").write_text("")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    from kvsweep import Policy
except ImportError as error:
    print(error)
"""
    assert str(tmp_path / "workers.py") in said(code, tmp_path)


def test_a_sweep_runs_from_python(tmp_path, tiny_model_dir, text_file):
    sweep = tmp_path / "door.yaml"
    sweep.write_text(SWEEP.format(model=tiny_model_dir, text=text_file))
    assert kvsweep.run(sweep, out=tmp_path / "run", inline=True, threads=1) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert kvsweep.run(sweep, ["keep_ratios=[2]"], out=tmp_path / "bad", inline=True) == 2
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_an_installed_wheel_works_in_another_directory(tmp_path, tiny_model_dir, text_file):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(tmp_path),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    if built.returncode and "CI" not in os.environ:  # building needs a package index
        pytest.skip(f"no wheel can be built here: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr

    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    packages = ("kvsweep", "pipeline", "workers", "analysis")
    held = {str(file.relative_to(installed)) for name in packages for file in (installed / name).rglob("*.*")}
    here = {str(file.relative_to(ROOT)) for name in packages for file in (ROOT / name).rglob("*.*")}
    assert held == {name for name in here if "__pycache__" not in name}
    (elsewhere / "door.yaml").write_text(SWEEP.format(model=tiny_model_dir, text=text_file))
    code = """
import kvsweep, sys
from kvsweep import PrunedCache, Policy, CacheView, run
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
import torch
cache = PrunedCache(model.config, keep_ratio=0.5, prune_after=8)
model.generate(torch.arange(20)[None], past_key_values=cache, max_new_tokens=4, do_sample=False)
print(kvsweep.__file__, max(layer.held for layer in cache.layers) <= 8 + 4)
print(run("door.yaml", out="run", inline=True, threads=1))
"""
    lines = said(code, elsewhere, installed, str(tiny_model_dir)).splitlines()
    assert lines[0] == f"{installed / 'kvsweep' / '__init__.py'} True"
    assert lines[-1] == "0" and (elsewhere / "run" / "report.html").exists()
