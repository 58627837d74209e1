"""Tasks of lm-evaluation-harness through the pruned cache: dense is the harness's own model, pruned is one
token per pass."""

import shutil
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from tests.harness.local_tasks import QUESTIONS
from tests.support.spy_policy import Spy
from tests.support.thinned import thinned
from tests.support.tokenizers_made import begins_with, byte_style, saved
from workers.cache.pruned_cache import PrunedCache
from workers.generation.decoding import forward
from workers.harness.arguments import parse
from workers.harness.model import PrunedModel
from workers.harness.rows import text_id
from workers.harness.scores import fitted
from workers.harness.tasks import HarnessError
from workers.harness.texts import Decoding, _choose
from workers.models.model_files import find_model
from workers.policies import eviction
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")
PRUNED = PruneSettings("knorm", 0.5, 24)


@pytest.fixture(scope="module")
def stock(tiny_model_dir, pruned_model):
    """The harness's own model of the same weights; what it imports of accelerate is for loading on several
    devices only."""
    stub, names = (
        types.ModuleType("accelerate"),
        ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size"),
    )
    stub.__dict__.update(dict.fromkeys(names, None))
    stub.utils = types.ModuleType("accelerate.utils")
    stub.utils.get_max_memory = None
    with pytest.MonkeyPatch.context() as patch:
        if "accelerate" not in sys.modules:
            patch.setitem(sys.modules, "accelerate", stub)
            patch.setitem(sys.modules, "accelerate.utils", stub.utils)
        from lm_eval.models.huggingface import HFLM
    weights = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    return HFLM(pretrained=weights, tokenizer=pruned_model(PruneSettings()).tokenizer, batch_size=1)


def run(lm, folder, *tasks, **options):
    """The harness's results and, by (task, document), what the model answered."""
    files = [str(folder / f"{task}.yaml") for task in tasks]
    results = simple_evaluate(
        model=lm, tasks=files, bootstrap_iters=0, task_manager=TaskManager(include_defaults=False), **options
    )
    return results, {(task, s["doc_id"]): s["resps"] for task in tasks for s in results["samples"][task]}


def numbers(answers) -> list[float]:
    return [answer[0] if isinstance(answer, tuple) else answer for request in answers for answer in request]


def requests(pairs, kind="loglikelihood"):
    return [Instance(kind, {}, pair, i, ("own", i, 1)) for i, pair in enumerate(pairs)]


PAIRS = [(q["text"], " " + choice) for q in QUESTIONS for choice in q["choices"]]


@torch.inference_mode()
def one_token_per_pass(model, context, continuation, settings) -> tuple[float, bool, int, float]:
    """(logprob, greedy, prune events, entries held on average), the slow and plain way."""
    cache = PrunedCache(model.config, settings, row_ids=[text_id(context)])
    logits, total, greedy, held = forward(model, torch.tensor([context]), cache), 0.0, True, []
    for i, token in enumerate(continuation):
        held.append(sum(layer.held for layer in cache.pruned_layers) / len(cache.pruned_layers))
        chances = logits[0].log_softmax(-1)
        total, greedy = total + float(chances[token]), greedy and int(chances.argmax()) == token
        if i + 1 < len(continuation):
            logits = forward(model, torch.tensor([[token]]), cache)
    return total, greedy, cache.validity().prune_events, sum(held) / len(held)


@pytest.mark.parametrize("batch_size", thinned([1, 3], 1))
def test_dense_is_the_harness_s_own_model_on_all_kinds_of_tasks(pruned_model, stock, folder, batch_size):
    tasks = ("kv_choice", "kv_rolling", "kv_text")
    theirs, expected = run(stock, folder, *tasks)
    ours, found = run(pruned_model(PruneSettings("dense"), batch_size=batch_size), folder, *tasks)
    for document, answers in expected.items():
        if document[0] == "kv_text":
            assert found[document] == answers
        else:
            assert numbers(found[document]) == pytest.approx(numbers(answers), abs=1e-4)
    assert ours["results"]["kv_choice"]["acc,none"] == theirs["results"]["kv_choice"]["acc,none"]
    assert ours["config"]["prune_events"] == 0
    assert ours["config"]["pruning_warnings"] == []


