"""The HTTP application on Ray Serve.

Serve holds no request back: each replica's service refuses what is too much or would be late, with
the same answer as under uvicorn.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from ray.exceptions import RayError

from dff.aligner.preset import AlignPreset
from dff.aligner.service import serve_imports
from dff.aligner.service.allocator import ENVIRONMENT
from dff.aligner.service.http.access_log import print_access_log
from dff.aligner.service.http.front import (
    HEALTH_SECONDS,
    VARIABLE,
    FrontConfig,
    proxy_middleware,
)
from dff.aligner.service.http.limits import LIMITS
from dff.aligner.service.http.server import ServerThread, make_server, open_many_files
from dff.aligner.service.ports import check_free
from dff.aligner.service.serve_imports import PRELOAD, hidden
from dff.aligner.service.server_config import (
    ONE_REPLICA,
    ReplicaConfig,
    ServerConfig,
    check_poll,
)
from dff.aligner.service.shared_listener import SharedListener, TakenListener
from dff.face.errors import ClusterError
from dff.infra.networks.weights_names import BUCKET, REGISTERED, everywhere, find_file
from dff.infra.storage import WITH_CREDENTIALS, S3Access

with hidden("pandas"):
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.aligner.service.align_service import AlignService

# requests that Serve gives a replica: the admitted ones, and those that are refused or ask for its
# health
ONGOING = 4 * LIMITS.requests
BUSY = 4  # requests in flight for each replica, above which Serve adds replicas
APPLICATION = "aligner"
REQUEST_TIMEOUT = 60.0  # seconds
RAY_ERRORS = (RayError, RayServeException, RuntimeError, TimeoutError)
# Ray's own name; its 5 seconds are too few on a busy machine
PROXY_READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
# Seconds between checks of a proxy's health, of which three must fail before it is replaced. By
# Ray's ten seconds a node has no server for half a minute, by two for 7 to 9 s.
PROXY_HEALTH = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # called by proxies when they start


class ServiceConfig(BaseModel):
    """Configuration of a deployment; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # path, the same on every node, or address, such as s3://bucket/key; None: the shipped weights
    weights: str | None = None
    endpoint_url: str | None = None  # of an S3 server other than AWS
    access: S3Access = WITH_CREDENTIALS  # as whom the weights' bucket is asked
    # their number, or its range, as 2:8, within which Serve adds some on demand
    replicas: PositiveInt | str = 1
    cpus: PositiveInt = 1  # cores of each replica
    gpus: NonNegativeFloat = 0  # GPUs of each replica, also a share of one; the network runs there
    # Whether the proxies have the front, by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``. Else
    # each replica has its own, and slow senders hold places in Serve's queue.
    front_in_proxies: bool = False
    origins: tuple[str, ...] = ()  # of web pages that may use the service; of a replica's front
    root_path: str = ""  # prefix under which a proxy shows the service
    key_hashes: tuple[str, ...] = ()  # of API keys, for a replica's front
    preset: AlignPreset = AlignPreset.balanced
    # seconds between questions for the version that the weights' alias names; None: it is not asked
    poll: PositiveFloat | None = None
    also: dict[str, str] = {}  # other weights by name, which answer requests with weights=NAME

    def replicas_range(self) -> tuple[int, int]:
        """The fewest and the most replicas. Raises ValueError for text that is no range."""
        return parse_replicas(self.replicas, self.cpus)

    def front(self) -> FrontConfig:
        """The front of a replica."""
        return FrontConfig(origins=self.origins, root_path=self.root_path, keys=self.key_hashes)


def parse_replicas(text: int | str, cpus: int = 1) -> tuple[int, int]:
    """The fewest and the most replicas: of a number, a range as 2:8, or ``auto``.

    ``auto``: from one to as many as have ``cpus`` cores each. Raises ValueError for other text.
    """
    if text == "auto":
        # the cores that this process may use: a container may give it fewer than the machine has
        return 1, max(1, len(os.sched_getaffinity(0)) // cpus)
    fewest, _, most = str(text).partition(":")
    try:
        found = int(fewest), int(most or fewest)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"{text!r} is no number of replicas: write 4, 2:8 or auto")
    return found


