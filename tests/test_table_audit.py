"""The signs of measuring errors, on figures as the reports gave them and on rows made to show one sign each."""

import math
from pathlib import Path

import polars as pl
import pytest

from analysis.table_audit import TableError, describe, read_table, signs
from tests.command import kvsweep

DATA = Path(__file__).parent / "data"


def found(tmp_path, **columns):
    """Names and lines of the signs in a table."""
    pl.DataFrame(columns).write_csv(tmp_path / "table.csv")
    return {sign.name: sign.lines for sign in signs(read_table(str(tmp_path / "table.csv")))}


def test_the_reports_own_table_shows_their_faults():
    lines = describe(str(DATA / "report_ttft.csv"))
    assert lines[0] == (
        "share taken for a time: TTFT is 10 % of the total time in the baseline's rows: a share of it, not a measurement (line 2)"
    )
    assert lines[1] == (
        "perplexity without pruning: PPL is 51.91 at keep_ratio 1, 0.9, 0.8, 0.7: what was scored saw no pruned cache "
        "(lines 2, 3, 4, 5)"
    )
    names = [line.partition(":")[0] for line in lines]
    assert names[2:6] == ["nothing was dropped", "threshold never reached", "few samples", "first run slow"]
    assert lines[6] == (
        "first token too early: TTFT falls by 91 %, but pruning starts after the prompt's pass and cannot make the first token "
        "come earlier (lines 3, 4, 5)"
    )
    assert any("PPL is 39.49" in line and "(lines 6, 7)" in line for line in lines)


def test_a_table_without_a_sign_has_none():
    """The U-curve of the reports was measured: what is wrong there is the conclusion, not the figures."""
    assert describe(str(DATA / "report_ucurve.csv")) == []


HONEST = {
    "keep_ratio": [1.0, 0.9, 0.7, 0.5],
    "ttft": [0.1, 0.101, 0.1, 0.102],
    "total": [1.0, 1.1, 0.97, 0.9],
    "samples": [7] * 4,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ttft": [0.101, 0.1, 0.1, 0.1]}, {}),
        ({"ttft": [0.0997, 0.1097, 0.0967, 0.0947], "total": [1.0, 1.1, 0.97, 0.95]}, {"share taken for a time": [2, 3, 4, 5]}),
        ({"total": [2.0, 1.1, 0.97, 0.9]}, {"first run slow": [2]}),
        ({"samples": [7, 4, 7, 7]}, {"few samples": [3]}),
        ({"keep_ratio": [0.95, 0.9, 0.7, 0.5]}, {"no baseline": [2, 3, 4, 5]}),
        ({"ttft": [0.101, 0.09, 0.102, 0.1]}, {"first token too early": [3]}),
        ({"ppl": [20.0, 21.0, 20.0, 22.0]}, {"perplexity without pruning": [2, 4]}),
        ({"prune_after": [64, 64, 512, 64], "tokens": [512] * 4}, {"threshold never reached": [4]}),
        ({"cache_tokens": [512, 400, 512, 300], "tokens": [512] * 4}, {"nothing was dropped": [4]}),
    ],
)
def test_each_sign_is_seen_alone_and_only_where_it_is(tmp_path, change, expected):
    honest = HONEST | {"ttft": [0.101, 0.101, 0.1, 0.102]}
    assert found(tmp_path, **honest) == {}
    assert found(tmp_path, **(honest | change)) == expected


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"ppl": [20.0, 0.9, 21.0, -5.0]}, {"PPL below 1": [3, 5]}),
        ({"ttft": [0.101, -0.1, 0.0, 0.102]}, {"TTFT not above 0": [3, 4]}),
        ({"total": [1.0, 1.1, -0.97, 0.9]}, {"a total time not above 0": [4]}),
        ({"ttft": [0.101, 1.2, 0.1, 0.102]}, {"TTFT above the total time": [3]}),
        ({"samples": [7, 7, 0, -2]}, {"fewer than 1 sample": [4, 5]}),
        ({"prune_after": [64, -1, 64, 64]}, {"a negative threshold": [3]}),
        ({"cache_tokens": [512, 400, 0, 600], "tokens": [512] * 4},
         {"no entry in the cache": [4], "a cache longer than the text that was evaluated": [5]}),
        ({"tokens": [512, 512, 512, 0], "prune_after": [64] * 4}, {"no token evaluated": [5]}),
        ({"ppl": [math.nan, math.nan, 21.0, math.inf]}, {"ppl NaN or infinite": [2, 3, 5]}),
    ],
)  # fmt: skip
def test_figures_that_cannot_be_are_a_sign_and_no_other_sign_rests_on_them(tmp_path, change, lines):
    pl.DataFrame(HONEST | {"ttft": [0.101, 0.101, 0.1, 0.102]} | change).write_csv(tmp_path / "table.csv")
    seen = signs(read_table(str(tmp_path / "table.csv")))
    assert {sign.name for sign in seen} == {"a figure that cannot be"}
    assert {sign.words: sign.lines for sign in seen} == lines