def test_texts_that_are_too_long_are_cut_as_the_harness_cuts_them(pruned_model, stock, monkeypatch):
    monkeypatch.setattr(stock, "_max_length", 40)
    ours = pruned_model(PruneSettings("dense"), max_length=40)
    pairs = [*PAIRS, ("", "no context at all"), ("ends with spaces  ", "and goes on"), ("x", "y" * 40)]
    expected, found = stock.loglikelihood(requests(pairs)), ours.loglikelihood(requests(pairs))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert numbers([found]) == pytest.approx(numbers([expected]), abs=1e-4)
    long = [("".join(question["text"] for question in QUESTIONS),), ("ab",), ("",)]
    texts = [Instance("loglikelihood_rolling", {}, text, i) for i, text in enumerate(long)]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(stock.loglikelihood_rolling(texts), abs=1e-4)
    options = {"until": ["\n\n", "th"], "max_gen_toks": 12}
    asked = requests([(question["text"], options) for question in QUESTIONS], "generate_until")
    assert ours.generate_until(asked) == stock.generate_until(asked)


@pytest.mark.parametrize("schedule", ["every_step", "prefill_once"])
@pytest.mark.parametrize("policy", thinned(["knorm", "snapkv", "tova", "h2o", "random", "streaming"], 3))
def test_pruned_is_one_token_per_pass(pruned_model, model, policy, schedule):
    settings = PruneSettings(policy, 0.5, 24, (1,), schedule=schedule)
    lm = pruned_model(settings, batch_size=4)
    found = lm.loglikelihood(requests(PAIRS))
    expected = [
        one_token_per_pass(model, *fitted(lm._encode(*pair), lm.max_length), settings) for pair in PAIRS
    ]
    assert numbers([found]) == pytest.approx([total for total, *_ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy, *_ in expected]
    counts = lm.counts["own"]
    assert counts.prune_events == sum(events for *_, events, _ in expected) >= len(PAIRS)
    tokens = [len(continuation) for _, continuation in PAIRS]
    assert (counts.requests, counts.tokens_predicted) == (len(PAIRS), sum(tokens))
    assert counts.tokens_predicted_pruned == sum(tokens) - len(PAIRS)
    mean = sum(held * count for (*_, held), count in zip(expected, tokens, strict=True)) / sum(tokens)
    assert counts.cache_tokens_mean == pytest.approx(mean)
    dense = pruned_model(PruneSettings("dense")).loglikelihood(requests(PAIRS))
    assert max(abs(a - b) for a, b in zip(numbers([found]), numbers([dense]), strict=True)) > 1e-2


def test_a_policy_sees_whole_views_in_tasks_too(pruned_model, monkeypatch):
    spy = Spy()
    monkeypatch.setitem(eviction._OWN, "recent", Policy(spy, name="module:spy"))
    pruned_model(PruneSettings("recent", 0.5, 8)).loglikelihood(requests(PAIRS))
    assert spy.views > len(PAIRS) // 2


def test_a_whole_text_goes_through_the_pruned_cache(pruned_model, model):
    lm, text = (
        pruned_model(PruneSettings("knorm", 0.5, 16), max_length=48),
        QUESTIONS[0]["text"] + QUESTIONS[1]["text"],
    )
    ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    total, start = 0.0, 1  # the last window reaches back as far as the model sees
    for end in (49, 97, len(ids)):
        first = max(0, end - 49)
        total += one_token_per_pass(model, ids[first:start], ids[start:end], lm.settings)[0]
        start = end
    (found,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0, ("own", 0, 1))])
    assert found == pytest.approx(total, abs=1e-3)
    assert lm.counts["own"].prune_events > 3


@torch.inference_mode()
def test_generated_text_goes_through_the_pruned_cache(pruned_model, model):
    settings = PruneSettings("tova", 0.5, 24)
    lm = pruned_model(settings, batch_size=3)
    asked = requests([(q["text"], {"until": [], "max_gen_toks": 20}) for q in QUESTIONS], "generate_until")
    for request, text in zip(asked, lm.generate_until(asked), strict=True):
        cache = PrunedCache(model.config, settings)
        token, out = torch.tensor([lm.tok_encode(request.args[0])]), []
        for _ in range(20):
            token = forward(model, token, cache).argmax(-1, keepdim=True)
            out.append(int(token))
            if out[-1] == lm.eot_token_id:
                break
        assert text == lm.tokenizer.decode(out, skip_special_tokens=True)
    assert lm.counts["own"].prune_events > len(QUESTIONS)
    assert lm.generate_until(asked) != pruned_model(PruneSettings("dense")).generate_until(asked)


@torch.inference_mode()
def greedy_tokens(model, context, count) -> list[int]:
    cache, token, out = PrunedCache(model.config, PruneSettings("dense")), torch.tensor([context]), []
    for _ in range(count):
        token = forward(model, token, cache).argmax(-1, keepdim=True)
        out.append(int(token))
    return out


