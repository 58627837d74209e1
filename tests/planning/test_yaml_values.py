"""Whatever is written as YAML ends soon: in values, or in one line that says where and what."""

import datetime
import json
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.planning import spec as specs
from pipeline.planning.spec import load_spec
from pipeline.sweepfile import yaml_values
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.yaml_values import MAX_VALUES, YamlError, read_yaml
from tests.planning.test_spec import VALID

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x0: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 20)}]}}\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
DEEP_BY_ALIAS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))

FAULTS = {
    "alias bomb": (BOMB, "more than 500,000 values, aliases followed", 6),
    "merge bomb": (MERGE_BOMB, "more than 500,000 values, aliases followed", 6),
    "deep by aliases": (DEEP_BY_ALIAS, "nested more than 20 deep, aliases followed", 20),
    "200,000 brackets": ("a: " + "[" * 200_000, "nested more than 20 deep", 1),
    "200,000 braces": ("a: " + "{a: " * 50_000, "nested more than 20 deep", 1),
    "block nesting": ("".join("  " * n + "a:\n" for n in range(60)), "nested more than 20 deep", 21),
    "alias to itself": ("a: &a [1, *a]", "the alias a stands within what it names", 1),
    "alias to itself as key": ("a: &a {*a : 1}", "the alias a stands within what it names", 1),
    "alias as key": ("b: &b x\na: {*b : 1}", "an alias as a key", 2),
    "unknown alias": ("a: *b", "undefined alias b", 1),
    "set": ("a: !!set {x}", "a mapping with the tag tag:yaml.org,2002:set", 1),
    "omap": ("a: !!omap [x: 1]", "a list with the tag", 1),
    "pairs": ("a: !!pairs [x: 1]", "a list with the tag", 1),
    "binary": ("a: !!binary aGk=", "a value with the tag tag:yaml.org,2002:binary", 1),
    "timestamp": ("a: !!timestamp 2026-01-01", "a value with the tag", 1),
    "python": ("a: !!python/object/apply:os.system [id]", "a list with the tag", 1),
    "tagged mapping": ("a: !mine {x: 1}", "a mapping with the tag !mine", 1),
    "tagged key": ("!!binary aGk=: 1", "a value with the tag", 1),
    "list as key": ("? [a]\n: 1", "a list as a key", 1),
    "mapping as key": ("{{a: 1}: 2}", "a mapping as a key", 1),
    "key twice": ("a: 1\nb: 2\na: 3", 'duplicate key "a", which stands in line 1 too', 3),
    "million digits": ("a: " + "9" * 10**6, "a number of 1,000,000 digits; 1,000 is the most", 1),
    "million hexadecimal digits": ("a: 0x" + "f" * 10**6, "digits; 1,000 is the most", 1),
    "not a number": ("a: !!int x", "x is no whole number", 1),
    "not a float": ("a: !!float x", "x is no number", 1),
    "not a truth": ("a: !!bool x", "x is not true or false", 1),
    "half a character": ('a: "\\ud800"', "half a character", 1),
    "half a character as key": ('"\\udfff": 1', "half a character", 1),
    "half a character as it stands": ("a: b\nc: \ud800", "half a character (\\ud800)", 2),
    "beyond Unicode": ('a: "\\Uffffffff"', "not valid YAML", 0),
    "merge of a number": ("a: {<<: 1}", "<< takes a mapping", 1),
    "merge of numbers": ("a: {<<: [1]}", "<< takes a mapping", 1),
    "NUL": ("a: \0", "\\x00 is not allowed", 1),
    "YAML 1.1": ("%YAML 1.1\n---\na: yes", "YAML 1.2 is read", 2),
    "unknown handle": ("a: !x!y 1", "not valid YAML", 1),
    "broken tag": ("a: !<%zz> 1", "not valid YAML", 1),
    "tab": ("a:\n\t- 1", "not valid YAML", 2),
    "open": ("a: [1", "not valid YAML", 1),
    "two": ("a: 1\n---\nb: 1", "another document", 2),
}


@pytest.fixture(autouse=True)
def _ends_soon():
    """Two minutes are no measure of speed: what is read without a bound takes longer than a universe."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_plain_yaml_is_one_line_with_its_place(name):
    text, part, line = FAULTS[name]
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert caught.value.line == line


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_and_an_option_are_read_by_the_same_rules(tmp_path, name):
    text, part, line = FAULTS[name]
    if "\ud800" not in text:
        file = tmp_path / "s.yaml"
        file.write_text(text)
        with pytest.raises(SweepError) as caught:
            load_spec(str(file))
        (told,) = caught.value.faults
        assert told.startswith(f"{file}:{line}:" if line else f"{file}: ") and part in told
    with pytest.raises(SweepError) as caught:
        load_spec(None, [f"exclude={text}"])
    (told,) = caught.value.faults
    assert told.startswith("--set exclude=") and part in told and "\n" not in told


def test_plain_values_are_those_of_yaml_1_2():
    text = """
a: [0x1F, 0o17, 0b11, 1_000, -3, +4, 010, 1:30, 9e3, .5, -.inf, 1., 2026-01-01,
    yes, No, TRUE, ~, null, '5', !!str 6, ! 7]
