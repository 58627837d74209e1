"""Finding and loading models: facts without torch, the self-check, refusals."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tests.support.architectures import ARCHITECTURES, SHAPE, Architecture, configuration, make
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache import attention
from workers.loaded import self_check
from workers.loaded.load import DTYPES, load
from workers.loaded.reference_pass import passes
from workers.loaded.self_check import check
from workers.models import architecture
from workers.models.model_files import EMBEDDED_NAMES, ModelError, find_model
from workers.models.positions import Positions, positions_of
from workers.perplexity.evaluation import evaluate, evaluate_reference


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama", "sdpa").save_pretrained(folder)
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


def test_facts_come_from_the_files(saved):
    facts = find_model(str(saved))
    assert (facts.layers, facts.context, facts.kv_heads, facts.head_dim, facts.architecture) == (
        3,
        512,
        2,
        8,
        "llama",
    )
    assert facts.positions == Positions("rotary", 1.0)
    assert facts.revision.startswith("sha256:")


EXPECTED = {
    "gpt_neox": Positions("rotary", 0.25),
    "gpt2": Positions("learned"),
    "opt": Positions("learned"),
    "bloom": Positions("alibi"),
    "mpt": Positions("alibi"),
    "gpt_bigcode": Positions("learned"),
    "gpt_neo": Positions("learned"),
    "gemma4_text": Positions("rotary"),
    **dict.fromkeys(("stablelm", "qwen3_next"), Positions("rotary", 0.25)),
    **dict.fromkeys(
        ("glm", "phi", "persimmon", "nemotron", "recurrent_gemma", "bamba", "gptj", "codegen"),
        Positions("rotary", 0.5),
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32"), Positions("rotary", 1 / 3)),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_positions_come_from_the_config_file_that_each_architecture_saves(architecture, tmp_path):
    configuration(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert positions_of(config, 8) == EXPECTED.get(config["model_type"], Positions("rotary", 1.0))


LAYERED = {"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {"rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 10000}, Positions("rotary", 0.5)),
        ({"model_type": "gpt_neox", "partial_rotary_factor": 0.4}, Positions("rotary", 0.4)),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4}, "rotary_pct": 1.0},
            Positions("rotary", 1.0),
        ),
        ({"model_type": "gpt_neox"}, Positions("rotary", 0.25)),
        ({"model_type": "phi", "rope_theta": 10000.0}, Positions("rotary", 0.5)),
        ({"model_type": "llama", "rope_scaling": None}, Positions("rotary", 1.0)),
        (
            {"model_type": "new", "rope_theta": 10000.0, "partial_rotary_factor": None},
            Positions("rotary", 1.0),
        ),
        ({"model_type": "gptj", "rotary_dim": 64}, Positions("rotary", 0.5)),
        ({"rope_theta": 1e4, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}, Positions("rotary", 1 / 3)),
        ({"model_type": "gemma4_text", "rope_parameters": LAYERED}, Positions("rotary")),
        ({"model_type": "falcon", "alibi": True}, Positions("alibi")),
        ({"model_type": "falcon", "alibi": False}, Positions("rotary", 1.0)),
        ({"model_type": "rwkv"}, Positions("unknown")),
        ({}, Positions("unknown")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_positions_of_config_files_of_other_versions(config, expected):
    """Heads of 128; what a file leaves out is its type's default."""
    assert positions_of(config, 128) == expected


def test_a_config_whose_positions_cannot_be_read_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"rope_parameters": ["x"]}))
    with pytest.raises(ModelError, match=r"config\.json .* is not one of a causal language model"):
        find_model(str(saved))