class Replica:
    """One copy of the application: it loads the weights itself, and joins after its first
    alignment. ``front``: None if the requests come through proxies that have it.
    """

    def __init__(self, config: ServiceConfig, front: FrontConfig | None) -> None:
        # these import torch, which the process that starts the replicas does not need
        from dff.aligner.service.app import create_app
        from dff.aligner.service.garbage import exempt_objects
        from dff.aligner.service.weights_watch import WeightsWatch
        from dff.aligner.threads import share_interpreter, use_threads

        use_threads(config.cpus)
        share_interpreter()
        self.weights, self.preset = config.weights, config.preset
        self._wanted = config.weights  # weights that answer, or are being loaded
        self._change: asyncio.Task[None] | None = None  # loads them
        self._joined = False  # whether Serve sends requests
        self.endpoint_url, self.access = config.endpoint_url, config.access
        self.device = "cuda" if config.gpus else None
        check_poll(config.weights, config.poll)
        watch = None
        if config.poll is not None:
            watch = WeightsWatch(str(config.weights), self._load, config.poll)
        self.application = create_app(
            self._load(),
            front=front,
            root_path=config.root_path,
            keys=bool(config.key_hashes),
            watch=watch,
            also={name: self._load_from(path) for name, path in config.also.items()},
            on_warm=exempt_objects,
        )

    def check_health(self) -> None:
        """Serve asks this from the moment on when the replica has its first configuration."""
        self._joined = True

    async def reconfigure(self, user_config: Mapping[str, str | None]) -> None:
        """Take other weights without a restart: ``user_config`` is ``{"weights": PATH}``.

        Serve sends a replica no requests until this returns. So a replica that has joined loads
        the weights later, and answers by its former ones until it has them, or for good if they
        can't be loaded. Requests in flight are answered by the weights that they began with.
        Raises BadWeights or BadModel before the replica has joined.
        """
        weights = user_config.get("weights")
        if weights is None or weights == self._wanted:
            return
        self._wanted = weights
        if self._change is not None:
            self._change.cancel()
        if self._joined:
            self._change = asyncio.create_task(self._take_later(weights))
        else:
            await self._take(weights)

    async def _take(self, weights: str) -> None:
        service: AlignService = self.application.state.service
        service.replace_aligner(await asyncio.to_thread(self._load_from, weights))
        self.weights = weights

    async def _take_later(self, weights: str) -> None:
        log = logging.getLogger(__name__)
        try:
            await self._take(weights)
        except Exception:
            self._wanted = self.weights
            log.exception("%s can't be taken: the weights are kept", weights)
        else:
            log.warning("weights: %s answer now", weights)

    def _load(self) -> Aligner:
        return self._load_from(self.weights)

    def _load_from(self, weights: str | None) -> Aligner:
        from dff.aligner.load import load_aligner
        from dff.aligner.service.face_aligner import warm_up

        aligner = load_aligner(
            weights,
            preset=self.preset,
            endpoint_url=self.endpoint_url,
            access=self.access,
            device=self.device,
        ).with_quick_search()
        warm_up(aligner)
        return aligner


DEPLOYMENT: dict[str, Any] = {
    "name": "Aligner",
    "max_ongoing_requests": ONGOING,
    "max_queued_requests": -1,
    "max_constructor_retry_count": 3,
    "health_check_period_s": 10,
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": REQUEST_TIMEOUT,
}


@serve.deployment(**DEPLOYMENT)
@serve.ingress()
class AlignerDeployment(Replica):
    """A replica that Serve's proxies send requests to."""

    def __init__(self, config: ServiceConfig) -> None:
        super().__init__(config, None if config.front_in_proxies else config.front())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.application


@serve.deployment(**DEPLOYMENT)
class ListeningDeployment(Replica):
    """A replica that accepts connections itself, of a ``SharedListener`` on the same machine.

    ``path``: of the listener. Requests are not sent from process to process, nor are answers: a
    small photo takes 45 ms of CPU time of all processes, and through Serve's proxy 57.
    """

    def __init__(self, config: ServiceConfig, front: FrontConfig, path: str) -> None:
        super().__init__(config, front)
        open_many_files()
        print_access_log()
        self.taken = TakenListener(path)
        server = make_server(self.application, "", 0, front)
        self.server = ServerThread(server, self.taken.listening)

    def check_health(self) -> None:
        """Raise RuntimeError if it does not listen, so that Serve starts another replica."""
        super().check_health()
        if not self.server.running:
            raise RuntimeError("the HTTP server has ended")

    def __del__(self) -> None:
        """Complete the requests in flight; Serve calls this when it stops a replica."""
        server: ServerThread | None = getattr(self, "server", None)  # none after a failed start
        if server is not None:
            server.stop()
            self.taken.close()


