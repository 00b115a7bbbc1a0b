from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.ray_serve import (
    AlignerDeployment,
    ListeningDeployment,
    Replica,
    ServiceConfig,
    application,
    check_replica_gpus,
    ended_by,
    local_environment,
    parse_replicas,
    serve_aligner,
    serving,
)
from dff.aligner.service.server_config import ReplicaConfig, ServerConfig
from dff.aligner.service.shared_listener import SharedListener
from dff.face.descriptor import Anchors, DescriptorNet, NetConfig
from dff.face.errors import BadWeights, ClusterError, UnknownWeights
from dff.face.model.morphable import MorphableModel
from dff.infra.clusters.cluster import connected
from dff.infra.networks import weights
from tests.aligner.image_files import bomb, encoded, pixels
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.service.server_checks import CHECKS, FRONT, HEALTHY, check_health, connection
from tests.aligner.service.test_http_parser import post_twice
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn
from tests.ray_forks.start import forked_from


def test_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match="replica"):
        ServiceConfig.model_validate({"replica": 2})


def test_numbers_of_replicas() -> None:
    assert parse_replicas(3) == parse_replicas("3") == (3, 3)
    assert parse_replicas("2:8") == (2, 8)
    assert parse_replicas("auto")[0] == 1
    for text in ("0", "8:2", "many", ""):
        with pytest.raises(ValueError, match="write 4, 2:8 or auto"):
            parse_replicas(text)


def test_replicas_get_the_cores_and_gpus_that_are_asked_for() -> None:
    built = application(ServiceConfig(cpus=2, gpus=0.5))
    options = built._bound_deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0.5)


def test_missing_gpus_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    check_replica_gpus(0.0)
    check_replica_gpus(1.0)
    with pytest.raises(ClusterError, match="need GPUs: 2; Ray finds 1 on this machine"):
        check_replica_gpus(2.0)


def test_serve_leaves_admission_to_the_application() -> None:
    """Serve queues and refuses nothing of what a replica's admission control would answer."""
    deployment = AlignerDeployment
    assert deployment.max_queued_requests == -1
    assert deployment.max_ongoing_requests > Limits().requests


class NamedAligner(KnownAligner):
    """Its answers tell its weights."""

    def __init__(self, model: MorphableModel, weights: str) -> None:
        super().__init__(model)
        self.card: dict[str, Any] = {"dataset": weights}

    def with_quick_search(self) -> NamedAligner:
        return self


def wait_until_ready(client: httpx.Client) -> None:
    ready = False
    while not ready:
        with suppress(httpx.TransportError):  # of a connection to the server before
            ready = client.get("/readyz").status_code == 200


