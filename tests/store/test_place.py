"""Where a run may lie: what is taken, what is refused in one sentence, and that a refused run leaves nothing
behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.exclusion import PROBE
from pipeline.store.place import PlaceError, is_remote, placed
from pipeline.store.run_store import RunStore
from tests.support.rows import perplexity_row, write_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for first, second in (("a", "b"), ("b", "a")):
        (tmp_path / first).symlink_to(tmp_path / second)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("run", "{folder}/run"),
        ("./~", "{folder}/~"),
        ("~", "{folder}/home"),
        ("~/run", "{folder}/home/run"),
        ("file://{folder}/a%20run", "{folder}/a run"),
        ("file://localhost{folder}/run", "{folder}/run"),
        ("sp ace [1] ü%20", "{folder}/sp ace [1] ü%20"),
        ("s3://bucket/run/", "s3://bucket/run"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/a/run", "az://container/a/run"),
    ],
)
def test_a_place_has_one_spelling(given, found, folder):
    given, found = (text.replace("{folder}", str(folder)) for text in (given, found))
    assert placed(given) == found
    assert placed(found) == found
    assert is_remote(found) == (not found.startswith("/"))


REFUSED = {
    "": "an empty name is no place",
    "   ": "an empty name is no place",
    "a\nb": r"a\nb: holds a newline",
    "a\x1b[2Jb": "control character",
    "bytes-\udcff": "bytes that are no text",
    "line\u2028end": "holds a newline",
    "memory:///x": "memory:// is no place that keeps a run; give a path, file:///PATH, s3://BUCKET/NAME",
    "http://127.0.0.1:9/x": "http:// is no place that keeps a run",
    "hdfs://name/x": "hdfs:// is no place that keeps a run",
    "S3://bucket/x": "S3:// is no place that keeps a run",
    "s3:/bucket/x": "write two slashes behind s3:",
    "s3://": "names no bucket",
    "s3:///x": "names no bucket",
    "s3://key:secret@bucket/x": "holds a user or a password",
    "s3://bucket/a/../b": "which mean nothing in an object store",
    "s3://bucket//x": "which mean nothing in an object store",
    "s3://bucket/x?versionId=3": "holds ? or #",
    "file://host/x": "names the machine 'host'",
    "~nobody-of-that-name/x": "home directory",
    "a": "Symlink loop",
    "a/x": "Symlink loop",
    "dangling": "is a symbolic link to",
    "n" * 300: "File name too long",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_no_place_is_refused_in_one_printable_line(given):
    with pytest.raises(PlaceError) as caught:
        placed(given)
    assert REFUSED[given] in str(caught.value)
    assert str(caught.value).isprintable() and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "command", ["run {sweep} --inline --out", "status", "report", "compact", "export --to mlflow"]
)
@pytest.mark.parametrize("given", ["memory:///x", "a\nb", "a", ""])
def test_every_command_refuses_it_with_2_and_leaves_nothing(command, given, sweep_file, folder):
    words = command.format(sweep=sweep_file()).split()
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, [*words, given])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert REFUSED[given] in line and done.stdout == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("out", ["file", "file/x", "/proc/x/y", "/dev/null"])
def test_a_place_that_cannot_be_made_is_refused_in_one_line(out, sweep_file, folder):
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", out])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --out {out}: ")


def test_a_run_that_is_refused_takes_the_folders_that_it_made_away_again(sweep_file, folder, monkeypatch):
    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunStore, "put", full)
    (folder / "here").mkdir()
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "here/new/deep"])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
    assert (folder / "here").is_dir() and not any((folder / "here").iterdir())


def test_a_start_that_was_cut_off_leaves_a_directory_that_the_next_takes(sweep_file, folder, monkeypatch):
    put = RunStore.put

    def full_at_run_json(self: RunStore, name: str, content: bytes, **how: bool) -> bool:
        if name == "run.json":
            raise OSError(28, "No space left on device")
        return put(self, name, content, **how)

    monkeypatch.setattr(RunStore, "put", full_at_run_json)
    words = ["run", str(sweep_file()), "--inline", "--out", "new"]
    assert CliRunner().invoke(app, words).exit_code == 2
    assert not (folder / "new").exists()
    monkeypatch.undo()
    os.chdir(folder)
    assert CliRunner().invoke(app, words).exit_code == 0


def test_a_start_that_was_killed_as_it_tried_the_store_leaves_a_directory_that_the_next_takes(
    sweep_file, folder
):
    (folder / "new").mkdir()
    (folder / "new" / f"{PROBE}0123").touch()
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "new"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("given", ["~/page.html", "file://{folder}/home/page.html"])
def test_a_page_is_written_where_the_name_says(given, folder):
    (folder / "home").mkdir()
    write_run("run", {"perplexity": [perplexity_row()]})
    done = CliRunner().invoke(app, ["report", "run", "-o", given.replace("{folder}", str(folder))])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == str(folder / "home" / "page.html"), (
        done.output
    )


def test_a_page_that_cannot_be_written_there_is_refused_before_the_rows_are_read(folder):
    write_run("run", {"perplexity": [perplexity_row()]})
    done = CliRunner().invoke(app, ["report", "run", "-o", "s3://bucket/page.html"])
    assert done.exit_code == 2 and "give a path, and copy it there" in done.stderr
