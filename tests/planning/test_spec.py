"""What a sweep file may say: every fault is one message with its place, key, value and what is allowed."""

from pathlib import Path

import pytest

from pipeline.planning.spec import EMBEDDED_SWEEPS, load_spec
from pipeline.sweepfile.sweep_error import SweepError
from workers.policies.settings import POLICY_NAMES

VALID = """\
name: x
models: [reference-neox]
datasets: [pydocs]
keep_ratios: [0.9, 0.5]
perplexity: {window: 64, stride: 64}
"""


@pytest.fixture
def sweep(tmp_path):
    """A function that writes a sweep file and returns its path as text."""

    def write(text: str | bytes) -> str:
        file = tmp_path / "s.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


def faults(path: str | None, *overrides: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        load_spec(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


@pytest.mark.parametrize(
    ("written", "instead", "line", "column", "parts"),
    [
        (
            "name: x",
            "name: x\npolicys: [knorm]",
            2,
            1,
            ["policys: unknown key; did you mean policies?", "known: name, models"],
        ),
        (
            "stride:",
            "strid:",
            5,
            26,
            ["perplexity.strid: unknown key; did you mean stride?", "known: window, stride, windows"],
        ),
        ("name: x", "name: x\nzzz: 1", 2, 1, ["zzz: unknown key (known: name, models,"]),
        ("[0.9, 0.5]", "[0.9, 0]", 4, 20, ["keep_ratios.1", "greater than 0", "(got 0)"]),
        ("[0.9, 0.5]", "[0.9, 1.2]", 4, 20, ["keep_ratios.1", "less than or equal to 1", "(got 1.2)"]),
        ("[0.9, 0.5]", "[0.9, -0.5]", 4, 20, ["keep_ratios.1", "greater than 0", "(got -0.5)"]),
        ("[0.9, 0.5]", '["abc"]', 4, 15, ["keep_ratios.0", "a valid number", '(got "abc")']),
        ("[0.9, 0.5]", '["0.5"]', 4, 15, ["keep_ratios.0", "a valid number", '(got "0.5")']),
        ("[0.9, 0.5]", "[.nan]", 4, 15, ["keep_ratios.0", "a finite number", "(got NaN)"]),
        ("[0.9, 0.5]", "0.5", 4, 1, ["keep_ratios", "a valid array", "(got 0.5)"]),
        ("[0.9, 0.5]", "[]", 4, 1, ["keep_ratios", "at least 1 item", "(got [])"]),
        ("[0.9, 0.5]", "[0.5, 0.50]", 4, 1, ["keep_ratios", "listed twice: 0.5"]),
        ("[0.9, 0.5]", "[1, 1.0]", 4, 1, ["keep_ratios", "listed twice: 1.0"]),
        (
            "name: x",
            "name: x\nprune_after: [-1]",
            2,
            15,
            ["prune_after.0", "greater than or equal to 1", "(got -1)"],
        ),
        (
            "name: x",
            "name: x\nprune_after: [0]",
            2,
            15,
            ["prune_after.0", "greater than or equal to 1", "(got 0)"],
        ),
        ("name: x", "name: x\nprune_after: [1.5]", 2, 15, ["prune_after.0", "a valid integer", "(got 1.5)"]),
        (
            "name: x",
            "name: x\nskip_layers: [[-1]]",
            2,
            16,
            ["skip_layers.0.0", "greater than or equal to 0", "(got -1)"],
        ),
        ("name: x", "name: x\nskip_layers: [0]", 2, 15, ["skip_layers.0", "a valid array", "(got 0)"]),
        (
            "name: x",
            "name: x\npolicies: [l2]",
            2,
            12,
            ["policies.0", "knorm", "tova", "module:function", '(got "l2")'],
        ),
        ("name: x", "name: x\ndevices: [tpu]", 2, 11, ["devices.0", "'cuda'", '(got "tpu")']),
        ("name: x", "name: x\nseed: true", 2, 1, ["seed", "a valid integer", "(got true)"]),
        ("name: x", "name: ../x", 1, 1, ["name", "letters, digits", '(got "../x")']),
        ("name: x", "name: 3", 1, 1, ["name", "a valid string", "(got 3)"]),
        ("[pydocs]", '[""]', 3, 12, ["datasets.0", "at least 1 character"]),
        ("[reference-neox]", "[{revision: main}]", 2, 10, ["models.0.name", "is required"]),
        (
            "[reference-neox]",
            "[{name: a, revison: b}]",
            2,
            20,
            ["models.0.revison", "did you mean revision?"],
        ),
        ("window: 64", "window: 1", 5, 14, ["perplexity.window", "greater than or equal to 2", "(got 1)"]),
        ("stride: 64", "stride: 65", 5, 26, ["perplexity.stride", "<= perplexity.window 64", "(got 65)"]),
        (
            "name: x",
            "name: x\nexclude: [{}]",
            2,
            11,
            ["exclude.0", "would exclude everything", "policies, keep_ratios", "(got {})"],
        ),
        ("name: x", "name: x\nexclude: [{policies: null}]", 2, 11, ["exclude.0", "would exclude everything"]),
        (
            "name: x",
            "name: x\nexclude: [{policies: []}]",
            2,
            11,
            ["exclude.0: policies is empty", "exclude nothing"],
        ),
        (
            "name: x",
            "name: x\nexclude: [{policy: [knorm]}]",
            2,
            12,
            ["exclude.0.policy: unknown key; did you mean policies?"],
        ),
        (
            "name: x",
            "name: x\nexclude: [{datasets: [a]}]",
            2,
            12,
            ["exclude.0.datasets: unknown key", "protect_sink, schedules, position_modes"],
        ),
        ("name: x", "name: x\nexclude: {policies: [knorm]}", 2, 1, ["exclude", "a valid array"]),
        ("name: x", "name: x\nexclude: [knorm]", 2, 11, ["exclude.0", "an object", '(got "knorm")']),
        (
            "name: x",
            "name: x\nexclude: [{prune_after: [512, 8]}]",
            2,
            31,
            ["exclude.0.prune_after.1: must be one of the sweep's prune_after 512 (got 8)"],
        ),
        (
            "name: x",
            "name: x\nexclude: [{policies: [recent]}]",
            2,
            23,
            ['exclude.0.policies.0: must be one of the sweep\'s policies "knorm" (got "recent")'],
        ),
        (
            "name: x",
            "name: x\nexclude: [{skip_layers: [[], [1]]}]",
            2,
            30,
            ["exclude.0.skip_layers.1: must be one of the sweep's skip_layers [] (got [1])"],
        ),
        (
            "stride: 64}",
            "stride: 64}\nretrieval: {policy: [knorm]}",
            6,
            13,
            ["retrieval.policy: unknown key; did you mean policies?"],
        ),
        (
            "stride: 64}",
            "stride: 64}\nretrieval: {keep_ratios: [2]}",
            6,
            27,
            ["retrieval.keep_ratios.0", "(got 2)"],
        ),
        (
            "stride: 64}",
            "stride: 64}\ngeneration: {protocol: fair}",
            6,
            14,
            ["generation.protocol", "'report_2025'", '(got "fair")'],
        ),
        (
            "stride: 64}",
            "stride: 64}\ngeneration: {protocol: []}",
            6,
            14,
            ["generation.protocol", "at least 1 item"],
        ),
        (
            "stride: 64}",
            "stride: 64}\ngeneration: {protocol: [report_2025, report_2025]}",
            6,
            14,
            ["listed twice"],
        ),
        ("name: x", "name: x\n? [a, b]\n: c", 2, 3, ["a list as a key; a key is a name"]),
        ("name: x", "name: x\n1: c", 2, 1, ["1: unknown key"]),
    ],
)
def test_a_fault_names_its_place_its_key_its_value_and_what_is_allowed(
    sweep, written, instead, line, column, parts
):
    assert VALID.count(written) == 1
    path = sweep(VALID.replace(written, instead))
    (message,) = faults(path)
    assert message.startswith(f"{path}:{line}:{column}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        (VALID + "name: y\n", ":6:1: ", 'duplicate key "name"'),
        (VALID + "generation: {warmup: 1, warmup: 2}\n", ":6:25: ", 'duplicate key "warmup"'),
        (VALID + "policies: [knorm\n", ":7:1: ", "expected ',' or ']'"),
        (VALID + "\tseed: 1\n", ":6:1: ", "cannot start any token"),
        (VALID + "---\nname: y\n", ":6:1: ", "another document"),
        (VALID + "seed: *unknown\n", ":6:7: ", "undefined alias"),
        (VALID + "seed: \0\n", ":6:7: ", "not allowed"),
        (VALID + "skip_layers: " + "[" * 500 + "]" * 500, ":6:33: ", "nested more than 20 deep"),
        (VALID + "seed: " + "9" * 5000, ":6:7: ", "a number of 5,000 digits"),
        (VALID.encode() + b"\xff\xfe", ": ", f"not UTF-8 text (byte {len(VALID)})"),
        ("", ": ", "a sweep file is a mapping"),
        ("- name\n", ": ", "a sweep file is a mapping"),
        (
            VALID.partition("perplexity")[0],
            ": ",
            "nothing to measure; add at least one block of perplexity, generation",
        ),
    ],
    ids=[
        "duplicate key",
        "duplicate nested key",
        "open bracket",
        "tab",
        "two documents",
        "alias",
        "NUL",
        "deep",
        "digits",
        "not UTF-8",
        "empty",
        "a list",
        "no task",
    ],
)
def test_what_is_no_sweep_file_is_one_fault_with_its_place(sweep, text, place, part):
    path = sweep(text)
    (message,) = faults(path)
    assert message.startswith(path + place)
    assert part in message


def test_values_are_those_of_yaml_1_2(sweep):
    spec = load_spec(
        sweep(
            VALID.replace("name: x", "name: no").replace("[pydocs]", "[on, yes, 2024-01-01]") + "seed: 010\n"
        )
    )
    assert spec.name == "no"
    assert [each.name for each in spec.datasets] == ["on", "yes", "2024-01-01"]
    assert spec.seed == 10  # octal in YAML 1.1
    (message,) = faults(sweep(VALID + "seed: 1:30\n"))  # 90 in YAML 1.1
    assert '(got "1:30")' in message


def test_merged_and_aliased_keys_are_read_and_their_faults_placed(sweep):
    text = VALID.replace("perplexity: {", "perplexity: &p {") + "generation: {<<: *p, new_tokens: 8}\n"
    messages = faults(sweep(text))
    assert [m.split(": ", 2)[1] for m in messages] == ["generation.window", "generation.stride"]
    assert all(":6:1: " in message for message in messages)
    assert load_spec(
        sweep(VALID.replace("[0.9, 0.5]", "&r [0.9]") + "generation: {keep_ratios: *r}\n")
    ).generation


def test_all_faults_of_a_file_are_reported_at_once(sweep):
    text = VALID.replace("[0.9, 0.5]", "[0, 1.2]").replace("window: 64", "window: x") + "zzz: 1\n"
    keys = [message.split(": ")[1] for message in faults(sweep(text))]
    assert sorted(keys) == ["keep_ratios.0", "keep_ratios.1", "perplexity.window", "zzz"]


def test_a_misspelt_required_key_is_unknown_and_missing(sweep):
    messages = faults(sweep(VALID.replace("keep_ratios", "keep_ratio")))
    assert any("keep_ratio: unknown key; did you mean keep_ratios?" in message for message in messages)
    assert any("keep_ratios: is required" in message for message in messages)


def test_a_missing_file_is_refused_and_the_embedded_sweeps_are_named(tmp_path):
    missing = str(tmp_path / "no.yaml")
    (message,) = faults(missing)
    assert message.startswith(f"{missing}: there is no such sweep file")
    assert "default" in message and "ucurve" in message
    (message,) = faults(str(tmp_path))
    assert "there is no such sweep file" in message


def test_set_replaces_and_adds_values_also_in_blocks(sweep):
    path = sweep(VALID)
    overrides = [
        "perplexity.windows=4",
        "keep_ratios=[1]",
        "generation.new_tokens=8",
        "models=[{name: a, revision: no}]",
    ]
    spec = load_spec(path, overrides)
    assert spec.perplexity and (spec.perplexity.window, spec.perplexity.windows) == (64, 4)
    assert spec.generation and spec.generation.new_tokens == 8
    assert spec.keep_ratios == [1.0]
    assert (spec.models[0].name, spec.models[0].revision) == ("a", "no")
    assert load_spec(path, ["seed=1", "seed=2"]).seed == 2
    assert load_spec(path, ["generation.repeats=6", "perplexity="]).perplexity is None


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "write key=value"),
        ("=3", "write key=value"),
        ("keep_ratios=[0.5", "not valid YAML"),
        ("seed=&a [*a]", "not valid YAML"),
        ("perplexity={? [a] : b}", "not valid YAML"),
        ("name.a=3", "name is not a block of keys"),
        ("models.0=x", "models is not a block of keys"),
        ("perplexity.windw=3", "perplexity.windw: unknown key; did you mean window?"),
        ("nothing.at.all=1", "nothing: unknown key"),
        ("keep_ratios=[0.9, 1.2]", "keep_ratios.1: should be less than or equal to 1 (got 1.2)"),
        ("keep_ratios=[0]", "keep_ratios.0: should be greater than 0 (got 0)"),
    ],
)
def test_a_wrong_override_is_named_not_the_file(sweep, override, part):
    (message,) = faults(sweep(VALID), override)
    assert message.startswith(f"--set {override}: ")
    assert part in message


