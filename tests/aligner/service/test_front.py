"""The front before the application: what it hands on, answers itself, and logs."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dff.aligner.service.app import create_app
from dff.aligner.service.http import metrics
from dff.aligner.service.http.front import SERVE_TIMEOUT, Front, FrontConfig
from dff.aligner.service.http.keys import hash_keys, read_keys
from dff.aligner.service.http.limits import UploadLimits
from dff.aligner.service.routes import track as track_routes
from dff.aligner.service.routes.models import NAME
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, pixels
from tests.aligner.known_aligner import KnownAligner

TRACE = "0af7651916cd43dd8448eb211c80319c"


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


async def echo(request: Request) -> Response:
    return Response(await request.body(), headers={"X-Request-ID": "the server's own"})


def failing(status: int, **headers: str) -> Any:
    async def fail(request: Request) -> Response:
        return PlainTextResponse("in plain text", status, headers)

    return fail


def front(config: FrontConfig | None = None, **answers: Any) -> Front:
    routes = [
        Route(f"/{name}", answer, methods=["POST", "GET"]) for name, answer in answers.items()
    ]
    return Front(Starlette(routes=routes), config=config or FrontConfig())


def test_a_body_arrives_unchanged_from_memory_and_from_disk() -> None:
    app = front(FrontConfig(uploads=UploadLimits(memory=100)), echo=echo)
    for size in (0, 1, 100, 101, 3_000_000):
        body = bytes(i % 251 for i in range(size))
        answer = ask(app, "POST", "/echo", content=body)
        assert answer.content == body
        assert len(answer.headers.get_list("x-request-id")) == 1


def test_the_application_sees_the_id_in_the_headers() -> None:
    """A replica behind a proxy that has the front takes it from there."""

    async def tell(request: Request) -> Response:
        return Response(",".join(request.headers.getlist("x-request-id")))

    for sent, told in (("mine", "mine"), ("no id", None), (None, None)):
        headers = {} if sent is None else {"X-Request-ID": sent}
        answer = ask(front(tell=tell), "GET", "/tell", headers=headers)
        assert answer.text == answer.headers["x-request-id"]
        assert told in (None, answer.text)


@pytest.mark.parametrize(
    ("status", "told", "kind"),
    [(404, 503, "not-ready"), (408, 503, "deadline"), (503, 503, "busy"), (500, 500, "internal")],
)
def test_errors_of_the_server_become_problems(status: int, told: int, kind: str) -> None:
    answer = ask(front(bad=failing(status)), "GET", "/bad")
    assert answer.status_code == told
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{kind}"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert told == 500 or answer.headers["retry-after"] == "5"
    busy = ask(front(bad=failing(503, **{"Retry-After": "7"})), "GET", "/bad")
    assert busy.headers["retry-after"] == "7"
    prefixed = ask(front(FrontConfig(root_path="/faces"), bad=failing(status)), "GET", "/bad")
    assert prefixed.json()["type"] == f"/faces/problems/{kind}"


def test_all_uploads_together_are_bounded() -> None:
    app = front(FrontConfig(uploads=UploadLimits(stored=1000)), echo=echo)
    assert ask(app, "POST", "/echo", content=bytes(1000)).status_code == 200
    over = ask(app, "POST", "/echo", content=bytes(1001))
    assert (over.status_code, over.json()["type"]) == (503, "/problems/busy")
    assert ask(app, "POST", "/echo", content=bytes(1000)).status_code == 200  # all was given back


def test_one_line_of_log_for_each_request(
    toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(KnownAligner(toy_model))
    with caplog.at_level(logging.INFO, logger="dff.access"):
        answer = ask(
            app,
            "POST",
            "/v1/align?mesh=0",
            files={"image": ("secret.png", encoded(pixels()))},
            headers={"X-Request-ID": "mine", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        )
        ask(app, "GET", "/nowhere")
    first, second = (json.loads(record.message) for record in caplog.records)
    expected = {
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/align",
        "status": 200,
        "trace_id": TRACE,
        "received": int(answer.request.headers["content-length"]),
        "sent": int(answer.headers["content-length"]),
    }
    assert {key: first[key] for key in expected} == expected
    assert 0 < first["seconds"] < 10
    assert "secret" not in caplog.text
    assert (second["path"], second["status"]) == ("/nowhere", 404)
    assert "trace_id" not in second


async def wait_for_the_client_to_leave(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray Serve's proxy: it gives up when the client leaves, and does not answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def work_long(scope: Scope, receive: Receive, send: Send) -> None:
    """As the aligner's routes: they don't ask whether the client is there."""
    await receive()
    await asyncio.sleep(60)


async def be_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("app", "messages"),
    [
        (echo, ["http.disconnect"]),  # during the upload
        (wait_for_the_client_to_leave, ["http.request", "http.disconnect"]),
        (work_long, ["http.request", "http.disconnect"]),
        (be_cancelled, ["http.request"]),
    ],
)
def test_a_client_that_leaves_is_logged_and_gets_no_answer(
    app: Any, messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    left = [
        {"type": name} | ({"body": b"0123456789"} if "req" in name else {}) for name in messages
    ]

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/align",
        "headers": [(b"content-length", b"10")],
    }
    behind = Front(app, config=FrontConfig())
    started = time.monotonic()
    with caplog.at_level(logging.INFO, logger="dff.access"), suppress(asyncio.CancelledError):
        asyncio.run(behind(scope, receive, send))
    assert time.monotonic() - started < 30
    assert sent == []
    assert json.loads(caplog.records[0].message)["status"] == 499
    counted = ask(behind, "GET", "/metrics").text
    assert 'dff_requests_total{path="/v1/align",status="499"} 1.0' in counted


def test_a_server_that_does_not_answer_has_failed() -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    answer = ask(Front(nothing, config=FrontConfig()), "GET", "/v1/models")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")


@pytest.mark.parametrize("swallows", [False, True], ids=["cancelled", "as-ray-serve"])
def test_health_is_told_while_the_server_holds_requests_back(swallows: bool) -> None:
    async def hold(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError) if swallows else nullcontext():
            await asyncio.sleep(60)

    for path in ("/readyz", "/healthz", "/v2/health/ready"):
        started = time.monotonic()
        answer = ask(Front(hold, config=FrontConfig()), "GET", path)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        assert "did not answer within 1 s" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "5"
        assert time.monotonic() - started < 10


def test_a_server_that_ends_does_not_say_that_it_starts() -> None:
    statuses = [404, 200, 404]

    async def answer(request: Request) -> Response:
        return PlainTextResponse("in plain text", statuses.pop(0))

    app = front(readyz=answer)
    kinds = [ask(app, "GET", "/readyz") for _ in range(3)]
    assert kinds[0].json()["type"] == "/problems/not-ready"
    assert kinds[1].status_code == 200
    assert (kinds[2].status_code, kinds[2].json()["type"]) == (503, "/problems/stopping")


@pytest.mark.parametrize("prefix", ["/faces", ""])
def test_paths_behind_a_prefix(toy_model: MorphableModel, prefix: str) -> None:
    """Whether or not the proxy removes the prefix, the type of a problem can be followed."""
    uploads = UploadLimits(bodies={"/v1/align": 2_000})
    app = create_app(
        KnownAligner(toy_model), front=FrontConfig(root_path="/faces", uploads=uploads)
    )
    for data, kind in ((b"none", "not-an-image"), (bytes(2_001), "too-large")):
        answer = ask(app, "POST", f"{prefix}/v1/align", files={"image": data})
        assert answer.json()["type"] == f"/faces/problems/{kind}"
        assert ask(app, "GET", answer.json()["type"]).status_code == 200
    several = ask(app, "POST", f"{prefix}/v1/align/batch", files=[("images", b"none")])
    assert several.json()["photos"][0]["problem"]["type"] == "/faces/problems/not-an-image"


def test_the_configuration_survives_the_environment() -> None:
    config = FrontConfig(
        uploads=UploadLimits(uploads=7, bodies={"/x": 5}), origins=("*",), root_path="/a/b"
    )
    assert FrontConfig.from_json(config.to_json()) == config
    assert FrontConfig.from_json("{}") == FrontConfig()
    with pytest.raises(TypeError, match="origin"):
        FrontConfig.from_json('{"origin": []}')
    with pytest.raises(ValueError, match="is no prefix"):
        FrontConfig(root_path="faces")
    with pytest.raises(ValueError, match="positive"):
        UploadLimits(rate=0)


def test_without_a_key_nothing_is_answered_but_health_and_pages(toy_model: MorphableModel) -> None:
    """Without one of the keys nothing is aligned, read or told; health needs none."""
    keys = hash_keys(["a key that is long", "another long key"])
    app = create_app(KnownAligner(toy_model), front=FrontConfig(keys=keys))
    good = {"files": {"image": encoded(pixels())}}
    for headers in (
        {},
        {"X-API-Key": "a wrong key, long"},
        {"Authorization": "Basic a key that is long"},
        {"X-API-Key": keys[0]},
    ):
        refused = ask(app, "POST", "/v1/align", headers=headers, **good)
        assert (refused.status_code, refused.json()["type"]) == (401, "/problems/unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert ask(app, "GET", "/metrics", headers=headers).status_code == 401
    for headers in (
        {"X-API-Key": "another long key"},
        {"Authorization": "Bearer a key that is long"},
    ):
        assert ask(app, "POST", "/v1/align", headers=headers, **good).status_code == 200
    for path in ("/healthz", "/", "/docs", "/openapi.json", "/v2/health/live"):
        assert ask(app, "GET", path).status_code == 200
    schema = ask(app, "GET", "/openapi.json").json()
    for path, method in (("/v1/align", "post"), ("/metrics", "get")):
        operation = schema["paths"][path][method]
        assert operation["security"] == [{"bearer": []}, {"header": []}]
        assert "401" in operation["responses"]
    assert "security" not in schema["paths"]["/healthz"]["get"]


def test_keys_are_read_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nkey-of-sixteen-characters\n\n")
    monkeypatch.setenv("DFF_API_KEYS", "second-key-as-long, third-key-is-longer")
    assert len(read_keys(file)) == 3
    assert len(read_keys(None)) == 2
    file.write_text("short")
    with pytest.raises(ValueError, match="at least 16"):
        read_keys(file)
    file.write_text("")
    with pytest.raises(ValueError, match="holds no API keys"):
        read_keys(file)


def test_metrics_count_what_was_answered(toy_model: MorphableModel) -> None:
    app = create_app(KnownAligner(toy_model))
    good = encoded(pixels())
    for data in (good, good, b"no image"):
        answer = ask(app, "POST", "/v1/align", files={"image": data})
        assert "x-dff-measures" not in answer.headers
    ask(app, "GET", "/secret/path")
    metrics = ask(app, "GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(
        line.rsplit(" ", 1) for line in metrics.text.splitlines() if not line.startswith("#")
    )
    assert values['dff_requests_total{path="/v1/align",status="200"}'] == "2.0"
    assert values['dff_requests_total{path="/v1/align",status="415"}'] == "1.0"
    assert values['dff_requests_total{path="other",status="404"}'] == "1.0"
    assert values["dff_faces_total"] == "2.0"
    assert values["dff_decoded_bytes_total"] == str(float(2 * pixels().nbytes))
    assert values['dff_stage_seconds_count{stage="align"}'] == "2.0"
    assert values['dff_queue_photos_bucket{le="0.0"}'] == "3.0"
    assert "secret" not in metrics.text


def test_invented_paths_add_no_series_to_the_metrics() -> None:
    """Whoever refuses them: the application (404), or the front before it (401, 408, 413)."""
    uploads = UploadLimits(chunk_seconds=0.01)
    keys = hash_keys(["a key that is long"])
    key = {"X-API-Key": "a key that is long"}
    app = front(FrontConfig(uploads=uploads, keys=keys), echo=echo)

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.sleep(1)
        yield b""

    def read_series() -> set[str]:
        lines = ask(app, "GET", "/metrics", headers=key).text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def invent(name: str) -> list[int]:
        large = {"Content-Length": str(1 << 40)}
        return [
            ask(app, "POST", f"/v1/{name}").status_code,
            ask(app, "POST", f"/v1/{name}", headers=key | large).status_code,
            ask(app, "POST", f"/v1/{name}", headers=key, content=nothing()).status_code,
            ask(app, "GET", f"/v2/health/{name}", headers=key).status_code,
        ]

    read_series()
    assert invent("first") == [401, 413, 408, 503]
    before = read_series()
    for number in range(5):
        invent(f"x{number}")
    assert read_series() == before
    assert not any("first" in line for line in before)


def test_every_route_has_its_series(toy_model: MorphableModel) -> None:
    app = create_app(KnownAligner(toy_model))
    described = {path.replace("{name}", NAME) for path in app.openapi()["paths"]}
    assert described | {track_routes.PATH, "/metrics"} == metrics.PATHS


def test_clients_do_not_change_the_limits_of_ray_serve() -> None:
    async def tell(request: Request) -> Response:
        return Response(request.headers.get(SERVE_TIMEOUT, "none"))

    answer = ask(front(tell=tell), "GET", "/tell", headers={SERVE_TIMEOUT: "0"})
    assert answer.text == "none"
    seen: list[str | None] = []

    async def socket(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Headers(scope=scope).get(SERVE_TIMEOUT))

    async def nothing(*_: object) -> dict[str, str]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/track", "headers": [(b"host", b"a")]}
    asyncio.run(Front(socket, config=FrontConfig())(scope, nothing, nothing))  # type: ignore[arg-type]
    assert seen == ["0"]  # sessions last longer than requests
