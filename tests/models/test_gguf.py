"""A GGUF file as a model: the same model as its folder, whatever lies in a file ends soon, and what cannot be
is refused."""

import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.store.run_store import RunStore
from tests.support.command import kvsweep, run_inline
from tests.support.gguf_made import entry, header, save_plain, tensor, text, write_gguf
from workers.models.bos import bos_token
from workers.models.gguf import convert, converted, process, tokenizer_kinds, types
from workers.models.gguf.header import read_header
from workers.models.gguf.refusals import ARCHITECTURES, refusals
from workers.models.gguf.tokenizer_kinds import bos_of
from workers.models.model_files import ModelError, find_model
from workers.texts.text_tokens import open_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

LLAMA = entry("general.architecture", "llama")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "plain"
    save_plain(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def here(monkeypatch):
    """Conversions in this process, which has torch already, without the limit of memory, which would stay."""
    monkeypatch.setattr(convert, "_limit_memory", lambda parameters: None)

    def in_this_process(file: Path, out: Path) -> None:
        try:
            convert.convert(file, out)
        except Exception as error:
            raise process.ConversionError(str(error)) from error

    monkeypatch.setattr(converted, "convert_file", in_this_process)


# What a header says


def test_a_header_is_what_the_packages_own_reader_says(plain, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", plain, "Q8_0")
    found, judge = read_header(file), gguf.GGUFReader(file)
    assert {t.name: (list(t.shape), t.kind) for t in found.tensors.values()} == {
        t.name: (t.shape.tolist(), t.tensor_type.name) for t in judge.tensors
    }
    for name, value in found.entries.items():
        told = judge.fields[name].contents()
        assert value == (len(told) if isinstance(told, list) else told), name
    assert (found.architecture, found.quantization, list(refusals(found))) == ("llama", "Q8_0", [])
    assert found.parameters == sum(t.n_elements for t in judge.tensors)


def test_types_and_mixtures_are_those_of_ggml():
    for name, number in types.NUMBERS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (kind, gguf.GGML_QUANT_SIZES[kind]) == (number, types.BLOCKS[name])
    for number, name in types.FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_") == name
        assert types.stem_of(name) in types.BLOCKS or name in ("IQ3_XS", "IQ3_M", "IQ2_M")


def test_every_architecture_and_cut_is_known_to_the_loader():
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert {name.replace("moe", "_moe") for name in ARCHITECTURES} <= set(GGUF_SUPPORTED_ARCHITECTURES)
    assert {*tokenizer_kinds.WHOLE_WORDS, *tokenizer_kinds.OTHERS} <= set(GGUF_PRE_TOKENIZER_SPLITS)
    assert not {*tokenizer_kinds.DIGITS_APART, *tokenizer_kinds.AS_GPT2} & set(GGUF_PRE_TOKENIZER_SPLITS)


@pytest.mark.parametrize(
    ("file_type", "kinds", "name"),
    [
        (15, ("Q4_K", "Q6_K"), "Q4_K_M"),
        (15, ("F32", "Q8_0"), "Q8_0"),
        (1024, ("F32", "F16"), "F16"),
        (None, ("Q5_0",), "Q5_0"),
    ],
)
def test_a_mixture_is_believed_where_the_tensors_bear_it_out(tmp_path, file_type, kinds, name):
    made, offset = [], 0
    for i, kind in enumerate(kinds):
        made.append(tensor(f"blk.{i}.x", (256, i + 1), types.NUMBERS[kind], offset))
        block, width = types.BLOCKS[kind]
        offset += -(-(256 * (i + 1) // block * width) // 32) * 32
    entries = [LLAMA] if file_type is None else [LLAMA, entry("general.file_type", file_type)]
    file = tmp_path / "x.gguf"
    file.write_bytes(header(*entries, tensors=tuple(made)) + bytes(offset + 64))
    assert read_header(file).quantization == name


LIST = struct.pack("<I", 9)
HOSTILE = {
    b"": "less than 24 bytes",
    b"GGUF": "less than 24 bytes",
    b"PK\3\4" + bytes(40): "does not begin with GGUF",
    header(version=1): "GGUF version 1",
    header(version=3 << 24): "the other order of bytes",
    header(counts=(2**63, 1)): "9,223,372,036,854,775,808 tensors, more than any model",
    header(counts=(0, 2**40)): "entries",
    header(LLAMA, counts=(0, 2)): "cut off",
    header(struct.pack("<Q", 2**62) + b"x"): "a text of 4,611,686,018,427,387,904 bytes",
    header(entry("a", struct.pack("<IQ", 8, 2**30))): "a text of 1,073,741,824 bytes",
    header(text(b"\xff\xfe") + struct.pack("<II", 4, 1)): "no UTF-8",
    header(LLAMA, LLAMA): "'general.architecture' twice",
    header(entry("a", struct.pack("<I", 99))): "a kind that is not known (99)",
    header(entry("a", LIST + struct.pack("<IQ", 8, 2**50))): "1,125,899,906,842,624 values",
    header(entry("a", LIST + struct.pack("<IQ", 9, 1))): "1 values of kind 9",
    header(entry("a", LIST + struct.pack("<IQ", 10, 2**60))): "cut off",
    header(LLAMA, tensors=(tensor("x", (1,) * 9),)): "9 dimensions",
    header(LLAMA, tensors=(tensor("x", (2**60, 2**60)),)): "cut off: its tensors end",
    header(LLAMA, tensors=(tensor("x", (0, 4)),)): "has the shape (0, 4)",
    header(LLAMA, tensors=(tensor("x", (31,), 2),)): "which Q4_0 cannot store",
    header(LLAMA, tensors=(tensor("x", (4,), 77),)): "ggml type 77",
    header(LLAMA, tensors=(tensor("x", (4,)), tensor("x", (4,)))): "the tensor 'x' twice",
    header(LLAMA, tensors=(tensor("x", (4,), offset=2**50),)): "cut off: its tensors end",
    header(LLAMA, tensors=tuple(tensor(f"x{i}", (64,)) for i in range(50)))
    + bytes(600): "lie over each other",
    header(entry("general.alignment", 0)): "aligned to 0 bytes",
}


@pytest.mark.parametrize(
    "content", HOSTILE, ids=[f"{i}-{words[:24]}" for i, words in enumerate(HOSTILE.values())]
)
def test_a_file_that_is_none_is_refused_in_a_sentence(content, tmp_path, cache):
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        find_model(str(file))
    assert HOSTILE[content] in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model {str(file)!r}: it") and not cache.exists()


def test_whatever_is_cut_or_turned_in_a_file_it_is_read_or_refused(plain, tmp_path):
    content = write_gguf(tmp_path / "tiny.gguf", plain).read_bytes()
    rng, file, refused = random.Random(0), tmp_path / "x.gguf", []
    for _ in range(300):
        changed = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        for _ in range(rng.choice((0, 1, 8)) if len(changed) == len(content) else 0):
            changed[rng.randrange(8000)] = rng.choice((0, 1, 127, 255))
        file.write_bytes(changed)
        try:
            list(refusals(read_header(file)))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 60 and not any("\n" in words for words in refused)


CHANGED = {
    "another architecture": ({"general.architecture": "mamba"}, "its architecture, 'mamba', is not one"),
    "a part": ({"split.count": 3}, "one of 3 parts of a model"),
    "an adapter": ({"general.type": "adapter"}, "no language model but 'adapter'"),
    "layers": ({"llama.block_count": 4_000_000}, "it says 4000000 layers"),
    "width": ({"llama.embedding_length": 2**31}, "embeddings of 2147483648 numbers for 258 tokens"),
    "experts": ({"llama.expert_count": 2**31}, "2147483648 experts"),
    "scaled frequencies": ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn'"),
    "kind of tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "its tokenizer is of the kind 'rwkv'"),
    "cut": ({"tokenizer.ggml.pre": "deepseek-llm"}, "cuts texts in the way 'deepseek-llm'"),
    "merges": ({"tokenizer.ggml.merges": None}, "no merges"),
    "BOS": (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
        "does not say which token",
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_cannot_become_a_model_is_refused_by_its_header(change, plain, tmp_path, cache, monkeypatch):
    entries, words = CHANGED[change]
    if "general.architecture" in entries:  # the writer says it itself
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_architecture",
            lambda writer: writer.add_string("general.architecture", "mamba"),
        )
        entries = {}
    file = write_gguf(tmp_path / "tiny.gguf", plain, **entries)
    monkeypatch.setattr(converted, "convert_file", None)
    with pytest.raises(ModelError, match=words):
        find_model(str(file))
    assert not cache.exists()


def test_a_tensor_of_scaled_frequencies_is_refused(plain, tmp_path, cache):
    file = write_gguf(tmp_path / "tiny.gguf", plain, more={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(ModelError, match=r"rotary frequencies are scaled \(rope_freqs\.weight\)"):
        find_model(str(file))


def test_a_vocabulary_alone_is_refused(tmp_path, cache):
    file = tmp_path / "vocabulary.gguf"
    file.write_bytes(header(LLAMA))
    with pytest.raises(ModelError, match="holds a vocabulary and no weights"):
        find_model(str(file))


def test_names_that_are_no_files_and_revisions_are_refused(tmp_path, cache):
    with pytest.raises(ModelError, match="there is no such file"):
        find_model(str(tmp_path / "nothing.gguf"))
    with pytest.raises(ModelError, match="revision 'main' is for models of a hub"):
        find_model(str(tmp_path / "nothing.gguf"), "main")


def test_a_missing_package_is_named(plain, tmp_path, cache, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", plain)
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs gguf and accelerate: pip install 'kvsweep\[gguf\]'"):
        find_model(str(file))


# What becomes of a file


def test_a_file_of_float32_is_its_folder_to_the_bit(plain, tmp_path, cache, here, text_file):
    file = write_gguf(tmp_path / "tiny.gguf", plain)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodels: [{plain}, {file}]\ndatasets: ['text:{text_file}']\ndevices: [cpu]\nkeep_ratios:"
        " [0.5]\nprune_after: [16]\npolicies: [knorm, h2o]\nperplexity: {window: 64, windows: 3}\n"
    )
    assert run_inline(sweep, tmp_path / "out") == 0
    rows = RunStore(str(tmp_path / "out")).scan("perplexity").sort("policy", "window_index").collect()
    own, other = (rows.filter(pl.col("model") == str(name)) for name in (plain, file))
    assert own.height == 9 and own["nll"].equals(other["nll"]) and own["prune_events"].sum() > 0
    assert (set(own["quantization"]), set(other["quantization"])) == ({None}, {"F32"})
    assert set(own["model_revision"]).isdisjoint(other["model_revision"])
    one, two = json.loads((tmp_path / "out" / "run.json").read_text())["models"]
    assert "quantization" not in one and two["quantization"] == "F32"
    assert "converted from F32" in (tmp_path / "out" / "report.html").read_text()


def test_a_quantised_file_is_another_model_close_to_its_folder(plain, tmp_path, cache, here):
    import torch
    from transformers import AutoModelForCausalLM

    exact = find_model(str(write_gguf(tmp_path / "a.gguf", plain)))
    facts = find_model(str(write_gguf(tmp_path / "b.gguf", plain, "Q8_0")))
    assert (
        facts.quantization == "Q8_0" and facts.revision != exact.revision and len(list(cache.iterdir())) == 2
    )
    own, other = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (plain, facts.source))
    away = max(float((own[name] - other[name]).abs().max()) for name in own)
    largest = max(float(weights.abs().max()) for weights in own.values())
    assert 0 < away <= 0.5 * largest / 127 + 1e-3, (
        "half a step of the widest block, whose scale is in 16 bits"
    )
    assert all(torch.equal(own[name], other[name]) for name in own if "norm" in name)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, None),
        ({"tokenizer.ggml.add_bos_token": True}, 257),
        ({"tokenizer.ggml.add_bos_token": None}, None),
        ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "llama-bpe"}, 257),
    ],
    ids=["no", "yes", "unsaid", "unsaid, as Llama 3"],
)
def test_texts_begin_as_the_file_says_and_have_the_ids_of_the_folder(
    entries, expected, plain, tmp_path, cache, here
):
    from transformers import AutoTokenizer

    facts = find_model(str(write_gguf(tmp_path / "tiny.gguf", plain, **entries)))
    assert bos_token(facts, "auto") == expected == bos_of(read_header(tmp_path / "tiny.gguf").entries)
    own, judge = open_tokenizer(facts.tokenizer_file), AutoTokenizer.from_pretrained(facts.source)
    sample = "In the end, 48213 tea-trays.\n\n  x = 4\t<|endoftext|> naïve"
    expected_ids = open_tokenizer(str(plain / "tokenizer.json")).ids(sample)
    assert own.ids(sample) == expected_ids
    assert judge("a tea").input_ids == [*([] if expected is None else [expected]), *own.ids("a tea")]


def test_digits_are_cut_apart_where_llama_cpp_does(plain, tmp_path, cache, here):
    """ "  " before a digit is one piece, and not a space and a space that belongs to the digit."""
    from tokenizers import pre_tokenizers

    facts = find_model(str(write_gguf(tmp_path / "tiny.gguf", plain, **{"tokenizer.ggml.pre": "smollm"})))
    told = json.loads(Path(facts.tokenizer_file).read_text())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in told] == ["Digits", "ByteLevel"] and told[0]["individual_digits"]
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert [piece for piece, _ in cut.pre_tokenize_str("a  42")] == ["a", "ĠĠ", "4", "2"]