@pytest.mark.parametrize("dense", ["1", "1.0", "100%", "100.0 %"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_share_may_be_written_in_per_cent_and_columns_end_in_other_marks(tmp_path, dense, separator):
    table = f"keep_ratio,ppl,samples\n{dense},7.41,7\n50%,7.41,7\n-,9.5,7\n".replace(",", separator)
    (tmp_path / "x.csv").write_text(table, encoding="utf-8-sig")
    frame = read_table(str(tmp_path / "x.csv"))
    assert frame["keep_ratio"].to_list() == [1.0, 0.5, None] and frame["dense"].to_list() == [True, False, False]
    (line,) = describe(str(tmp_path / "x.csv"))
    assert line.startswith("perplexity without pruning: PPL is 7.41 at keep_ratio 1, 0.5") and "(lines 2, 3)" in line


@pytest.mark.parametrize("name", ["full cache", "Full-Cache", "dense", "Baseline"])
def test_a_baseline_is_known_by_its_name(tmp_path, name):
    (tmp_path / "x.csv").write_text(f"policy,ttft,samples\n{name},0.1,7\nknorm,0.02,7\n")
    assert [line.partition(":")[0] for line in describe(str(tmp_path / "x.csv"))] == ["first token too early"]


RATIO = "keep_ratio must be above 0 and at most 1"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("keep_ratio,ppl\n1,7\n50,8\n", f"{RATIO} (line 3: 50); is it a percentage? divide by 100"),
        ("policy,keep_ratio,ppl\ndense,100,7\nknorm,50,7\n", f"{RATIO} (line 2: 100); is it a percentage? divide by 100"),
        ("keep_ratio,ppl\n1,7\n1.5,8\n", f"{RATIO} (line 3: 1.5)"),
        ("keep_ratio,ppl\n1,7\n\n0,8\n", f"{RATIO} (line 4: 0); is it the share that is dropped? take it from 1"),
        ("keep_ratio,ppl\n-0.5,7\n", f"{RATIO} (line 2: -0.5)"),
        ("keep_ratio,ppl\nnan,7\n", f"{RATIO} (line 2: nan)"),
        ("keep_ratio,ppl\n120%,7\n", f"{RATIO} (line 2: 1.2)"),
        ('keep_ratio,ppl\n1,7\n"0,5",8\n', "keep_ratio '0,5' is not a number (line 3); write a decimal point"),
        ("keep_ratio;ppl\n1;7,41\n", "ppl '7,41' is not a number (line 2); write a decimal point"),
        ('keep_ratio,total\n1,"1.299,99"\n', "total '1.299,99' is not a number (line 2); write a decimal point"),
        ('keep_ratio,total\n1,"1,299.99"\n', "total '1,299.99' is not a number (line 2); write a decimal point"),
        ("keep_ratio,ttft\n1,10%\n", "ttft '10%' is a share in per cent (line 2); give the figure itself"),
        ("policy,ttft\n,ms\n", "ttft 'ms' is not a number (line 2)"),
    ],
)  # fmt: skip
def test_what_would_be_misread_is_refused_with_its_line(tmp_path, content, part):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(TableError) as caught:
        describe(str(tmp_path / "x.csv"))
    assert part in str(caught.value)
    done = kvsweep("audit", "--table", "x.csv", folder=tmp_path)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_models_and_datasets_are_judged_apart(tmp_path):
    assert found(tmp_path, model=["a", "b"], keep_ratio=[1.0, 1.0], ppl=[20.0, 20.0]) == {}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a,b\n1,2\n", "none of its columns (a, b)"),
        ("ppl,keep_ratio\nlow,1\n", "is not a number"),
        ("ppl,samples\n", "no rows"),
        ("", "is no readable CSV"),
    ],
)
def test_what_is_no_table_of_results_is_refused(tmp_path, content, part):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(TableError, match=r"x\.csv") as caught:
        describe(str(tmp_path / "x.csv"))
    assert part in str(caught.value)


def test_the_command_names_the_lines_and_ends_with_1_where_there_are_signs(tmp_path):
    done = kvsweep("audit", "--table", DATA / "report_ttft.csv", folder=tmp_path)
    assert done.returncode == 1 and "first token too early" in done.stdout
    done = kvsweep("audit", "--table", DATA / "report_ucurve.csv", folder=tmp_path)
    assert (done.returncode, "none of the known signs" in done.stdout) == (0, True)
    done = kvsweep("audit", "--table", "gone.csv", folder=tmp_path)
    assert done.returncode == 2 and "gone.csv" in done.stderr and "Traceback" not in done.stderr
