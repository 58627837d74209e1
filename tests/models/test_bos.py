"""Models whose texts begin with BOS: which those are, and that it is position 0 of every window, prompt and
document."""

import json
import math
import os
import shutil
from fractions import Fraction
from itertools import product

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, processors
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from pipeline.driving.provenance import describe_run
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.tasks.perplexity import windows_of
from pipeline.tasks.retrieval import questions_of
from tests.support.command import kvsweep, run_inline
from tests.support.tokenizers_made import begins_with, byte_style, gemma_style, llama2_style, saved
from workers.corpora import read_corpus
from workers.models.bos import GENERAL_BY_TYPE, OWN_BY_TYPE, OWN_POST_PROCESSOR, bos_token
from workers.models.model_files import ModelError, ModelFacts, find_model

BOS = 256
"""The tiny model's token of this name."""


def facts_of(folder) -> ModelFacts:
    return ModelFacts(
        "m", "r", str(folder), None, "x", 1, None, None, (), (), 1, 8, 0, str(folder / "tokenizer.json")
    )


def byte_with(post_processor) -> Tokenizer:
    tokenizer = byte_style()
    tokenizer.post_processor = post_processor(tokenizer)
    return tokenizer


TOKENIZERS = {
    "llama 2": llama2_style(),
    "gemma": gemma_style(),
    "bytes": byte_style(),
    "llama 3": byte_with(
        lambda t: processors.Sequence([processors.ByteLevel(), begins_with("<|endoftext|>", t)])
    ),
    "bytes, offsets": byte_with(lambda t: processors.ByteLevel(trim_offsets=False)),
}
CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizerFast",
    "GPTNeoXTokenizerFast",
    "GPT2Tokenizer",
    "GemmaTokenizer",
)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "declared", [None, *({"add_bos_token": said} for said in (None, True, False))], ids=str
)
def test_a_text_begins_as_autotokenizer_begins_it(tmp_path, name, declared):
    tokenizer = TOKENIZERS[name]
    bos = "<s>" if tokenizer.token_to_id("<s>") is not None else "<|endoftext|>"
    for number, (cls, kind) in enumerate(
        product(CLASSES if declared else [None], ("gpt_neox", "llama", "mistral", "olmo"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        saved(tokenizer, folder)
        (folder / "config.json").write_text(
            json.dumps({"model_type": kind, "bos_token_id": 0, "eos_token_id": 0})
        )
        if declared:
            config = {"tokenizer_class": cls, "bos_token": bos, "eos_token": bos, **declared}
            config = {key: value for key, value in config.items() if value is not None}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        theirs = AutoTokenizer.from_pretrained(folder)
        with_first, without = theirs("a").input_ids, theirs("a", add_special_tokens=False).input_ids
        first = with_first[: len(with_first) - len(without)]
        assert bos_token(facts_of(folder), "auto") == (first[0] if first else None), (cls, kind)


def test_the_classes_that_replace_a_post_processor_are_those_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import (
        MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
        TOKENIZER_MAPPING_NAMES,
    )

    general = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast", "MistralCommonBackend")
    named = {kind: (name or "").removesuffix("Fast") for kind, name in TOKENIZER_MAPPING_NAMES.items()}
    assert set(OWN_BY_TYPE) == {kind for kind, name in named.items() if name in OWN_POST_PROCESSOR}
    assert set(GENERAL_BY_TYPE) == {
        kind
        for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if named.get(kind) in general or kind in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    }


def test_always_takes_the_token_that_the_files_name(tmp_path):
    saved(byte_style(), tmp_path)
    facts = facts_of(tmp_path)
    with pytest.raises(
        ModelError,
        match=r"bos: always needs a BOS token, and neither .* names one; say bos: auto or bos: never",
    ):
        bos_token(facts, "always")
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 7}))
    assert (bos_token(facts, "always"), bos_token(facts, "auto"), bos_token(facts, "never")) == (
        7,
        None,
        None,
    )
    for token in ("<|endoftext|>", {"content": "<|endoftext|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))
        assert bos_token(facts, "always") == byte_style().token_to_id("<|endoftext|>")


def test_a_tokenizer_that_puts_two_tokens_first_is_refused_unless_they_are_left_out(tmp_path):
    special = [("<|endoftext|>", 256)]
    template = processors.TemplateProcessing(
        single="<|endoftext|> <|endoftext|> $A", pair="$A $B", special_tokens=special
    )
    saved(byte_with(lambda _: template), tmp_path)
    with pytest.raises(ModelError, match="begins every text with 2 tokens"):
        bos_token(facts_of(tmp_path), "auto")
    assert bos_token(facts_of(tmp_path), "never") is None


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory, tiny_model_dir):
    """The tiny model with a tokenizer that begins every text with token 256."""
    folder = tmp_path_factory.mktemp("bos") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    saved(byte_with(lambda tokenizer: begins_with("<|endoftext|>", tokenizer)), folder)
    return folder


@pytest.fixture
def plan_of(sweep_file, with_bos):
    """``plan_of(key="YAML", ...)``: the plan of a small sweep of that model."""
    return lambda **keys: make_plan(load_spec(str(sweep_file(**{"models": f"[{with_bos}]", **keys}))))


BLOCKS = {
    "perplexity": "{window: 40, stride: 24, windows: 4}",
    "generation": (
        "{prompt_tokens: [32], batch_sizes: [2], new_tokens: 4, repeats: 5, max_repeats: 5, warmup: 0}"
    ),
    "retrieval": (
        "{kinds: [needle], context_tokens: [240], depths: [0.1, 0.9], questions: 1, distractors: [1]}"
    ),
}


def test_bos_is_position_0_of_windows_prompts_and_documents_and_counts(plan_of, text_file):
    """The judge: slices of the ids of the text, in plain Python."""
    plan = plan_of(**BLOCKS)
    ids = list(text_file.read_bytes())
    alphabet = byte_style()
    ids = alphabet.encode(text_file.read_text(), add_special_tokens=False).ids
    units = {unit.task: unit for unit in plan.units}

    windows = work_unit(plan, units["perplexity"]).work
    fit = (len(ids) + 1 - 40) // 24 + 1
    starts = [24 * int((part + 0.5) / 4 * fit) for part in range(4)]
    assert windows.tokens.tolist() == [[BOS, *ids[start : start + 39]] for start in starts]
    assert [(w.start, w.length, w.first_scored) for w in windows.windows] == [
        (start, 40, 16) for start in starts
    ]
    prompts = work_unit(plan, units["generation"]).work.prompts
    starts = [31 * int((part + 0.5) / 2 * (len(ids) // 31)) for part in range(2)]
    assert [list(prompt) for prompt in prompts] == [[BOS, *ids[start : start + 31]] for start in starts]

    passkeys = plan_of(perplexity=None, retrieval="{context_tokens: [240], depths: [0.1, 0.9], questions: 1}")
    for made, unit in ((plan, units["retrieval"]), (passkeys, passkeys.units[0])):
        asked = questions_of(made.resolved, unit)
        assert len({id(question.context_ids) for question in asked}) == (
            1 if unit.part.kind == "needle" else 2
        )
        for question in asked:
            assert (
                question.context_ids[0] == BOS not in question.context_ids[1:]
                and len(question.prompt_ids) == 240
            )
            said = [alphabet.decode(question.context_ids[a:b]) for a, b in question.answer_spans]
            assert said == [question.expected] * len(said)


def test_a_text_holds_as_many_windows_as_its_tokens_fill_behind_bos(plan_of, tmp_path):
    file = tmp_path / "exact.txt"
    file.write_text("x" * 63 + "y" * 64)
    keys = {"datasets": f'["text:{file}"]', "perplexity": "{window: 64, windows: 9}"}
    for bos, count in (("auto", 2), ("never", 1)):
        plan = plan_of(bos=bos, **keys)
        assert len(windows_of(plan.grid.cells[0], plan.resolved)) == count
    file.write_text("x" * 63)
    assert len(plan_of(**keys).units) == 1
    file.write_text("x" * 62)
    with pytest.raises(SweepError, match=r"has only 62 tokens .*, one perplexity window needs 63"):
        plan_of(**keys)
    timed = {
        "datasets": f'["text:{file}"]',
        "perplexity": None,
        "generation": "{prompt_tokens: [32], batch_sizes: [2]}",
    }
    assert plan_of(**timed).units
    file.write_text("x" * 61)
    with pytest.raises(SweepError, match="longest prompts needs 62"):
        plan_of(**timed)


def test_the_plan_and_run_json_say_what_texts_begin_with(plan_of, with_bos, tiny_model_dir):
    assert f"texts of {with_bos} begin with BOS, token 256 (bos: auto)" in plan_of().notes
    assert (
        f"texts of {with_bos} begin without the BOS that its own tokenizer puts first (bos: never)"
        in plan_of(bos="never").notes
    )
    plain = plan_of(models=f"[{tiny_model_dir}]")
    assert not any("BOS" in note for note in plain.notes)
    ids = {how: {cell.cell_id for cell in plan_of(bos=how).grid.cells} for how in ("auto", "always", "never")}
    assert ids["auto"] == ids["always"] and ids["auto"].isdisjoint(ids["never"])
    (told,), (other,) = (describe_run(plan, None)["models"] for plan in (plan_of(), plain))
    assert (told["bos"], told["bos_token_id"], other["bos"], other["bos_token_id"]) == (
        True,
        BOS,
        False,
        None,
    )


def test_bos_that_a_model_does_not_name_is_refused_before_anything_starts(
    sweep_file, tiny_model_dir, tmp_path
):
    folder = tmp_path / "unnamed"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "bos_token_id"})
    )
    done = kvsweep(
        "run", sweep_file(models=f"[{folder}]", bos="always"), "--inline", "--out", "out", folder=tmp_path
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and str(folder) in line and "bos: always needs a BOS token" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(SweepError, match=r"bos: should be 'auto', 'always' or 'never' \(got \"yes\"\)"):
        load_spec(str(sweep_file(bos='"yes"')))


@torch.inference_mode()
def stock_nll(model, ids, keep=1.0, after=10**9):
    """NLL of ids[1:], one token per pass through the stock model and cache; low key norms stay, in this
    function's own code."""
    cache, keep, out = DynamicCache(config=model.config), Fraction(str(keep)), []
    for i in range(len(ids) - 1):
        place = torch.tensor([[i]])
        logits = model(
            input_ids=torch.tensor([[ids[i]]]), position_ids=place, past_key_values=cache, use_cache=True
        ).logits
        out.append(float(functional.cross_entropy(logits[0, -1:].float(), torch.tensor([ids[i + 1]]))))
        for layer in cache.layers:
            held = layer.keys.shape[2]
            kept = math.ceil(keep * held)
            if held < after or kept == held:
                continue
            mantissas, exponents = torch.frexp(
                layer.keys.norm(dim=-1)
            )  # 12 bits: rotation leaves norms of a token equal
            rounded = torch.ldexp((mantissas * 4096).round() / 4096, exponents)
            chosen = rounded.argsort(dim=-1, stable=True)[..., :kept].sort(-1).values[..., None]
            layer.keys, layer.values = (
                x.gather(2, chosen.expand(-1, -1, -1, x.shape[3])) for x in (layer.keys, layer.values)
            )
    return out


@pytest.fixture(scope="module")
def rows(tmp_path_factory, with_bos, text_file):
    """``rows(task)`` of a run of that model."""
    folder = tmp_path_factory.mktemp("rows")
    sweep = folder / "sweep.yaml"
    keys = {"name": "bos", "models": [str(with_bos)], "datasets": [f"text:{text_file}"], "devices": ["cpu"]}
    keys |= {"keep_ratios": [0.5], "prune_after": [16], "position_modes": ["absolute"]}
    sweep.write_text(
        "\n".join([*(f"{key}: {json.dumps(value)}" for key, value in keys.items())])
        + "\n"
        + "\n".join(f"{name}: {block}" for name, block in BLOCKS.items())
    )
    assert run_inline(sweep, folder / "out") == 0
    plan = make_plan(load_spec(str(sweep)))
    return plan, lambda task: RunStore(str(folder / "out")).scan(task).collect()


@pytest.fixture(scope="module")
def stock(with_bos):
    return AutoModelForCausalLM.from_pretrained(with_bos, dtype=torch.float32).eval()


@pytest.mark.slow
def test_rows_are_those_of_the_stock_model_with_bos_prepended_by_hand(rows, stock, text_file):
    _, scan = rows
    ids = byte_style().encode(text_file.read_text(), add_special_tokens=False).ids
    found = scan("perplexity").sort("window_index")
    assert found["bos"].all() and found.height == 8
    for policy, settings in (("dense", {}), ("knorm", {"keep": 0.5, "after": 16})):
        for row in found.filter(pl.col("policy") == policy).iter_rows(named=True):
            start, first = row["window_start"], 1 if row["window_index"] == 0 else 16
            nll = stock_nll(stock, [BOS, *ids[start : start + 39]], **settings)[first - 1 :]
            assert row["nll"] == pytest.approx(nll, abs=2e-4), (policy, row["window_index"])
            assert (row["tokens_scored"], row["nll_sum"]) == (len(nll), pytest.approx(sum(nll), abs=2e-3))


@pytest.mark.slow
def test_generated_tokens_are_those_of_the_stock_model_behind_bos(rows, stock, text_file):
    _, scan = rows
    ids = byte_style().encode(text_file.read_text(), add_special_tokens=False).ids
    dense = scan("generation").filter(pl.col("policy") == "dense").row(0, named=True)
    starts = [31 * int((part + 0.5) / 2 * (len(ids) // 31)) for part in range(2)]
    prompts = torch.tensor([[BOS, *ids[start : start + 31]] for start in starts])
    told = stock.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )
    assert dense["output_tokens"] == told[:, 32:].flatten().tolist() and dense["prompt_tokens"] == 32


@pytest.mark.slow
def test_answers_are_those_of_the_stock_model_behind_bos(rows, stock):
    plan, scan = rows
    for unit in (unit for unit in plan.units if unit.task == "retrieval"):
        for question in questions_of(plan.resolved, unit):
            ids = torch.tensor([question.prompt_ids + question.answer_ids])
            with torch.inference_mode():
                logits = stock(ids).logits[0, -len(question.answer_ids) - 1 : -1].float()
            nll = float(functional.cross_entropy(logits, torch.tensor(question.answer_ids), reduction="sum"))
            (row,) = (
                scan("retrieval")
                .filter(
                    pl.col("policy") == "dense",
                    pl.col("kind") == question.kind,
                    pl.col("depth") == question.depth,
                )
                .iter_rows(named=True)
            )
            assert (
                row["answer_nll"] == pytest.approx(nll, abs=1e-3)
                and row["context_tokens"] == 240
                and row["bos"]
            )


@pytest.mark.slow
def test_gemma_3_without_bos_is_broken_and_with_it_is_not(sweep_file, tmp_path):
    """The path of a folder of Gemma 3 270M comes from the environment. 256 tokens of pydocs, each with a
    token before it."""
    if "GEMMA3" not in os.environ:
        pytest.skip("needs GEMMA3=FOLDER, Gemma 3 270M")
    tokenizer = Tokenizer.from_file(f"{os.environ['GEMMA3']}/tokenizer.json")
    ids = tokenizer.encode(read_corpus("pydocs").text[:40_000], add_special_tokens=False).ids[2000:2300]
    file, found = tmp_path / "part.txt", {}
    file.write_text(tokenizer.decode(ids))

    for how, window in (("auto", 258), ("never", 257)):
        keys = {"models": f"[{os.environ['GEMMA3']}]", "datasets": f'["text:{file}"]', "policies": "[recent]"}
        sweep = sweep_file(
            bos=how, perplexity=f"{{window: {window}, windows: 1}}", keep_ratios="[1.0]", **keys
        )
        assert run_inline(sweep, tmp_path / how) == 0
        (nll,) = RunStore(str(tmp_path / how)).scan("perplexity").collect()["nll"].to_list()
        found[how] = math.exp(sum(nll[-256:]) / 256)
    assert found == {"auto": pytest.approx(21.9, abs=0.1), "never": pytest.approx(152.7, abs=0.5)}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "bos"), [("SMOLLM2", None), ("GEMMA3", 2)])
def test_real_models_begin_their_texts_as_autotokenizer_does(model, bos):
    if model not in os.environ:
        pytest.skip(f"needs {model}=FOLDER, a model with its tokenizer.json")
    first = AutoTokenizer.from_pretrained(os.environ[model])("x").input_ids[0]
    assert bos_token(find_model(os.environ[model]), "auto") == bos and (first == bos) == (bos is not None)
