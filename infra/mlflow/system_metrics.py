"""How busy a machine is, under the names that MLflow shows as system metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dff.face.extras import require_extra

with require_extra("train"):
    import psutil

PREFIX = "system/"
"""Prefix of the names of MLflow's system metrics."""
_MEGABYTE = 1e6


@dataclass(frozen=True)
class _Traffic:
    when: float  # of time.monotonic
    received: int  # bytes since the machine started
    sent: int


class SystemMonitor:
    """Measures this machine between one call of ``read`` and the next."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)  # its first answer has no meaning
        self._before = _read_traffic()

    def read(self) -> dict[str, float]:
        """Use of CPUs, memory and disk now, and of the network per second since the last call."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        before, now = self._before, _read_traffic()
        self._before = now
        seconds = max(now.when - before.when, 1e-3)
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(None),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "network_receive_megabytes_per_second": (now.received - before.received)
            / (seconds * _MEGABYTE),
            "network_transmit_megabytes_per_second": (now.sent - before.sent)
            / (seconds * _MEGABYTE),
        }
        return {PREFIX + name: float(value) for name, value in values.items()}


def _read_traffic() -> _Traffic:
    counters = psutil.net_io_counters()
    if counters is None:  # a machine without a network
        return _Traffic(time.monotonic(), 0, 0)
    return _Traffic(time.monotonic(), counters.bytes_recv, counters.bytes_sent)
