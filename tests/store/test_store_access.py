"""Profiles of the AWS command line: read by boto3, seen in the signatures of real requests, or refused with
the variables."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.run_store import RunStore
from pipeline.store.store_access import access
from pipeline.store.store_errors import StoreError
from tests.support.rows import perplexity_row, write_run
from tests.support.s3_server import FaultyProxy, Proxied, reset, s3_server

pytestmark = pytest.mark.slow


class Listening(Proxied):
    """Remembers with which key each request was signed."""

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        self.server.asked.append(signed[1] if signed else "nobody")
        return super().forward(body)

    do_HEAD = Proxied.do_GET  # noqa: N815


@pytest.fixture
def aws(tmp_path, monkeypatch) -> Iterator[FaultyProxy]:
    """A store of somebody who has profiles and no variables."""
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    with s3_server() as address, FaultyProxy(address, "NONE", 0, reset) as proxy:
        proxy.RequestHandlerClass = Listening
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield proxy


def keys(profile: str, key: str) -> str:
    return f"[{profile}]\naws_access_key_id = {key}\naws_secret_access_key = secret-of-{key}\n"


SIGN_ON = (
    "[profile sso]\nsso_start_url = https://x.invalid\nsso_region = us-east-1\nsso_account_id ="
    " 1\nsso_role_name = r\n"
)


def told(text: str, file: str = "credentials") -> None:
    (Path.home() / ".aws" / file).write_text(text)


def write_there(tmp_path: Path) -> RunStore:
    local = write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    store = RunStore("s3://bucket/run")
    for file in Path(local).rglob("*.*"):
        store.put(str(file.relative_to(local)), file.read_bytes(), overwrite=True)
    return store


@pytest.mark.parametrize(("profile", "key"), [(None, "KEYOFDEFAULT"), ("work", "KEYOFWORK")])
def test_rows_are_written_and_read_with_the_profile_s_keys(profile, key, aws, monkeypatch, tmp_path):
    told(keys("default", "KEYOFDEFAULT") + keys("work", "KEYOFWORK"))
    told("[default]\nregion = us-east-1\n[profile work]\nregion = us-east-1\n", "config")
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    store = write_there(tmp_path)
    assert store.scan("perplexity").collect().height == 1
    assert {said for said in aws.asked if said.startswith("KEY") or said == "nobody"} == {key}


def test_an_endpoint_of_a_profile_needs_no_region(aws, monkeypatch, tmp_path):
    address = aws.address
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "own")
    told(keys("own", "KEYOFOWN"))
    told(f"[profile own]\nendpoint_url = {address}\n", "config")
    found = access("s3://bucket/run")
    assert (
        found.settings["endpoint"] == address
        and found.scanning["storage_options"]["aws_endpoint_url"] == address
    )
    assert write_there(tmp_path).scan("perplexity").collect().height == 1
    assert {said for said in aws.asked if said.startswith("KEY")} == {"KEYOFOWN"}


def test_a_role_that_is_refused_is_told_in_one_line(aws, monkeypatch):
    """The server knows no role of that name, and answers so."""
    told(keys("base", "KEYOFBASE"))
    told(
        "[profile role]\nrole_arn = arn:aws:iam::1:role/none\nsource_profile = base\nregion = us-east-1\n",
        "config",
    )
    monkeypatch.setenv("AWS_PROFILE", "role")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"{aws.address}/no-such-service")
    with pytest.raises(StoreError, match="AWS_PROFILE is role, and gives no credentials"):
        access("s3://bucket/run")


def test_variables_go_before_a_profile(aws, monkeypatch, tmp_path):
    told(keys("default", "KEYOFDEFAULT"))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "KEYOFENV",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    assert write_there(tmp_path).scan("perplexity").collect().height == 1
    assert {said for said in aws.asked if said.startswith("KEY")} == {"KEYOFENV"}


@pytest.mark.parametrize(
    ("files", "profile", "said"),
    [
        ({}, "absent", "AWS_PROFILE is absent, and gives no credentials"),
        ({"config": SIGN_ON}, "sso", "AWS_PROFILE is sso, and gives no credentials"),
        ({"credentials": "[default]\n"}, None, "credentials is there, and holds no credentials"),
        ({"credentials": "no file of that kind\n"}, None, "credentials is there, and gives no credentials"),
    ],
)
def test_a_profile_that_gives_nothing_is_refused_at_once_with_the_variables_that_are_read(
    files, profile, said, aws, monkeypatch, sweep_file
):
    for file, text in files.items():
        told(text, file)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "s3://bucket/run"])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert said in line and "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in line


def test_without_boto3_a_profile_is_refused_with_what_to_install(aws, monkeypatch):
    imported = builtins.__import__

    def without_boto3(name: str, *rest: object) -> object:
        if name == "boto3":
            raise ImportError(name)
        return imported(name, *rest)  # pyright: ignore

    told(keys("default", "KEYOFDEFAULT"))
    monkeypatch.setattr(builtins, "__import__", without_boto3)
    with pytest.raises(StoreError, match=r"pip install 'kvsweep\[aws\]', or set AWS_ACCESS_KEY_ID"):
        access("s3://bucket/run")


def test_a_config_that_names_a_region_alone_asks_for_nothing(aws):
    told("[default]\nregion = eu-west-1\n", "config")
    assert access("s3://bucket/run").settings == {}
