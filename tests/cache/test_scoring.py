"""KL divergence and agreement with the dense twin, without its distributions = from whole distributions in
float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import next_logits, score, score_dense, tile_size
from workers.generation.decoding import forward
from workers.messages.work import RetrievalWork
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question

WIDTH, WORDS = 16, 5000


class Stub(nn.Module):
    """An output layer of more words than a tile holds."""

    def __init__(self, bias: bool, softcap: float | None) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WORDS, bias=bias)
        nn.init.normal_(self.head.weight)
        text = SimpleNamespace(final_logit_softcapping=softcap)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_kl_and_agreement_are_those_of_whole_distributions(bias, softcap):
    torch.manual_seed(0)
    model, dense = Stub(bias, softcap), torch.randn(2, 700, WIDTH)
    hidden = dense + torch.rand(2, 700, 1) * torch.randn(2, 700, WIDTH)
    targets = torch.randint(WORDS, (2, 700))
    assert targets.numel() > tile_size(hidden.device)[0] and 2 * tile_size(hidden.device)[1] < WORDS
    own, twin = score_dense(model, dense, targets)
    found = score(model, hidden, targets, twin)

    def distribution(states):
        logits = model.head.double()(states.double())
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)

    p, q = distribution(dense), distribution(hidden)
    model.head.float()
    assert torch.allclose(found.kl.double(), (p.exp() * (p - q)).sum(-1), atol=3e-5)
    assert (
        torch.equal(found.agreed, p.argmax(-1) == q.argmax(-1)) and 0.05 < found.agreed.float().mean() < 0.95
    )
    assert torch.allclose(found.nll.double(), -q.gather(-1, targets[..., None])[..., 0], atol=3e-5)
    assert torch.allclose(own.nll, score(model, dense, targets).nll, atol=3e-5)
    assert torch.equal(own.correct, score(model, dense, targets).correct)
    alone = score(model, hidden, targets)
    assert torch.equal(alone.nll, found.nll) and alone.kl is None, "comparing changes no figure"


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_in_16_bits_hidden_states_and_weights_are_all_that_is_rounded(dtype, softcap):
    """Products in float32: as from float64, where the model's own product is off by some thousandths of a nat
    and more."""
    torch.manual_seed(0)
    model, hidden = Stub(True, softcap).to(dtype), (3 * torch.randn(2, 700, WIDTH)).to(dtype)
    targets = torch.randint(WORDS, (2, 700))

    def nll(head, states):
        logits = head(states)
        logits = logits.double() if softcap is None else softcap * torch.tanh(logits.double() / softcap)
        return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]

    own = nll(model.head, hidden)
    next_one = next_logits(model, hidden[:, 0])
    dense, twin = score_dense(model, hidden, targets)
    found = score(model, hidden, targets, twin)
    exact = nll(model.head.double(), hidden.double())
    assert found.nll.dtype == next_one.dtype == torch.float32
    assert torch.allclose(found.nll.double(), exact, atol=1e-4) and torch.allclose(
        dense.nll, found.nll, atol=3e-5
    )
    assert float((own - exact).abs().max()) > 2e-3
    assert float(found.kl.abs().max()) < 1e-4
    expected = model.head(hidden[:, 0].double())
    expected = expected if softcap is None else softcap * torch.tanh(expected / softcap)
    assert torch.allclose(next_one.double(), expected, atol=1e-4)


@torch.inference_mode()
def test_scores_are_multiplied_whole_whatever_the_process_allows(monkeypatch):
    """TF32 has ten bits of mantissa; what the process allowed before is allowed afterwards."""
    allowed, seen, multiply = torch.get_float32_matmul_precision(), [], nn.functional.linear
    model, hidden = Stub(False, None), torch.randn(1, 10, WIDTH)

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return multiply(*arguments)

    monkeypatch.setattr("torch.nn.functional.linear", watched)
    torch.set_float32_matmul_precision("medium")
    try:
        score(model, hidden, torch.zeros(1, 10, dtype=torch.long))
        next_logits(model, hidden[0])
        left = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(allowed)
    assert len(seen) == 1 + math.ceil(WORDS / tile_size(hidden.device)[1])
    assert set(seen) == {"highest"} and left == "medium"


@torch.inference_mode()
def distributions(model, tokens, settings):
    """One token per pass: [steps, words] in float64."""
    cache = PrunedCache(model.config, settings, row_ids=[0])
    steps = [
        forward(model, tokens[:, i : i + 1], cache)[0].double().log_softmax(-1)
        for i in range(tokens.shape[1] - 1)
    ]
    return torch.stack(steps)


CELLS = [
    PruneSettings("knorm", 0.5, 8),
    PruneSettings("snapkv", 0.9, 40, (0,)),
    PruneSettings("random", 0.7, 30),
]


@pytest.mark.parametrize("architecture", ["llama", "neox"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_cells_kl_is_that_of_the_reference_protocol(architecture, cell):
    model, tokens = tiny_model(architecture), repetitive_tokens(1, 70)
    dense, (found,) = evaluate(model, tokens, [cell], [0])
    p, q = distributions(model, tokens, PruneSettings("dense")), distributions(model, tokens, cell)
    expected = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(found.kl[0].double(), expected, atol=1e-4) and expected.max() > 0.01
    assert torch.equal(found.agreed[0], p.argmax(-1) == q.argmax(-1))
    before = cell.prune_after
    assert (
        found.kl[0, :before].eq(0).all() and found.agreed[0, :before].all() and math.isfinite(found.kl.sum())
    )
    assert dense.kl.eq(0).all() and dense.agreed.all()


def test_a_capped_model_answers_with_its_capped_distribution():
    model = tiny_model("llama")
    tokens = repetitive_tokens(1, 12)
    question = Question("needle", 12, 3, 0, 0.5, 0, tokens[0].tolist(), [], [3, 4], "12", ((0, 4),))
    plain = answers(model, tokens.device, [PruneSettings("dense")], RetrievalWork((question,), True), 4)[0][
        0
    ]["answer_nll"]
    model.config.final_logit_softcapping = 0.001  # next to no logits at all: every word is as likely
    try:
        capped = answers(model, tokens.device, [PruneSettings("dense")], RetrievalWork((question,), True), 4)[
            0
        ][0]["answer_nll"]
    finally:
        del model.config.final_logit_softcapping
    words = model.get_output_embeddings().out_features
    assert capped == pytest.approx(2 * math.log(words), abs=0.01) != pytest.approx(plain, abs=0.1)


def test_a_model_that_scales_its_logits_is_refused_wherever_likelihoods_are_asked_for(monkeypatch):
    model, tokens = tiny_model("llama"), repetitive_tokens(1, 12)
    monkeypatch.setattr(model.config, "logit_scale", 0.1, raising=False)
    question = Question("needle", 12, 3, 0, 0.5, 0, tokens[0].tolist(), [], [3, 4], "12", ((0, 4),))
    with pytest.raises(ValueError, match="logit_scale"):
        answers(model, tokens.device, [PruneSettings("dense")], RetrievalWork((question,), True), 4)
