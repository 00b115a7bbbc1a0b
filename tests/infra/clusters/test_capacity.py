"""Workers are placed on nodes by what both have, and a misfit is told with the nodes' figures."""

from __future__ import annotations

import pytest

from dff.infra.clusters.capacity import (
    NodeResources,
    WorkerShape,
    count_places,
    describe_nodes,
    find_misfit,
)

HEAD = NodeResources("10.0.0.1", 0, 0)
SMALL = NodeResources("10.0.0.2", 4, 0)
GPU = NodeResources("10.0.0.3", 16, 2)


@pytest.mark.parametrize(
    ("nodes", "shape", "places"),
    [
        ([], WorkerShape(1), 0),
        ([HEAD], WorkerShape(1), 0),
        ([HEAD, SMALL, SMALL], WorkerShape(2), 4),
        ([SMALL, SMALL], WorkerShape(3), 2),  # the CPUs that remain on two nodes hold no third
        ([SMALL, GPU], WorkerShape(5), 3),
        ([SMALL, GPU], WorkerShape(2, 1), 2),
        ([SMALL, GPU], WorkerShape(0, 1), 2),
    ],
)
def test_a_worker_lies_on_one_node(
    nodes: list[NodeResources], shape: WorkerShape, places: int
) -> None:
    assert count_places(nodes, shape) == places
    assert (find_misfit(nodes, shape) is None) == (places > 0)


def test_a_misfit_names_what_is_wanted_and_what_there_is() -> None:
    told = find_misfit([HEAD, SMALL, SMALL, GPU], WorkerShape(32, 1))
    assert told == (
        "no node can hold a worker of 32 CPUs and 1 GPU: the cluster has "
        "1 node of 16 CPUs and 2 GPUs (10.0.0.3); 2 nodes of 4 CPUs (10.0.0.2, 10.0.0.2); "
        "1 node of 0 CPUs (10.0.0.1)"
    )
    assert "joined the cluster yet; a worker needs 1 CPU" in str(
        find_misfit([HEAD], WorkerShape(1))
    )
    many = [NodeResources(f"10.0.1.{i}", 1, 0) for i in range(9)]
    assert describe_nodes(many) == "9 nodes of 1 CPU (10.0.1.0, 10.0.1.1, 10.0.1.2, ...)"


@pytest.mark.parametrize("numbers", [(0, 0), (-1, 0), (1, -1)])
def test_a_worker_needs_something(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="needs CPUs or GPUs"):
        WorkerShape(*numbers)