def test_what_greedy_decoding_says_is_greedy_whatever_its_length(pruned_model, model):
    lm = pruned_model(PruneSettings("dense"), batch_size=2)
    context = lm.tok_encode(QUESTIONS[0]["text"])
    said = greedy_tokens(model, context, 6)
    other = [*said[:5], (said[5] + 1) % 256]
    found = lm._score([(context, said[:3]), (context, said), (context, other), (context, said[:1])], "", True)
    assert [one.greedy for one in found] == [True, True, False, True]


def test_a_text_stops_where_the_harness_s_own_model_stops_it(pruned_model, stock, model, monkeypatch):
    lm, texts = (
        pruned_model(PruneSettings("dense"), batch_size=3),
        [question["text"] for question in QUESTIONS],
    )

    def both(**options):
        asked = requests([(text, options) for text in texts], "generate_until")
        found = lm.generate_until(asked)
        assert found == stock.generate_until(asked)
        return found

    whole = both(until=[], max_gen_toks=30)
    stop = next(text[8:10] for text in whole if text[8:10].isascii() and text[8:10].isprintable())
    cut = both(until=[stop, "never said"], max_gen_toks=30)
    assert cut == [text.split(stop)[0] for text in whole]
    assert cut != whole
    ends = [256, *(greedy_tokens(model, lm.tok_encode(text), 4)[3] for text in texts)]
    for one in (model, stock.model):
        monkeypatch.setattr(one.generation_config, "eos_token_id", ends)
    assert max(map(len, both(until=[], max_gen_toks=30))) <= 4


def test_tokens_between_two_checks_that_drop_something_go_through_together(pruned_model, model, monkeypatch):
    passes, real = [], model.base_model.forward
    monkeypatch.setattr(
        model.base_model, "forward", lambda *a, **k: (passes.append(k["input_ids"].shape), real(*a, **k))[1]
    )
    pair = [("x" * 60, "y" * 30)]
    for settings, shapes in (
        (PruneSettings("knorm", 0.5, 40, schedule="prefill_once"), [(1, 60), (1, 29)]),
        (PruneSettings("knorm", 0.5, 40), [(1, 60), (1, 10), (1, 19)]),
        (PruneSettings("dense"), [(1, 60), (1, 29)]),
    ):
        pruned_model(settings).loglikelihood(requests(pair))
        assert [tuple(shape) for shape in passes] == shapes
        passes.clear()


def test_sharing_a_context_and_a_batch_changes_nothing(pruned_model):
    for settings in (
        PRUNED,
        PruneSettings("random", 0.6, 8, seed=3),
        PruneSettings("h2o", 0.9, 8),
        PruneSettings("dense"),
    ):
        together = pruned_model(settings, batch_size=8)
        alone = pruned_model(settings)
        expected = [alone.loglikelihood([request])[0] for request in requests(PAIRS)]
        found = together.loglikelihood(requests(PAIRS))
        assert numbers([found]) == pytest.approx(
            numbers([expected]), rel=1e-6, abs=1e-5
        )  # float32 over 20 tokens
        assert together.counts["own"].figures() == alone.counts["own"].figures()


def test_a_batch_too_large_for_the_memory_is_halved(pruned_model, monkeypatch):
    import workers.harness.rows as rows

    def small(model, prompts, policies):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("no")
        return real(model, prompts, policies)

    real = rows.Prefill
    pairs = [("abc", " de"), ("abd", " fgh"), ("abe", " i")]
    expected = pruned_model(PRUNED, batch_size=3).loglikelihood(requests(pairs))
    monkeypatch.setattr(rows, "Prefill", small)
    found = pruned_model(PRUNED, batch_size=3).loglikelihood(requests(pairs))
    assert numbers([found]) == pytest.approx(
        numbers([expected]), rel=1e-6, abs=1e-5
    )  # float32 over 20 tokens


def test_what_was_never_pruned_says_so(pruned_model, folder, caplog):
    results, _ = run(pruned_model(PruneSettings("knorm", 0.5, 10_000)), folder, "kv_choice")
    assert "nothing was ever pruned" in results["config"]["pruning_warnings"][0]
    assert "nothing was ever pruned" in caplog.text
    one_token = pruned_model(PRUNED)
    one_token.loglikelihood(requests([(question["text"], "x") for question in QUESTIONS]))
    assert one_token.counts["own"].prune_events == len(QUESTIONS)
    assert "no token was predicted from a pruned cache" in one_token.warnings()[0]


