"""The HTTP application on Ray Serve: replicas that batch the photos of all requests.

Serve holds no request back: each replica's admission control refuses what is too much, with the
same answer as under uvicorn.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from dff.aligner.align import load_aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.batching import Outcome, Photo, align_each, warm_up
from dff.aligner.service.front import VARIABLE, FrontConfig, proxy_middleware
from dff.aligner.service.limits import LIMITS, Limits
from dff.aligner.service.ports import check_free
from dff.aligner.service.threads import use_threads
from dff.face.errors import ClusterError
from dff.infra import weights as weights_files
from dff.infra.cluster import connected

BATCH = 8  # photos in one call of the aligner
DECODED = 2 * BATCH  # requests held decoded: while a batch is aligned the next one is decoded
# requests that Serve gives a replica: the admitted ones, and those that are refused or ask for its
# health
ONGOING = 4 * LIMITS.requests
APPLICATION = "aligner"
REQUEST_TIMEOUT = 60.0  # seconds
RAY_ERRORS = (RayError, RayServeException, RuntimeError, TimeoutError)
# Ray's own name; its 5 seconds are too few on a busy machine
PROXY_READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # called by proxies when they start


class ServiceConfig(BaseModel):
    """Configuration of a deployment; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None  # path, the same on every node; None: the shipped weights
    replicas: PositiveInt = 1
    cpus: PositiveInt = 1  # cores of each replica
    # Whether the proxies have the front, by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``. Else
    # each replica has its own, and slow senders hold places in Serve's queue.
    front_in_proxies: bool = False
    origins: tuple[str, ...] = ()  # of web pages that may use the service; of a replica's front
    root_path: str = ""  # prefix under which a proxy shows the service


@serve.deployment(
    name="Aligner",
    max_ongoing_requests=ONGOING,
    max_queued_requests=-1,
    max_constructor_retry_count=3,
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=REQUEST_TIMEOUT,
)
@serve.ingress()
class AlignerDeployment:
    """One replica: it loads the weights itself, and joins after its first alignment."""

    def __init__(
        self, weights: str | None, cpus: int, front: FrontConfig | None, root_path: str
    ) -> None:
        use_threads(cpus)
        self.front, self.root_path = front, root_path
        self.aligner = load_aligner(weights).with_quick_search()
        warm_up(self.aligner)

    def __serve_build_asgi_app__(self) -> FastAPI:
        limits = Limits(batch=BATCH, decoded=DECODED)
        return create_app(
            self.aligner,
            limits=limits,
            align=self.align,
            front=self.front,
            root_path=self.root_path,
        )

    async def align(self, photos: Sequence[Photo]) -> list[Outcome]:
        return list(await asyncio.gather(*(self.align_batched(photo) for photo in photos)))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
    async def align_batched(self, photos: list[Photo]) -> list[Outcome]:
        """Align the photos of all waiting requests, ``BATCH`` at a time."""
        return await asyncio.to_thread(align_each, self.aligner, photos)


def application(config: ServiceConfig) -> serve.Application:
    """The application for Serve config files and ``serve run``.

    serve run dff.aligner.service.ray_serve:application weights=dff.safetensors
    """
    replica = {"num_cpus": config.cpus}
    deployment = AlignerDeployment.options(num_replicas=config.replicas, ray_actor_options=replica)  # type: ignore[attr-defined]
    front = FrontConfig(origins=config.origins, root_path=config.root_path)
    return deployment.bind(
        config.weights, config.cpus, None if config.front_in_proxies else front, config.root_path
    )


@contextmanager
def serving(
    weights: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    cpus: int = 1,
    address: str | None = None,
    front: FrontConfig | None = None,
) -> Iterator[str]:
    """Serve for the length of a ``with`` block, on a local Ray or the cluster at ``address``.

    ``cpus``: cores of each replica. ``front``: on a local Ray it stands in the proxies; on a
    cluster in each replica.

    Yields the URL. Raises ClusterError when the port is taken or the application can't start, and
    on a local Ray BadWeights or BadModel as ``dff.aligner.align.load_aligner``.
    """
    front = front or FrontConfig()
    path = None if weights is None else weights_files.everywhere(weights)
    if address is None:
        check_free(host, port)
        load_aligner(path)  # a bad file is reported here, not by a replica that tries again
    config = ServiceConfig(
        weights=path,
        replicas=replicas,
        cpus=cpus,
        front_in_proxies=address is None,
        origins=front.origins,
        root_path=front.root_path,
    )
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's own part of Serve
    env = {
        PROXY_READY: "60",
        PROXY_CALLBACK: f"{proxy_middleware.__module__}:{proxy_middleware.__name__}",
        VARIABLE: front.to_json(),
    }
    # a private Ray ends anyway; shutting Serve down as well makes its controller complain
    end = partial(serve.delete, APPLICATION) if address is None else _remove_application
    with (
        connected(
            address,
            workers=None if address else cpus * replicas,
            env=env if address is None else None,
        ),
        ended_by(end),
    ):
        with _ray_errors_as("the aligner service failed"):
            serve.start(
                http_options=HTTPOptions(host=host, port=port, request_timeout_s=REQUEST_TIMEOUT),
                logging_config=logging_config,
            )
            serve.run(
                application(config),
                name=APPLICATION,
                route_prefix="/",
                logging_config=logging_config,
            )
        yield f"http://{host}:{port}"


def serve_aligner(
    weights: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    cpus: int = 1,
    address: str | None = None,
    front: FrontConfig | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM; ``on_ready`` is called with the URL.

    Raises as ``serving``.
    """
    stop = threading.Event()
    with serving(
        weights, host=host, port=port, replicas=replicas, cpus=cpus, address=address, front=front
    ) as url:
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
    """Call ``end`` after a ``with`` block, whatever happened in it.

    An error of the block is never hidden by one of ``end``. Raises ClusterError when the block
    succeeded and ``end`` failed.
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
    with _ray_errors_as("the aligner could not be taken off Ray Serve"):
        end()


@contextmanager
def _ray_errors_as(what: str) -> Iterator[None]:
    try:
        yield
    except RAY_ERRORS as error:
        raise ClusterError(f"{what}: {error}") from error


def _remove_application() -> None:
    """Take the aligner off a cluster's Serve, which stays while it has other applications."""
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()