def application(config: ServiceConfig | Mapping[str, Any]) -> serve.Application:
    """The application for Serve config files and ``serve run``, which give a mapping.

    serve run dff.aligner.service.ray_serve:application weights=dff.safetensors

    Raises ValueError for unknown keys.
    """
    config = ServiceConfig.model_validate(config)
    options = _choose_options(config)
    return AlignerDeployment.options(**options).bind(config)  # type: ignore[attr-defined]


def _listening_application(
    config: ServiceConfig, front: FrontConfig, path: str
) -> serve.Application:
    """The application of which one replica listens."""
    options = _choose_options(config)
    deployment = ListeningDeployment.options(**options)  # type: ignore[attr-defined]
    return deployment.bind(config, front, path)


def _choose_options(config: ServiceConfig) -> dict[str, Any]:
    """Options of a deployment: how many replicas, and what each of them needs."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": config.cpus, "num_gpus": config.gpus}
    }
    fewest, most = config.replicas_range()
    if fewest == most:
        options["num_replicas"] = most
    else:
        options["autoscaling_config"] = {
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": BUSY,
        }
    return options


def check_replica_gpus(wanted: float) -> None:
    """Raise ClusterError where this machine's Ray has fewer GPUs; a replica would wait for them."""
    there = ray.cluster_resources().get("GPU", 0.0) if wanted else 0.0
    if there < wanted:
        raise ClusterError(
            f"the replicas need GPUs: {wanted:g}; Ray finds {there:g} on this machine"
        )