def test_weights_that_lack_or_are_left_out_are_refused(plain, tmp_path, cache, here):
    with pytest.raises(
        ModelError, match=r"lacks 1 of the weights that its settings ask for, such as .*1\.mlp\.up_proj"
    ):
        find_model(str(write_gguf(tmp_path / "a.gguf", plain, leave_out="blk.1.ffn_up.weight")))
    with pytest.raises(
        ModelError, match="the file holds 35,136 numbers, and the model that transformers makes of it 35,104"
    ):
        find_model(
            str(write_gguf(tmp_path / "b.gguf", plain, more={"blk.1.attn_q.bias": np.ones(32, np.float32)}))
        )
    assert list(cache.iterdir()) == []


def test_a_file_is_converted_once_and_said_so(plain, tmp_path, cache, here, capsys, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", plain)
    before = find_model(str(file))
    assert capsys.readouterr().err.startswith(f"converting {str(file)!r} (F32) once to float32")
    monkeypatch.setattr(converted, "convert_file", None)
    assert find_model(str(file)) == before and capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_command_converts_in_a_process_of_its_own(plain, tmp_path, text_file):
    write_gguf(tmp_path / "tiny.gguf", plain, "Q8_0")
    sweep = (
        f"name: tiny\nmodels: [./tiny.gguf]\ndatasets: ['text:{text_file}']\ndevices: [cpu]\nkeep_ratios:"
        " [0.5]\n"
    )
    (tmp_path / "sweep.yaml").write_text(sweep + "prune_after: [16]\nperplexity: {window: 64, windows: 1}\n")
    environment = {**os.environ, "KVSWEEP_CACHE": str(tmp_path / "cache")}
    done = kvsweep("plan", "sweep.yaml", folder=tmp_path, environment=environment)
    assert done.returncode == 0 and "converting 'tiny.gguf' (Q8_0) once" in done.stderr
    again = kvsweep("plan", "sweep.yaml", folder=tmp_path, environment=environment)
    assert (again.returncode, again.stderr) == (0, "")
    broken = write_gguf(tmp_path / "tiny.gguf", plain, leave_out="blk.0.attn_v.weight")
    done = kvsweep("plan", "sweep.yaml", folder=tmp_path, environment=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr and broken.exists()
    assert "error: models: model './tiny.gguf': the file lacks 1 of the weights" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stored", "bos"), [("SMOLLM2", "Q4_1", None), ("GEMMA3", "Q4_K_M", 2)])
def test_real_files_are_the_folders_that_another_script_made(name, stored, bos, cache):
    """SMOLLM2_GGUF and GEMMA3_GGUF name the files, SMOLLM2 and GEMMA3 the folders."""
    if f"{name}_GGUF" not in os.environ or name not in os.environ:
        pytest.skip(f"{name}_GGUF or {name} is not there")
    from safetensors.numpy import load_file

    facts, folder = find_model(os.environ[f"{name}_GGUF"]), Path(os.environ[name])
    assert (facts.quantization, bos_token(facts, "auto")) == (stored, bos)
    config, judge = (
        json.loads((place / "config.json").read_text()) for place in (Path(facts.source), folder)
    )
    assert config == judge
    own, other = load_file(Path(facts.source) / "model.safetensors"), load_file(folder / "model.safetensors")
    assert own.keys() == other.keys() and all(np.array_equal(own[key], other[key]) for key in own)
