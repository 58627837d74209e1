"""What transformers loads from a folder is what is counted and hashed: no file more, none less, and no broken
one."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from workers.models.model_files import ModelError, find_model

META = {"format": "pt"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def loaded(folder: Path) -> int:
    """The judge: numbers in what transformers itself makes of the folder, tied ones once."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def sharded(folder: Path) -> None:
    """The same weights in two files and an index."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names, shards = sorted(weights), {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, META)
        shards |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def test_numbers_are_counted_from_the_headers(folder):
    assert find_model(str(folder)).parameters == loaded(folder)


def test_weights_stored_in_bfloat16_are_as_many(folder):
    before = find_model(str(folder)).parameters
    save_file(
        {name: value.bfloat16() for name, value in load_file(folder / SINGLE).items()}, folder / SINGLE, META
    )
    assert find_model(str(folder)).parameters == before, "whatever dtype config.json names"


def test_tied_weights_are_counted_once(tmp_path, tiny_model_dir):
    shutil.copy(tiny_model_dir / "tokenizer.json", tmp_path)
    tied = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(LlamaConfig(**tied, tie_word_embeddings=True)).save_pretrained(tmp_path)
    assert find_model(str(tmp_path)).parameters == loaded(tmp_path)


def test_shards_are_those_that_the_index_names(folder):
    before = find_model(str(folder))
    sharded(folder)
    split = find_model(str(folder))
    assert split.parameters == before.parameters == loaded(folder)
    assert split.revision != before.revision
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00003.safetensors")
    assert find_model(str(folder)) == split, "a stray shard is not loaded"
    (folder / INDEX).write_text((folder / INDEX).read_text() + " ")
    assert find_model(str(folder)).revision != split.revision, "the index is part of the model"


def test_a_single_file_goes_before_an_index_as_in_transformers(folder):
    changed = {name: value + 1 for name, value in load_file(folder / SINGLE).items()}
    original = (folder / SINGLE).read_bytes()
    sharded(folder)
    (folder / SINGLE).write_bytes(original)
    before = find_model(str(folder))
    loaded_name = "model.norm.weight"
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(folder).state_dict()[loaded_name],
        load_file(folder / SINGLE)[loaded_name],
    )
    (folder / INDEX).write_text("{}")
    assert find_model(str(folder)) == before, "what is not loaded is not read"
    save_file(changed, folder / SINGLE, META)
    assert find_model(str(folder)).revision != before.revision
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(folder).state_dict()[loaded_name], changed[loaded_name]
    )


@pytest.mark.parametrize(
    "stray",
    [
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "original/model.safetensors",
        "model.gguf",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "README.md",
        "training_args.json",
    ],
)
def test_files_that_are_not_loaded_change_neither_size_nor_identity(folder, stray):
    before = find_model(str(folder))
    (folder / stray).parent.mkdir(exist_ok=True)
    shutil.copy(folder / SINGLE, folder / stray)
    assert find_model(str(folder)) == before


SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
)


@pytest.mark.parametrize("name", SETTINGS)
def test_everything_that_changes_a_number_is_in_the_identity(folder, name):
    file = folder / name
    before = find_model(str(folder)).revision
    file.parent.mkdir(exist_ok=True)
    content = file.read_text() if file.exists() else "{}"
    file.write_text(content)
    there = find_model(str(folder)).revision
    file.write_text(content + " ")
    changed = find_model(str(folder)).revision
    file.write_text(content)
    assert changed != there
    assert find_model(str(folder)).revision == there
    assert name in ("config.json", "generation_config.json", "tokenizer.json") or before != there, (
        "a file more"
    )


def test_content_that_moves_to_another_file_is_another_model(folder):
    """The two names are neighbours in the order of hashing."""
    (folder / "special_tokens_map.json").write_text("{}")
    before = find_model(str(folder)).revision
    (folder / "special_tokens_map.json").rename(folder / "spiece.model")
    assert find_model(str(folder)).revision != before


def test_a_file_named_in_the_configuration_is_the_one_that_is_loaded(folder):
    (folder / SINGLE).rename(folder / "other.safetensors")
    edit(folder, transformers_weights="other.safetensors")
    assert find_model(str(folder)).parameters == loaded(folder)
    edit(folder, transformers_weights="../model/other.safetensors")
    refused(folder, "transformers_weights")


def edit(folder: Path, **keys: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def refused(folder: Path, *words: str, **options: bool) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(str(folder), **options)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"model {str(folder)!r}: ") and all(word in line for word in words), line


def header(content: object, data: bytes = b"", length: int | None = None) -> Callable[[Path], object]:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    whole = struct.pack("<Q", len(text) if length is None else length) + text + data
    return lambda folder: (folder / SINGLE).write_bytes(whole)


def tensor(shape: object, first: object, last: object, dtype: object = "F32") -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}}


def loop(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.symlink(SINGLE, folder / SINGLE)


def directory(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index(content: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / SINGLE).unlink()
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (header(tensor([10**9], 0, 4 * 10**9)), "a tensor of shape [1000000000] would lie"),
        (header(tensor([2], 0, 4), b"1234"), "a tensor of shape [2] would lie"),
        (header(tensor([-1], 0, 4), b"1234"), "a tensor of shape [-1]"),
        (header(tensor([1], 4, 0), b"1234"), "a tensor of shape [1]"),
        (header(tensor("1", 0, 4), b"1234"), "a tensor of shape '1' "),
        (header(tensor([1], 0, 4, []), b"1234"), "does not say shape, dtype and place"),
        (header({"x": 3}), "does not say shape, dtype and place"),
        (header([]), "not a table of tensors"),
        (header(b"{"), "its header is not JSON"),
        (header(b"\xff\xfe"), "its header is not JSON"),
        (header(b"[" * 200_000), "nested too deeply"),
        (header(b"{}", length=2**62), "its header would be 4,611,686,018,427,387,904 bytes long"),
        (lambda folder: (folder / SINGLE).write_bytes(b"1234"), "the file has 4"),
        (loop, "model.safetensors in"),
        (directory, "is not a file that can be read"),
        (without_a_shard, "names model-00002-of-00002.safetensors, which is missing"),
        (index({"weight_map": {"x": "/etc/passwd"}}), "may name .safetensors files of its folder only"),
        (
            index({"weight_map": {"x": "../model.safetensors"}}),
            "may name .safetensors files of its folder only",
        ),
        (index({"weight_map": {"x": "model.bin"}}), "may name .safetensors files of its folder only"),
        (index({"weight_map": {}}), "has no weight_map"),
        (index({"weight_map": ["x"]}), "has no weight_map"),
        (index([]), "holds no settings by name (it is [])"),
        (index("{"), "model.safetensors.index.json in"),
        (lambda folder: (folder / SINGLE).rename(folder / "weights.safetensors"), "no model.safetensors or"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "nested too deeply"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no settings by name"),
        (lambda folder: (folder / "tokenizer_config.json").mkdir(), "tokenizer_config.json in"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "merge the adapter into the weights",
        ),
        (lambda folder: edit(folder, num_hidden_layers=-3), "num_hidden_layers is -3"),
        (lambda folder: edit(folder, num_attention_heads=0), "num_attention_heads is 0"),
        (lambda folder: edit(folder, max_position_embeddings="many"), "max_position_embeddings is 'many'"),
        (lambda folder: edit(folder, num_key_value_heads="x"), "num_key_value_heads is 'x'"),
        (lambda folder: edit(folder, sliding_window="8"), "sliding_window is '8'"),
    ],
)
def test_what_is_broken_is_refused_in_one_line_that_names_it(folder, change, word):
    change(folder)
    refused(folder, word)


def test_unsafe_weights_are_found_as_transformers_finds_them_where_they_are_allowed(folder):
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    refused(folder, "allow_pickle: true reads them")
    torch.save(weights, folder / "stray.bin")
    refused(folder, "or pytorch_model.bin", allow_pickle=True)
    torch.save(weights, folder / "pytorch_model.bin")
    single = find_model(str(folder), allow_pickle=True)
    assert single.parameters == (folder / "pytorch_model.bin").stat().st_size // 4
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    names = dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert find_model(str(folder), allow_pickle=True).parameters == single.parameters


def test_code_from_another_repository_is_not_taken_into_a_local_model(folder):
    edit(folder, auto_map={"AutoModelForCausalLM": "somebody/repository--own.OwnForCausalLM"})
    find_model(str(folder))
    refused(folder, "takes code from another repository", trust_remote_code=True)


def test_a_model_of_a_hub_is_its_commit_and_is_judged_by_the_same_files(
    tiny_model_dir, tmp_path, monkeypatch
):
    """The hub's own cache, filled by hand: no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(tiny_model_dir, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    facts = find_model("somebody/tiny")
    assert (facts.revision, facts.commit, facts.parameters) == ("a" * 40, "a" * 40, 0)
    edit(snapshot, kv_lora_rank=8)
    assert "kv_lora_rank 8" in find_model("somebody/tiny").refusals[0]
    edit(snapshot, auto_map={"AutoModelForCausalLM": "somebody/else--own.OwnForCausalLM"})
    find_model("somebody/tiny")
    with pytest.raises(ModelError, match="takes code from another repository"):
        find_model("somebody/tiny", trust_remote_code=True)
    (snapshot / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge the adapter into the weights"):
        find_model("somebody/tiny")
