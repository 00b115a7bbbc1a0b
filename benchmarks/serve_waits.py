"""Small photos beside clients that send large photos, many faces or frames without a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
from skimage import data
from websockets.sync.client import connect

from benchmarks.serve_load import PATIENCE, post
from dff.face.arrays import Bytes

SIDE = 6244  # pixels of the sides of large photos: 39 megapixels
FRAME = (1080, 1920)  # height and width of frames
FRAMES = 24
OTHERS = 2  # clients
PAUSE = 0.03  # seconds between an answer and the next small photo
HEADER = ("the others send", "small photos", "median ms", "p90 ms", "p99 ms")

Client = Callable[[str, threading.Event], None]  # sends to a URL until the event


def measure_waits(url: str, photos: dict[str, bytes], seconds: float) -> list[list[str]]:
    """A row under ``HEADER`` for each kind of other clients, after one without any."""
    astronaut = np.asarray(data.astronaut())
    dark = cv2.imencode(".png", np.full((SIDE, SIDE, 3), 0x8080, np.uint16))[1].tobytes()
    others: dict[str, Client | None] = {
        "nothing": None,
        "PNG files of 39 megapixels without a face": partial(_send_photos, dark),
        "photos of 20 faces": partial(_send_photos, photos["crowd"]),
        "JPEG files of 39 megapixels that a face fills": partial(
            _send_photos, _jpeg(cv2.resize(astronaut[20:240, 110:330], (SIDE, SIDE)), 60)
        ),
        "frames of 1,920 x 1,080 pixels to /v1/track": partial(_send_frames, [*_film(astronaut)]),
    }
    return [_measure(url, name, other, photos["small"], seconds) for name, other in others.items()]


def _measure(url: str, name: str, other: Client | None, small: bytes, seconds: float) -> list[str]:
    stop, found = threading.Event(), list[float]()
    threads = [threading.Thread(target=other, args=(url, stop)) for _ in range(OTHERS) if other]
    with httpx.Client(base_url=url, timeout=90) as client:
        for _ in range(5):
            post(client, small)
        for thread in threads:
            thread.start()
        time.sleep(2.0 if threads else 0.0)  # until the others' first requests are being answered
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status, took = post(client, small, deadline=PATIENCE)
            if status == 200:
                found.append(1e3 * took)
            time.sleep(PAUSE)
    stop.set()
    for thread in threads:
        thread.join()
    return [
        name,
        str(len(found)),
        *(f"{np.percentile(found, share):.0f}" for share in (50, 90, 99)),
    ]


def _send_photos(photo: bytes, url: str, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=90) as client:
        while not stop.is_set():
            post(client, photo, deadline=PATIENCE)


def _send_frames(frames: Sequence[bytes], url: str, stop: threading.Event) -> None:
    with connect(f"ws://{urlsplit(url).netloc}/v1/track", max_size=None) as socket:
        number = 0
        while not stop.is_set():
            socket.send(frames[number % len(frames)])
            socket.recv()
            number += 1


def _film(face: Bytes) -> Iterator[bytes]:
    """Frames of a face that moves from side to side."""
    height, width = FRAME
    large = cv2.resize(face, (height, height))
    for number in range(FRAMES):
        frame, left = np.zeros((height, width, 3), np.uint8), int(300 + 200 * np.sin(number / 6))
        frame[:, left : left + height] = large
        yield _jpeg(frame, 85)


def _jpeg(image: Bytes, quality: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
