"""The signs of measuring errors, on figures as the reports gave them and on rows made to show one sign
each."""

import math
import os
import re
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.audit.table_audit import TableError, describe, read_table, signs
from tests.support.command import kvsweep

DATA = Path(__file__).parents[1] / "data"


def found(tmp_path, **columns):
    """Names and lines of the signs in a table."""
    pl.DataFrame(columns).write_csv(tmp_path / "table.csv")
    return {sign.name: sign.lines for sign in signs(read_table(str(tmp_path / "table.csv")))}


def test_the_reports_own_table_shows_their_faults():
    lines = describe(str(DATA / "report_ttft.csv"))
    assert (
        lines[0]
        == "share taken for a time: TTFT is 10 % of the total time in the baseline's rows: a share of it, not"
        " a measurement (line 2)"
    )
    assert (
        lines[1]
        == "perplexity without pruning: PPL is 51.91 at keep_ratio 1, 0.9, 0.8, 0.7: what was scored saw no"
        " pruned cache (lines 2, 3, 4, 5)"
    )
    names = [line.partition(":")[0] for line in lines]
    assert names[2:6] == ["nothing was dropped", "threshold never reached", "few samples", "first run slow"]
    assert (
        lines[6]
        == "first token too early: TTFT falls by 91 %, but pruning starts after the prompt's pass and cannot"
        " make the first token come earlier (lines 3, 4, 5)"
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
        (
            {"ttft": [0.0997, 0.1097, 0.0967, 0.0947], "total": [1.0, 1.1, 0.97, 0.95]},
            {"share taken for a time": [2, 3, 4, 5]},
        ),
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
        (
            {"cache_tokens": [512, 400, 0, 600], "tokens": [512] * 4},
            {"no entry in the cache": [4], "a cache longer than the text that was evaluated": [5]},
        ),
        ({"tokens": [512, 512, 512, 0], "prune_after": [64] * 4}, {"no token evaluated": [5]}),
        ({"ppl": [math.nan, math.nan, 21.0, math.inf]}, {"ppl NaN or infinite": [2, 3, 5]}),
    ],
)
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
    assert frame["keep_ratio"].to_list() == [1.0, 0.5, None] and frame["dense"].to_list() == [
        True,
        False,
        False,
    ]
    (line,) = describe(str(tmp_path / "x.csv"))
    assert (
        line.startswith("perplexity without pruning: PPL is 7.41 at keep_ratio 1, 0.5")
        and "(lines 2, 3)" in line
    )


@pytest.mark.parametrize("name", ["full cache", "Full-Cache", "dense", "Baseline"])
def test_a_baseline_is_known_by_its_name(tmp_path, name):
    (tmp_path / "x.csv").write_text(f"policy,ttft,samples\n{name},0.1,7\nknorm,0.02,7\n")
    assert [line.partition(":")[0] for line in describe(str(tmp_path / "x.csv"))] == ["first token too early"]


