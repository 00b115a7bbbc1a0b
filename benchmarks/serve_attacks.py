"""Hostile clients, and what others see of a server while they are at work."""

from __future__ import annotations

import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.serve_load import Outcomes, post, run_all

HEALTH_EVERY = 0.1  # seconds
FORM = "Content-Type: multipart/form-data; boundary=x\r\n"

Attack = AbstractContextManager[None]


@dataclass(frozen=True)
class AttackOutcome:
    """What others saw while an attack went on."""

    name: str
    health: list[float]  # seconds of each request for health; infinite without an answer
    small: Outcomes
    memory: float  # largest resident memory of the server, MB

    def row(self) -> list[str]:
        """Cells under ``HEADER``."""
        answered = sum(map(np.isfinite, self.health))
        return [
            self.name,
            f"{answered} of {len(self.health)}",
            f"{max(self.health, default=np.nan) * 1000:.0f}",
            *self.small.row("small"),
            f"{self.memory:.0f}",
        ]


HEADER = (
    "attack",
    "health",
    "slowest ms",
    "small photos",
    "refused",
    "median ms",
    "p99 ms",
    "ratio",
    "MB",
)


def make_attacks(url: str, photos: dict[str, bytes]) -> dict[str, Attack]:
    """Each attack as a context in which it goes on."""
    silent = _head(url, "POST /v1/align", FORM + "Content-Length: 100000\r\n")
    silent += b"--x\r\n".ljust(300, b"x")
    begun = _head(url, "POST /v1/align", FORM + "Content-Length: 100000\r\n")
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    broken = _head(url, "POST /v1/align", FORM + "Content-Length: 60\r\n")
    broken += b"--x\r\nContent-Disposition: form-data; name=\r\n\r\n--x--".ljust(60, b"-")
    return {
        "none": nullcontext(),
        "16 silent uploads": connections(url, silent, 16),
        "81 silent uploads": connections(url, silent, 81),
        "64 clients, a byte of the headers a second": connections(
            url, b"GET / HTTP/1.1\r\n", 64, each_second=b"a"
        ),
        "64 clients, a byte of the body a second": connections(url, begun, 64, each_second=b"a"),
        "1,500 idle connections": connections(url, b"", 1500),
        "8 clients with broken forms": again(partial(exchange, url, broken), 8),
        "8 clients that ask for HTTP/2": again(
            partial(exchange, url, _head(url, "GET /healthz", upgrade)), 8
        ),
        "4 clients with PNG of 39 megapixels": flood(url, make_large_png(), 4),
        "2 clients with 20 faces": flood(url, photos["crowd"], 2),
        "64 clients": flood(url, photos["small"], 64),
    }


def _head(url: str, request: str, headers: str) -> bytes:
    return f"{request} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{headers}\r\n".encode()


def make_large_png(side: int = 6250) -> bytes:
    """A PNG of 16-bit grey, 39 megapixels and little content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = zlib.compress(bytes(1 + 2 * side) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def connect(url: str) -> socket.socket:
    """A connection to the server."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)


@contextmanager
def connections(url: str, data: bytes, count: int, *, each_second: bytes = b"") -> Iterator[None]:
    """``count`` connections that send ``data``, and then nothing or something each second."""
    end = threading.Event()
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in range(count)]
        for one in opened:
            with suppress(OSError):  # the server ended it
                one.sendall(data)

        def trickle() -> None:
            while each_second and not end.wait(1.0):
                for one in opened:
                    try:
                        one.sendall(each_second)
                    except OSError:  # the server ended it
                        continue

        thread = threading.Thread(target=trickle)
        thread.start()
        yield
        end.set()
        thread.join()


def exchange(url: str, data: bytes) -> None:
    """Send bytes, and read the beginning of the answer."""
    with connect(url) as one:
        one.sendall(data)
        one.recv(4096)


@contextmanager
def again(call: Callable[[], object], count: int) -> Iterator[None]:
    """``count`` threads that do ``call`` again and again."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            try:
                call()
            except OSError:
                time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    end.set()
    for thread in threads:
        thread.join()


@contextmanager
def flood(url: str, photo: bytes, count: int) -> Iterator[None]:
    """``count`` clients that send ``photo`` again and again."""
    with httpx.Client(
        base_url=url, timeout=90, limits=httpx.Limits(max_connections=count)
    ) as client:

        def send() -> None:
            if post(client, photo)[0] != 200:
                time.sleep(0.2)

        with again(send, count):
            yield


def watch(
    url: str,
    name: str,
    attack: Attack,
    small: bytes,
    seconds: float,
    measure_memory: Callable[[], float],
) -> AttackOutcome:
    """Ask for health and send small photos while ``attack`` goes on."""
    health: list[float] = []
    outcomes, memory = Outcomes(), [0.0]
    with attack:
        end = time.monotonic() + seconds

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=20) as client:
                while time.monotonic() < end:
                    started = time.monotonic()
                    try:
                        answered = client.get("/healthz").status_code == 200
                    except httpx.HTTPError:
                        answered = False
                    health.append(time.monotonic() - started if answered else np.inf)
                    memory[0] = max(memory[0], measure_memory())
                    time.sleep(HEALTH_EVERY)

        def send() -> None:
            with httpx.Client(base_url=url, timeout=90) as client:
                while time.monotonic() < end:
                    outcomes.add("small", *post(client, small))

        run_all([ask, send])
    return AttackOutcome(name, health, outcomes, memory[0])
