"""The identity of a user's policy covers the modules beside it that it imports."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from workers.policies.policy_files import OwnModules, PolicyError, digest, resolved


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "policy_of_mine.py").write_text(
        "import torch\nfrom beside_it import sign\n\n\ndef p(view):\n    return sign\n"
    )
    (tmp_path / "beside_it.py").write_text("import json\nfrom parts_of_it import deeper\n\nsign = 1\n")
    (tmp_path / "parts_of_it").mkdir()
    (tmp_path / "parts_of_it" / "__init__.py").write_text("")
    (tmp_path / "parts_of_it" / "deeper.py").write_text("import policy_of_mine\n")
    (tmp_path / "not_imported.py").write_text("x = 1\n")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["policy_of_mine.py", "beside_it.py", "parts_of_it/__init__.py", "parts_of_it/deeper.py"]
)
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


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbfimport beside_it\ndef p(view): ...\n",
        "# -*- coding: latin-1 -*-\nimport beside_it\nname = 'é'\ndef p(view): ...\n".encode("latin-1"),
    ],
    ids=["a byte order mark", "an encoding of its own"],
)
def test_a_module_is_read_as_python_reads_it(folder, source):
    (folder / "policy_of_mine.py").write_bytes(source)
    before = resolved("policy_of_mine:p")
    (folder / "beside_it.py").write_text("sign = 2\n")
    assert before.startswith("policy_of_mine:p@") and resolved("policy_of_mine:p") != before


def test_a_file_that_is_no_python_is_refused(folder):
    (folder / "beside_it.py").write_text("def (:\n")
    with pytest.raises(PolicyError, match=r"beside_it\.py is no Python module"):
        digest("policy_of_mine")


def test_a_module_of_many_policies_is_hashed_and_parsed_once(folder, monkeypatch):
    (folder / "many_policies.py").write_text(
        "import beside_it\n" + "".join(f"def f{i}(view): ...\n" for i in range(300))
    )
    read: Counter[str] = Counter()
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        read[path.name] += 1
        return whole(path)

    parsed = []
    parse = ast.parse
    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(ast, "parse", lambda source, *more: parsed.append(source) or parse(source, *more))
    modules = OwnModules()
    names = [modules.resolved(f"many_policies:f{i}") for i in range(300)]
    assert len(set(names)) == 300 and {name.partition("@")[2] for name in names} == {digest("many_policies")}
    assert (
        read["many_policies.py"] <= 5
    )  # twice for a digest, once for its functions, and here for another digest
    assert len(parsed) <= 4, "one for each module that is reached"


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("def p(view): ...\n", True),
        ("p = 1\n", True),
        ("p: int = 1\n", True),
        ("from math import floor, sqrt as p\n", True),
        ("def pp(view): ...\n", False),
        ("class A:\n    def p(view): ...\n", False),
        ("from p import other\n", False),
    ],
)
def test_a_function_is_known_by_what_stands_at_the_left_margin(folder, source, known):
    (folder / "one_policy.py").write_text(source)
    if known:
        assert resolved("one_policy:p").startswith("one_policy:p@")
    else:
        with pytest.raises(PolicyError, match="defines no 'p'"):
            resolved("one_policy:p")
