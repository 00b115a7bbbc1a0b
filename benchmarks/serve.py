"""The service under load and under attack: ``python -m benchmarks.serve --html out/serve.html``.

The server runs in a process of its own (``dff serve``), this process sends the requests. Photos are
the public-domain astronaut: small (512 x 512), large (12 megapixels) and a crowd of 20 faces.

* ``load``. Closed loop: some clients, each sends its next photo when it has the answer of the last
  one, and waits as long as that takes (``Deadline: 60``). The answers a second are the capacity.
  Open loop: photos arrive at random times at 70 % of that rate, without a deadline of their own.
  Median and 99th percentile are of the answered requests of each kind of photo, seen by the client.
* ``attacks``, each beside requests for ``/healthz`` and a client with small photos.
* ``waits``: small photos beside two clients that send large photos, many faces or frames.
* ``overhead``: the service with an aligner that does nothing.
* ``memory``: the same over many requests.
* ``throughput``: small photos served and in loops of this process, in turns.
* ``endurance``: the closed loop ten times in a row, and the memory after each.

``--url`` measures a server that runs already, for example another version of the program.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.serve_attacks import HEADER, make_attacks, watch
from benchmarks.serve_load import (
    SHARES,
    Outcomes,
    closed_loop,
    make_photos,
    open_loop,
    post,
    run_all,
)
from benchmarks.serve_waits import HEADER as WAITS_HEADER, measure_waits
from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.load import load_aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.face_aligner import Boxes
from dff.aligner.service.http.access_log import ACCESS_LOG
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.server import make_server
from dff.aligner.threads import use_threads
from dff.face.arrays import Bytes
from dff.face.io.assets import load_model
from dff.infra.photos.images import decode
from dff.report import Section, Table as ReportTable, html
from tests.aligner.known_aligner import KnownAligner

PARTS = ("overhead", "memory", "throughput", "load", "waits", "attacks", "endurance")
REPLICA = "ServeReplica"  # in the title of Ray's processes
MB = 1 << 20

Rows = tuple[str, Sequence[str], list[list[str]]]  # title, header, rows


class IdleAligner(KnownAligner):
    """Answers a face without looking at the photo, and keeps nothing."""

    def align(self, image: Bytes, boxes: Boxes = None) -> list[Alignment]:
        """One neutral face."""
        found = super().align(image, boxes)
        self.seen.clear()
        return found


def serve_idle(port: int) -> None:
    """The application with an idle aligner, until SIGTERM."""
    logging.getLogger(ACCESS_LOG).disabled = True
    use_threads(1)
    app = create_app(IdleAligner(load_model()))
    make_server(app, "127.0.0.1", port, FrontConfig()).run()


def wait_ready(url: str, process: subprocess.Popen[bytes] | SpawnProcess) -> None:
    """Wait until a server is ready. Raises SystemExit when its process ends."""
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            ended = (
                process.poll() is not None
                if isinstance(process, subprocess.Popen)
                else not process.is_alive()
            )
            if ended:
                raise SystemExit("the server did not start") from None
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started_idle_server() -> Iterator[tuple[str, psutil.Process]]:
    """URL and process of a server whose aligner does nothing."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve_idle, args=(port,))
    process.start()
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(30)


