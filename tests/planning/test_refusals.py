"""Bad input is refused before any work starts: exit status 2, one message, nothing written or lost."""

import shutil
from pathlib import Path

import pytest

from pipeline.driving.run_sweep import BAD_INPUT, RunOptions, run_sweep
from tests.support.command import kvsweep, run_inline


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"keep_ratio": "[0.5]"}, "sweep.yaml:8:1: keep_ratio: unknown key; did you mean keep_ratios?"),
        ({"keep_ratios": "[0]"}, "sweep.yaml:5:15: keep_ratios.0: should be greater than 0 (got 0)"),
        (
            {"keep_ratios": "[1.2]"},
            "sweep.yaml:5:15: keep_ratios.0: should be less than or equal to 1 (got 1.2)",
        ),
        ({"keep_ratios": '["abc"]'}, 'sweep.yaml:5:15: keep_ratios.0: should be a valid number (got "abc")'),
        (
            {"prune_after": "[-1]"},
            "sweep.yaml:6:15: prune_after.0: should be greater than or equal to 1 (got -1)",
        ),
        ({"skip_layers": "[[99]]"}, "skip_layers: layer 99 does not exist"),
        ({"perplexity": "{window: 512, stride: 64}"}, "perplexity.window: 512 is longer than the context"),
        ({"models": "[no-such/model]"}, "model 'no-such/model': not one of reference-neox"),
        ({"datasets": '["text:empty.txt"]'}, "dataset 'text:empty.txt' holds no text"),
        ({"datasets": '["text:none.txt"]'}, "there is no file none.txt"),
        ({"datasets": '["text:~nosuchuser/x.txt"]'}, "there is no file ~nosuchuser/x.txt"),
        ({"datasets": '["hf:~nosuchuser/x"]'}, "there is no file ~nosuchuser/x"),
        ({"models": '["~nosuchuser/x"]'}, "model '~nosuchuser/x': there is no such directory"),
        ({"models": f'["{"m" * 300}"]'}, "mmm...: cannot be looked at as a directory: File name too long"),
        ({"models": f'["./{"m" * 300}"]'}, "mmm...: cannot be looked at as a directory: File name too long"),
        (
            {"lm_eval": "{tasks: [kv], include_path: ~nosuchuser/x}"},
            "include_path '~nosuchuser/x': there is no such directory",
        ),
        ({"lm_eval": f"{{tasks: [kv], include_path: {'m' * 300}}}"}, "there is no such directory"),
        ({"models": "[broken]"}, "its tokenizer.json cannot be used"),
        ({"name": "[x"}, "not valid YAML"),
    ],
    ids=lambda value: (
        ("-".join(value) + "=" + "".join(value.values()))[:60] if isinstance(value, dict) else ""
    ),
)
def test_a_wrong_sweep_is_refused_with_one_message_and_leaves_nothing_behind(
    command, changes, part, sweep_file, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    from typer.testing import CliRunner

    from pipeline.cli import app

    monkeypatch.chdir(tmp_path)
    sweep = sweep_file(**changes)
    Path("empty.txt").touch()
    shutil.copytree(tiny_model_dir, "broken")
    Path("broken/tokenizer.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, [command, sweep.name])
    assert done.exit_code == BAD_INPUT
    assert isinstance(done.exception, SystemExit)
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: ") and part in message
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_sweep_file_is_refused_by_the_real_command_without_a_traceback(tmp_path):
    for command in ("plan", "run"):
        done = kvsweep(command, "none.yaml", folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: none.yaml: there is no such sweep file")
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_and_a_wrong_override_are_refused(sweep_file, tmp_path):
    sweep = sweep_file()
    assert kvsweep("run", sweep, "--inlin", folder=tmp_path).returncode == 2
    done = kvsweep("run", sweep, "--set", "keep_ratios=[2]", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --set keep_ratios=[2]: keep_ratios.0: ")
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_folder_of_other_files_is_never_written_to(sweep_file, out, capsys):
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    assert run_inline(sweep_file(), out) == BAD_INPUT
    assert "is not empty and holds no kvsweep run" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]
    assert run_inline(sweep_file(), out / "thesis.tex") == BAD_INPUT
    assert "is a file; name a directory" in capsys.readouterr().err


def test_an_unreachable_object_store_is_refused_without_a_traceback(sweep_file, capsys):
    assert (
        run_sweep(str(sweep_file()), [], RunOptions(out="nosuchstore://bucket/run", inline=True)) == BAD_INPUT
    )
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: --out nosuchstore://bucket/run: ")


def test_a_damaged_run_json_is_refused_and_left_alone(sweep_file, out, capsys):
    out.mkdir()
    (out / "run.json").write_text("{")
    assert run_inline(sweep_file(), out) == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: --out ")
    assert (out / "run.json").read_text() == "{"
