"""What SECURITY.md claims and no other test shows: foreign files run no code, names become no paths, secrets
are not kept."""

import ast
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.report import write_report
from pipeline.cli import app
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import ROOT
from tests.support.rows import perplexity_row, write_run
from workers.models.model_files import find_model

SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "RAY_AUTH_TOKEN",
    )
}
RUN_FILE = re.compile(
    r"run\.json|cells\.parquet|log\.jsonl|report\.html|(perplexity|failures)/[0-9a-f]{16,}-[0-9a-f]{12}\.parquet"
)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def marks(tmp_path_factory) -> Path:
    """A folder where code that was run leaves a file."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir, text_file, marks):
    """A run of a model folder that holds code and pickles, under names full of path signs, with secrets
    around it."""
    folder = tmp_path_factory.mktemp("a")
    model, text = folder / "..%2F..%2F<b>;$(x)", folder / "..\\..\\t*xt.txt"
    shutil.copytree(tiny_model_dir, model)
    shutil.copy(text_file, text)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(marks / 'code')!r}, 'w')\n")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(marks / "pickle")))
    (folder / "failing_policy.py").write_text("def fail(view):\n    raise RuntimeError('no score')\n")
    sweep = {
        "name": "names",
        "models": [str(model)],
        "datasets": [f"text:{text}"],
        "devices": ["cpu"],
        "keep_ratios": [0.5],
        "policies": ["knorm", "failing_policy:fail"],
        "prune_after": [16],
        "perplexity": {"window": 64, "stride": 64, "windows": 1},
    }
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        done = CliRunner().invoke(
            app, ["run", str(folder / "sweep.yaml"), "--inline", "--out", str(folder / "out")]
        )
    return folder, before, done


def test_a_model_folder_runs_no_code_and_unpickles_nothing(run, marks):
    _, _, done = run
    assert done.exit_code == 1 and "no score" in done.stderr, "one policy fails, the other runs"
    assert list(marks.iterdir()) == []
    pickle.loads(pickle.dumps(Trap(marks / "control")))
    assert [mark.name for mark in marks.iterdir()] == ["control"], "the trap works"
    (marks / "control").unlink()


def test_code_and_pickles_of_a_model_are_used_where_its_entry_says_so_and_that_is_recorded(
    tiny_model_dir, text_file, tmp_path, marks
):
    import torch
    from safetensors.torch import load_file

    model = tmp_path / "trusted"
    shutil.copytree(tiny_model_dir, model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}, "model_type": "llama"}
    (model / "config.json").write_text(json.dumps(config))
    mark = marks / "trusted"
    (model / "own.py").write_text(
        f"from transformers import LlamaForCausalLM\nopen({str(mark)!r}, 'w')\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    entry = {"name": str(model), "trust_remote_code": True, "allow_pickle": True}
    sweep = {
        "name": "trust",
        "models": [entry],
        "datasets": [f"text:{text_file}"],
        "devices": ["cpu"],
        "keep_ratios": [0.5],
        "prune_after": [16],
        "perplexity": {"window": 64, "stride": 64, "windows": 1},
    }
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(json.dumps(sweep | {"models": [str(model)]}))
    refused = CliRunner().invoke(app, ["run", str(file), "--inline", "--out", str(out)])
    assert refused.exit_code == 2 and "allow_pickle: true reads them" in refused.stderr and not out.exists()
    file.write_text(json.dumps(sweep))
    done = CliRunner().invoke(app, ["run", str(file), "--inline", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert mark.exists() and "run with your rights" in done.stderr
    (recorded,) = json.loads((out / "run.json").read_text())["models"]
    assert recorded["trust_remote_code"] is recorded["allow_pickle"] is True
    before = recorded["revision"]
    (model / "own.py").write_text((model / "own.py").read_text() + "# edited\n")
    assert find_model(str(model), trust_remote_code=True, allow_pickle=True).revision != before, (
        "code is part of the model"
    )
    mark.unlink()


def test_names_from_the_sweep_file_never_become_paths(run):
    folder, before, _ = run
    out = folder / "out"
    made = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()]
    assert len(made) == 6 and all(RUN_FILE.fullmatch(name) for name in made), made
    others = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert sorted(path for path in others if out not in (path, *path.parents)) == before


@pytest.mark.parametrize("name", ["../escape", "a/b", "..", "/tmp/x", "a\\\\b", ""])
def test_a_sweep_whose_name_is_a_path_is_refused(name, sweep_file):
    with pytest.raises(SweepError, match="name"):
        load_spec(str(sweep_file(name=f'"{name}"')))


def test_no_secret_of_the_environment_is_kept_or_printed(run):
    folder, _, done = run
    kept = {str(path): path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    tracebacks = RunStore(str(folder / "out")).scan("failures").collect()["traceback"]
    kept |= {
        "stdout": done.stdout.encode(),
        "stderr": done.stderr.encode(),
        "tracebacks": "".join(tracebacks).encode(),
    }
    assert "no score" in tracebacks[0]
    assert [
        (place, name)
        for place, content in kept.items()
        for name, it in SECRETS.items()
        if it.encode() in content
    ] == []


def test_a_plan_does_not_import_the_code_of_a_policy(sweep_file, tmp_path, monkeypatch):
    (tmp_path / "marking_policy.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w')\ndef score(view):\n    return view\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    make_plan(load_spec(str(sweep_file(policies='["marking_policy:score"]'))))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "file",
    [f for p in ("pipeline", "workers", "analysis") for f in sorted((ROOT / p).rglob("*.py"))],
    ids=lambda f: f"{f.parent.name}.{f.stem}",
)
def test_nothing_of_ours_unpickles_evaluates_text_or_asks_a_shell(file):
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.partition(".")[0] for name in names} & forbidden
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "torch.load", "np.load")
            assert not any(word.arg == "shell" for word in node.keywords)
            trusted = [word for word in node.keywords if word.arg in ("trust_remote_code", "allow_pickle")]
            assert all(ast.unparse(word.value).split(".")[-1] in ("False", word.arg) for word in trusted), (
                "as the user said"
            )


def test_a_report_may_load_and_send_nothing(tmp_path):
    page = Path(
        write_report([write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})])
    ).read_text()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("script-src") == rules.pop("style-src") == "'unsafe-inline'", (
        "only what the page itself holds"
    )
    assert set(rules.values()) <= {"'none'"}
    assert page.index("Content-Security-Policy") < page.index("<script") and page.index(
        "Content-Security-Policy"
    ) < page.index("<style")