def test_results_say_what_was_pruned(pruned_model, folder):
    results, _ = run(pruned_model(PRUNED), folder, "kv_choice", "kv_text")
    config = results["config"]
    assert config["requests"] == 7 + 3
    assert config["prune_events"] == sum(task["prune_events"] for task in config["by_task"].values()) > 10
    assert config["by_task"].keys() == {"kv_choice", "kv_text"}
    assert config["kvsweep_settings"]["keep_ratio"] == 0.5
    assert config["pruning_warnings"] == []


def test_sampling_is_seeded_and_does_not_depend_on_the_batch(pruned_model):
    options = {"until": ["."], "max_gen_toks": 12, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
    asked = [
        request
        for request in requests([(q["text"], options) for q in QUESTIONS], "generate_until")
        for _ in range(2)
    ]
    alone = pruned_model(PRUNED).generate_until(asked)
    assert pruned_model(PRUNED, batch_size=3).generate_until(asked) == alone
    assert alone[0] != alone[1]
    assert pruned_model(PruneSettings("knorm", 0.5, 24, seed=1)).generate_until(asked) != alone


def test_top_k_and_top_p_leave_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = [torch.Generator().manual_seed(seed) for seed in range(200)]

    def chosen(**options):
        return {_choose(logits, Decoding((), 1, 1.0, **options), [draw])[0] for draw in draws}

    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {0, 1}
    assert chosen(top_p=0.8) == {0, 1}
    assert chosen(top_p=0.81) == {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"do_sample": True, "temperature": 0.0}, "temperature above 0"),
        ({"max_gen_toks": 300}, "300 new tokens leave no context in 256"),
    ],
)
def test_generation_that_is_not_supported_is_refused(pruned_model, options, message):
    with pytest.raises(HarnessError, match=message):
        pruned_model(PRUNED).generate_until(requests([("a", options)], "generate_until"))


def test_a_model_that_scales_its_logits_is_refused_also_for_answers_of_one_token(
    pruned_model, model, monkeypatch
):
    monkeypatch.setattr(model.config, "logit_scale", 0.1, raising=False)
    with pytest.raises(ValueError, match="logit_scale"):
        pruned_model(PruneSettings("dense")).loglikelihood(requests([("a river", "s")]))


@pytest.fixture
def beginning(tmp_path, tiny_model_dir):
    """``beginning(with_bos)``: facts of the tiny model whose tokenizer puts token 256 first, or nothing, and
    cuts off texts."""

    def made(with_bos):
        folder = tmp_path / f"begins-{with_bos}"
        shutil.copytree(tiny_model_dir, folder)
        tokenizer = byte_style()
        tokenizer.post_processor = begins_with("<|endoftext|>", tokenizer) if with_bos else None
        tokenizer.enable_truncation(16)
        saved(tokenizer, folder)
        (folder / "tokenizer_config.json").write_text(
            '{"bos_token": "<|endoftext|>", "tokenizer_class": "TokenizersBackend"}'
        )
        return find_model(str(folder))

    return made


@pytest.mark.parametrize(
    ("own", "bos", "first"),
    [
        (True, "auto", True),
        (True, "always", True),
        (True, "never", False),
        (False, "auto", False),
        (False, "always", True),
        (False, "never", False),
    ],
)
def test_contexts_begin_with_bos_as_the_tokenizer_has_it_or_as_asked_for(model, beginning, own, bos, first):
    lm, text = (
        PrunedModel(model, beginning(own), PruneSettings(), CPU, bos=bos, progress=False),
        "river stone lamp quiet",
    )
    ids = byte_style().encode(text).ids
    assert lm.tok_encode(text) == [256] * first + ids, "saved truncation cuts nothing off"
    assert lm.tok_encode(text, add_special_tokens=False) == ids
    assert lm.tok_encode(f"<|endoftext|>{text}") == [256, *ids], (
        "special tokens are read as the harness reads them"
    )
    assert lm.get_model_info()["kvsweep_bos"] == bos


def test_bos_of_the_command_line_is_checked():
    assert (
        parse({"pretrained": "x", "bos": "never"}, {}).bos == "never"
        and parse({"pretrained": "x"}, {}).bos == "auto"
    )
    with pytest.raises(HarnessError, match=r"bos must be one of auto, always, never \(got 'yes'\)"):
        parse({"pretrained": "x", "bos": "yes"}, {})
