"""The service under load and under attack: ``python -m benchmarks.serve --html out/serve.html``.

The server runs in a process of its own (``dff serve``), this process sends the requests. Photos are
the public-domain astronaut: small (512 x 512), large (12 megapixels) and a crowd of 20 faces.

* Closed loop: some clients, each sends its next photo when it has the answer of the last one.
* Open loop: photos arrive at random times at a share of the closed loop's rate.
* Attacks, each beside requests for ``/healthz`` and a client with small photos.
* Overhead: the service with an aligner that does nothing (``--overhead``).

``--url`` measures a server that runs already, for example another version of the program.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from dff.aligner.service.app import create_app
from dff.aligner.service.uvicorn_server import serving_with_uvicorn
from dff.face.io.assets import load_model
from dff.report import Section, html
from dff.report import Table as ReportTable
from tests.aligner.known_aligner import KnownAligner

SHARES = {"small": 0.8, "large": 0.1, "crowd": 0.1}  # of the requests
HEALTH_EVERY = 0.1  # seconds


@dataclass
class Outcomes:
    """Statuses and seconds of requests, by kind of photo."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.seconds.setdefault(kind, []).append(seconds)

    def row(self, kind: str) -> list[str]:
        """Number, median and 99th percentile in milliseconds."""
        if kind not in self.seconds:
            return ["0", "", ""]
        found = np.array(self.seconds[kind]) * 1000
        return [str(found.size), f"{np.median(found):.0f}", f"{np.percentile(found, 99):.0f}"]