RATIO = "keep_ratio must be above 0 and at most 1"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            "keep_ratio,ppl\n1,7\n50,8\n",
            f"{RATIO} (line 3: 50), or all of the column in per cent, and line 2 has 1",
        ),
        ("keep_ratio,ppl\n1,7\n1.5,8\n", f"{RATIO} (line 3: 1.5)"),
        (
            "keep_ratio,ppl\n1,7\n\n0,8\n",
            f"{RATIO} (line 4: 0); is it the share that is dropped? take it from 1",
        ),
        ("keep_ratio,ppl\n-0.5,7\n", f"{RATIO} (line 2: -0.5)"),
        ("keep_ratio,ppl\nnan,7\n", f"{RATIO} (line 2: nan)"),
        ("keep_ratio,ppl\n120%,7\n", f"{RATIO} (line 2: 1.2)"),
        ("keep_ratio,ppl\n100,7\n101,7\n", f"{RATIO} (line 3: 1.01)"),
        ("keep_ratio,ttft\n1,10%\n", "ttft '10%' is a share in per cent (line 2); give the figure itself"),
        (
            'keep_ratio,ppl\n1,"7,41"\n0.5,7.41\n',
            "'7,41' (line 2) has a decimal comma and '0.5' (line 3) a decimal point",
        ),
        ('keep_ratio,total\n1,"1,299"\n', "'1,299' (line 2) may be 1.299 or 1299; write a decimal point"),
        ("keep_ratio,total\n1,1.2.99\n", "total '1.2.99' is not a number (line 2)"),
        ("keep_ratio,total\n1,1_000\n", "total '1_000' is not a number (line 2)"),
        ("keep_ratio,total\n1,=1+1\n", "total '=1+1' is not a number (line 2)"),
        ("keep_ratio,total\n1,\u0661\n", "is not a number (line 2)"),
        ("keep_ratio,total\n1,5 ms\n", "total '5 ms' is not a number (line 2)"),
        (
            "keep_ratio,TTFT (days)\n1,7\n",
            "the unit 'days' of column ttft is not known; times are in s, sec, seconds, ms",
        ),
        ("keep_ratio,ppl (nats)\n1,7\n", "the unit 'nats' of column ppl is not known"),
        ("keep_ratio,TTFT (ms)\n,s\n1,7\n", "column ttft is in ms by its heading and in s by line 2"),
        ("ppl,perplexity\n7,8\n", "columns 'ppl' and 'perplexity' both are ppl; leave one out"),
        ("policy,keep_ratio,ppl\ndense,1,7\nknorm,0.5\n", "line 3 has 2 columns and the heading 3"),
        (
            "keep_ratio,ppl\n1,7,41\n",
            "line 2 has 3 columns and the heading 2; a figure with a comma in a file of commas",
        ),
        ('ppl\n"7\n', "is no readable CSV file (line 2: unexpected end of data)"),
        ("keep_ratio;ppl\n1;\xa07\x1b\n", "ppl '7\ufffd' is not a number (line 2)"),
    ],
)
def test_what_would_be_misread_is_refused_with_its_line(tmp_path, content, part):
    (tmp_path / "x.csv").write_text(content, encoding="utf-8")
    with pytest.raises(TableError) as caught:
        describe(str(tmp_path / "x.csv"))
    assert part in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_table_that_is_refused_is_one_line_of_the_command(tmp_path):
    (tmp_path / "x.csv").write_text("keep_ratio,ttft\n1,10%\n")
    done = kvsweep("audit", "--table", "x.csv", folder=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout
    assert "ttft '10%' is a share in per cent (line 2)" in done.stderr


SHARES = """policy,keep_ratio,ppl,ttft,total,tokens,samples
dense,1,7.41,0.101,1299.99,1024,10
knorm,0.5,7.41,0.013,1300.5,1024,10
knorm,0.3,8.415,0.102,1301.25,1024,3
"""
SPELLINGS = {
    "per cent": SHARES.replace(",1,7", ",100,7").replace(",0.5,", ",50,").replace(",0.3,", ",30,"),
    "per cent signs": SHARES.replace(",1,7", ",100%,7").replace(",0.5,", ",50 %,").replace(",0.3,", ",30%,"),
    "per cent in the heading": (
        SHARES.replace("keep_ratio", "Keep ratio [%]")
        .replace(",1,7", ",100,7")
        .replace(",0.5,", ",50,")
        .replace(",0.3,", ",30.0,")
    ),
    "decimal commas": SHARES.replace(",", ";").replace(".", ","),
    "decimal commas and tabs": SHARES.replace(",", "\t").replace(".", ","),
    "decimal commas in quotes": re.sub(r"(\d+)\.(\d+)", r'"\1,\2"', SHARES),
    "points between thousands": re.sub(
        r"1(\d{3}),(\d+)", r"1.\1,\2", SHARES.replace(",", ";").replace(".", ",")
    ),
    "commas between thousands": re.sub(
        r",1(\d{3})(\.\d+)?,", r',"1,\1\2",', re.sub(r",1024,", ",1024 ,", SHARES)
    ),
    "spaces between thousands": re.sub(r",1(\d{3})", r",1 \1", SHARES),
    "apostrophes between thousands": re.sub(r",1(\d{3})", r",1'\1", SHARES),
    "milliseconds": (
        SHARES.replace("ttft", "TTFT (ms)")
        .replace("0.101", "101")
        .replace("0.013", "13")
        .replace("0.102", "102")
    ),
    "milliseconds by name": (
        SHARES.replace("ttft", "ttft_ms")
        .replace("0.101", "101")
        .replace("0.013", "13")
        .replace("0.102", "102")
    ),
    "powers": SHARES.replace("7.41", "741e-2"),
    "byte order mark and line ends": "\ufeff" + SHARES.replace("\n", "\r\n"),
    "policies by number": SHARES.replace("dense", "1").replace("knorm", "2"),
    "formulas for names": SHARES.replace("knorm", '"=HYPERLINK(""http://x"")"'),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_same_table_in_another_spelling_has_the_same_verdict(tmp_path, name):
    (tmp_path / "shares.csv").write_text(SHARES)
    (tmp_path / "x.csv").write_bytes(SPELLINGS[name].encode())
    expected = describe(str(tmp_path / "shares.csv"))
    assert [line.partition(":")[0] for line in expected] == [
        "perplexity without pruning",
        "few samples",
        "first token too early",
    ]
    assert describe(str(tmp_path / "x.csv")) == expected
    figures = [read_table(str(tmp_path / file)).drop("policy").rows() for file in ("shares.csv", "x.csv")]
    assert figures[1] == [pytest.approx(row) for row in figures[0]]


@pytest.mark.parametrize(
    ("heading", "name", "value"),
    [
        ("ppl (lower is better)", "ppl", 7.0),
        ("PPL (wikitext-2)", "ppl", 7.0),
        ("ppl ()", "ppl", 7.0),
        ("TTFT (mean)", "ttft", 7.0),
        ("TTFT (mean) (ms)", "ttft", 0.007),
        ('"TTFT [ms, lower is better]"', "ttft", 0.007),
        ("TTFT (in ms)", "ttft", 0.007),
        ("total (median of 5)", "total", 7.0),
        ("tokens (per window),ppl", "tokens", 7.0),
        ("ppl (wikitext-2/test)", "ppl", 7.0),
        ("ppl (10% of the text)", "ppl", 7.0),
        ("n (windows)", "samples", 7.0),
        ("model (hub name),ppl", "model", "7"),
        ("model (%),ppl", "model", "7"),
    ],
)
def test_brackets_that_hold_no_unit_are_remarks(tmp_path, heading, name, value):
    (tmp_path / "table.csv").write_text(f"{heading}\n7{',8' if heading.endswith(',ppl') else ''}\n")
    expected = [value] if isinstance(value, str) else pytest.approx([value])
    assert read_table(str(tmp_path / "table.csv"))[name].to_list() == expected


@pytest.mark.parametrize(
    "heading",
    [
        "TTFT (min)",
        "TTFT (h)",
        "ttft (ns)",
        "TTFT (% of total)",
        "TTFT (ms/token)",
        "TTFT (per token)",
        "TTFT (share)",
        "total (msec)",
        "TTFT (mean) (days)",
        '"TTFT (s, ms)"',
        "ppl (nats)",
        "ppl (log2)",
        "ppl (%)",
        "ppl (x10^3)",
        "cache_tokens (k)",
        "cache_tokens (MiB)",
    ],
)
def test_a_bracket_that_holds_a_unit_nobody_knows_is_refused(tmp_path, heading):
    (tmp_path / "table.csv").write_text(f"{heading}\n7\n")
    with pytest.raises(TableError, match=r"the unit .* of column .* is not known"):
        read_table(str(tmp_path / "table.csv"))


def test_a_column_of_spreads_is_not_the_figure(tmp_path):
    (tmp_path / "table.csv").write_text("ppl,ppl (std),TTFT (ms),TTFT (95% CI)\n7,0.1,20,3\n")
    frame = read_table(str(tmp_path / "table.csv"))
    assert frame["ppl"].to_list() == [7.0] and frame["ttft"].to_list() == [0.02]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "\n", ";;\n", "SEP=;\n", "  \r\n"])
