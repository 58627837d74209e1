"""The identity of a user's policy covers the modules beside it that it imports."""

import pytest

from workers.policy_files import PolicyError, digest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "policy_of_mine.py").write_text("import torch\nfrom beside_it import sign\n\n\ndef p(view):\n    return sign\n")
    (tmp_path / "beside_it.py").write_text("import json\nfrom parts_of_it import deeper\n\nsign = 1\n")
    (tmp_path / "parts_of_it").mkdir()
    (tmp_path / "parts_of_it" / "__init__.py").write_text("")
    (tmp_path / "parts_of_it" / "deeper.py").write_text("import policy_of_mine\n")
    (tmp_path / "not_imported.py").write_text("x = 1\n")
    return tmp_path


@pytest.mark.parametrize("name", ["policy_of_mine.py", "beside_it.py", "parts_of_it/__init__.py", "parts_of_it/deeper.py"])
def test_a_change_in_any_of_them_is_another_policy(folder, name):
    before = digest("policy_of_mine")
    with (folder / name).open("a") as file:
        file.write("# changed\n")
    assert digest("policy_of_mine") != before


def test_other_files_beside_it_change_nothing(folder):
    before = digest("policy_of_mine")
    (folder / "not_imported.py").write_text("x = 2\n")
    (folder / "torch.txt").touch()
    assert digest("policy_of_mine") == before


def test_a_file_that_is_no_python_is_refused(folder):
    (folder / "beside_it.py").write_text("def (:\n")
    with pytest.raises(PolicyError, match=r"beside_it\.py is no Python module"):
        digest("policy_of_mine")
