"""A store that keeps no second writer out is found before anything runs: real requests to a server that
forgets the condition."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus

import obstore
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.run_store import RunStore
from tests.support.rows import perplexity_row, write_run
from tests.support.s3_server import FaultyProxy, Proxied, reset, s3_server, settings, store_and_reset

pytestmark = pytest.mark.slow


class Forgetful(Proxied):
    """A server that does not know ``If-None-Match``: drops it, or answers by ``status``."""

    status: int | None = None

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        for name in [name for name in self.headers if name.lower() == "if-none-match"]:
            if self.status is not None:
                code = HTTPStatus(self.status).phrase.replace(" ", "")
                return (
                    self.status,
                    [],
                    f"<Error><Code>{code}</Code><Message>unknown header</Message></Error>".encode(),
                )
            del self.headers[name]
        return super().forward(body)


def proxied(behind: str, status: int | None) -> FaultyProxy:
    proxy = FaultyProxy(behind, "NONE", 0, reset)
    proxy.RequestHandlerClass = type("Answering", (Forgetful,), {"status": status})
    return proxy


@pytest.fixture(params=[None, 501, 400], ids=["drops it", "501", "400"])
def forgetful(request, monkeypatch) -> Iterator[FaultyProxy]:
    with s3_server() as address, proxied(address, request.param) as proxy:
        for name, value in settings(proxy.address).items():
            monkeypatch.setenv(name, value)
        yield proxy


def objects(url: str) -> list[str]:
    return [meta["path"] for batch in obstore.list(RunStore(url).store) for meta in batch]


def test_a_run_there_is_refused_in_words_and_leaves_nothing(forgetful, sweep_file):
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "s3://bucket/run"])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --out s3://bucket/run: this store ") and "give a local directory" in line
    assert objects("s3://bucket/run") == []


def test_an_existing_run_is_neither_taken_up_nor_compacted_but_read(forgetful, sweep_file, tmp_path):
    local = write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    store = RunStore("s3://bucket/run")
    for file in (tmp_path / "run").rglob("*.*"):
        store.put(str(file.relative_to(local)), file.read_bytes(), overwrite=True)
    before = objects("s3://bucket/run")
    for words in (["run", str(sweep_file()), "--inline", "--retry-failed", "--out"], ["compact"]):
        done = CliRunner().invoke(app, [*words, "s3://bucket/run"])
        assert done.exit_code == 2 and "this store " in done.stderr, done.output
    assert objects("s3://bucket/run") == before
    done = CliRunner().invoke(app, ["report", "s3://bucket/run", "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("fault", [reset, store_and_reset], ids=["lost", "answer lost"])
def test_a_request_that_is_lost_on_the_way_is_no_sign_of_it(
    fault: Callable[[Proxied, bytes], None], monkeypatch, sweep_file
):
    with s3_server() as address, FaultyProxy(address, "PUT", 2, fault) as proxy:
        for name, value in settings(proxy.address).items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "s3://bucket/run"])
        assert done.exit_code == 0, done.output
        assert not [name for name in objects("s3://bucket/run") if "probe" in name]


def test_whatever_the_store_does_no_part_replaces_another(monkeypatch):
    """Even where nothing is excluded: two drivers that know nothing of each other put one unit's rows."""
    with s3_server() as address, proxied(address, None) as proxy:
        for name, value in settings(proxy.address).items():
            monkeypatch.setenv(name, value)
        from pipeline.store.schema import to_arrow

        tables = [to_arrow("perplexity", [perplexity_row(number)]) for number in range(3)]
        threads = [
            threading.Thread(
                target=lambda rows=rows: RunStore("s3://bucket/run").add_part("perplexity", "unit", rows)
            )
            for rows in tables
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(RunStore("s3://bucket/run").scan("perplexity").collect()["window_index"]) == [0, 1, 2]
