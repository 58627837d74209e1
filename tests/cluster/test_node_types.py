"""What a file under the name of `ray up`'s says of node types, whatever lies there."""

from __future__ import annotations

import os

import pytest

from pipeline.cluster.node_types import node_types

CLUSTER = """\
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 1}}
  small: {resources: {CPU: 2, timing: 0.5}, max_workers: 9}
  large: {resources: {CPU: 8, GPU: 1}, max_workers: 1}
  any: {}
  odd: {resources: {CPU: many}}
  other: 3
"""
ALIASES = "".join(f"{n}: &{n} [{f'*{m},' * 9}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True))
BOMB = f"a: &a [x,x,x,x,x,x,x,x,x]\n{ALIASES}"


def test_node_types_are_those_that_an_autoscaler_may_start(tmp_path):
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    found = node_types(tmp_path / "cluster.yaml")
    assert found is not None
    assert [(node.node_id, node.cpus, node.gpus, node.timing, node.count) for node in found] == [
        ("small", 2, 0, 0.5, 3),
        ("large", 8, 1, 0, 1),
        ("any", 0, 0, 0, 3),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"- a\n- b\n",
        b"3",
        b"available_node_types: [a]",
        b"available_node_types: {a: {max_workers: x}}",
        b"max_workers: {}",
        BOMB.encode(),
        b"[" * 200_000,
        b"a: [",
        b"x" * (8 * 2**20 + 1),
    ],
    ids=[
        "empty",
        "no UTF-8",
        "a list",
        "a number",
        "types in a list",
        "no count",
        "a table",
        "a bomb",
        "deep",
        "open",
        "long",
    ],
)
def test_what_is_no_cluster_file_tells_of_no_type(tmp_path, content):
    (tmp_path / "cluster.yaml").write_bytes(content)
    assert node_types(tmp_path / "cluster.yaml") is None


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert node_types(tmp_path / "pipe") is None
    assert node_types(tmp_path) is None and node_types(tmp_path / "none") is None
