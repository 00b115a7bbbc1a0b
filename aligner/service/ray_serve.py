"""The HTTP application on Ray Serve: replicas, batches, back-pressure, health."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from dff.aligner.align import load_aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.limits import Asked, Limits, Outcome, align_each, warm_up
from dff.face.errors import ClusterError
from dff.infra import weights as weights_files
from dff.infra.cluster import connected

BATCH = 8  # images in one call of the aligner
AT_ONCE = 2 * BATCH  # requests that a replica takes: while a batch is aligned the next is decoded
QUEUE = 64  # requests that may wait for a replica; more get 503 with Retry-After
APPLICATION = "aligner"
REQUEST_TIMEOUT = 60.0  # seconds
RAY_ERRORS = (RayError, RayServeException, RuntimeError, TimeoutError)
# Ray's own name; its 5 seconds are too few on a busy machine
PROXY_READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"


class ServiceConfig(BaseModel):
    """What a deployment is told; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None  # path, the same on every node; None: the shipped weights
    replicas: PositiveInt = 1
    cpus: PositiveInt = 1  # cores of each replica


@serve.deployment(
    name="Aligner",
    max_ongoing_requests=AT_ONCE,
    max_queued_requests=QUEUE,
    max_constructor_retry_count=3,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=5),
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=20,
)
@serve.ingress()
class AlignerDeployment:
    """One replica: it loads the weights itself, and joins only after its first alignment."""

    def __init__(self, weights: str | None) -> None:
        self.aligner = load_aligner(weights)
        warm_up(self.aligner)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            self.aligner, limits=Limits(batch=BATCH, decoded=AT_ONCE), align=self.align
        )

    async def align(self, asked: Sequence[Asked]) -> list[Outcome]:
        return list(await asyncio.gather(*(self.batched(one) for one in asked)))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
    async def batched(self, asked: list[Asked]) -> list[Outcome]:
        """Images of all requests that are there, ``BATCH`` at a time."""
        return await asyncio.to_thread(align_each, self.aligner, asked)


def application(config: ServiceConfig) -> serve.Application:
    """The Serve application, for ``serve run dff.aligner.service.ray_serve:application
    weights=...`` and Serve config files.
    """
    replica = {"num_cpus": config.cpus}
    deployment = AlignerDeployment.options(num_replicas=config.replicas, ray_actor_options=replica)  # type: ignore[attr-defined]
    return deployment.bind(config.weights)


@contextmanager
def serving(
    weights: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
) -> Iterator[str]:
    """The service for the length of a ``with`` block; gives its URL. On a local Ray, or on the
    cluster at ``address``.

    Raises ClusterError when the port is taken or the application can't start, and on a local Ray
    BadWeights or BadModel as ``dff.aligner.align.load_aligner``.
    """
    path = None if weights is None else weights_files.everywhere(weights)
    if address is None:
        _check_free(host, port)
        load_aligner(
            path
        )  # a bad file is said here, by its own error, and not by a replica that tries again
    # those that this process may use: a container or taskset may give it fewer than the machine has
    cores = max(1, len(os.sched_getaffinity(0)) // replicas) if address is None else 1
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's own part of Serve
    patient = {PROXY_READY: "60"} if address is None else None
    # a private Ray goes anyway; shutting Serve down as well makes its controller complain
    end = partial(serve.delete, APPLICATION) if address is None else _withdraw
    with (
        connected(address, workers=None if address else cores * replicas, env=patient),
        ended_by(end),
    ):
        with _named("the aligner service failed"):
            serve.start(
                http_options=HTTPOptions(host=host, port=port, request_timeout_s=REQUEST_TIMEOUT),
                logging_config=quiet,
            )
            serve.run(
                application(ServiceConfig(weights=path, replicas=replicas, cpus=cores)),
                name=APPLICATION,
                route_prefix="/",
                logging_config=quiet,
            )
        yield f"http://{host}:{port}"


def serve_aligner(
    weights: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); ``on_ready`` hears the URL. Raises
    as ``serving``.
    """
    stop = threading.Event()
    with serving(weights, host=host, port=port, replicas=replicas, address=address) as url:
        before = {
            which: signal.signal(which, lambda *_: stop.set())
            for which in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            on_ready(url)
            stop.wait()
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)


@contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Ends a ``with`` block by ``end``, however it went. What fails in ending never hides what
    failed before.

    Raises ClusterError when the block went well and Ray could not end it.
    """
    try:
        yield
    except BaseException:
        try:
            end()
        except RAY_ERRORS:
            logging.getLogger(__name__).warning(
                "the aligner could not be taken off Ray Serve", exc_info=True
            )
        raise
    with _named("the aligner could not be taken off Ray Serve"):
        end()


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except RAY_ERRORS as error:
        raise ClusterError(f"{what}: {error}") from error


def _withdraw() -> None:
    """Take the aligner off a cluster's Serve, which stays as long as it has others'
    applications.
    """
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()


def _check_free(host: str, port: int) -> None:
    """Fail by name where Ray would retry a proxy that can't bind."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(f"can't serve on {host}:{port}: {error.strerror}") from error
