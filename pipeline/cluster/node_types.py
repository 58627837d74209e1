"""Which kinds of node an autoscaler could still start: what `ray up` leaves on the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cluster.placement import Node
from pipeline.sweepfile.yaml_values import MAX_BYTES, read_yaml

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts the configuration on the head, on
which `ray submit` and `ray job submit` run the driver."""


def node_types(file: Path = BOOTSTRAP_FILE) -> list[Node] | None:
    """The node types of a cluster file with how many of each
    may be started; None where there is no such file.

    What is no cluster file under that name tells of no node
    type either: a run is then placed as on any other head.
    """
    config = _table(_content(file))
    most = _count(config.get("max_workers", 0)) or 0
    found = []
    for name, kind in _table(config.get("available_node_types")).items():
        own, resources = _table(kind), _table(_table(kind).get("resources"))
        count = _count(own.get("max_workers", most))
        is_usable = (
            isinstance(kind, dict) and count is not None and None not in map(_count, resources.values())
        )
        if name != config.get("head_node_type") and is_usable:
            found.append(Node.of(name, resources, count=min(most, count)))
    return found or None


def _content(file: Path) -> Any:
    """None where there is nothing that can be read, or more than such a file holds."""
    try:
        place = file.expanduser()
        if not place.is_file():
            return None
        with place.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        return read_yaml(content.decode("utf-8-sig")).plain() if len(content) <= MAX_BYTES else None
    except (OSError, RuntimeError, ValueError):  # no home; a YamlError and what is no UTF-8 are ValueErrors
        return None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> Any:
    """A number of at least 0 that is one; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < float("inf") else None