b: &b {x: 1, y: 2}
c: {<<: *b, y: 3}
d: {<<: [{x: 7}, *b], z: "a\\u00e9\\n"}
e: |
  two
  lines
1: one
null: none
"""
    assert read_yaml(text).plain() == {
        "a": [
            31,
            15,
            3,
            1000,
            -3,
            4,
            10,
            "1:30",
            9000.0,
            0.5,
            float("-inf"),
            1.0,
            "2026-01-01",
            "yes",
            "No",
            True,
            None,
            None,
            "5",
            "6",
            "7",
        ],
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": {"x": 7, "y": 2, "z": "a\u00e9\n"},
        "e": "two\nlines\n",
        "1": "one",
        "null": "none",
    }


def test_as_many_values_as_are_allowed_are_read(monkeypatch):
    monkeypatch.setattr(yaml_values, "MAX_VALUES", 100)
    assert len(read_yaml(f"[{', '.join(['1'] * 99)}]").plain()) == 99
    with pytest.raises(YamlError, match="more than 100 values"):
        read_yaml(f"[{', '.join(['1'] * 100)}]")
    assert MAX_VALUES >= 100_000


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)


def _by_default(value):
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


@given(VALUES)
@settings(max_examples=100)
def test_values_are_what_ruamel_reads(value):
    """The judge is the library's own loader of YAML 1.2, on what Python writes as JSON, a subset of it."""
    text = json.dumps(value, default=_by_default, ensure_ascii=False)
    try:
        theirs = YAML(typ="safe", pure=True).load(text)
    except Exception:
        theirs = None
    if theirs is not None:
        assert json.dumps(read_yaml(text).plain()) == json.dumps(theirs, default=_by_default)


@given(st.text(alphabet=st.sampled_from("ab:-?[]{},&*!|>'\"%@`#<~ \n\t0.\\ux\0\ud800é"), max_size=60))
@settings(max_examples=300)
def test_no_text_ends_in_anything_but_values_or_a_yaml_error(text):
    told = "values"
    try:
        json.dumps(read_yaml(text).plain(), default=_by_default)
    except YamlError as error:
        told = str(error)
    assert told.strip() and "\n" not in told


def test_files_that_are_no_sweep_files_are_refused_without_being_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30)
    for path, part in (
        ("/dev/zero", "is a pipe or a device"),
        (str(tmp_path / "fifo"), "is a pipe or a device"),
        (str(tmp_path), "it is a directory"),
        (str(tmp_path / "loop"), "there is no such sweep file"),
        ("a\0b", "a\\x00b"),
        (str(tmp_path / "large"), "longer than 8 MiB"),
        ("~nobody-of-that-name/x", "there is no such sweep file"),
        ("../sweeps/default", "there is no such sweep file"),
        ("x" * 5000, "there is no such sweep file"),
        ("half\ud800", "half\\ud800"),
        ("two\nlines", "two\\nlines"),
    ):
        with pytest.raises(SweepError) as caught:
            load_spec(path)
        (told,) = caught.value.faults
        assert part in told and "\n" not in told and len(told) < 500


def test_line_ends_a_byte_order_mark_and_characters_written_as_two_halves_change_nothing(tmp_path):
    file = tmp_path / "s.yaml"
    assert read_yaml('"\\ud83d\\ude00"').plain() == "\U0001f600"
    for text in (VALID.replace("\n", "\r\n"), VALID.replace("\n", "\r"), "\ufeff" + VALID):
        file.write_bytes(text.encode())
        assert load_spec(str(file)).name == "x"


def test_a_mistake_in_ten_thousand_places_is_told_in_some_and_counted(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(VALID + "exclude:\n" + "- {policys: [knorm]}\n" * 300)
    with pytest.raises(SweepError) as caught:
        load_spec(str(file))
    assert len(caught.value.faults) == specs.FAULTS_SHOWN + 1
    assert caught.value.faults[-1] == "and 250 more faults of this kind"

    file.write_text(VALID + "exclude:\n" + "- {prune_after: [7]}\n" * 300)
    with pytest.raises(SweepError) as caught:
        load_spec(str(file))
    assert len(caught.value.faults) == specs.FAULTS_SHOWN + 1
    file.write_text(
        VALID.replace("[0.9, 0.5]", str([n / 1000 for n in range(1, 900)]))
        + "exclude: [{keep_ratios: [0.95]}]\n"
    )
    with pytest.raises(SweepError) as caught:
        load_spec(str(file))
    (told,) = caught.value.faults
    assert "0.019, 0.02, ... (got 0.95)" in told and len(told) < 400


def test_an_option_within_an_options_value_has_the_option_as_its_place():
    with pytest.raises(SweepError) as caught:
        load_spec("ucurve", ["perplexity={window: x}", "generation.nonsense=1"])
    told = caught.value.faults
    assert [line.partition(" should ")[0].partition(" unknown ")[0] for line in told] == [
        "--set perplexity={window: x}: perplexity.window:",
        "--set perplexity={window: x}: perplexity.stride:",
        "--set generation.nonsense=1: generation.nonsense:",
    ]
    with pytest.raises(SweepError) as caught:
        load_spec("ucurve", ["name=a\nb\ud800"])
    (told,) = caught.value.faults
    assert told.startswith("--set name=a\\nb\\ud800: ")
