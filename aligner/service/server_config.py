"""Configuration of a server: the weights that it serves, its address, its share of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dff.aligner.preset import AlignPreset
from dff.aligner.service.http.front import FrontConfig
from dff.infra.networks.weights_names import REGISTERED
from dff.infra.storage import WITH_CREDENTIALS, S3Access


def check_poll(weights: object, poll: float | None) -> None:
    """Raise ValueError where ``poll`` is asked for weights that have no alias."""
    if poll is not None and not (str(weights).startswith(REGISTERED) and "@" in str(weights)):
        raise ValueError("weights are polled by their alias only: name models:/NAME@ALIAS")


@dataclass(frozen=True)
class ServerConfig:
    """A server with or without Ray, as ``dff serve`` starts it.

    Raises ValueError for weights that can't be polled.
    """

    # path, name or address, such as s3://bucket/key; None: the shipped weights
    weights: Path | str | None = None
    also: Mapping[str, str] = field(default_factory=dict)  # other weights by name, side by side
    preset: AlignPreset = AlignPreset.balanced
    # seconds between questions which version the alias of the ``weights`` names; None: no questions
    poll: float | None = None
    endpoint_url: str | None = None  # of an S3 server other than AWS, for weights in a bucket
    access: S3Access = WITH_CREDENTIALS  # as whom that bucket is asked
    host: str = "127.0.0.1"
    port: int = 8000
    front: FrontConfig = field(default_factory=FrontConfig)
    cpus: int = 1  # cores of each copy of the aligner

    def __post_init__(self) -> None:
        check_poll(self.weights, self.poll)


@dataclass(frozen=True)
class ReplicaConfig:
    """How often Ray Serve runs the aligner, and where."""

    # their number, a range as 2:8 within which Serve adds some on demand, or ``auto``
    replicas: int | str = 1
    gpus: float = 0  # of each replica, also a share of one
    address: str | None = None  # of a Ray cluster; None: a private Ray on this machine


ONE_REPLICA = ReplicaConfig()