def test_what_spreadsheets_put_before_the_heading_is_no_heading(tmp_path, first):
    (tmp_path / "table.csv").write_bytes(f"\ufeff{first}keep_ratio;ppl\n1;7,5\n0,5;8,25\n".encode())
    frame = read_table(str(tmp_path / "table.csv"))
    assert frame["ppl"].to_list() == [7.5, 8.25] and frame["line"].to_list() == [3, 4]


def test_columns_that_are_separated_by_something_else_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("sep=|\nkeep_ratio|ppl\n1|7\n")
    with pytest.raises(TableError, match=r"its columns are separated by '\|'; use a comma"):
        read_table(str(tmp_path / "table.csv"))


def test_a_row_of_units_below_the_heading_is_read_as_such(tmp_path):
    (tmp_path / "x.csv").write_text(
        "policy,keep_ratio,ttft,total,samples\n,%,(ms),s,\ndense,100,101,1.2,9\nknorm,50,13,1.2,9\n"
    )
    frame = read_table(str(tmp_path / "x.csv"))
    assert frame["line"].to_list() == [3, 4]
    assert frame["ttft"].to_list() == pytest.approx([0.101, 0.013]) and frame["keep_ratio"].to_list() == [
        1.0,
        0.5,
    ]


def test_lines_are_those_of_the_file_behind_empty_rows_and_cells_of_several_lines(tmp_path):
    (tmp_path / "x.csv").write_text('policy,ppl,samples\n\n"a\nb",0.5,9\n , ,\nc,0.4,9\n')
    assert describe(str(tmp_path / "x.csv")) == ["a figure that cannot be: PPL below 1 (lines 3, 6)"]


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999"])
def test_what_is_not_finite_is_a_sign_and_a_dash_is_nothing(tmp_path, value):
    (tmp_path / "x.csv").write_text(f"keep_ratio,ppl,samples\n1,7,9\n0.5,{value},9\n0.4,-,9\n0.3,–,9\n")
    assert describe(str(tmp_path / "x.csv")) == ["a figure that cannot be: ppl NaN or infinite (line 3)"]


