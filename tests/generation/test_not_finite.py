"""Where a token is chosen among logits that are no numbers, the cell fails: its times and texts would mean
nothing."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.conftest import save_byte_tokenizer
from tests.driving.test_unit import NOWHERE
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.scoring import check_chosen
from workers.generation.decoding import generate
from workers.harness.scores import score_continuations
from workers.harness.texts import Decoding, Writer
from workers.machine.clock import Clock
from workers.messages.work import GenerationWork, RetrievalWork, UnitCell, WorkUnit
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question
from workers.unit import run_unit

CPU, PROMPT = torch.device("cpu"), repetitive_tokens(2, 40)
CELL = PruneSettings("knorm", 0.5, 16)


@pytest.fixture(params=["overflow in float16", "a weight that is NaN"])
def model(request):
    """One whose logits are no numbers from the first token on, or only after a token that occurs late."""
    found = tiny_model("llama")
    if request.param == "overflow in float16":
        found.model.layers[1].self_attn.v_proj.weight.data *= 3e4
        return found.to(torch.float16)
    found.model.embed_tokens.weight.data[PROMPT[0, -1]] = torch.nan
    return found


@pytest.fixture
def tokenizer(tmp_path):
    save_byte_tokenizer(tmp_path / "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


def question():
    prompt = PROMPT[0].tolist()
    return Question("passkey", 50, 3, 0, 0.1, 0, prompt, prompt[-10:], [1, 2, 3], "123", ((4, 9),))


def test_timed_generation(model):
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        generate(model, PROMPT, CELL, 8, Clock(CPU))


def test_perplexity(model):
    with pytest.raises(FloatingPointError):
        evaluate(model, PROMPT[:, torch.arange(39, -1, -1)], [CELL], [0, 40])


@pytest.mark.parametrize("question_pruned", [True, False])
def test_retrieval(model, question_pruned):
    (found,) = answers(model, CPU, [CELL], RetrievalWork((question(),), question_pruned), 4)
    assert isinstance(found, FloatingPointError)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_texts_of_the_harness(model, tokenizer, temperature):
    with pytest.raises(FloatingPointError):
        Writer(model, tokenizer, CELL, CPU).write(PROMPT[:1].tolist(), Decoding((), 4, temperature))


def test_likelihoods_of_the_harness(model):
    with pytest.raises(FloatingPointError):
        score_continuations(model, CELL, [(PROMPT[0].tolist(), [3, 4])], CPU)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_logits_of_the_harness(value):
    sound = tiny_model("llama")
    sound.lm_head.bias = torch.nn.Parameter(
        torch.zeros(97).index_fill(0, torch.tensor(4), value), requires_grad=False
    )
    with pytest.raises(FloatingPointError):
        score_continuations(sound, CELL, [(PROMPT[0].tolist(), [3, 4, 5])], CPU)


def test_the_models_own_tokens_in_retrieval_count_as_well_as_the_right_ones():
    """Only the answer that the model gives itself leads to the token whose embedding is NaN."""
    sound = tiny_model("llama")
    own = generate(
        sound, torch.tensor([question().prompt_ids]), PruneSettings("dense"), 2, Clock(CPU)
    ).output_tokens[0][0]
    asked = dataclasses.replace(question(), answer_ids=[own % 90 + 1, 2, 3])
    sound.model.embed_tokens.weight.data[own] = torch.nan
    (found,) = answers(sound, CPU, [PruneSettings("dense")], RetrievalWork((asked,), True), 4)
    assert isinstance(found, FloatingPointError)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_looked_at_is_the_highest_logit_of_every_row(value):
    check_chosen(torch.tensor([1.0, -1e30]))
    with pytest.raises(FloatingPointError):
        check_chosen(torch.tensor([1.0, value]))
    logits = torch.zeros(2, 5).index_fill(1, torch.tensor(3), torch.nan)
    with pytest.raises(FloatingPointError):
        check_chosen(logits.max(-1).values)


@pytest.mark.parametrize("protocol", ["interleaved", pytest.param("report_2025", marks=pytest.mark.slow)])
def test_a_timed_cell_that_fails_takes_no_other_down(protocol, monkeypatch):
    # what the memory gives is not asked here
    monkeypatch.setattr(
        "workers.generation.rows.memory_bandwidth", lambda device, size: 1e12
    )  # what the memory gives is not asked here
    cells = [UnitCell(name, PruneSettings(name, 0.5, 16)) for name in ("dense", "knorm", "nowhere:score")]
    work = GenerationWork(
        tuple(map(tuple, PROMPT.tolist())),
        5,
        repeats=2,
        max_repeats=2,
        interval_width=0.05,
        warmup=1,
        seed=0,
        protocol=protocol,
    )
    result = run_unit(
        WorkUnit("u", "generation", NOWHERE, "cpu", "float32", tuple(cells), work), tiny_model("neox"), CPU
    )
    assert {row["cell_id"] for row in result.rows} == {"dense", "knorm"}
    assert [(failure.cell_id, failure.error_type) for failure in result.failures] == [
        ("nowhere:score", "PolicyError")
    ]
