"""Seats on nodes: nothing is given out twice, timed units have their node alone, GPUs are shared by their
memory."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.placement import MEMORY_STEP, MOST_PER_GPU, Fleet, Need, Node, Seat

GIB = 2**30
CPU = Need("cpu", False, GIB, "m")
TIMED = replace(CPU, timed=True)
GPU = Need("cuda", False, 4 * GIB, "m")


def fleet(*nodes: Node, threads: int = 1, keep_for_gpus: bool = False) -> Fleet:
    return Fleet({node.node_id: node for node in nodes}, threads, keep_for_gpus)


def node(
    name: str = "a", cpus: float = 4, gpus: float = 0, memory: int = 64 * GIB, timing: float = 1, **more
) -> Node:
    return Node(name, cpus, gpus, memory, timing, **more)


def fill(fleet: Fleet, need: Need) -> list[Seat]:
    """Take seats until there are none."""
    seats = []
    while seat := fleet.find(need):
        fleet.take(seat)
        seats.append(seat)
    return seats


NEEDS = st.builds(
    Need,
    st.sampled_from(["cpu", "cuda"]),
    st.booleans(),
    st.integers(GIB, 40 * GIB),
    st.just("m"),
    st.integers(1, GIB),
)
NODES = st.lists(
    st.builds(
        node,
        st.uuids().map(str),
        st.integers(0, 9),
        st.integers(0, 4),
        st.integers(GIB, 128 * GIB),
        st.integers(0, 1),
        gpu_memory=st.none() | st.integers(8 * GIB, 80 * GIB),
    ),
    min_size=1,
    max_size=4,
)


@given(NODES, st.lists(st.tuples(NEEDS, st.booleans()), max_size=30), st.integers(1, 3), st.booleans())
def test_no_node_ever_gives_more_than_it_has_and_timed_seats_are_alone(nodes, steps, threads, keep):
    given_out = fleet(*nodes, threads=threads, keep_for_gpus=keep)
    for need, give_back in steps:
        seat = given_out.find(need)
        if seat:
            assert seat.suits(need) and given_out.places(need) > 0
            given_out.take(seat)
        for each in nodes:
            seats = given_out.taken[each.node_id]
            assert sum(s.cpus for s in seats) <= each.cpus
            assert sum(s.gpus for s in seats) <= each.gpus + 1e-6
            assert sum(s.memory for s in seats) <= each.memory
            assert len(seats) == 1 or not any(s.timed for s in seats)
        if seat and give_back:
            given_out.free(seat)


@given(NODES, NEEDS, st.integers(1, 3))
def test_as_many_are_seated_on_empty_nodes_as_places_were_promised(nodes, need, threads):
    empty = fleet(*nodes, threads=threads)
    promised = empty.places(need)
    assert len(fill(empty, need)) == promised


def test_a_cpu_worker_takes_its_threads_and_a_timed_one_the_whole_node():
    assert len(fill(fleet(node(cpus=5), threads=2), CPU)) == 2
    (seat,) = fill(fleet(node(cpus=5), threads=2), TIMED)
    assert seat.cpus == 5
    taken = fleet(node("a"), node("b"))
    taken.take(taken.find(CPU))
    (timed,) = fill(taken, TIMED)
    assert timed.node_id == "b", "a node on which something runs is no place for a clock"


def test_a_node_without_a_timing_slot_times_nothing():
    assert fleet(node(timing=0)).places(TIMED) == 0


def test_memory_limits_workers_before_cpus_do():
    assert len(fill(fleet(node(cpus=16, memory=5 * GIB)), replace(CPU, memory_bytes=2 * GIB))) == 2


def test_memory_is_asked_for_in_doubled_steps():
    need = replace(CPU, memory_bytes=3 * GIB)
    assert need.memory == 4 * GIB and replace(CPU, memory_bytes=1).memory == MEMORY_STEP
    assert fleet(node(memory=8 * GIB)).find(need).memory == 4 * GIB


def test_a_node_with_less_than_the_estimate_but_enough_to_load_the_model_holds_one_worker_alone():
    need = replace(CPU, memory_bytes=6 * GIB, least_bytes=2 * GIB)
    (seat,) = fill(fleet(node(memory=3 * GIB)), need)
    assert seat.memory == 3 * GIB and seat.all_memory and seat.suits(need)
    assert not seat.suits(replace(need, least_bytes=4 * GIB))
    assert fleet(node(memory=GIB)).places(need) == 0


@pytest.mark.parametrize(
    ("memory", "need", "expected"),
    [
        (None, GPU, 1),
        (80 * GIB, GPU, MOST_PER_GPU),
        (16 * GIB, GPU, 3),
        (5 * GIB, replace(GPU, timed=True), 1),
        (4 * GIB, GPU, 1),
    ],
)
def test_small_models_share_a_gpu_by_its_memory(memory, need, expected):
    assert len(fill(fleet(node(cpus=32, gpus=1, gpu_memory=memory)), need)) == expected


def test_the_share_of_a_gpu_is_that_of_the_nodes_that_are_known():
    assert fleet(node()).gpu_share(GPU) == 1.0
    assert fleet(node(), node("gpu", cpus=32, gpus=1, gpu_memory=16 * GIB)).gpu_share(GPU) == 1 / 3


def test_cpu_units_go_where_no_gpu_is_and_leave_gpu_nodes_their_cpus_when_gpu_units_wait():
    mixed = fleet(node("gpu", cpus=2, gpus=2), node("plain", cpus=2), keep_for_gpus=True)
    assert [seat.node_id for seat in fill(mixed, CPU)] == ["plain", "plain"]
    assert [seat.node_id for seat in fill(mixed, GPU)] == ["gpu", "gpu"]
    assert len(fill(fleet(node("gpu", cpus=2, gpus=2)), CPU)) == 2, "nothing waits for the GPUs"


def test_a_node_to_avoid_still_counts_as_one_that_could():
    busy = fleet(node())
    busy.avoid = {"a"}
    assert busy.find(CPU) is None and busy.places(CPU) == 4


def test_types_of_nodes_that_could_be_started_count_with_how_many():
    assert fleet(node()).places(GPU, [node("gpu_worker", gpus=1, count=3)]) == 3
