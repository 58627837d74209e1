"""Which nodes a Ray cluster has now, and whether one was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.cluster.placement import Node


def living_nodes(ray: Any, gpu_memory: Mapping[str, int | None]) -> dict[str, Node]:
    """The nodes by their id, with the memory of a GPU where it was measured (bytes, by id)."""
    nodes = {}
    for listed in ray.nodes():
        if listed["Alive"]:
            name = listed["NodeID"]
            node = Node.of(name, listed["Resources"], listed["NodeManagerHostname"])
            nodes[name] = replace(node, gpu_memory=gpu_memory.get(name))
    return nodes


def is_node_lost(ray: Any, node_id: str, error: Exception) -> bool:
    """Whether a whole node went, which is no fault of the unit that happened to be there.

    An actor that is unavailable lost its connection without
    word from its node, which tells of the deaths of processes.
    """
    without_word = ray.exceptions.ActorUnschedulableError | ray.exceptions.ActorUnavailableError
    if "node has died" in str(error) or isinstance(error, without_word):
        return True
    return not any(node["Alive"] and node["NodeID"] == node_id for node in ray.nodes())
