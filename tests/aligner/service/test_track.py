"""Frames over a web socket: tracked faces, frames that fail alone, sessions within limits."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

from dff.aligner.align import Aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.keys import hash_keys
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.http.problems import MEDIA_TYPE
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.oracle import PositionCode, Scene, make_scene
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

PATIENT = Limits(deadline=120.0, sessions=1, silence=120.0)  # seconds, on a busy machine
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def scene(open_head: MorphableModel, code: PositionCode) -> Scene:
    return make_scene(open_head, code, yaw=10.0, rng=np.random.default_rng(4))


@pytest.fixture(scope="module")
def client(oracle_aligner: Aligner) -> Iterator[TestClient]:
    front = FrontConfig(origins=("https://faces.example.org",), keys=hash_keys([KEY]))
    with TestClient(create_app(oracle_aligner, limits=PATIENT, front=front)) as client:
        yield client


def headers(**more: str) -> dict[str, str]:
    return {"X-API-Key": KEY, **more}


def refusal(client: TestClient, address: str, given: dict[str, str]) -> Any:
    """The problem details by which a handshake is refused."""
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(address, headers=given),
    ):
        pass
    answer = refused.value
    problem = answer.json()
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["x-request-id"] == problem["request_id"]
    assert answer.status_code == problem["status"]
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    return problem


def test_frames_are_answered_in_order_and_fail_alone(client: TestClient, scene: Scene) -> None:
    good = encoded(scene.image)
    with client.websocket_connect("/v1/track?landmarks=5", headers=headers()) as socket:
        answers: list[Any] = []
        for frame in (good, b"no image", good):
            socket.send_bytes(frame)
            answers.append(socket.receive_json())
        socket.send_text("no frame")
        answers.append(socket.receive_json())
        problem = refusal(client, "/v1/track", headers())
        assert (problem["status"], problem["type"]) == (503, "/problems/busy")
        page = headers(Origin="https://faces.example.org")
        with (
            client.websocket_connect("/v1/track", headers=page) as second,
            pytest.raises(WebSocketDisconnect) as refused,
        ):
            second.receive_json()
        assert refused.value.code == 1013, "pages can't read answers to refused handshakes"
    assert [answer["frame"] for answer in answers] == [0, 1, 2, 3]
    kinds = [answer.get("problem", {}).get("type", "").rpartition("/")[2] for answer in answers]
    assert kinds == ["", "not-an-image", "", "bad-request"]
    (first,), (last,) = answers[0]["faces"], answers[2]["faces"]
    assert first["track"] == last["track"] == 0
    assert nme_box(np.array(last["landmarks_3d"])[:, :2], scene.landmarks) < 0.05
    assert np.shape(last["landmarks"]["5"]) == (5, 2)
    assert answers[2]["time"] > answers[0]["time"]
    assert client.app.state.service.sessions == 0  # type: ignore[attr-defined]


def test_sockets_frames_and_faces_are_counted(
    client: TestClient, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def read_metrics() -> dict[str, float]:
        lines = client.get("/metrics", headers=headers()).text.splitlines()
        values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in values}

    good, before = encoded(scene.image), read_metrics()
    with (
        caplog.at_level(logging.INFO, logger="dff.access"),
        client.websocket_connect("/v1/track", headers=headers()) as socket,
    ):
        for frame in (good, b"no image", good):
            socket.send_bytes(frame)
            assert "measures" not in socket.receive_json()
        assert read_metrics()["dff_sockets"] == 1
    after = read_metrics()
    assert after["dff_sockets"] == 0
    for name, count in (
        ('dff_requests_total{path="/v1/track",status="101"}', 1),
        ("dff_frames_total", 3),
        ("dff_faces_total", 2),
        ("dff_decoded_bytes_total", 2 * scene.image.nbytes),
        ('dff_stage_seconds_count{stage="align"}', 2),
        ("dff_received_bytes_total", 2 * len(good) + len(b"no image")),
    ):
        assert after[name] - before.get(name, 0.0) == count, name
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dff.access"]
    (line,) = (line for line in lines if line["path"] == "/v1/track")
    assert (line["frames"], line["faces"], line["status"]) == (3, 2, 101)
    assert line["align"] > 0


def test_sockets_need_a_key_and_a_known_origin(client: TestClient) -> None:
    named = {"Origin": "https://faces.example.org"}
    with client.websocket_connect(
        "/v1/track", subprotocols=["dff", f"dff-key.{KEY}"], headers=named
    ) as socket:
        assert socket.accepted_subprotocol == "dff"
    for without in ({}, {"X-API-Key": "wrong"}):
        problem = refusal(client, "/v1/track", without)
        assert (problem["status"], problem["type"]) == (401, "/problems/unauthorized")
    foreign = headers(Origin="https://other.example.org")
    problem = refusal(client, "/v1/track", foreign)
    assert problem["status"] == 403
    assert "a page of https://other.example.org may not connect" in problem["detail"]


@pytest.mark.parametrize(
    ("address", "status", "detail"),
    [
        ("/v1/track?landmarks=none", 422, "'none'"),
        ("/v1/track?weights=none", 422, "no weights are called 'none': there are default"),
        ("/v1/track?smooth=perhaps", 422, "smooth must be 1 or 0"),
        ("/v1/track?smoth=0", 422, "unknown field 'smoth': this route takes smooth, landmarks"),
        ("/v1/track?smooth=0&smooth=1", 422, "smooth is given 2 times"),
        ("/v1/tracks", 404, "the service has no such path"),
    ],
)
def test_handshakes_of_what_there_is_not_are_answered(
    client: TestClient, address: str, status: int, detail: str
) -> None:
    problem = refusal(client, address, headers())
    assert problem["status"] == status
    assert detail in problem["detail"]


def test_a_request_for_no_socket_is_told_to_open_one(client: TestClient) -> None:
    answer = client.get("/v1/track", headers=headers())
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (426, 426)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["connection"] == "Upgrade"
    assert "takes web sockets" in problem["detail"]


def test_a_page_is_told_by_the_end_of_a_session(client: TestClient) -> None:
    page = headers(Origin="https://faces.example.org")
    with (
        client.websocket_connect("/v1/track?landmarks=none", headers=page) as socket,
        pytest.raises(WebSocketDisconnect) as unknown,
    ):
        socket.receive_json()
    assert unknown.value.code == 1011
    assert "'none'" in unknown.value.reason


def test_a_session_ends_in_silence_and_with_an_aligner_that_can_not_track(
    oracle_aligner: Aligner, toy_model: MorphableModel
) -> None:
    app = create_app(oracle_aligner, limits=Limits(silence=1.0))
    with (
        TestClient(app) as client,
        client.websocket_connect("/v1/track") as socket,
        pytest.raises(WebSocketDisconnect) as ended,
    ):
        socket.receive_json()
    assert ended.value.code == 1000
    with TestClient(create_app(KnownAligner(toy_model))) as client:
        assert "can't track" in refusal(client, "/v1/track", {})["detail"]


def test_a_session_keeps_the_weights_that_it_began_with(
    oracle_aligner: Aligner, toy_model: MorphableModel, scene: Scene
) -> None:
    app = create_app(oracle_aligner, limits=PATIENT)
    with TestClient(app) as client:
        with client.websocket_connect("/v1/track") as socket:
            answers: list[Any] = []
            for _ in range(2):
                socket.send_bytes(encoded(scene.image))
                answers.append(socket.receive_json())
                app.state.service.replace_aligner(KnownAligner(toy_model))
        assert [[face["track"] for face in answer["faces"]] for answer in answers] == [[0], [0]]
        assert "can't track" in refusal(client, "/v1/track", {})["detail"]


def test_a_real_client_is_served_by_uvicorn(oracle_aligner: Aligner, scene: Scene) -> None:
    app = create_app(oracle_aligner, limits=PATIENT)
    with (
        serving_with_uvicorn(app) as url,
        connect(f"{url.replace('http', 'ws')}/v1/track", open_timeout=60) as socket,
    ):
        socket.send(encoded(scene.image))
        answer = json.loads(socket.recv(timeout=120))
    assert len(answer["faces"]) == 1


def test_text_that_is_no_text_is_no_fault_of_the_server(
    oracle_aligner: Aligner, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(oracle_aligner, limits=PATIENT)
    with (
        serving_with_uvicorn(app) as url,
        connect(f"{url.replace('http', 'ws')}/v1/track", open_timeout=60) as socket,
    ):
        socket.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
    assert socket.close_code == CloseCode.INVALID_DATA
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