def test_revision_follows_weights_tokenizer_and_configuration(saved):
    before = find_model(str(saved)).revision
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    changed = find_model(str(saved)).revision
    Tokenizer(models.BPE(vocab={"b": 0}, merges=[])).save(str(saved / "tokenizer.json"))
    assert len({before, changed, find_model(str(saved)).revision}) == 3


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_by_what_is_missing(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(ModelError, match=r"safetensors|missing"):
        find_model(str(saved))


def test_an_unknown_name_says_what_is_allowed_and_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        find_model("nobody/no-such-model")
    assert all(name in str(caught.value) for name in EMBEDDED_NAMES)
    assert "path" in str(caught.value)


def test_a_loaded_model_is_checked_and_frozen(saved):
    model = load(find_model(str(saved)), "float32", torch.device("cpu"))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_wrong_attention_fails_the_self_check(monkeypatch):
    """What the check is for: a mask that lets a query see the future."""
    model = tiny_model("neox", "sdpa")
    real = attention.attention
    for module in ("workers.cache.shared_prefix", "workers.cache.notes"):
        monkeypatch.setattr(
            f"{module}.attention",
            lambda q, k, v, scale, mask=None: real(q, k, v, scale, q.new_zeros(1, 1, 1, 1)),
        )
    with pytest.raises(ModelError, match="stock model"):
        check(model, "broken", "float32")


def test_a_wrong_pruned_cell_fails_the_self_check(monkeypatch):
    """Positions stored wrongly: the evaluation drops other entries than the reference."""
    monkeypatch.setattr(
        "workers.cache.batch.slot_layer.order_by_score",
        lambda scores, positions, protected: positions.long() << 24,
    )
    with pytest.raises(ModelError, match="one token per pass"):
        check(tiny_model("neox", "sdpa"), "broken", "float32")


def test_a_check_that_passed_is_remembered_until_something_changes(saved, monkeypatch, tmp_path):
    """By model, type and the longest text: a model may do something else with a longer one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts, lengths, real = find_model(str(saved)), [], self_check.check

    def counted(model, name, dtype, tokens):
        lengths.append((dtype, tokens.shape[1]))
        return real(model, name, dtype, tokens)

    monkeypatch.setattr(self_check, "check", counted)
    for dtype, length in (
        ("float32", 60),
        ("float32", 60),
        ("float32", 30),
        ("bfloat16", 30),
        ("float32", 61),
    ):
        model = load(facts, dtype, torch.device("cpu"))
        passed = self_check.check_once(model, facts, dtype, repetitive_tokens(2, length))
        assert passed.tokens >= length and model.config._attn_implementation == "kvsweep"
    assert lengths == [("float32", 60), ("bfloat16", 30), ("float32", 61)]

    marks = {file for file in (tmp_path / "cache").rglob("*.json") if '"tokens": 61' in file.read_text()}
    (mark,) = marks
    mark.write_text("{")
    self_check.check_once(model, facts, "float32", repetitive_tokens(1, 20))
    assert lengths[-1] == ("float32", 20), "a mark that was cut off is none"


def test_what_is_said_of_rounding_is_of_the_text_that_is_measured(saved, monkeypatch, tmp_path):
    """Else the rows of a resumed run would tell which unit came first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts, model = find_model(str(saved)), load(find_model(str(saved)), "float32", torch.device("cpu"))
    other, text = repetitive_tokens(1, 60, seed=1), repetitive_tokens(1, 60)
    expected = check(model, "x", "float32", text)
    before = self_check.check_once(model, facts, "float32", other, own_text=True)
    found = self_check.check_once(model, facts, "float32", text, own_text=True)
    assert found == expected != before
    assert self_check.check_once(model, facts, "float32", text[:, :50]) in (
        found,
        before,
    ), "a longer text passed"


NOTHING_TOLD = architecture.Architecture((), ())
"""What is read of a configuration that tells nothing of what its model does."""


def test_a_difference_that_begins_beyond_the_short_check_is_found_at_the_length_that_is_measured(monkeypatch):
    """Frequencies chosen by the longest position of a pass: a token alone and the same token in a long pass
    differ."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = make(
        Architecture("", "Llama", {"rope_parameters": rope}, shape={**SHAPE, "max_position_embeddings": 64})
    )
    monkeypatch.setattr("workers.models.architecture.read_architecture", lambda config: NOTHING_TOLD)
    tokens = repetitive_tokens(3, 100)
    check(model, "dynamic", "float32", tokens[:, :60])
    with pytest.raises(
        ModelError,
        match=r"NLLs of 100 tokens, one per pass, .* differ from the stock model's by .* on average",
    ):
        check(model, "dynamic", "float32", tokens)


def test_long_texts_go_through_one_by_one_before_every_length_at_which_a_model_may_change():
    counts = list(passes(10_000, 9_743))
    assert sum(counts) == 10_000 and list(passes(256, 100)) == [1] * 256
    seen, single = 0, set()
    for count in counts:
        single |= {seen} if count == 1 else set()
        seen += count
    assert {
        *range(64),
        *range(96, 128),
        *range(4064, 4096),
        *range(8160, 8192),
        *range(9711, 10_000),
    } <= single
    assert len(counts) < 700


def test_the_check_goes_through_long_texts_in_stretches(monkeypatch):
    monkeypatch.setattr("workers.loaded.reference_pass.SINGLE_PASSES", 100)
    assert check(tiny_model("neox", "sdpa"), "x", "float32", repetitive_tokens(1, 500)).tokens == 500


def test_the_stock_models_logits_are_made_for_some_tokens_at_a_time(monkeypatch):
    model, tokens = tiny_model("llama", "sdpa"), repetitive_tokens(1, 60)
    self_check.use_own_attention(model, "x")
    whole, _ = self_check._stock_nll(model, tokens)
    monkeypatch.setattr("workers.loaded.self_check.CHECK_LOGITS_BYTES", 4 * 97 * 7)
    assert torch.allclose(self_check._stock_nll(model, tokens)[0], whole, atol=1e-5)


def test_what_16_bits_lose_is_measured():
    """Experts are chosen by a comparison, which rounding tips: figures then move with what shares a pass."""
    passed = check(tiny_model("llama", "sdpa").to(torch.bfloat16), "x", "bfloat16", repetitive_tokens(1, 200))
    exact = check(tiny_model("llama", "sdpa"), "x", "float32", repetitive_tokens(1, 200))
    assert passed.from_reference > 100 * exact.from_reference
    assert exact.from_company < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_is_the_distance_from_one_token_per_pass_and_from_the_cell_alone(dtype):
    """The judge: the reference protocol, once per text and cell; in 16 bits all texts and a cell that prunes
    often."""
    model = tiny_model("llama", "kvsweep").to(DTYPES[dtype])
    model.kvsweep_stock_attention = "sdpa"
    tokens = repetitive_tokens(3, 120)
    passed = check(model, "x", dtype, tokens)
    if dtype == "bfloat16":
        passed = self_check.over_texts(model, tokens, passed)
    texts, cells = (1, 1) if dtype == "float32" else (3, 2)
    nats, ppl = [], []
    for cell in self_check._cells(120)[:cells]:
        alone = evaluate(model, tokens[:texts], [cell], range(texts))[1][0].nll
        company = evaluate(model, tokens[:texts], self_check._cells(120), range(texts))[1][
            self_check._cells(120).index(cell)
        ].nll
        exact = evaluate_reference(model, tokens[:texts], cell, range(texts)).nll
        own = slice(cell.prune_after, None)  # tokens before it saw all that was there
        nats += [float((company - other)[:, own].abs().mean()) for other in (exact, alone)]
        ppl += [
            abs(math.exp(float((company - other)[:, own].double().mean())) - 1) for other in (exact, alone)
        ]
    assert (passed.texts, passed.tokens) == (texts, 120)
    assert passed.rounding_nats == pytest.approx(max(nats), rel=1e-4)
    assert passed.rounding_ppl == pytest.approx(max(ppl), rel=1e-2, abs=1e-7)
    assert check(model, "x", dtype, tokens[:, :4]).rounding_nats is None, "too short to prune"


class OnAnotherDevice(torch.Tensor):
    """A tensor as a GPU's: numpy cannot read it before it was moved."""

    def numpy(self, **_):  # pyright: ignore[reportIncompatibleMethodOverride]
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def cpu(self, **_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.as_subclass(torch.Tensor)


def test_the_check_of_a_text_on_a_gpu_is_remembered_by_the_same_name(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts, tokens = find_model(str(saved)), repetitive_tokens(1, 40)
    model = load(facts, "float32", torch.device("cpu"))
    passed = self_check.check_once(
        model, facts, "float32", tokens.as_subclass(OnAnotherDevice), own_text=True
    )
    monkeypatch.setattr(self_check, "check", None)
    assert self_check.check_once(model, facts, "float32", tokens, own_text=True) == passed


def test_in_16_bits_rounding_is_measured_over_texts_where_rows_tell_of_it(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts, tokens = find_model(str(saved)), repetitive_tokens(3, 60)
    model = load(facts, "bfloat16", torch.device("cpu"))
    assert self_check.check_once(model, facts, "bfloat16", tokens).texts == 1
    assert self_check.check_once(model, facts, "bfloat16", tokens, own_text=True).texts == 3


def test_the_stock_models_own_rounding_of_its_logits_is_no_fault():
    """Logits of hundreds are whole numbers in bfloat16; ours are multiplied in float32. Too short a text to
    prune."""
    model = tiny_model("llama", "sdpa").to(torch.bfloat16)
    model.get_output_embeddings().weight.data *= 60
    self_check.use_own_attention(model, "x")
    tokens = repetitive_tokens(1, self_check.SHORTEST - 1, seed=2)
    stock, rounding = self_check._stock_nll(model, tokens)
    away = float((evaluate(model, tokens, [], [0])[0].nll - stock).abs().max())
    assert self_check.TOLERANCE["bfloat16"] < away < self_check.TOLERANCE["bfloat16"] + rounding
    check(model, "x", "bfloat16", tokens)


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_embedded_models_load_and_are_small(name):
    facts = find_model(name)
    from workers.models.model_files import EMBEDDED

    assert sum(path.stat().st_size for path in (EMBEDDED / name).iterdir()) < 16e6
    assert facts.context == 2048
    assert facts.positions == Positions("rotary", {"reference-neox": 0.25, "reference-llama": 1.0}[name])
    load(facts, "float32", torch.device("cpu"))


def test_attention_refuses_what_it_does_not_implement():
    query = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match="last 5 tokens"):
        attention.attend(torch.nn.Identity(), query, query, query, None, sliding_window=5)
    with pytest.raises(ValueError, match="s_aux"):
        attention.attend(torch.nn.Identity(), query, query, query, None, s_aux=torch.zeros(2))
