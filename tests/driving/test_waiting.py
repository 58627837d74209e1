"""What waits for a place: said at once, given up after its time, never while it has workers or others of ours
are in the way."""

from dataclasses import replace

from pipeline.cluster.node_types import node_types
from pipeline.cluster.placement import UNSAID, Fleet, Need, Node
from pipeline.cluster.waiting import Patience, Waiting, waiting_in_words

CPU = Need("cpu", False, 2**30, "m")
GPU = replace(CPU, device="cuda")
PLAIN = Node("a", 2, 0, 8 * 2**30, 1)
PATIENCE = Patience(starting=30, growing=1200)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def waiting(*nodes: Node, kinds=None, patience=PATIENCE) -> tuple[Waiting, Clock]:
    clock = Clock()
    return Waiting(Fleet({n.node_id: n for n in nodes}), kinds, patience, clock), clock


def test_what_no_node_can_hold_is_given_up_after_its_time_with_what_there_is():
    wait, clock = waiting(PLAIN)
    assert wait.look({GPU: 12}, set()) == {}
    assert wait.counts == {GPU: 12}
    clock.now = 30
    (reason,) = wait.look({GPU: 12}, set()).values()
    assert "no node of this cluster could hold a cuda worker (at least 0.0 GiB) in 30 s" in reason
    assert "CPU 2, GPU 0, 8.0 GiB, timing 1" in reason


def test_on_this_machine_alone_nothing_is_waited_for():
    wait, _ = waiting(PLAIN, patience=Patience(starting=0))
    assert list(wait.look({GPU: 1}, set())) == [GPU]


def test_what_an_autoscaler_can_start_is_waited_for_longer_and_asked_for():
    kinds = [Node("gpu_worker", 4, 1, 32 * 2**30, 1, count=3)]
    wait, clock = waiting(PLAIN, kinds=kinds)
    wait.look({GPU: 12}, set())
    one = {"CPU": 2, "memory": GPU.memory, "GPU": 1}
    assert wait.bundles(2, {GPU: 12}) == [one] * 3, "as many as it may start"
    wait.kinds = [*kinds, replace(kinds[0], memory=UNSAID)]
    assert "memory" not in wait.bundles(2, {GPU: 1})[0], (
        "a type that does not say what it has would not count"
    )
    wait.kinds = kinds
    assert wait.bundles(2, {GPU: 2, replace(GPU, timed=True): 1}) == [one, one, one | {"timing": 1}]
    clock.now = 1199
    assert wait.look({GPU: 12}, set()) == {}
    clock.now = 1200
    (reason,) = wait.look({GPU: 12}, set()).values()
    assert "could be started: gpu_worker: CPU 4, GPU 1" in reason


def test_a_need_that_had_workers_may_get_them_back():
    wait, clock = waiting()
    wait.look({CPU: 5}, {CPU})
    wait.look({CPU: 5}, set())
    clock.now = 600
    assert wait.look({CPU: 5}, set()) == {}
    clock.now = 1201
    assert list(wait.look({CPU: 5}, set())) == [CPU]


def test_workers_start_the_clock_anew():
    wait, clock = waiting(PLAIN)
    wait.look({GPU: 1}, set())
    clock.now = 29
    wait.look({GPU: 1}, {GPU})
    clock.now = 58
    assert wait.look({GPU: 1}, set()) == {}


def test_units_behind_our_own_work_are_never_given_up():
    wait, clock = waiting(PLAIN)
    timed = replace(CPU, timed=True)
    wait.fleet.take(wait.fleet.find(CPU))
    wait.look({timed: 1}, set())
    assert wait.counts == {}, "there is a place for it, later"
    clock.now = 10_000
    assert wait.look({timed: 1}, set()) == {}


def test_nodes_that_may_join_are_waited_for_when_asked_to():
    wait, clock = waiting(PLAIN, patience=Patience(starting=100, growing=100, unknown_types=True))
    wait.look({GPU: 1}, set())
    clock.now = 99
    assert wait.look({GPU: 1}, set()) == {}
    clock.now = 100
    assert list(wait.look({GPU: 1}, set())) == [GPU]


def test_what_waits_is_said_by_kind_of_node():
    timed = replace(GPU, timed=True)
    other = replace(GPU, model="other")
    assert waiting_in_words({GPU: 10, other: 2, timed: 1, CPU: 1}) == [
        "12 units wait for a node with a GPU",
        "1 unit waits for a node with a GPU and a timing slot",
        "1 unit waits for a node with 1.0 GiB free",
    ]
    assert waiting_in_words({}) == []


def test_node_types_are_read_from_what_ray_up_leaves_on_the_head(tmp_path):
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(
        "max_workers: 6\nhead_node_type: head\navailable_node_types:\n  head: {resources: {CPU: 0}}\n "
        " cpu_worker: {max_workers: 4, resources: {CPU: 8, timing: 1}}\n  gpu_worker: {resources: {CPU: 4,"
        " GPU: 1}}\n"
    )
    cpu, gpu = node_types(file) or []
    assert (cpu.node_id, cpu.cpus, cpu.timing, cpu.count) == ("cpu_worker", 8, 1, 4)
    assert (gpu.node_id, gpu.gpus, gpu.count) == ("gpu_worker", 1, 6)
    assert node_types(tmp_path / "absent.yaml") is None
    file.write_text("cluster_name: x\n")
    assert node_types(file) is None


def test_hours_behind_our_own_work_are_no_wait_for_a_node_once_it_has_ended():
    """Timed units wait until all others have ended, and then the place is free: that is no time that a node
    was missing."""
    wait, clock = waiting(PLAIN)
    timed = replace(CPU, timed=True)
    seat = wait.fleet.find(CPU)
    wait.fleet.take(seat)
    for clock.now in (0, 1000, 5000):
        assert wait.look({timed: 1}, set()) == {}
    wait.fleet.free(seat)
    assert wait.look({timed: 1}, set()) == {}, "it is sent out now"
    clock.now = 6199
    assert wait.look({timed: 1}, set()) == {}
    clock.now = 6200
    assert list(wait.look({timed: 1}, set())) == [timed], "others' work is in the way for so long"
