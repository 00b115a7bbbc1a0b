"""Whether the nodes of a cluster can hold a worker: what they have against what it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeResources:
    """A node that is alive."""

    address: str  # IP address
    cpus: float
    gpus: float
    managed: bool = False  # in a node group of an autoscaler or operator, which may add others


@dataclass(frozen=True)
class WorkerShape:
    """Resources of one worker. Raises ValueError for negative numbers, and for nothing at all."""

    cpus: float
    gpus: float = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus) < 0 or not (self.cpus or self.gpus):
            raise ValueError(f"a worker needs CPUs or GPUs, and not {self}")

    def __str__(self) -> str:
        return _describe(self.cpus, self.gpus)


def count_places(nodes: Iterable[NodeResources], shape: WorkerShape) -> int:
    """How many workers of this shape the nodes can hold when nothing else runs on them."""
    wants = ((shape.cpus, "cpus"), (shape.gpus, "gpus"))
    return sum(
        min(int(getattr(node, name) // amount) for amount, name in wants if amount)
        for node in nodes
    )


def describe_nodes(nodes: Iterable[NodeResources]) -> str:
    """Resources of the nodes, such as "2 nodes of 4 CPUs (10.0.0.2, 10.0.0.3); 1 node of ..."."""
    nodes = list(nodes)
    kinds = Counter((node.cpus, node.gpus) for node in nodes)
    parts = []
    for (cpus, gpus), count in sorted(kinds.items(), reverse=True):
        where = [node.address for node in nodes if (node.cpus, node.gpus) == (cpus, gpus)]
        shown = ", ".join(where[:3]) + (", ..." if count > 3 else "")
        parts.append(f"{count} node{'s' * (count > 1)} of {_describe(cpus, gpus)} ({shown})")
    return "; ".join(parts) or "no nodes"


def find_misfit(nodes: Iterable[NodeResources], shape: WorkerShape) -> str | None:
    """Why no worker of this shape can start on these nodes, or None when one can."""
    nodes = list(nodes)
    if count_places(nodes, shape):
        return None
    if not any(node.cpus or node.gpus for node in nodes):
        return f"no node that runs workers has joined the cluster yet; a worker needs {shape}"
    return f"no node can hold a worker of {shape}: the cluster has {describe_nodes(nodes)}"


def _describe(cpus: float, gpus: float) -> str:
    shown = f"{cpus:g} CPU{'s' * (cpus != 1)}"
    return f"{shown} and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else shown