def test_what_is_no_file_of_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"model,ppl\n\xe9,7\n")
    (tmp_path / "wide").write_bytes("ppl\n7\n".encode("utf-16"))
    (tmp_path / "long").write_text("ppl\n" + "7" * 200_000 + "\n")
    for name, part in (
        ("fifo", "a folder, a pipe or a device"),
        (".", "a folder, a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        ("gone", "No such file"),
        ("latin", "not UTF-8 text, byte 10"),
        ("wide", "not UTF-8 text, byte 0"),
        ("a\0b", "embedded null"),
        ("long", "field larger than field limit"),
    ):
        with pytest.raises(TableError, match="is no readable CSV file") as caught:
            describe(str(tmp_path / name) if "\0" not in name else name)
        assert part in str(caught.value) and str(caught.value).count("is no readable") == 1


@given(st.text(alphabet=st.sampled_from('ppl,keep_ratio;\t"\n\r0123456789.%-eE nai\0\x1b'), max_size=80))
@settings(max_examples=300)
def test_no_text_ends_in_anything_but_signs_or_a_table_error(text):
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="") as file:
        file.write("ppl,keep_ratio\n" + text)
        file.flush()
        try:
            said = describe(file.name)
        except TableError as error:
            said = [str(error)]
        assert all(line.strip() for line in said), "a sign or a refusal has words"


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


def test_the_command_names_the_lines_and_ends_with_3_where_there_are_signs(tmp_path):
    done = kvsweep("audit", "--table", DATA / "report_ttft.csv", folder=tmp_path)
    assert done.returncode == 3 and "first token too early" in done.stdout
    done = kvsweep("audit", "--table", DATA / "report_ucurve.csv", folder=tmp_path)
    assert (done.returncode, "none of the known signs" in done.stdout) == (0, True)
    done = kvsweep("audit", "--table", "gone.csv", folder=tmp_path)
    assert done.returncode == 2 and "gone.csv" in done.stderr and "Traceback" not in done.stderr
