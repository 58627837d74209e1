"""How a dataset becomes tokens, from the sweep file to the rows: special tokens that it spells."""

import shutil

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from pipeline.driving.provenance import describe_run
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import kvsweep, run_inline
from tests.support.tokenizers_made import saved, unigram_style

END = 256
"""The tiny model's end of text, ``<|endoftext|>``."""


@pytest.fixture
def plan_of(sweep_file):
    """``plan_of(key="YAML", ...)``: the plan of a small sweep with these keys."""
    return lambda **keys: make_plan(load_spec(str(sweep_file(**keys))))


@pytest.fixture
def spelling(tmp_path, text_file):
    """A dataset that spells the end of text twice, as a prose about language models does."""
    file = tmp_path / "spelling.txt"
    file.write_text("The tag <|endoftext|> ends a text. <|endoftext|>" + text_file.read_text())
    return f"text:{file}"


def test_spelled_special_tokens_are_counted_and_the_plan_says_how_they_are_read(
    plan_of, spelling, tiny_model_dir
):
    literal = plan_of(datasets=f'["{spelling}"]')
    parsed = plan_of(datasets=f'["{spelling}"]', special_tokens_in_text="parse")
    counted = f"{spelling} spells 2 special tokens of {tiny_model_dir}"
    assert f"{counted}; read as letters (special_tokens_in_text: literal)" in literal.notes
    assert f"{counted}; read as the tokens of that name (special_tokens_in_text: parse)" in parsed.notes
    assert not any("special" in note for note in plan_of().notes)
    (listed,) = describe_run(parsed, None)["datasets"]
    assert listed["special_tokens_spelled"] == 2

    (ids,), (read,) = ([t.ids for t in plan.resolved.tokens.values()] for plan in (literal, parsed))
    assert END not in ids and np.count_nonzero(read == END) == 2
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    assert tokenizer.decode(ids.tolist()).startswith("The tag <|endoftext|> ends")
    assert {c.cell_id for c in literal.grid.cells}.isdisjoint(c.cell_id for c in parsed.grid.cells)


def test_rows_say_how_special_tokens_were_read(sweep_file, spelling, out):
    for how in ("literal", "parse"):
        assert run_inline(sweep_file(datasets=f'["{spelling}"]', special_tokens_in_text=how), out) == 0
    rows = RunStore(str(out)).scan("perplexity").collect()
    dense = (
        rows.filter(pl.col("policy") == "dense")
        .group_by("special_tokens_in_text")
        .agg(pl.col("nll_sum").sum())
    )
    dense = dense.sort("special_tokens_in_text")
    assert dense["special_tokens_in_text"].to_list() == ["literal", "parse"]
    assert dense["nll_sum"].n_unique() == 2


def test_a_text_whose_special_tokens_cannot_be_letters_is_refused(
    sweep_file, spelling, tmp_path, tiny_model_dir
):
    folder = tmp_path / "pieces"
    shutil.copytree(tiny_model_dir, folder)
    saved(unigram_style(), folder)
    file = tmp_path / "pieces.txt"
    file.write_text("The tag </s> ends a text. " * 20)
    sweep = sweep_file(models=f"[{folder}]", datasets=f'["text:{file}"]')
    done = kvsweep("run", sweep, "--inline", "--out", "out", folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert (
        "spells </s>, which this tokenizer reads as control tokens" in done.stderr
        and str(folder) in done.stderr
    )


def test_another_way_to_read_them_is_refused_with_what_is_allowed(sweep_file):
    with pytest.raises(
        SweepError, match=r"special_tokens_in_text: should be 'literal' or 'parse' \(got \"skip\"\)"
    ):
        load_spec(str(sweep_file(special_tokens_in_text="skip")))
