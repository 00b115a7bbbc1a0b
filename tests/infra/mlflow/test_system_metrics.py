"""System metrics agree with what is known of this machine."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

from dff.infra.mlflow.system_metrics import PREFIX, SystemMonitor


def test_figures_of_this_machine() -> None:
    monitor = SystemMonitor()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        client.sendall(bytes(200_000))
    found = {name.removeprefix(PREFIX): value for name, value in monitor.read().items()}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    used, share = (found[f"system_memory_usage_{unit}"] for unit in ("megabytes", "percentage"))
    assert 0.0 < used < total
    assert 0.0 < share <= 100.0
    assert 0.0 <= found["cpu_utilization_percentage"] <= 100.0 * (os.cpu_count() or 1)
    free = shutil.disk_usage("/").free / 1e6
    assert found["disk_available_megabytes"] == pytest.approx(free, rel=0.05)
    assert found["network_receive_megabytes_per_second"] >= 0.0
    assert all(name.startswith(PREFIX) for name in monitor.read())