def test_excluded_values_may_be_written_in_another_way_and_faults_of_an_override_name_it(sweep):
    path = sweep(
        VALID.replace("[0.9, 0.5]", "[1.0, 0.5]")
        + "skip_layers: [[1, 0]]\nexclude: [{keep_ratios: [1], skip_layers: [[0, 1, 1]]}]\n"
    )
    assert load_spec(path).exclude[0].named() == {"keep_ratios": [1.0], "skip_layers": [(0, 1)]}
    messages = faults(path, "exclude=[{keep_ratios: [0.9]}, {prune_after: [1]}]")
    assert [message.partition(": must be")[0] for message in messages] == [
        f"--set exclude=[{{keep_ratios: [0.9]}}, {{prune_after: [1]}}]: exclude.{at}"
        for at in ("0.keep_ratios.0", "1.prune_after.0")
    ]


def test_a_protocol_is_one_name_or_several(sweep):
    path = sweep(VALID + "generation: {}\n")
    for written, protocols in (
        ("report_2025", ["report_2025"]),
        ("[interleaved, report_2025]", ["interleaved", "report_2025"]),
    ):
        task = load_spec(path, [f"generation.protocol={written}"]).generation
        assert task and task.protocol == protocols
    task = load_spec(path).generation
    assert task and task.protocol == ["interleaved"]


@pytest.mark.parametrize("file", sorted(EMBEDDED_SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_embedded_sweep_is_valid_by_file_and_by_name(file):
    assert load_spec(file.stem) == load_spec(str(file))


def test_without_a_file_the_embedded_default_is_read():
    assert load_spec(None) == load_spec("default")


def test_a_file_beside_the_caller_wins_over_an_embedded_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("default").write_text(VALID)
    assert load_spec("default").name == "x"


def test_sweep_files_settings_and_functions_know_the_same_policies():
    from workers.policies.eviction import POLICIES

    assert ("dense", *POLICIES) == POLICY_NAMES
