"""A few hundred of the fuzz tool's inputs for each of the five readers; the whole of it is `python -m
tools.fuzz_readers`."""

from __future__ import annotations

import pytest

from tools import fuzz_readers
from tools.fuzz_readers import READERS, Maker, Reader, fuzz

INPUTS = {"sweep file": 40, "run.json": 400, "parts": 8, "config.json": 12, "foreign table": 60}
"""As many as take a second or two."""


@pytest.mark.parametrize("name", READERS)
def test_made_up_and_damaged_input_is_read_or_refused_in_words(name):
    tally = fuzz(name, seed=10_000, seconds=20, slowest=30, most=INPUTS[name])
    assert not tally.findings
    assert tally.tried >= INPUTS[name] / 4 and 0 < tally.refused < tally.tried


@pytest.mark.parametrize("name", READERS)
def test_one_seed_gives_one_input(name):
    first, again, other = (READERS[name].make(Maker(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_what_is_no_refusal_is_found_kept_and_counted(tmp_path, monkeypatch):
    def read(content: bytes, folder: object) -> None:
        raise KeyError(content) if content[0] % 2 else ValueError("understood")

    monkeypatch.setitem(
        READERS, "run.json", Reader(lambda maker: maker.rng.randbytes(3), read, (ValueError,))
    )
    tally = fuzz("run.json", seed=0, seconds=5, slowest=30, keep=tmp_path, most=50)
    assert tally.tried == 50 == tally.refused + tally.findings.total()
    assert all(finding.startswith("KeyError at ") for finding in tally.findings) and tally.findings
    assert len(list(tmp_path.iterdir())) == len(tally.findings)
    assert fuzz_readers.READERS["run.json"].make(Maker(0))
