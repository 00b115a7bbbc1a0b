"""Video files: frames in, alignments of every frame out, as JSON lines and drawn over the video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from dff.aligner.align import Aligner
from dff.aligner.draw import draw
from dff.aligner.video import Smoothing, Tracked, Tracker
from dff.face.arrays import Bytes
from dff.face.errors import BadVideo, NoFace

SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"}
RATE = 25.0  # frames a second, where a file does not say


@dataclass(frozen=True)
class Video:
    """An opened video file."""

    rate: float  # frames a second
    count: int  # frames, as the file says; 0 where it does not
    frames: Iterator[Bytes]  # (H, W, 3) uint8 RGB


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """A video for the length of a ``with`` block. Raises BadVideo when the file is missing or none
    that can be read.
    """
    if not path.is_file():
        raise BadVideo(f"{path} is no file")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise BadVideo(f"{path} can't be read as a video")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield Video(rate if 0.1 < rate < 1000.0 else RATE, max(count, 0), _frames(capture))
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
    drawn: Path | None = None,
    progress: bool = False,
) -> Iterator[list[Tracked]]:
    """The faces of each frame, in order; ``drawn``: write the video with the faces on it to this
    file.

    Raises BadVideo for a video that can't be read, holds no frame or can't be written, and, once
    all frames were seen, NoFace when none showed a face.
    """
    with opened(path) as video:
        tracker = Tracker(aligner, rate=video.rate, smoothing=Smoothing() if smooth else None)
        writer: cv2.VideoWriter | None = None
        number, seen = 0, 0
        try:
            for frame in tqdm(
                video.frames, total=video.count or None, unit="frame", disable=not progress
            ):
                faces = tracker.step(frame)
                number, seen = number + 1, seen + len(faces)
                if drawn is not None:
                    writer = writer or _writer(drawn, video.rate, frame)
                    over = draw(frame, [one.face for one in faces], aligner.model)
                    writer.write(cv2.cvtColor(over, cv2.COLOR_RGB2BGR))
                yield faces
        finally:
            if writer is not None:
                writer.release()
    if number == 0:
        raise BadVideo(f"{path} holds no frame")
    if seen == 0:
        raise NoFace(f"no face in the {number} frames of {path}")


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def align_video_file(
    aligner: Aligner,
    path: Path,
    *,
    smooth: bool = True,
    lines: Path | None = None,
    drawn: Path | None = None,
) -> str:
    """``align_video`` with a progress bar, one line of JSON for each frame to ``lines``; what to
    tell people.

    A line has ``frame`` (from 0), ``time`` (seconds) and ``faces``: alignments, each with the
    number of its ``track``.
    """
    with opened(path) as video:
        rate = video.rate
    number, shown = 0, 0
    tracks: set[int] = set()
    with ExitStack() as stack:
        if lines is not None:
            lines.parent.mkdir(parents=True, exist_ok=True)
        out = None if lines is None else stack.enter_context(lines.open("w"))
        for faces in align_video(aligner, path, smooth=smooth, drawn=drawn, progress=True):
            if out is not None:
                told = [{"track": one.track, **one.face.to_json()} for one in faces]
                out.write(
                    json.dumps({"frame": number, "time": round(number / rate, 4), "faces": told})
                    + "\n"
                )
            number, shown = number + 1, shown + bool(faces)
            tracks |= {one.track for one in faces}
    return f"{path}: faces in {shown} of {number} frames, {len(tracks)} tracks"


def _writer(path: Path, rate: float, frame: Bytes) -> cv2.VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (frame.shape[1], frame.shape[0])
    )
    if not writer.isOpened():
        raise BadVideo(f"{path} can't be written as a video: name it .mp4")
    return writer