def make_photos() -> dict[str, bytes]:
    """A JPEG of each kind."""
    face = Image.fromarray(np.asarray(data.astronaut()))
    crowd = Image.new("RGB", (5 * 256, 4 * 256))
    for i in range(20):
        crowd.paste(face.crop((100, 0, 356, 256)), (i % 5 * 256, i // 5 * 256))
    images = {"small": face, "large": face.resize((3464, 3464)), "crowd": crowd}
    return {kind: _jpeg(image) for kind, image in images.items()}


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_large_png(side: int = 6250) -> bytes:
    """A PNG of 16-bit grey, 39 megapixels and little content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = zlib.compress(bytes(1 + 2 * side) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def post(client: httpx.Client, photo: bytes) -> tuple[int, float]:
    """Status and seconds; status 0 without an answer."""
    started = time.monotonic()
    try:
        status = client.post("/v1/align", files={"image": photo}).status_code
    except httpx.HTTPError:
        status = 0
    return status, time.monotonic() - started


def pick(rng: random.Random) -> str:
    return rng.choices([*SHARES], weights=[*SHARES.values()])[0]


def closed_loop(url: str, photos: dict[str, bytes], clients: int, seconds: float) -> Outcomes:
    """``clients`` threads that each wait for their answers."""
    outcomes, end = Outcomes(), time.monotonic() + seconds

    def work(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=url, timeout=90) as client:
            while time.monotonic() < end:
                kind = pick(rng)
                outcomes.add(kind, *post(client, photos[kind]))

    _run_all([lambda number=number: work(number) for number in range(clients)])
    return outcomes


def open_loop(url: str, photos: dict[str, bytes], rate: float, seconds: float) -> Outcomes:
    """Requests at random times, ``rate`` a second on average, whatever becomes of earlier ones."""
    outcomes, rng = Outcomes(), random.Random(0)
    threads = []
    with httpx.Client(base_url=url, timeout=90, limits=httpx.Limits(max_connections=500)) as client:

        def send(kind: str) -> None:
            outcomes.add(kind, *post(client, photos[kind]))

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            threads.append(threading.Thread(target=send, args=(pick(rng),)))
            threads[-1].start()
            time.sleep(rng.expovariate(rate))
        for thread in threads:
            thread.join()
    return outcomes


def _run_all(calls: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@dataclass(frozen=True)
class AttackOutcome:
    """What others saw while an attack went on."""

    name: str
    health: list[float]  # seconds of each request for health; infinite without an answer
    small: Outcomes
    memory: float  # largest resident memory of the server's processes, MB

    def row(self) -> list[str]:
        answered = sum(map(np.isfinite, self.health))
        return [
            self.name,
            f"{answered} of {len(self.health)}",
            f"{max(self.health, default=np.nan) * 1000:.0f}",
            *self.small.row("small"),
            f"{self.memory:.0f}",
        ]


@contextmanager
def silent(url: str, count: int) -> Iterator[None]:
    """Connections that send 300 bytes of a form and then nothing."""
    parts = urlsplit(url)
    head = (
        f"POST /v1/align HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        for _ in range(count):
            address = (parts.hostname or "", parts.port or 80)
            client = stack.enter_context(socket.create_connection(address, timeout=20))
            client.sendall(head + b"--x\r\n".ljust(300, b"x"))
        yield


@contextmanager
def flood(url: str, photo: bytes, count: int) -> Iterator[None]:
    """``count`` clients that send ``photo`` again and again."""
    end = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=90) as client:
            while not end.is_set():
                if post(client, photo)[0] != 200:
                    time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    end.set()
    for thread in threads:
        thread.join()


def watch(
    url: str,
    name: str,
    attack: AbstractContextManager[object],
    small: bytes,
    seconds: float,
    pid: int | None,
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
                    memory[0] = max(memory[0], resident(pid) if pid else np.nan)
                    time.sleep(HEALTH_EVERY)

        def send() -> None:
            with httpx.Client(base_url=url, timeout=90) as client:
                while time.monotonic() < end:
                    outcomes.add("small", *post(client, small))

        _run_all([ask, send])
    return AttackOutcome(name, health, outcomes, memory[0])


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return float("nan")
    (line,) = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@contextmanager
def started_server(*, ray: bool) -> Iterator[tuple[str, int, float]]:
    """URL and process of ``dff serve``, and the seconds until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dff", "serve", "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--ray" if ray else "--no-ray"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit("the server did not start") from None
            time.sleep(0.2)
        yield url, process.pid, time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def measure_overhead(small: bytes, requests: int) -> float:
    """Median milliseconds of a request beyond decoding, with an aligner that does nothing."""
    app = create_app(KnownAligner(load_model()))
    beyond = []
    with serving_with_uvicorn(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(requests):
            started = time.monotonic()
            answer = client.post("/v1/align", files={"image": small})
            took = (time.monotonic() - started) * 1000
            beyond.append(took - answer.json()["timing"]["decode_ms"])
    return float(np.median(beyond))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", type=int, help="with --url: its process, for its memory")
    parser.add_argument("--ray", action="store_true", help="dff serve with Ray")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=4, help="of the closed loop")
    parser.add_argument("--only", choices=["load", "attacks", "overhead"])
    parser.add_argument("--html", type=Path, help="write a report")
    options = parser.parse_args()
    photos = make_photos()
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    if options.only in (None, "overhead"):
        overhead = measure_overhead(photos["small"], 200)
        tables.append(("Overhead", ["milliseconds"], [[f"{overhead:.1f}"]]))
    if options.only != "overhead":
        with ExitStack() as stack:
            url, pid, ready = options.url, options.pid, float("nan")
            if url is None:
                url, pid, ready = stack.enter_context(started_server(ray=options.ray))
            tables.append(("Start", ["seconds until ready"], [[f"{ready:.1f}"]]))
            if options.only in (None, "load"):
                tables.append(measure_load(url, photos, options.clients, options.seconds))
            if options.only in (None, "attacks"):
                tables.append(measure_attacks(url, photos, options.seconds, pid))
    console = Console()
    for title, header, rows in tables:
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if options.html:
        sections = [
            Section(title, "", table=ReportTable(header, rows)) for title, header, rows in tables
        ]
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(html("The service under load", json.dumps(SHARES), sections))


def measure_load(
    url: str, photos: dict[str, bytes], clients: int, seconds: float
) -> tuple[str, Sequence[str], list[list[str]]]:
    """Rows of the closed loop, and of the open loop at 70 % of its rate."""
    rows = []
    closed = closed_loop(url, photos, clients, seconds)
    rate = closed.statuses[200] / seconds
    opened = open_loop(url, photos, 0.7 * rate, seconds)
    for name, outcomes in (("closed", closed), ("open, 70 %", opened)):
        statuses = ", ".join(f"{status}: {n}" for status, n in sorted(outcomes.statuses.items()))
        for kind in SHARES:
            rows.append([name, kind, *outcomes.row(kind), statuses])
    header = ["loop", "photo", "answers", "median ms", "p99 ms", "statuses of all"]
    return f"Load: {rate:.2f} answers a second", header, rows


def measure_attacks(
    url: str, photos: dict[str, bytes], seconds: float, pid: int | None
) -> tuple[str, Sequence[str], list[list[str]]]:
    """A row for each attack."""
    large = make_large_png()
    attacks: dict[str, AbstractContextManager[object]] = {
        "none": ExitStack(),
        "16 silent uploads": silent(url, 16),
        "81 silent uploads": silent(url, 81),
        "4 clients with PNG of 39 megapixels": flood(url, large, 4),
        "2 clients with 20 faces": flood(url, photos["crowd"], 2),
        "64 clients": flood(url, photos["small"], 64),
    }
    rows = [
        watch(url, name, attack, photos["small"], seconds, pid).row()
        for name, attack in attacks.items()
    ]
    header = ["attack", "health", "slowest ms", "small photos", "median ms", "p99 ms", "MB"]
    return "Attacks", header, rows


if __name__ == "__main__":
    main()