@contextmanager
def serving(
    server: ServerConfig,
    scale: ReplicaConfig = ONE_REPLICA,
    *,
    before_start: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Serve for the length of a ``with`` block; yields the URL.

    ``before_start`` is called when Ray is connected, before the service starts.

    On a local Ray a single replica accepts the connections itself; several get their requests from
    Serve's proxies, which have the front. On a cluster each replica has it.

    Raises ClusterError when the port is taken or the application can't start, and on a local Ray
    BadWeights or BadModel as ``dff.aligner.load.load_aligner``.
    """
    from dff.infra.clusters.cluster import connected  # of no use to replicas

    local = scale.address is None
    if local:
        for weights in (server.weights, *server.also.values()):
            _check_there(weights)
    config = _configure_deployment(server, scale)
    fewest, most = config.replicas_range()
    listener = None
    if local and most == 1:
        listener = SharedListener(server.host, server.port, server.front)
    elif local:
        check_free(server.host, server.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's own part of Serve
    started = False

    def end() -> None:
        if listener is not None:
            listener.close()  # first, so that no client waits for a replica that ends
        if local:  # a private Ray ends anyway; ending Serve as well makes its controller complain
            # A replica that starts has no requests, and ends in order only after it has started.
            with nullcontext() if started else suppress(RayServeException):  # there is no Serve yet
                serve.delete(APPLICATION, _blocking=started)
        else:
            _remove_application()

    with (
        nullcontext() if listener is None else closing(listener),
        _checking_weights(config) if local else nullcontext(lambda: None) as check_weights,
        connected(
            scale.address,
            workers=config.cpus * most if local else None,
            env=local_environment(server) if local else None,
        ),
    ):
        check_weights()
        if local:
            check_replica_gpus(config.gpus * fewest)
        with ended_by(end):
            before_start()
            with _ray_errors_as("the aligner service failed"):
                _run(config, server, listener)
            started = True
            yield f"http://{server.host}:{server.port}"


def _run(config: ServiceConfig, server: ServerConfig, listener: SharedListener | None) -> None:
    """Start Serve, without proxies if there is a listener, and the application."""
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    if listener is None:
        http_options = HTTPOptions(
            host=server.host, port=server.port, request_timeout_s=REQUEST_TIMEOUT
        )
        serve.start(http_options=http_options, logging_config=logging_config)
        built = application(config)
    else:
        serve.start(proxy_location=ProxyLocation.Disabled, logging_config=logging_config)
        built = _listening_application(config, server.front, listener.path)
    serve.run(built, name=APPLICATION, route_prefix="/", logging_config=logging_config)


def local_environment(server: ServerConfig) -> dict[str, str]:
    """Environment variables of a local Ray whose proxies, if any, have the front.

    Its replicas return the memory of photos. ``serving`` sets the variables unless Ray was started
    before.
    """
    return {
        **ENVIRONMENT,
        PRELOAD: serve_imports.__name__,
        PROXY_READY: "60",  # seconds; by default a busy machine loses its proxy
        PROXY_HEALTH: "2",
        PROXY_CALLBACK: f"{proxy_middleware.__module__}:{proxy_middleware.__name__}",
        VARIABLE: server.front.to_json(),
    }


def _configure_deployment(server: ServerConfig, scale: ReplicaConfig) -> ServiceConfig:
    """The configuration of every replica, which may run on another machine."""
    return ServiceConfig(
        weights=None if server.weights is None else everywhere(server.weights),
        endpoint_url=server.endpoint_url,
        access=server.access,
        replicas=scale.replicas,
        cpus=server.cpus,
        gpus=scale.gpus,
        front_in_proxies=scale.address is None,
        origins=server.front.origins,
        root_path=server.front.root_path,
        key_hashes=server.front.keys,
        preset=server.preset,
        poll=server.poll,
        also={name: everywhere(weights) for name, weights in server.also.items()},
    )


def serve_aligner(
    server: ServerConfig,
    scale: ReplicaConfig = ONE_REPLICA,
    *,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM; ``on_ready`` is called with the URL.

    Raises as ``serving``.
    """
    stop = threading.Event()
    with ExitStack() as signals:

        def take_signals() -> None:
            signals.enter_context(_stopped_by_signals(stop, server))

        with serving(server, scale, before_start=take_signals) as url:
            try:
                on_ready(url)
                stop.wait()
            finally:
                signals.close()  # a second signal ends the process


@contextmanager
def _stopped_by_signals(stop: threading.Event, server: ServerConfig) -> Iterator[None]:
    """Let SIGINT and SIGTERM set ``stop`` during a ``with`` block, once the service is ready.

    Clients may know that it is before this process does. Until then signals do what they did.
    """
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        usual = before[signal.Signals(number)]
        if _is_ready(server):
            stop.set()
        elif callable(usual):
            usual(number, frame)
        elif usual is signal.SIG_DFL:
            signal.signal(number, usual)
            os.kill(os.getpid(), number)

    for which in before:
        signal.signal(which, handle)
    try:
        yield
    finally:
        for which, usual in before.items():
            signal.signal(which, usual)


def _is_ready(server: ServerConfig) -> bool:
    """Whether a service at this address says that it is ready."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=HEALTH_SECONDS)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    return False


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


def _check_there(weights: Path | str | None) -> None:
    """Raise BadWeights where a name or a path of this machine has no file."""
    if weights is not None and not str(weights).startswith((REGISTERED, BUCKET)):
        find_file(weights)


@contextmanager
def _checking_weights(config: ServiceConfig) -> Iterator[Callable[[], None]]:
    """Load all weights in another process during a ``with`` block, in which Ray starts.

    The yielded function waits for it. It raises BadWeights or BadModel here, where a replica would
    try again and again. This process, which only waits, stays small.
    """
    load = (
        "import json, sys; from dff.aligner.load import load_aligner; "
        "from dff.infra.storage import S3Access; "
        "paths, endpoint_url, access = json.loads(sys.argv[1]); "
        "[load_aligner(path, endpoint_url=endpoint_url, access=S3Access(**access)) "
        "for path in paths]"
    )
    paths = [config.weights, *config.also.values()]
    wanted = json.dumps([paths, config.endpoint_url, asdict(config.access)])
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", load, wanted], stdout=quiet, stderr=quiet)

    def check() -> None:
        if process.wait():
            from dff.aligner.load import load_aligner

            for path in paths:
                load_aligner(path, endpoint_url=config.endpoint_url, access=config.access)

    try:
        yield check
    finally:
        process.kill()
        process.wait()
