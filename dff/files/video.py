"""Align video files: faces tracked through the frames, as JSON lines and as a drawn video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from dff.aligner.align import Aligner
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.draw import draw
from dff.aligner.video import Tracked, Tracker
from dff.face.arrays import Bytes
from dff.face.errors import BadVideo, NoFace

DEFAULT_RATE = 25.0  # frames per second, for a file that has none


@dataclass(frozen=True)
class Video:
    """An opened video file."""

    rate: float  # frames per second
    count: int  # frames, as the file says; 0: unknown
    frames: Iterator[Bytes]  # (H, W, 3) uint8 RGB


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video for the length of a ``with`` block.

    Raises BadVideo when the file is missing or can't be read.
    """
    if not path.is_file():
        raise BadVideo(f"{path} is not a file")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise BadVideo(f"{path} can't be read as a video")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield Video(rate if 0.1 < rate < 1000.0 else DEFAULT_RATE, max(count, 0), _frames(capture))
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[Bytes]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype("uint8", copy=False)


def align_video(
    aligner: Aligner,
    path: Path,
    *,
    smooth: bool = True,
    drawing: Path | None = None,
    progress: bool = False,
) -> Iterator[list[Tracked]]:
    """The tracked faces of each frame, in order.

    ``drawing``: write the video with the faces drawn on it to this file. Raises BadVideo for a
    video that can't be read, has no frame or can't be written, and, after the last frame, NoFace
    when none showed a face.
    """
    with open_video(path) as video:
        config = TrackingConfig(smoothing=SmoothingConfig() if smooth else None)
        tracker = Tracker(aligner, rate=video.rate, config=config)
        writer: cv2.VideoWriter | None = None
        number, seen = 0, 0
        try:
            for frame in tqdm(
                video.frames, total=video.count or None, unit="frame", disable=not progress
            ):
                faces = tracker.step(frame)
                number, seen = number + 1, seen + len(faces)
                if drawing is not None:
                    writer = writer or _open_writer(drawing, video.rate, frame)
                    over = draw(frame, [one.face for one in faces], aligner.model)
                    writer.write(cv2.cvtColor(over, cv2.COLOR_RGB2BGR))
                yield faces
        finally:
            if writer is not None:
                writer.release()
    if number == 0:
        raise BadVideo(f"{path} has no frame")
    if seen == 0:
        raise NoFace(f"no face in the {number} frames of {path}")


def align_video_file(
    aligner: Aligner,
    path: Path,
    *,
    smooth: bool = True,
    lines: Path | None = None,
    drawing: Path | None = None,
) -> str:
    """``align_video`` with a progress bar; a summary in words.

    One line of JSON for each frame goes to ``lines``: ``frame`` (from 0), ``time`` (seconds) and
    ``faces``, alignments each with the number of its ``track``.
    """
    with open_video(path) as video:
        rate = video.rate
    number, shown = 0, 0
    tracks: set[int] = set()
    with ExitStack() as stack:
        if lines is not None:
            lines.parent.mkdir(parents=True, exist_ok=True)
        out = None if lines is None else stack.enter_context(lines.open("w"))
        for faces in align_video(aligner, path, smooth=smooth, drawing=drawing, progress=True):
            if out is not None:
                told = [{"track": one.track, **one.face.to_json()} for one in faces]
                out.write(
                    json.dumps({"frame": number, "time": round(number / rate, 4), "faces": told})
                    + "\n"
                )
            number, shown = number + 1, shown + bool(faces)
            tracks |= {one.track for one in faces}
    return f"{path}: faces in {shown} of {number} frames, {len(tracks)} tracks"


def _open_writer(path: Path, rate: float, frame: Bytes) -> cv2.VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (frame.shape[1], frame.shape[0])
    )
    if not writer.isOpened():
        raise BadVideo(f"{path} can't be written as a video: name it .mp4")
    return writer
