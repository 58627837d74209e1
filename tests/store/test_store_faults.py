"""Transient faults of an object store: requests that fail or whose answer is lost, over real connections."""

import time

import pytest

from pipeline.store.run_store import CREATE_ATTEMPTS, RETRIES, STORE_ERRORS, RunStore
from pipeline.store.schema import to_arrow
from pipeline.store.store_errors import StoreError
from tests.support import s3_server
from tests.support.rows import perplexity_row
from tests.support.s3_server import FaultyProxy

pytestmark = pytest.mark.slow

ALWAYS = 10**9


@pytest.fixture(scope="module")
def address():
    with s3_server.s3_server() as found:
        yield found


@pytest.fixture
def faulty(address, monkeypatch, request):
    """``faulty(fault, times)``: a proxy whose first PUTs go wrong, and a run directory of this test behind
    it."""
    opened = []

    def start(fault, times: int, method: str = "PUT") -> tuple[FaultyProxy, RunStore]:
        proxy = FaultyProxy(address, method, times, fault).__enter__()
        opened.append(proxy)
        for name, value in s3_server.settings(proxy.address).items():
            monkeypatch.setenv(name, value)
        return proxy, RunStore(f"s3://bucket/{abs(hash(request.node.name))}")

    yield start
    for proxy in opened:
        proxy.__exit__()


PART = to_arrow("perplexity", [perplexity_row(1)])


@pytest.mark.parametrize(
    "fault",
    [s3_server.unavailable, s3_server.reset, s3_server.store_and_reset, s3_server.store_and_fail],
    ids=lambda f: f.__name__,
)
def test_a_part_survives_a_few_faults_and_is_stored_once(fault, faulty):
    proxy, store = faulty(fault, 3)
    name = store.add_part("perplexity", "u", PART)
    assert proxy.left == 0 or fault is s3_server.store_and_reset, (
        "which sees after the first that the part is there"
    )
    assert store.parts("perplexity") == [name]


@pytest.mark.parametrize("fault", [s3_server.unavailable, s3_server.reset], ids=lambda f: f.__name__)
def test_a_page_that_replaces_another_survives_too(fault, faulty):
    _, store = faulty(fault, 2)
    assert store.put("report.html", b"1", overwrite=True) and store.get("report.html") == b"1"


def test_a_part_of_another_that_came_first_is_not_taken_for_ours_after_a_fault(faulty):
    _, store = faulty(s3_server.reset, 0)
    assert store.put("x", b"theirs")
    proxy, store = faulty(s3_server.reset, 2)
    assert store.put("x", b"ours") is False
    assert store.get("x") == b"theirs" and proxy.asked.count("PUT") == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (s3_server.unavailable, "the store fails (503, asked 11 times)"),
        (s3_server.reset, "the store cannot be reached; check the endpoint"),
    ],
)
def test_faults_without_end_stop_with_one_clear_line(fault, said, faulty):
    proxy, store = faulty(fault, ALWAYS)
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        store.add_part("perplexity", "u", PART)
    assert time.monotonic() - started < 60
    assert isinstance(caught.value, STORE_ERRORS)
    assert said in str(caught.value) and str(caught.value).startswith(store.directory)
    assert len(str(caught.value).splitlines()) == 1
    assert proxy.asked.count("PUT") <= CREATE_ATTEMPTS * (1 + RETRIES.get("max_retries", 0))
    assert store.parts("perplexity") == []


@pytest.mark.parametrize("fault", [s3_server.unavailable, s3_server.reset], ids=lambda f: f.__name__)
def test_reading_survives_faults(fault, faulty):
    _, store = faulty(fault, 0)
    store.put("run.json", b"{}")
    _, store = faulty(fault, 3, "GET")
    assert store.get("run.json") == b"{}"
