"""What every server of the application must do, under uvicorn as under Ray Serve.

The server lets pages of ``PAGE`` in, gives up slow senders after ``PATIENCE`` seconds, and answers
a photo with faces (200) or, where its network is untrained, with no-face (422).
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import UploadLimits
from tests.aligner.image_files import encoded, pixels

PAGE = "https://example.org"
PATIENCE = 1.0  # seconds
FRONT = FrontConfig(
    uploads=UploadLimits(header_seconds=PATIENCE, chunk_seconds=PATIENCE, uploads=24),
    origins=(PAGE,),
)
ANSWERED = (200, 422)
HEALTHY = 5.0  # seconds within which health is answered whatever else happens
SLACK = 8.0  # seconds by which a busy machine may be late; less than what a front waits by default


@contextmanager
def connection(url: str, data: bytes) -> Iterator[socket.socket]:
    """A connection over which ``data`` and nothing else was sent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20) as client:
        client.sendall(data)
        yield client


def multipart(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form with one photo."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return head + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def read_answer(client: socket.socket) -> tuple[int, str]:
    """Status and body of an answer after which the server closes the connection."""
    data = b""
    while chunk := client.recv(1 << 16):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def begin_upload(url: str, size: int = 100_000) -> bytes:
    """The headers of a form and its first 300 bytes."""
    head = (
        f"POST /v1/align HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {size}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head.encode() + part.ljust(300, b"\xff")


def check_health(client: httpx.Client, path: str) -> None:
    """Health is good; a front tells otherwise while a busy machine takes longer than a second."""
    started = time.monotonic()
    while (status := client.get(path).status_code) == 503:
        assert time.monotonic() - started < HEALTHY
    assert status == 200
    assert time.monotonic() - started < HEALTHY


def check_silent_senders_stop_nobody(url: str) -> None:
    """More uploads that fall silent than the server takes at a time: others are answered."""
    with ExitStack() as stack, httpx.Client(base_url=url, timeout=20) as client:
        silent = [stack.enter_context(connection(url, begin_upload(url))) for _ in range(40)]
        for path in ("/healthz", "/readyz"):
            check_health(client, path)
        answer = client.post("/v1/align", files={"image": encoded(pixels())})
        assert answer.status_code in ANSWERED, answer.text
        started = time.monotonic()
        for each in silent:
            status, body = read_answer(each)
            assert status == 408
            assert json.loads(body)["type"] == "/problems/too-slow"
        assert time.monotonic() - started < PATIENCE + SLACK


def check_trickling_senders_are_ended(url: str) -> None:
    """A sender that is never silent but too slow on average."""
    with connection(url, begin_upload(url)) as client:
        started = time.monotonic()
        client.settimeout(0.1)
        while time.monotonic() - started < PATIENCE + SLACK:
            try:
                client.sendall(b"\xff")
                data = client.recv(1 << 16)
                break
            except TimeoutError:
                continue
        assert data.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < PATIENCE + SLACK


def check_slow_headers_are_ended(url: str) -> None:
    """Headers that never end, and connections over which nothing comes."""
    for data in (b"GET /healthz HTTP/1.1\r\nHost: here\r\n", b""):
        with connection(url, data) as client:
            started = time.monotonic()
            status, body = read_answer(client)
            assert status == 408
            assert json.loads(body)["title"] == "Request too slow"
            assert time.monotonic() - started < PATIENCE + SLACK


def check_broken_bodies_are_counted_once(url: str) -> None:
    """A body that is no HTTP ends its request by status 400, whoever finds that out."""
    head = f"POST /v1/align HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"

    def count() -> dict[str, float]:
        lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
        series = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {
            name: float(value)
            for name, _, value in series
            if name.startswith(
                ('dff_requests_total{path="/v1/align"', "dff_unreadable_requests_total")
            )
        }

    before = count()
    for pause in (0.0, 0.2):
        with connection(url, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()) as client:
            time.sleep(pause)
            client.sendall(b"zz\r\n")
            status, body = read_answer(client)
        assert (status, json.loads(body)["type"]) == (400, "/problems/bad-http")
    after = count()
    more = {name: after[name] - before.get(name, 0.0) for name in after}
    assert {name: rise for name, rise in more.items() if rise} == {
        'dff_requests_total{path="/v1/align",status="400"}': 2.0
    }


def check_request_ids(url: str) -> None:
    """The client's id is taken where it is usable; an answer has one id, also one of an error."""
    with httpx.Client(base_url=url, timeout=20) as client:
        for path in ("/healthz", "/nowhere"):
            given = client.get(path, headers={"X-Request-ID": "mine-1"})
            assert given.headers.get_list("x-request-id") == ["mine-1"]
            (made,) = client.get(path, headers={"X-Request-ID": "<b>"}).headers.get_list(
                "x-request-id"
            )
            assert len(made) == 32
        answer = client.post(
            "/v1/align", files={"image": b"none"}, headers={"X-Request-ID": "mine-2"}
        )
        assert answer.json()["request_id"] == "mine-2"


def check_bodies_arrive_whole(url: str) -> None:
    """Large and small bodies, with a length and in chunks, and one over the limit."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for image in (encoded(pixels()), encoded(pixels(1500, 1500), "BMP")):
            body, headers = multipart(image)
            parts = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
            sized = client.post("/v1/align", content=body, headers=headers)
            chunked = client.post("/v1/align", content=parts, headers=headers)
            assert sized.status_code == chunked.status_code
            assert sized.status_code in (*ANSWERED, 415)
        over = client.post("/v1/align", files={"image": bytes(17 << 20)})
        assert (over.status_code, over.json()["type"]) == (413, "/problems/too-large")


def check_browsers_of_other_origins(url: str) -> None:
    """Preflight, and errors of the front, are readable for pages of named origins only."""
    with httpx.Client(base_url=url, timeout=20) as client:
        for origin, allowed in ((PAGE, PAGE), ("https://elsewhere.org", None)):
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            name = "access-control-allow-origin"
            assert client.options("/v1/align", headers=asks).headers.get(name) == allowed
            over = client.post("/v1/align", content=bytes(17 << 20), headers={"Origin": origin})
            assert over.status_code == 413
            assert over.headers.get(name) == allowed


def check_head(url: str) -> None:
    """HEAD is GET without the body, as load balancers ask."""
    with httpx.Client(base_url=url, timeout=20) as client:
        for path in ("/", "/healthz", "/readyz", "/nowhere"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (get.status_code, b"")


def check_options(url: str) -> None:
    """OPTIONS tells the methods of a path; a path that is none is refused as for GET."""
    with httpx.Client(base_url=url, timeout=20) as client:
        for path, allowed in (
            ("/", "GET, HEAD, OPTIONS"),
            ("/v1/align", "POST, OPTIONS"),
            ("/metrics", "GET, HEAD, OPTIONS"),
        ):
            told = client.options(path)
            assert (told.status_code, told.headers["allow"], told.content) == (204, allowed, b"")
        for path in ("/nowhere", "/v1/nowhere"):
            refused, get = client.options(path), client.get(path)
            assert refused.status_code == get.status_code == 404
            assert refused.json() | {"request_id": ""} == get.json() | {"request_id": ""}
        refused = client.post("/metrics", content=b"x")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert refused.json()["status"] == 405


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;

class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers HTTP/2
        for (int i = 0; i < 2; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "image/png")
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1]))).build();
            System.out.println(
                client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


def check_refused_sockets(url: str) -> None:
    """A client with a real socket learns why its handshake is refused."""
    address = url.replace("http", "ws")
    for path, headers, status, detail in (
        ("/v1/track", {"Origin": "https://other.org"}, 403, "page of https://other.org may not"),
        ("/v1/track?smooth=perhaps", {}, 422, "smooth must be 1 or 0"),
        ("/v1/track?weights=none", {}, 422, "no weights are called 'none'"),
        ("/nothing", {}, 404, "the service has no such path"),
    ):
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(address + path, additional_headers=headers, open_timeout=60),
        ):
            pass
        answer = refused.value.response
        problem = json.loads(answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == problem["status"] == status
        assert detail in problem["detail"]
        assert answer.headers.get_all("x-request-id") == [problem["request_id"]]


def check_java(url: str) -> None:
    """Java's own client, which offers HTTP/2 with its first request, posts a photo twice."""
    if not shutil.which("javac"):
        pytest.skip("needs a JDK")
    with tempfile.TemporaryDirectory() as folder:
        source, photo = Path(folder) / "Client.java", Path(folder) / "photo.png"
        source.write_text(JAVA)
        photo.write_bytes(encoded(pixels()))
        command = ["java", str(source), f"{url}/v1/align", str(photo)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert all(int(line) in ANSWERED for line in run.stdout.split()), run.stdout
    assert len(run.stdout.split()) == 2


def check_curl(url: str) -> None:
    """curl that asks for HTTP/2, and a form part without a file name."""
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    command = [
        "curl",
        "--http2",
        "--silent",
        "--form",
        "image=<-;type=image/png",
        f"{url}/v1/align",
    ]
    answer = subprocess.run(
        command, input=encoded(pixels()), capture_output=True, timeout=60, check=True
    )
    assert answer.stdout.startswith((b'{"faces":', b'{"type":"/problems/no-face"')), answer.stdout


CHECKS: tuple[Callable[[str], None], ...] = (
    check_silent_senders_stop_nobody,
    check_trickling_senders_are_ended,
    check_slow_headers_are_ended,
    check_broken_bodies_are_counted_once,
    check_request_ids,
    check_bodies_arrive_whole,
    check_browsers_of_other_origins,
    check_head,
    check_options,
    check_curl,
    check_refused_sockets,
    check_java,
)
