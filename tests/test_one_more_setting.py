"""One more setting of the pruning: the few lines that it takes, and that everything then knows of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from pipeline.cells.cell import CELL_FIELDS, PRUNED_BY
from pipeline.store.schema import CELL_COLUMNS, PRUNING, TARGET, VERSIONS
from pipeline.sweepfile.sweep_keys import AXES, FIELDS, CellFilter, SweepSpec
from tests.support.command import ROOT
from workers.policies.settings import PruneSettings

LINES = {
    "pipeline/store/schema.py": [
        (
            '    CellColumn("quantization", pl.String),\n',
            '    CellColumn("rescale", pl.Int32, "pruning", 0),\n',
        ),
    ],
    "pipeline/sweepfile/sweep_keys.py": [
        ('    "position_modes": "position_mode",\n', '    "rescales": "rescale",\n'),
        (
            "    position_modes: list[PositionMode] | None = None\n",
            "    rescales: list[NonNegative] | None = None\n",
        ),
        (
            '    position_modes: Axis[PositionMode] = ["absolute"]\n',
            "    rescales: Axis[NonNegative] = [0]\n",
        ),
    ],
    "pipeline/cells/cell.py": [("    position_mode: str\n", "    rescale: int\n")],
    "workers/policies/settings.py": [('    position_mode: str = "absolute"\n', "    rescale: int = 0\n")],
}
"""File -> a line that is there, and the one that comes behind it. What acts on the setting in ``workers`` is
a fifth file."""


@pytest.mark.slow
def test_six_lines_of_four_files_bring_a_setting_from_the_sweep_file_to_the_report(tmp_path):
    for package in ("pipeline", "workers", "analysis"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("reference", "__pycache__")
        )
    for name, added in LINES.items():
        file = tmp_path / name
        text = file.read_text(encoding="utf-8")
        for there, new in added:
            assert text.count(there) == 1, (name, there)
            text = text.replace(there, there + new)
        file.write_text(text, encoding="utf-8")

    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.support.toy_setting", str(tmp_path / "run")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cell, filters, rows, worker, tables, words, claims and records know rescale\n"


def test_the_lists_of_settings_say_the_same():
    """What is spelt out for readers: fields of a cell, axes of a sweep and of its filters, what a worker is
    told."""
    assert set(PRUNED_BY) == PRUNING.keys() - {"skip_layers_rule"}, "the rule is a value of skip_layers"
    assert set(FIELDS.values()) == set(PRUNED_BY) and set(AXES) == set(PRUNED_BY)
    assert FIELDS.keys() == CellFilter.model_fields.keys() and FIELDS.keys() <= SweepSpec.model_fields.keys()
    assert set(PRUNED_BY) | {"seed"} == set(PruneSettings.__dataclass_fields__)


def test_the_settings_of_the_pruning_stand_together_in_a_cell():
    first = CELL_FIELDS.index(PRUNED_BY[0])
    assert CELL_FIELDS[first : first + len(PRUNED_BY)] == PRUNED_BY


def test_a_column_has_one_role():
    roles = [*VERSIONS, *TARGET, *PRUNING]
    assert len(set(roles)) == len(roles) and set(roles) < set(CELL_COLUMNS)
