"""The process group of distributed training, at the addresses by which nodes know each other."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

from dff.face.extras import require_extra

with require_extra("train"):
    import ray.util
    from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable with the network interface that gloo listens at.

Without it gloo takes the address that the machine's own name has, which many systems set to a
loopback address: workers on other machines then connect to themselves.
"""
_GET_ADDRESS = 0x8915  # SIOCGIFADDR, Linux


def find_interface(address: str) -> str | None:
    """The name of the network interface of this machine that has an IPv4 address, if one has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _use_interface_of_node() -> None:
    if INTERFACE not in os.environ and (name := find_interface(ray.util.get_node_ip_address())):
        os.environ[INTERFACE] = name


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_use_interface_of_node)
        super().on_start(worker_group, backend_config)


class NodeTorchConfig(TorchConfig):
    """Ray's configuration of torch, with gloo at the address of each worker's node."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
