"""Photos that are sent to a server, and what became of them: closed and open loop."""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx
import numpy as np
from PIL import Image
from skimage import data

PATIENCE = 60.0  # seconds that the clients of a closed loop wait
SHARES = {"small": 0.8, "large": 0.1, "crowd": 0.1}  # of the requests


@dataclass
class Outcomes:
    """Statuses and seconds of requests, by kind of photo."""

    statuses: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by kind of photo
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lasted: float = 0.0  # seconds from the first request to the last answer

    def add(self, kind: str, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.seconds.setdefault(kind, []).append(seconds)
        else:
            self.refused[kind] += 1

    def row(self, kind: str) -> list[str]:
        """Numbers answered and refused, median, 99th percentile in milliseconds, their ratio."""
        refused = str(self.refused[kind])
        if kind not in self.seconds:
            return ["0", refused, "", "", ""]
        found = np.array(self.seconds[kind]) * 1000
        middle, high = np.median(found), np.percentile(found, 99)
        answered = [str(found.size), refused]
        return [*answered, f"{middle:.0f}", f"{high:.0f}", f"{high / middle:.1f}"]


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


def post(client: httpx.Client, photo: bytes, *, deadline: float | None = None) -> tuple[int, float]:
    """Status and seconds; status 0 without an answer. ``deadline``: seconds of its header."""
    headers = {} if deadline is None else {"Deadline": str(deadline)}
    started = time.monotonic()
    try:
        answer = client.post("/v1/align", files={"image": photo}, headers=headers)
        status = answer.status_code
    except httpx.HTTPError:
        status = 0
    return status, time.monotonic() - started


def pick(rng: random.Random, shares: Mapping[str, float]) -> str:
    return rng.choices([*shares], weights=[*shares.values()])[0]


def closed_loop(
    url: str,
    photos: dict[str, bytes],
    clients: int,
    seconds: float,
    *,
    shares: Mapping[str, float] = SHARES,
) -> Outcomes:
    """``clients`` threads that each wait for their answers, however long."""
    outcomes, started = Outcomes(), time.monotonic()
    end = started + seconds

    def work(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=url, timeout=90) as client:
            while time.monotonic() < end:
                kind = pick(rng, shares)
                outcomes.add(kind, *post(client, photos[kind], deadline=PATIENCE))

    run_all([partial(work, number) for number in range(clients)])
    outcomes.lasted = time.monotonic() - started
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
            threads.append(threading.Thread(target=send, args=(pick(rng, SHARES),)))
            threads[-1].start()
            time.sleep(rng.expovariate(rate))
        for thread in threads:
            thread.join()
    return outcomes


def run_all(calls: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
