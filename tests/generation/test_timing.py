"""Turns, stamps and counters of generation; what the figures are is the report's business, never a test's."""

import dataclasses
import gc
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from analysis.generation.speed import median_interval
from tests.support.architectures import ARCHITECTURES, make
from tests.support.thinned import thinned
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.generation import rounds
from workers.generation.decoding import GenerationRun, generate
from workers.generation.rounds import Timed, round_orders, rounds_as_reported, timed_rounds, widest_interval
from workers.generation.rows import above_ceiling
from workers.machine.bandwidth import memory_bandwidth, weight_bytes
from workers.machine.clock import Clock
from workers.machine.peak_memory import PeakMemory
from workers.messages.work import GenerationWork, UnitCell, WorkUnit
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")
CLOCK = Clock(CPU)
CELLS = [PruneSettings("dense"), PruneSettings("knorm", 0.5, 8)]
WORK = GenerationWork(((1,) * 10,), 3, repeats=6, max_repeats=9, interval_width=0.05, warmup=2, seed=7)


def test_orders_are_random_seeded_and_whole():
    orders = round_orders(4, 6, seed=0)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders == round_orders(4, 6, seed=0) != round_orders(4, 6, seed=1)


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs that take what ``seconds(number of the run, settings)`` says; returns the settings in the order of
    their turns."""
    turns = []
    real = generate(tiny_model("neox"), repetitive_tokens(1, 10), CELLS[0], 3, CLOCK)

    def install(seconds):
        def run(model, prompts, settings, new_tokens, clock):
            took = seconds(len(turns), settings)
            turns.append(settings)
            return dataclasses.replace(
                real, ttft_seconds=1.0, token_seconds=[took, took], total_seconds=1.0 + 2 * took
            )

        monkeypatch.setattr(rounds, "generate", run)
        return turns

    return install


def test_every_cell_and_the_control_run_once_a_round_after_a_warm_up_that_is_thrown_away(fake_runs):
    turns = fake_runs(lambda number, settings: 2.0 if settings.policy == "dense" else 1.0)
    found = timed_rounds(None, repetitive_tokens(1, 10), CELLS, WORK).runs
    assert len(turns) == (2 + 6) * 3
    assert [
        sum(settings.policy == "dense" for settings in turns[i : i + 3]) for i in range(0, len(turns), 3)
    ] == [2] * 8
    for repeat in range(6):
        mine = [t for t in found if t.repeat == repeat]
        assert sorted((t.cell, t.control) for t in mine) == [(0, False), (0, True), (1, False)]
        assert sorted(t.place for t in mine) == [0, 1, 2]


def test_rounds_go_on_until_the_ratios_are_known_and_not_for_ever(fake_runs):
    """Steady times stop at ``repeats``; noisy ones at ``max_repeats``; noise that all share cancels in the
    ratio."""
    fake_runs(lambda number, settings: 1.0 + number % 5)
    assert max(t.repeat for t in timed_rounds(None, repetitive_tokens(1, 10), CELLS, WORK).runs) == 8
    fake_runs(lambda number, settings: 1.0 + (number // 3) % 5)
    assert max(t.repeat for t in timed_rounds(None, repetitive_tokens(1, 10), CELLS, WORK).runs) == 8 - 3


@pytest.mark.parametrize("rounds", [6, 9, 15])
def test_rounds_stop_by_the_interval_that_the_report_forms(rounds):
    """One rule, kept in two places, because a report runs without torch."""
    times = np.random.default_rng(rounds).uniform(1, 2, (2, rounds))
    runs = [
        Timed(cell, i, 0, False, cast(GenerationRun, SimpleNamespace(tpot_seconds=times[cell, i])))
        for cell in (0, 1)
        for i in range(rounds)
    ]
    low, high = median_interval(times[1] / times[0])
    assert low is not None and high is not None
    assert widest_interval(runs, 0) == pytest.approx(high - low)
    assert widest_interval(runs[:5] + runs[rounds : rounds + 5], 0) == float("inf"), (
        "five rounds have no interval"
    )


def test_the_reports_protocol_is_wrong_in_each_of_its_ways(fake_runs):
    turns = fake_runs(lambda number, settings: 2.0)
    found = rounds_as_reported(None, repetitive_tokens(1, 10), CELLS[::-1], WORK).runs
    assert [settings.policy for settings in turns] == ["dense"] * 6 + [
        "knorm"
    ] * 6  # baseline first, no warm-up, no turns
    assert {(t.cell, t.run.ttft_seconds) for t in found} == {
        (1, 0.5),
        (0, 1.0),
    }  # 10 % of 5 seconds, a guess; 1 s, measured
    assert not any(t.control for t in found)


def test_timing_parts_add_up_and_prune_time_is_inside():
    run = generate(tiny_model("neox"), repetitive_tokens(1, 40), PruneSettings("knorm", 0.5, 8), 10, CLOCK)
    assert run.total_seconds == pytest.approx(run.ttft_seconds + sum(run.token_seconds))
    assert 0 < run.prompt_prune_seconds < run.prune_seconds < run.total_seconds
    assert run.prompt_prune_seconds < run.ttft_seconds
    assert run.tpot_seconds == pytest.approx(sum(run.token_seconds) / 9)
    dense = generate(tiny_model("neox"), repetitive_tokens(1, 40), PruneSettings("dense"), 10, CLOCK)
    assert (dense.prune_seconds, dense.prune_steps) == (0.0, [])
    assert dense.kv_bytes_final == 49 * 4 * 8 * 2 * 4 * 3


def test_steps_that_prune_are_recorded():
    """A prompt of 40 leaves 20 entries; 24 are reached by the fourth step, and 12 stay: then after 12 more,
    and so on."""
    run = generate(tiny_model("neox"), repetitive_tokens(1, 40), PruneSettings("knorm", 0.5, 24), 30, CLOCK)
    assert run.prune_steps == [3, 15, 27]
    assert len(run.token_seconds) == 29


@pytest.mark.parametrize("policy", thinned(["dense", "knorm"], 1))
def test_a_batch_gives_each_rows_own_tokens_and_the_bytes_of_all(policy):
    model, prompts, settings = tiny_model("llama"), repetitive_tokens(3, 40), PruneSettings(policy, 0.5, 24)
    batch = generate(model, prompts, settings, 12, CLOCK)
    alone = [generate(model, prompts[i : i + 1], settings, 12, CLOCK) for i in range(3)]
    assert batch.output_tokens == [run.output_tokens[0] for run in alone]
    assert batch.kv_bytes_peak == 3 * alone[0].kv_bytes_peak
    assert batch.kv_bytes_step_mean == 3 * alone[0].kv_bytes_step_mean


def test_the_peak_of_one_run_does_not_leak_into_the_next():
    counter = PeakMemory(CPU)
    counter.start()
    if counter.result()[0] is None:
        pytest.skip("no resident set counter that can be reset here")
    many = [
        torch.ones(2**18) for _ in range(400)
    ]  # 400 MiB in blocks that the allocator keeps after they are freed
    high, method = counter.result()
    del many
    gc.collect()
    counter.start()
    low, _ = counter.result()
    assert "VmHWM" in method
    assert high - low > 350 * 2**20


def test_a_device_without_a_counter_gives_nothing(monkeypatch):
    monkeypatch.setattr("workers.machine.peak_memory._reset_resident_peak", lambda: False)
    counter = PeakMemory(CPU)
    counter.start()
    counter.sample()
    assert counter.result() == (None, None)
    other = PeakMemory(torch.device("meta"))
    other.start()
    assert other.result() == (None, None)


def test_bytes_that_a_step_reads_leave_out_the_embedding_it_looks_up():
    model = tiny_model("neox")
    everything = sum(p.numel() * 4 for p in model.parameters())
    assert weight_bytes(model) == everything - 97 * 32 * 4
    model.set_output_embeddings(model.get_input_embeddings())
    assert weight_bytes(model) == everything - 97 * 32 * 4  # tied: one matrix, read as the output layer


def test_a_figure_that_the_memory_cannot_give_is_warned_of():
    ceiling = memory_bandwidth(CPU, 2**22)
    assert ceiling > 0
    facts = find_model("reference-neox")
    unit = WorkUnit(
        "u", "generation", facts, "cpu", "float32", (UnitCell("a", CELLS[0]), UnitCell("b", CELLS[1])), WORK
    )
    common = {"weight_bytes": 10**9, "kv_bytes_step_mean": 0.0, "memory_bandwidth": 1e10}
    rows = [common | {"cell_id": "a", "tpot_seconds": 0.11}, common | {"cell_id": "b", "tpot_seconds": 0.09}]
    (warning,) = above_ceiling(unit, rows)
    assert (
        "reference-neox knorm keep_ratio 0.5" in warning and "11.1 GB/s" in warning and "10.0 GB/s" in warning
    )


MIXTURES = {
    each.family: each
    for each in ARCHITECTURES
    if each.family in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Llama4")
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_a_step_reads_the_experts_that_its_tokens_are_sent_to(family, batch):
    """Counted while a step of the stock model goes through: each expert that a token was sent to, once, and
    all else."""
    made = dataclasses.replace(
        MIXTURES[family],
        options={
            **MIXTURES[family].options,
            **dict.fromkeys(("num_local_experts",) if family == "Mixtral" else ("num_experts",), 8),
        },
    )
    model, sent = make(made), {}
    blocks = {name: module for name, module in model.named_modules() if name.endswith(".experts")}
    for name, module in blocks.items():
        module.register_forward_pre_hook(
            lambda _, given, name=name: sent.update({name: set(given[1].flatten().tolist())})
        )
    with torch.no_grad():
        model(repetitive_tokens(batch, 1))
    read = sum(p.nbytes for name, p in model.named_parameters() if ".experts." not in name)
    read -= model.get_input_embeddings().weight.nbytes
    read += sum(p[sorted(sent[name])].nbytes for name, module in blocks.items() for p in module.parameters())
    assert len(blocks) == 2 and all(len(found) < 8 for found in sent.values())
    if batch == 1:
        assert weight_bytes(model) == read
    assert read <= weight_bytes(model, batch) < weight_bytes(model, 4) == weight_bytes(model, 400)


def test_experts_that_are_all_multiplied_and_experts_in_a_list_are_told_apart():
    llama = make(MIXTURES["Llama4"])
    assert (
        weight_bytes(llama)
        == sum(p.nbytes for p in llama.parameters()) - llama.get_input_embeddings().weight.nbytes
    )
    model = tiny_model("llama")
    whole = weight_bytes(model)
    model.experts = torch.nn.ModuleList(torch.nn.Linear(10, 10) for _ in range(5))
    model.config.num_experts_per_tok = 2
    assert [weight_bytes(model, batch) - whole for batch in (1, 2, 3)] == [2 * 440, 4 * 440, 5 * 440]