def put_in_this_process(load: Callable[..., KnownAligner], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replicas of this process load their aligners so, and change nothing else in it."""
    monkeypatch.setattr("dff.aligner.load.load_aligner", load)
    monkeypatch.setattr("dff.aligner.threads.use_threads", lambda count: None)
    monkeypatch.setattr("dff.aligner.threads.share_interpreter", lambda: None)
    monkeypatch.setattr("dff.aligner.service.ray_serve.print_access_log", lambda: None)


def test_a_replica_that_listens_completes_the_requests_in_flight(
    toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligner = NamedAligner(toy_model, "any")
    put_in_this_process(lambda *_, **__: aligner, monkeypatch)
    port, front = free_port(), FrontConfig()
    with (
        closing(SharedListener("127.0.0.1", port, front)) as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        replica = ListeningDeployment.func_or_class(ServiceConfig(), front, listener.path)
        replica.check_health()
        wait_until_ready(client)
        aligner.seconds = 1.0
        sent = threads.submit(client.post, "/v1/align", files={"image": encoded(pixels())})
        while not replica.application.state.service.held:
            time.sleep(0.01)
        replica.__del__()
        assert sent.result().status_code == 200
        with pytest.raises(RuntimeError, match="has ended"):
            replica.check_health()


@pytest.mark.parametrize(("gpus", "device"), [(0.0, None), (0.5, "cuda")])
def test_the_network_of_a_replica_with_a_gpu_runs_there(
    gpus: float, device: str | None, toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load(*_: object, **options: object) -> NamedAligner:
        asked.append(options["device"])
        return NamedAligner(toy_model, "any")

    put_in_this_process(load, monkeypatch)
    Replica(ServiceConfig(gpus=gpus, also={"other": "b"}), None)
    assert asked == [device, device]


def test_weights_change_without_a_restart(
    toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gates = {name: Event() for name in ("given up", "second", "bad")}
    loaded: list[str] = []

    def load(weights: str, **settings: object) -> NamedAligner:
        if weights in gates:
            assert gates[weights].wait(60)
        if weights == "bad":
            raise BadWeights("there is no weights file bad")
        loaded.append(weights)
        return NamedAligner(toy_model, weights)

    put_in_this_process(load, monkeypatch)
    (deployment_class, *_) = AlignerDeployment.func_or_class.__bases__
    deployment = deployment_class(ServiceConfig(weights="of the image"))
    with TestClient(deployment.application) as client:

        def answered_by() -> str:
            answer = client.post("/v1/align", files={"image": encoded(pixels())}).json()
            return str(answer["model"]["weights"]["dataset"])

        def change(weights: str | None) -> None:
            """As Serve does, which sends the replica no requests meanwhile."""
            assert client.portal is not None
            client.portal.call(
                deployment.reconfigure, {} if weights is None else {"weights": weights}
            )

        def wait_until(holds: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 60
            while not holds() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert holds()

        change("first")  # before it joins: it never answers by other weights
        assert answered_by() == "first"
        deployment.check_health()
        for weights in ("given up", "second"):
            change(weights)
            assert answered_by() == "first"  # while the others are loaded
        gates["second"].set()
        wait_until(lambda: answered_by() == "second")
        gates["given up"].set()
        change("bad")
        gates["bad"].set()
        wait_until(lambda: "bad can't be taken" in caplog.text)
        assert answered_by() == "second"
        change(None)
        change("second")
        assert answered_by() == "second"
        assert loaded.count("second") == 1


def test_a_taken_port_is_reported_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = ServerConfig(port=port)
        with pytest.raises(ClusterError, match=f"127.0.0.1:{port}"), serving(server):
            pass


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second process, which takes seconds, finds out that the weights can't be loaded, and no
    Ray starts meanwhile.
    """
    monkeypatch.setattr("dff.aligner.service.ray_serve.sys.executable", shutil.which("false"))
    monkeypatch.setattr("dff.infra.clusters.cluster.connected", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("option", ["weights", "also"])
def test_weights_that_no_file_holds_are_reported_before_ray_starts(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dff.infra.clusters.cluster.connected", None)
    named: dict[str, ServerConfig] = {
        "weights": ServerConfig("none", port=free_port()),
        "also": ServerConfig(also={"other": "none"}, port=free_port()),
    }
    with (
        pytest.raises(UnknownWeights, match="there is no weights file none; known by name"),
        serving(named[option]),
    ):
        pass


@pytest.mark.parametrize("option", ["weights", "also"])
def test_bad_weights_are_reported_before_serve_starts(
    option: str, tmp_path: Path, unreadable: None, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"{")
    named: dict[str, ServerConfig] = {
        "weights": ServerConfig(bad, port=free_port()),
        "also": ServerConfig(also={"other": bad.as_posix()}, port=free_port()),
    }
    with pytest.raises(BadWeights, match=r"bad\.safetensors"), serving(named[option]):
        pass
    assert not caplog.records


def test_an_interrupt_before_serve_starts_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    def delete(name: str, **_: object) -> None:
        raise RayServeException(f"there is no Serve that has {name}")

    monkeypatch.setattr("dff.aligner.service.ray_serve.sys.executable", shutil.which("true"))
    monkeypatch.setattr("dff.infra.clusters.cluster.connected", lambda *_, **__: nullcontext())
    monkeypatch.setattr("dff.aligner.service.ray_serve.serve.start", interrupt)
    monkeypatch.setattr("dff.aligner.service.ray_serve.serve.delete", delete)
    with pytest.raises(KeyboardInterrupt), serving(ServerConfig(port=free_port())):
        pass
    assert not caplog.records


@pytest.mark.parametrize("is_ready", [False, True])
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_ends_it_in_order_once_it_is_ready(
    which: signal.Signals, is_ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may know that it is ready before the process that started it does."""
    told: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=200 if is_ready else 503)(scope, receive, send)

    @contextmanager
    def starting(
        server: ServerConfig, scale: ReplicaConfig, *, before_start: Callable[[], None]
    ) -> Iterator[str]:
        before_start()
        signal.raise_signal(which)
        yield "url"
        told.append("ended")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dff.aligner.service.ray_serve.serving", starting)
    before = signal.signal(which, interrupted)
    try:
        with serving_with_uvicorn(application) as url:
            server = ServerConfig(port=urlsplit(url).port or 0)
            with nullcontext() if is_ready else pytest.raises(KeyboardInterrupt):
                serve_aligner(server, on_ready=told.append)
            assert told == (["url", "ended"] if is_ready else [])
        assert signal.getsignal(which) is interrupted
    finally:
        signal.signal(which, before)


@pytest.mark.parametrize("usual", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_while_it_starts_does_what_it_did(
    usual: signal.Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    statuses = cycle([503, 200])

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        status = next(statuses) if scope["type"] == "http" else 500
        await Response(status_code=status)(scope, receive, send)

    @contextmanager
    def starting(
        server: ServerConfig, scale: ReplicaConfig, *, before_start: Callable[[], None]
    ) -> Iterator[str]:
        before_start()
        signal.raise_signal(signal.SIGTERM)
        yield "url"

    def kill(process: int, number: int) -> None:
        told.append((process, number, signal.getsignal(number)))
        raise SystemExit

    def end() -> None:
        told.append("again")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def end_later(url: str) -> None:
        told.append(url)
        threading.Timer(0.2, end).start()

    monkeypatch.setattr("dff.aligner.service.ray_serve.serving", starting)
    monkeypatch.setattr("dff.aligner.service.ray_serve.os.kill", kill)
    before = signal.signal(signal.SIGTERM, usual)
    ends = usual is signal.SIG_DFL
    try:
        with serving_with_uvicorn(application) as url:
            server = ServerConfig(port=urlsplit(url).port or 0)
            with pytest.raises(SystemExit) if ends else nullcontext():
                serve_aligner(server, on_ready=end_later)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == ([(os.getpid(), signal.SIGTERM, signal.SIG_DFL)] if ends else ["url", "again"])


@pytest.mark.parametrize("starts", [False, True])
def test_a_replica_that_starts_is_not_waited_for(
    starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It completes no requests, and Serve ends it only after its start, which may take a minute."""
    waited: list[bool] = []

    def run(*_: object, **__: object) -> None:
        if not starts:
            raise SystemExit

    def delete(name: str, _blocking: bool = True) -> None:
        waited.append(_blocking)

    monkeypatch.setattr("dff.infra.clusters.cluster.connected", lambda *_, **__: nullcontext())
    monkeypatch.setattr("dff.aligner.service.ray_serve.sys.executable", shutil.which("true"))
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(serve, "run", run)
    monkeypatch.setattr(serve, "delete", delete)
    with (
        nullcontext() if starts else pytest.raises(SystemExit),
        serving(ServerConfig(port=free_port())),
    ):
        pass
    assert waited == [starts]


def broken() -> None:
    raise RuntimeError("no controller")


def test_an_error_at_the_end_never_hides_an_earlier_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(KeyError, match="first"), ended_by(broken):
        raise KeyError("first")
    assert "no controller" in caplog.text
    with pytest.raises(ClusterError, match="no controller"), ended_by(broken):
        pass
    ended: list[str] = []
    with ended_by(lambda: ended.append("once")):
        assert not ended
    assert ended == ["once"]


def test_names_are_kept_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: None
) -> None:
    """A replica reads the weights in a process of its own."""
    monkeypatch.chdir(tmp_path)
    for name in (*weights.NAMED, "models:/dff@candidate"):
        assert weights.everywhere(name) == name
    assert weights.everywhere("mine.safetensors") == str(tmp_path / "mine.safetensors")
    with (
        pytest.raises(BadWeights, match="models:/none@here"),
        serving(ServerConfig("models:/none@here", port=free_port())),
    ):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def untrained(
    tmp_path_factory: pytest.TempPathFactory, open_head: MorphableModel, ray_forks: Path
) -> Iterator[Path]:
    """Weights of a network that is not trained, and a local Ray to serve them."""
    torch.manual_seed(0)
    net = DescriptorNet(NetConfig())
    vertex = np.random.default_rng(0).choice(len(open_head.template), 200, replace=False)
    descriptor = np.random.default_rng(1).normal(size=(200, net.config.dims))
    descriptor /= np.linalg.norm(descriptor, axis=1, keepdims=True)
    anchors = Anchors(vertex, open_head.template[vertex], descriptor, 16.0)
    card = {
        "model": open_head.name,
        "model_licence": open_head.licence,
        "data_licences": [],
        "steps": 0,
    }
    path = Path(tmp_path_factory.mktemp("weights")) / "untrained.safetensors"
    weights.save(path, net, anchors, card)
    with (
        forked_from(ray_forks, "dff.aligner.service.ray_serve"),
        connected(None, workers=2, env=local_environment(ServerConfig(front=FRONT))),
    ):
        yield path


@pytest.fixture(scope="module")
def service(untrained: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The real service with so many replicas: it answers, and should find that nothing matches."""
    server = ServerConfig(untrained, port=free_port(), front=FRONT)
    with serving(server, ReplicaConfig(request.param)) as url:
        yield url
    serve.shutdown()


ONE, SEVERAL = "1", "1:2"  # replicas; several get their requests from proxies


@pytest.mark.ray
@pytest.mark.parametrize("service", [SEVERAL], indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_ray_serves_as_documented(check: Callable[[str], None], service: str) -> None:
    check(service)


@pytest.mark.ray
@pytest.mark.parametrize("service", [ONE, SEVERAL], indirect=True)
def test_the_service_on_ray(service: str) -> None:
    """One start, several checks: a start takes longer than all of them."""
    with httpx.Client(base_url=service, timeout=60, headers={"Deadline": "60"}) as client:
        check_health(client, "/healthz")
        check_health(client, "/readyz")
        assert "/v1/align" in client.get("/openapi.json").json()["paths"]
        assert "<canvas" in client.get("/").text

        def align(data: bytes, **form: str) -> httpx.Response:
            return client.post("/v1/align", files={"image": data}, data=form)

        box = "[[40, 30, 120, 110]]"
        answer = align(encoded(pixels()), boxes=box)
        assert answer.status_code == 200, answer.text
        (face,) = answer.json()["faces"]
        assert np.shape(face["landmarks_2d"]) == (68, 2)
        assert answer.json()["model"]["face_model"] == "open-head"
        assert answer.json()["model"]["weights"]["steps"] == 0
        assert answer.headers["x-request-id"]

        assert align(b"").json()["type"] == "/problems/empty"
        assert align(b"no image").status_code == 415
        assert align(encoded(pixels(), "JPEG")[:-300]).json()["type"] == "/problems/damaged"
        assert align(bomb()).status_code == 413
        assert align(b"\xff\xd8\xff" + bytes(17 << 20)).json()["type"] == "/problems/too-large"
        assert align(encoded(pixels())).json()["type"] == "/problems/no-face"

        # the photo of a client that offers HTTP/2 arrives as well
        url = httpx.URL(service)
        assert post_twice(url.host, url.port or 80) == [422, 422]  # no face

        # more at once than a batch holds, good and bad mixed: each gets its own answer
        with ThreadPoolExecutor(12) as threads:
            files = [encoded(pixels()) if i % 3 else b"no image" for i in range(12)]
            codes = list(threads.map(lambda data: align(data, boxes=box).status_code, files))
        assert codes == [200 if i % 3 else 415 for i in range(12)]
        check_health(client, "/readyz")

        # more photos in one request than a batch holds: the bad one fails alone
        files = [("images", b"no image" if i == 4 else encoded(pixels())) for i in range(10)]
        boxes = json.dumps([[[40, 30, 120, 110]]] * 10)
        several = client.post("/v1/align/batch", files=files, data={"boxes": boxes})
        assert several.status_code == 200, several.text
        for i, photo in enumerate(several.json()["photos"]):
            assert set(photo) == ({"problem"} if i == 4 else {"faces", "image"})
            assert i == 4 or photo["faces"] == [face]
        together = client.post("/v1/align/person", files=files)
        assert together.json()["type"] == "/problems/no-face"

        # a request whose client leaves ends
        many = [("images", encoded(pixels()))] * 32
        boxes = json.dumps([[[40, 30, 120, 110]] * 2] * 32)
        long = client.build_request("POST", "/v1/align/batch", files=many, data={"boxes": boxes})
        lines = "".join(f"{name}: {value}\r\n" for name, value in long.headers.items())
        head = f"POST /v1/align/batch HTTP/1.1\r\n{lines}\r\n"
        with connection(service, head.encode() + long.read()):
            time.sleep(0.1)
        counted = 'dff_requests_total{path="/v1/align/batch",status="499"} 1.0'
        started = time.monotonic()
        while counted not in client.get("/metrics").text:
            assert time.monotonic() - started < HEALTHY
