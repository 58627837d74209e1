"""``benchmarks/perplexity.py`` runs, and the parts of its seconds add up to the whole."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import perplexity
from benchmarks.cells_alone import HEADER, each_alone, first_event
from benchmarks.time_spent import PARTS, TIMED, Stopwatch, attention_modules, linear_layers, watching
from tests.support.tiny import ARCHITECTURES, repetitive_tokens, tiny_model
from workers.footprint import perplexity as footprint
from workers.perplexity.evaluation import evaluate
from workers.policies.eviction import POLICIES
from workers.policies.settings import PruneSettings


class Ticking:
    """A clock that is one second further whenever it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_part_stops_the_one_around_it_and_all_add_up():
    watch = Stopwatch(Ticking())
    watch.begin("attention")
    watch.begin("matmul")
    watch.begin("matmul")
    for _ in range(3):
        watch.end()
    assert watch.take() == {"matmul": 3, "attention": 2, "scoring": 0, "pruning": 0, "other": 2}
    assert sum(watch.take().values()) == 1


def test_each_cell_goes_alone_and_its_parts_are_all_that_went_by():
    """Cells that would share passes do not, figures are the same, and afterwards nothing is watched any
    more."""
    model, tokens, clock = tiny_model("llama"), repetitive_tokens(2, 90), Ticking()
    cells = [PruneSettings(policy, ratio, 30) for policy in ("knorm", "snapkv") for ratio in (1.0, 0.9, 0.8)]
    stock, at_once = [getattr(owner, name) for owner, name, _ in TIMED], footprint.AT_ONCE_BYTES
    watch = Stopwatch(clock)
    with watching(model, watch):
        begin = clock.now
        shared, own = each_alone(model, tokens, [0, 90], cells, watch)
        assert sum(shared.values()) + sum(sum(spent.values()) for spent in own.values()) <= clock.now - begin
    assert sorted(own) == [1, 2, 4, 5]
    assert all(spent[part] > 0 for spent in own.values() for part in PARTS)
    assert [getattr(owner, name) for owner, name, _ in TIMED] == stock and at_once == footprint.AT_ONCE_BYTES
    before = clock.now
    evaluate(model, tokens, cells, [0, 90])
    assert clock.now == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_layers_and_attention_are_found(architecture):
    """All parameters of the body are embeddings, vectors, or belong to a linear layer that is watched."""
    model = tiny_model(architecture)
    count = model.config.get_text_config().num_hidden_layers
    assert len(attention_modules(model)) == count
    watched = {id(parameter) for layer in linear_layers(model) for parameter in layer.parameters()}
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    assert len(watched) >= 4 * count and id(head.weight) not in watched


def test_tokens_before_the_first_event():
    assert first_event(PruneSettings("knorm", 0.9, 30), 89) == 30
    assert first_event(PruneSettings("knorm", 1.0, 30), 89) == 89


def test_the_benchmark_runs_with_every_policy_and_without_the_reference(capsys):
    threads = torch.get_num_threads()
    perplexity.main(
        "--models reference-llama --window 48 --windows 2 --prune-after 24 --keep-ratios 1 0.5 --policies"
        f" all --reference-windows 0 --rounds 1 --threads {threads}".split()
    )
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(HEADER) + 1 :]
    assert [line.split()[0] for line in table[1:]] == list(POLICIES)
    for line in table:
        whole, dense, *_ = (float(x) for x in re.findall(r"\d+\.\d\d", line))
        parts = [float(x) for x in re.findall(r"(\d+\.\d\d) \(", line)]
        stock = [float(x) for x in re.findall(r"\((\d+\.\d\d)\)", line)]
        assert len(parts) == len(stock) == len(PARTS)
        assert sum(parts) == pytest.approx(whole, abs=0.04) and sum(stock) == pytest.approx(dense, abs=0.04)


def test_a_policy_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit):
        perplexity.parsed(["--policies", "knrom"])
    assert "knorm_high" in capsys.readouterr().err
