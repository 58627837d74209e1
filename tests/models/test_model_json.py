"""Whatever lies in a model's folder under the names that are read is facts or one line, when a run is
planned."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pipeline.planning.plan import make_plan
from pipeline.planning.resolve import resolve
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_error import SweepError
from workers.models import model_json
from workers.models.bos import bos_token
from workers.models.model_files import ModelError, find_model


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        bos_token(find_model(str(folder)), "always")
    told = str(caught.value)
    assert "\n" not in told and len(told) < 900
    return told


def write(folder: Path, name: str = "config.json", **changes: Any) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


WRONG = {
    "num_hidden_layers": [0, -3, True, 2.0, "2", [2], None, 10**9, 10**400, float("nan"), {}],
    "num_attention_heads": [0, -1, 2.5, "many", True, 10**400],
    "num_key_value_heads": [-1, "x", 3, 10**30],
    "head_dim": ["8", -8, 8.0],
    "max_position_embeddings": ["many", -1, 1e6, True, 10**20],
    "sliding_window": ["8", 4.5, -3],
    "vocab_size": ["100", -1, 2.5],
    "model_type": [3, ["llama"], {"a": 1}],
    "text_config": [3, "x", [1]],
    "rope_parameters": [3, "x", {"rope_type": 3}, {"partial_rotary_factor": "x", "rope_type": "default"}],
    "partial_rotary_factor": ["x", -1, 2.0, float("nan"), True],
    "layer_types": ["x", [1, 2], 3],
    "rotary_dim": ["x", 10**6, -1],
    "logit_scale": ["x", float("inf"), True, 10**400],
    "quantization_config": ["int4", [1]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_setting_that_is_read_is_checked_and_named(folder, key, value):
    if key == "partial_rotary_factor":
        write(folder, rope_parameters=None)
    write(folder, **{key: value})
    told = refused(folder)
    assert key in told or (
        key == "rope_parameters" and ("rope_type" in told or "partial_rotary_factor" in told)
    )
    assert "config.json" in told


def test_layers_beyond_those_of_the_weights_are_refused(folder):
    write(folder, num_hidden_layers=9000)
    assert (
        "says 9,000 layers (num_hidden_layers), and the names of the weights beside it go up to layer 1, of 2"
        in refused(folder)
    )


BROKEN = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "200,000 brackets": b"[" * 200_000,
    "NUL": b"\0" * 100,
    "Latin": b'{"a": "\xe9"}',
    "5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
}


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_each_file_of_settings_is_read_by_one_reader(folder, name, content):
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(BROKEN[content])
    told = refused(folder)
    assert f"{name} in {folder}" in told
    assert "cannot be read" in told or "holds no settings by name" in told


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"],
)
@pytest.mark.parametrize("what", ["fifo", "folder", "loop", "nothing"])
def test_what_is_no_file_is_not_opened(folder, name, what):
    (folder / name).unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(folder / name)
    elif what == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(folder / (name if what == "loop" else "gone"))
    assert f"{name} in {folder} is not a file that can be read" in refused(folder)


def test_a_file_longer_than_any_of_its_kind_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(model_json, "MAX_BYTES", 2000)
    assert "tokenizer.json" in refused(folder) or "config.json" in refused(folder)
    assert "MiB long; 0 is the most" in refused(folder)


@pytest.mark.parametrize(
    "content", [b"root:x:0:0\n", b"", b"[]", b"{}", b"[" * 200_000, b'{"version": "1.0", "model": null}']
)
def test_a_tokenizer_that_is_none_is_one_line_of_the_plan(folder, sweep_file, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(SweepError) as caught:
        resolve(load_spec(str(sweep_file(models=f"[{folder}]"))), "cpu")
    (told,) = caught.value.faults
    assert (
        told.startswith(f"models: model '{folder}': its tokenizer.json cannot be used (") and "\n" not in told
    )


def test_a_tokenizer_that_opens_and_cannot_say_a_text_is_one_line_of_the_plan(folder, sweep_file):
    """It knows one word, and nothing for the others."""
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="[gone]"))
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(SweepError) as caught:
        resolve(load_spec(str(sweep_file(models=f"[{folder}]"))), "cpu")
    (told,) = caught.value.faults
    assert told.startswith(f"models: model '{folder}': its tokenizer.json cannot be used (WordLevel error")


def test_ids_beyond_the_vocabulary_are_refused_when_planned(folder, sweep_file):
    write(folder, vocab_size=100)
    with pytest.raises(SweepError) as caught:
        make_plan(load_spec(str(sweep_file(models=f"[{folder}]"))), "cpu")
    (told,) = caught.value.faults
    assert "its tokenizer.json makes the token" in told and "vocab_size 100" in told


def test_a_lying_header_is_refused(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert "would lie at bytes 0 to 4" in refused(folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([10**400, -(10**400), 1e308])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *WRONG,
        "rope_scaling",
        "rope_theta",
        "alibi",
        "n_embd",
        "hidden_size",
        "per_layer_config",
        "kv_lora_rank",
        "use_cla",
        "num_kv_shared_layers",
        "index_topk",
        "sparse_attention_config",
        "is_encoder_decoder",
        "use_bidirectional_attention",
        "floor_scale",
        "attn_temperature_tuning",
        "attention_chunk_size",
        "max_window_layers",
        "use_sliding_window",
        "auto_map",
        "transformers_weights",
        "dtype",
        "bos_token_id",
        "tokenizer_class",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "global_head_dim",
        "cross_attention_layers",
        "full_attn_idxs",
        "is_decoder",
        "compression_config",
    ]
)


@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=4), st.dictionaries(KEYS, JSON, max_size=2))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_settings_end_in_anything_but_facts_or_a_model_error(tiny_model_dir, tmp_path, changes, inner):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(tiny_model_dir, folder)
    content = json.loads((tiny_model_dir / "config.json").read_text())
    changes = {**changes, **({"text_config": {**content, **inner}} if inner else {})}
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    try:
        facts = find_model(str(folder))
        bos_token(facts, "auto")
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 (either is right)