@contextmanager
def started_server(*, ray: bool) -> Iterator[tuple[str, psutil.Process, float]]:
    """URL and process of ``dff serve``, and the seconds until it was ready."""
    port = free_port()
    command = [sys.executable, "-m", "dff", "serve", "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--ray" if ray else "--no-ray"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        seconds = time.monotonic() - started
        yield url, find_replica(psutil.Process(process.pid)), seconds
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def find_replica(server: psutil.Process) -> psutil.Process:
    """Ray's process that has the aligner, else the server itself."""
    for process in server.children(recursive=True):
        if REPLICA in " ".join(process.cmdline()):
            return process
    return server


def resident(process: psutil.Process) -> float:
    """Resident memory in MB."""
    return float(process.memory_info().rss) / MB


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def send(url: str, photo: bytes, requests: int, clients: int = 1) -> Outcomes:
    """``requests`` photos of kind small, from so many clients."""
    outcomes = Outcomes()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=90) as client:
            for _ in range(requests // clients):
                outcomes.add("small", *post(client, photo))

    run_all([work] * clients)
    return outcomes


def measure_overhead(url: str, server: psutil.Process, small: bytes, requests: int) -> Rows:
    """What a request costs beyond decoding, with an aligner that does nothing."""
    send(url, small, 50)
    decode(small)
    began = time.process_time()
    for _ in range(50):
        decode(small)
    decoding = (time.process_time() - began) / 50 * 1000
    began = cpu_seconds(server)
    outcomes = send(url, small, requests)
    cpu = (cpu_seconds(server) - began) / requests * 1000
    median = float(np.median(outcomes.seconds["small"])) * 1000
    rows = [[f"{cpu - decoding:.1f}", f"{decoding:.1f}", f"{median - decoding:.1f}"]]
    header = ["CPU ms beyond decoding", "decoding", "wall ms beyond decoding, with the client"]
    return f"Overhead of a request, mean of {requests}", header, rows


def measure_memory(url: str, server: psutil.Process, small: bytes, requests: int) -> Rows:
    """Resident memory of the idle aligner's server after each tenth of the requests."""
    rows = [["0", f"{resident(server):.1f}", ""]]
    for tenth in range(1, 11):
        outcomes = send(url, small, requests // 10, clients=2)
        wrong = sum(n for status, n in outcomes.statuses.items() if status != 200)
        rows.append([str(tenth * requests // 10), f"{resident(server):.1f}", str(wrong)])
    return "Memory over many requests", ["requests", "MB", "not answered"], rows


def measure_throughput(
    url: str, server: psutil.Process | None, small: bytes, seconds: float, turns: int = 4
) -> Rows:
    """Photos a second, and CPU time of each: served to three clients, and in this process.

    Here photos are aligned one by one, and in pairs, which share steps as those of several clients
    may. The ratio of CPU times holds on a busy machine too; that of the rates does not.
    """
    use_threads(1)
    aligner = load_aligner().with_quick_search()
    aligner.align(decode(small))
    send(url, small, 30, clients=3)  # both have loaded what they need
    rows: list[list[str]] = []
    ratios = []
    for _ in range(turns):
        single, cpu_single = _measure_loop(aligner, small, 1, seconds / 4)
        paired, cpu_paired = _measure_loop(aligner, small, 2, seconds / 4)
        cpu = cpu_seconds(server) if server else math.nan
        outcomes = closed_loop(url, {"small": small}, 3, seconds / 2, shares={"small": 1.0})
        answers = outcomes.statuses[200]
        cpu_served = ((cpu_seconds(server) if server else math.nan) - cpu) / answers
        served = answers / outcomes.lasted
        ratios.append((served / single, served / paired, cpu_single / cpu_served))
        rates = [f"{rate:.2f}" for rate in (single, paired, served)]
        spent = [f"{1000 * each:.1f}" for each in (cpu_single, cpu_paired, cpu_served)]
        rows.append([*rates, *spent, *(f"{ratio:.2f}" for ratio in ratios[-1])])
    by_single, by_pairs, by_cpu = np.median(ratios, axis=0)
    title = (
        f"Served over in-process, medians: {by_single:.2f} of one by one, {by_pairs:.2f} of pairs, "
        f"{by_cpu:.2f} by CPU time"
    )
    header = [
        *("single, /s", "pairs, /s", "served, /s"),
        *("single, ms", "pairs, ms", "served, ms"),
        *("of single", "of pairs", "of CPU"),
    ]
    return title, header, rows


def _measure_loop(
    aligner: Aligner, photo: bytes, together: int, seconds: float
) -> tuple[float, float]:
    """Photos a second of a loop in this process, and seconds of CPU time of each."""
    count, began, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        aligner.align_batch([decode(photo) for _ in range(together)])
        count += together
    return count / (time.monotonic() - began), (time.process_time() - cpu) / count


def measure_load(
    url: str, photos: dict[str, bytes], clients: int, seconds: float, open_seconds: float
) -> Rows:
    """Rows of the closed loop, and of the open loop at 70 % of its rate."""
    rows = []
    closed = closed_loop(url, photos, clients, seconds)
    rate = closed.statuses[200] / closed.lasted
    opened = open_loop(url, photos, 0.7 * rate, open_seconds)
    for name, outcomes in (("closed", closed), ("open, 70 %", opened)):
        statuses = ", ".join(f"{status}: {n}" for status, n in sorted(outcomes.statuses.items()))
        rows += [[name, kind, *outcomes.row(kind), statuses] for kind in SHARES]
    header = ["loop", "photo", "answered", "refused", "median ms", "p99 ms", "ratio"]
    header.append("statuses of all")
    return f"Load: {rate:.2f} answers a second", header, rows


def measure_endurance(
    url: str, photos: dict[str, bytes], clients: int, seconds: float, server: psutil.Process
) -> Rows:
    """Resident memory after each of ten closed loops with photos of all kinds."""
    rows = [["0", f"{resident(server):.1f}", ""]]
    requests = 0
    for _ in range(10):
        outcomes = closed_loop(url, photos, clients, seconds)
        requests += sum(outcomes.statuses.values())
        wrong = sum(n for status, n in outcomes.statuses.items() if status != 200)
        rows.append([str(requests), f"{resident(server):.1f}", str(wrong)])
    return "Memory over time", ["requests", "MB", "not answered"], rows


def measure_attacks(
    url: str, photos: dict[str, bytes], seconds: float, server: psutil.Process | None
) -> Rows:
    """A row for each attack."""
    memory = partial(resident, server) if server else lambda: float("nan")
    rows = [
        watch(url, name, attack, photos["small"], seconds, memory).row()
        for name, attack in make_attacks(url, photos).items()
    ]
    return "Attacks", HEADER, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", type=int, help="with --url: its process, for its memory")
    parser.add_argument("--ray", action="store_true", help="dff serve with Ray")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--open-seconds", type=float, help="of the open loop, if not the same")
    parser.add_argument("--clients", type=int, default=4, help="of the closed loop")
    parser.add_argument("--requests", type=int, default=20_000, help="of the memory's part")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--html", type=Path, help="write a report")
    options = parser.parse_args()
    photos = make_photos()
    tables: list[Rows] = []
    with ExitStack() as stack:
        if {"overhead", "memory"} & {*options.only}:
            url, server = stack.enter_context(started_idle_server())
            if "overhead" in options.only:
                tables.append(measure_overhead(url, server, photos["small"], 400))
            if "memory" in options.only:
                tables.append(measure_memory(url, server, photos["small"], options.requests))
    if {"load", "waits", "attacks", "throughput", "endurance"} & {*options.only}:
        tables += measure_server(options, photos)
    show(tables, options.html)


def measure_server(options: argparse.Namespace, photos: dict[str, bytes]) -> list[Rows]:
    """The parts that need the real aligner."""
    tables: list[Rows] = []
    with ExitStack() as stack:
        url = options.url
        server = psutil.Process(options.pid) if options.pid else None
        if url is None:
            url, server, ready = stack.enter_context(started_server(ray=options.ray))
            row = [f"{ready:.1f}", f"{resident(server):.0f}"]
            tables.append(("Start", ["seconds until ready", "MB"], [row]))
        if "throughput" in options.only:
            tables.append(measure_throughput(url, server, photos["small"], options.seconds))
        if "load" in options.only:
            open_seconds = options.open_seconds or options.seconds
            part = (options.clients, options.seconds, open_seconds)
            tables.append(measure_load(url, photos, *part))
        if "waits" in options.only:
            rows = measure_waits(url, photos, options.seconds)
            tables.append(("Small photos beside others", WAITS_HEADER, rows))
        if "attacks" in options.only:
            tables.append(measure_attacks(url, photos, options.seconds, server))
        if "endurance" in options.only and server:
            tables.append(measure_endurance(url, photos, options.clients, options.seconds, server))
        if server:
            memory = server.memory_full_info()
            cells = [f"{memory.rss / MB:.0f}", f"{memory.pss / MB:.0f}"]
            tables.append(("Memory in the end", ["resident MB", "proportional MB"], [cells]))
    return tables


def show(tables: Sequence[Rows], file: Path | None) -> None:
    """Print the tables, and write them as a page."""
    console = Console()
    for title, header, rows in tables:
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if file:
        sections = [
            Section(title, "", table=ReportTable(header, rows)) for title, header, rows in tables
        ]
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in SHARES.items())
        lead = f"{time.strftime('%Y-%m-%d')}. Photos: {shares}."
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html("The service under load", lead, sections))


if __name__ == "__main__":
    main()
