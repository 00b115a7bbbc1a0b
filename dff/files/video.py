"""Align video files: faces tracked through the frames, as JSON and as a drawn video."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dff.aligner.align import Aligner
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.draw import FilmDrawing, draw
from dff.aligner.face_description import FaceDescriber
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.tracking.settling import SettlingTracker
from dff.aligner.tracking.tracker import Tracked, Tracker
from dff.face.errors import BadVideo, NoFace
from dff.files.alignments import is_json_lines
from dff.files.head_motion import MotionRecorder
from dff.files.table import FaceTable
from dff.files.video_io import (
    FrameReader,
    TimedFrame,
    VideoReader,
    VideoWriter,
    check_drawing,
    open_video,
)
from dff.infra.files import append_file, append_whole, replaced_file, storage_errors, write_file
from dff.infra.printing import counted

SETTLING = 1.0  # seconds: frames are held back so long at most, while a new face is recognised
HELD = 256 * 2**20  # bytes of the frames that are held back at most, which shortens that time


@dataclass(frozen=True)
class AlignedFrame:
    """The faces of a frame."""

    time: float  # seconds since the first frame
    faces: list[Tracked]
    camera: Intrinsics
    refused: str = ""  # what the last search took for faces and refused, if it found none

    def rows(self, number: int, table: FaceTable) -> str:
        """The faces as lines of a table; their ids are those of their tracks."""
        first = [number, round(self.time, 4)]
        return "".join(table.row(first, one.track, one.face, self.camera) for one in self.faces)

    def to_json(self, number: int, describer: FaceDescriber) -> dict[str, Any]:
        """Plain lists and numbers; ``number`` of the frame, from 0."""
        faces = [
            {"track": one.track, **describer.describe(one.face, self.camera)} for one in self.faces
        ]
        return {"frame": number, "time": round(self.time, 4), "faces": faces}


def align_frames(
    aligner: Aligner,
    reader: FrameReader,
    *,
    smooth: bool = True,
    writer: VideoWriter | None = None,
    watch: Callable[[TimedFrame, list[Tracked], Intrinsics], None] | None = None,
    focal: float | None = None,
) -> Iterator[AlignedFrame]:
    """The tracked faces of each frame, in order, with a progress bar.

    ``writer`` gets the drawn frames, and ``watch`` each frame with its faces.
    """
    frames = tqdm(reader.frames(), total=reader.frame_count or None, unit=" frames")
    moments = iter(frames)
    first = next(moments, None)
    if first is None:
        return
    config = TrackingConfig(
        smoothing=SmoothingConfig() if smooth else None,
        settling=settling_seconds(first.image.nbytes, reader.rate),
    )
    tracker = SettlingTracker[TimedFrame](Tracker(aligner, config=config))
    film = FilmDrawing()
    settled = chain.from_iterable(
        tracker.step(one.image, one.time, one) for one in chain([first], moments)
    )
    for each in chain(settled, tracker.finish()):
        frame, faces = each.kept, each.faces
        camera = Intrinsics.of(frame.image.shape[1], frame.image.shape[0], focal=focal)
        if watch is not None:
            watch(frame, faces, camera)
        if writer is not None:
            drawn = draw(
                frame.image,
                [one.face for one in faces],
                aligner.model,
                tracks=[one.track for one in faces],
                film=film,
            )
            writer.write(drawn, frame.time)
        yield AlignedFrame(frame.time, faces, camera, tracker.tracker.refused)


def settling_seconds(frame_bytes: int, rate: float) -> float:
    """How long frames of this size, at this rate per second, are held back at most."""
    return min(SETTLING, HELD / (frame_bytes * rate))


def align_video_file(
    aligner: Aligner,
    path: Path,
    *,
    smooth: bool = True,
    json_out: Path | None = None,
    drawing: Path | None = None,
    mesh: Path | None = None,
    table: Path | None = None,
    focal: float | None = None,
    extras: tuple[str, ...] = (),
) -> str:
    """Align the faces of a video file, with a progress bar; a summary in words.

    ``drawing``: write the video, with its sound and with the faces drawn on it, to this file.
    ``table``: CSV of the faces. ``mesh``: GLB of the head of the longest track, animated.
    ``focal``: pixels, of the camera, by default assumed. ``extras``: of ``FaceDescriber``.

    ``json_out``: file for each frame's ``frame`` (number, from 0), ``time`` (seconds since the
    first) and ``faces``, alignments each with the number of its ``track``: one line of JSON for
    each frame if its name ends in .jsonl, else an array of them.

    Raises BadVideo for a video that can't be read, has no frame or can't be written, and, after the
    last frame, NoFace when none showed a face.
    """
    if drawing is not None:
        check_drawing(drawing)
    number, shown, seen, refused = 0, 0, 0, ""
    tracks: set[int] = set()
    recorder = MotionRecorder(aligner.model)
    describer = FaceDescriber(aligner.model, extras)
    rows = FaceTable(aligner.model, ["frame", "timestamp"])
    if table is not None:
        write_file(table, rows.header().encode())
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(path))
        out = stack.enter_context(_JsonFrames.open(json_out)) if json_out else None
        writer = stack.enter_context(_writer(drawing, reader))
        watch = None if mesh is None else recorder.add
        for frame in align_frames(
            aligner, reader, smooth=smooth, writer=writer, watch=watch, focal=focal
        ):
            if table is not None:
                append_file(table, frame.rows(number, rows).encode())
            if out is not None:
                out.write(frame.to_json(number, describer))
            number, shown = number + 1, shown + bool(frame.faces)
            seen, refused = seen + len(frame.faces), frame.refused
            tracks |= {one.track for one in frame.faces}
        _check_frames(path, reader)
    # that there is none is an answer, too, which is written
    _check_faces(path, reader, seen, refused)
    complaints = reader.complaints()
    if mesh is not None:
        write_file(mesh, recorder.encode())
    if writer is not None and writer.without_sound:
        complaints.append(writer.without_sound)
    frames, found = counted(number, "frame"), counted(len(tracks), "track")
    words = f"{path}: faces in {shown} of {frames}, {found}"
    return "; ".join([words, *complaints])


def _check_frames(path: Path, reader: VideoReader) -> None:
    """Raise BadVideo for a film without a frame."""
    if reader.read == 0:
        reasons = "".join(f"; {complaint}" for complaint in reader.complaints())
        raise BadVideo(f"{path} has no frame that can be read{reasons}")


def _check_faces(path: Path, reader: VideoReader, seen: int, refused: str) -> None:
    """Raise NoFace when no face was ``seen`` in a film.

    ``refused``: candidates of the last frame, and why.
    """
    if seen == 0:
        why = [f"in the last one {refused}"] if refused else []
        reasons = "".join(f"; {one}" for one in [*why, *reader.complaints()])
        raise NoFace(f"no face in the {counted(reader.read, 'frame')} of {path}{reasons}")


@contextmanager
def _writer(path: Path | None, reader: VideoReader) -> Iterator[VideoWriter | None]:
    """The writer of a drawn video, which appears at the end; None without a path."""
    if path is None:
        yield None
        return
    with VideoWriter.open(path, reader) as writer:
        yield writer


class _JsonFrames:
    """A JSON file that is written frame by frame."""

    def __init__(self, path: Path, file: FileIO, *, lines: bool) -> None:
        self.path, self.file, self.lines, self.count = path, file, lines, 0

    @staticmethod
    @contextmanager
    def open(path: Path) -> Iterator[_JsonFrames]:
        """The file at ``path``: JSON lines grow there, an array appears at the end.

        Raises StorageError with its name.
        """
        lines = is_json_lines(path)
        if lines:
            write_file(path, b"")
        with nullcontext(path) if lines else replaced_file(path) as place:
            with storage_errors(path):
                file = place.open("ab", buffering=0)
            with file:
                frames = _JsonFrames(path, file, lines=lines)
                yield frames
                if not lines:
                    frames.append("\n]\n" if frames.count else "[]\n")

    def write(self, frame: dict[str, Any]) -> None:
        """Add a frame. Raises StorageError."""
        before = "" if self.lines else ",\n" if self.count else "[\n"
        self.append(before + json.dumps(frame) + ("\n" if self.lines else ""))
        self.count += 1

    def append(self, text: str) -> None:
        """Add text as it is. Raises StorageError."""
        with storage_errors(self.path):
            append_whole(self.file, text.encode())
