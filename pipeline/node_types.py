"""Which kinds of node an autoscaler could still start: what `ray up` leaves on the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from pipeline.placement import Node

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts the configuration on the head, on which `ray submit` and `ray job submit` run the driver."""


def node_types(file: Path = BOOTSTRAP_FILE) -> list[Node] | None:
    """The node types of a cluster file with how many of each may be started; None where there is no such file."""
    try:
        config: dict[str, Any] = YAML(typ="safe").load(file.expanduser().read_text())
    except (OSError, YAMLError):
        return None
    kinds = (config or {}).get("available_node_types") or {}
    most = config.get("max_workers", 0) if kinds else 0
    found = [
        Node.of(name, kind.get("resources") or {}, count=min(most, kind.get("max_workers", most)))
        for name, kind in kinds.items()
        if name != config.get("head_node_type")
    ]
    return found or None
