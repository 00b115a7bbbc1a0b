"""Video files: read frame by frame with their times, and written with sound.

FFmpeg does the work, through PyAV (the extra ``video``). Frames come as a player shows them: turned
by the file's rotation, with square pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from dff.face.arrays import Bytes
from dff.face.errors import BadVideo
from dff.face.extras import require_extra
from dff.files.video_ends import find_missing_end, transport_packet
from dff.infra.files import replaced_file
from dff.infra.printing import counted

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_RATE = 25.0  # frames per second, for a file that has none
LAST_FRAMES = 3  # among which is the last of the file, which players may show earlier
GAP = "a frame before its last one is missing"
RECENT = 24  # frames at the end of a file whose times are compared
SUFFIXES = frozenset(  # of files that are taken for videos where their content tells nothing
    {".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv"}
    | {".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
DRAWINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")  # files that VideoWriter writes

_FORMATS = (  # FFmpeg's demuxers; playlists, which name other files and hosts, are not among them
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,gif,ogg,mxf,h264,hevc"
)
_HEAD = 1024  # bytes of a file that tell its format
_STILL_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"jxl "}
_ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"  # Windows Media
_SIGNATURES = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    _ASF,
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG-1 and MPEG-2 video
    b"OggS",
    b"GIF87a",
    b"GIF89a",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
)
_CLOCK = Fraction(1, 90000)  # seconds: the clock of MPEG, which 24, 25, 30 and 60 Hz divide
_MP4_LIKE = {".mp4", ".m4v", ".mov"}
_MUXER = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_MP4_AUDIO = {"aac", "mp3", "opus", "flac"}  # that browsers play
_WEBM_AUDIO = {"opus", "vorbis"}
_X264 = {"crf": "20", "preset": "fast"}
_VP9 = {"crf": "24", "b:v": "0", "deadline": "realtime", "cpu-used": "6"}


def is_video(path: Path) -> bool:
    """Whether a file is a video: by its content, else by its name."""
    try:
        if not path.is_file():  # to open a named pipe would wait until it has a writer
            return False
        head = _read_head(path)
    except OSError:
        return False
    return _is_video_head(head) or (path.suffix.lower() in SUFFIXES and not _is_image_head(head))


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_video_head(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    if head[4:8] in (b"moov", b"mdat", b"wide"):  # QuickTime
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    return transport_packet(head) is not None or head.startswith(_SIGNATURES)


def _is_image_head(head: bytes) -> bool:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


@dataclass(frozen=True)
class TimedFrame:
    """A frame of a video."""

    image: Bytes  # (H, W, 3) uint8 RGB, as it is displayed
    time: float  # seconds since the first frame


class FrameReader(Protocol):
    """The frames of a video file or a camera."""

    rate: float  # frames per second, on average
    frame_count: int  # as declared; 0: unknown

    def frames(self) -> Iterator[TimedFrame]:
        """The frames in order; their times increase."""
        ...

    def complaints(self) -> list[str]:
        """The defect of the video, known after its last frame."""
        ...


class VideoReader:
    """The frames of an open video file. See ``open_video``."""

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream) -> None:
        self.path, self.container, self.stream = path, container, stream
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.rate = rate if 0.1 < rate < 1000.0 else DEFAULT_RATE
        self.declared = _declared_seconds(container, stream)
        self.slack = 0.002 + 1.5 / self.rate  # seconds that the declared length may be off
        if self.declared is None and container.duration:  # the sound may end after the picture
            self.declared, self.slack = float(container.duration) / 1e6, 0.5
        self.frame_count = stream.frames or round((self.declared or 0.0) * self.rate)
        self.start = 0.0  # seconds from the start of the sound or the picture to the first frame
        self.read, self.end, self.damaged = 0, 0.0, 0
        self.cut = False  # one of the last frames is incomplete
        self.recent = deque[float](maxlen=RECENT)  # times of the last frames

    def frames(self) -> Iterator[TimedFrame]:
        """The frames with their times, upright and with square pixels. Can be read once."""
        first: float | None = None
        last = -np.inf
        corrupt = deque[bool](maxlen=LAST_FRAMES)
        for raw in self._decode():
            moment = raw.time
            if moment is None:
                moment = last + 1.0 / self.rate if first is not None else 0.0
            if first is None:
                first = moment
                self.start = max(first - _first_second(self.container), 0.0)
            if moment <= last:  # two frames at one time, or times that run backwards
                moment = last + min(1.0 / self.rate, 1e-3)
            last = moment
            length = float(raw.duration * raw.time_base) if raw.duration and raw.time_base else 0.0
            self.end = moment + (length or 1.0 / self.rate) - first
            self.read += 1
            corrupt.append(raw.is_corrupt)
            self.cut = any(corrupt)
            self.recent.append(moment)
            yield TimedFrame(self._displayed(raw), moment - first)

    def complaints(self) -> list[str]:
        """Defects of the video, in words; complete after the last frame."""
        found = []
        if self.declared is not None and self.declared - self.end > self.slack:
            there, declared = f"{self.end:.2f} s", f"{self.declared:.2f} s"
            found.append(f"the file ends early: {there} of the {declared} that it declares")
        elif missing := find_missing_end(self.path):
            found.append(f"the file ends early: {missing}")
        elif self.cut:
            found.append("the file ends early: its last frame is incomplete")
        elif self.container.format.name == "mpegts" and lacks_frames([*self.recent]):
            found.append(f"the file ends early: {GAP}")
        if self.damaged:
            found.append(f"{counted(self.damaged, 'damaged part')} of the file passed over")
        return found

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames that can be decoded; damaged packets are counted."""
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                self.damaged += 1
                packet = None
            try:
                decoded = self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                self.damaged += packet is None or packet.size > 0
                decoded = []
            yield from decoded
            if packet is None:
                return

    def _displayed(self, raw: VideoFrame) -> Bytes:
        """The pixels as a player shows them."""
        image = raw.to_ndarray(format="rgb24")
        aspect = float(self.stream.sample_aspect_ratio or 1)
        if 0.1 < aspect < 10.0 and abs(aspect - 1.0) > 1e-3:
            height, width = image.shape[:2]  # the shorter side of a pixel grows: no detail is lost
            size = (
                (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
            )
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        turns = round(float(raw.rotation) / 90.0) % 4  # counterclockwise
        return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)


@contextmanager
def open_video(path: Path) -> Iterator[VideoReader]:
    """Open a video for the length of a ``with`` block.

    Raises BadVideo when the file is missing or can't be read, MissingExtra without PyAV.
    """
    if not path.is_file():
        raise BadVideo(f"{path} is not a file")
    with require_extra("video"):
        import av
    try:
        container = _open_container(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadVideo(f"{path} can't be read as a video{_reason(path)}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise BadVideo(f"{path} can't be read as a video: it holds no picture")
        stream.thread_type = "AUTO"  # type: ignore[attr-defined]
        yield VideoReader(path, container, stream)  # type: ignore[arg-type]


def _open_container(path: Path) -> InputContainer:
    import av

    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def _reason(path: Path) -> str:
    """The part that an unreadable file lacks, if that can be determined."""
    data = _read_head(path)
    if not data:
        return ": it is empty"
    if data[4:8] == b"ftyp":
        return ": its index is missing, as when a recording is cut off, or it is damaged"
    return "" if _is_video_head(data) else ": no known format"


def lacks_frames(times: Sequence[float]) -> bool:
    """Whether frames at equal intervals have a gap among the last ones.

    A file stores a frame before those that refer to it but are shown earlier. Where it is cut off
    between them, these are missing. A transport stream tells its end by nothing else.
    """
    if len(times) < RECENT:
        return False
    steps = np.diff(times)
    before, last = steps[:-LAST_FRAMES], steps[-LAST_FRAMES:]
    usual = float(np.median(before))
    return bool((np.abs(before - usual) < 0.1 * usual).all() and last.max() > 1.5 * usual)


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length of the picture, as the file declares it."""
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # FFmpeg cuts its duration to the file
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    clock = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:00:02.880000000
    if len(clock) == 3:
        try:
            return 3600.0 * float(clock[0]) + 60.0 * float(clock[1]) + float(clock[2])
        except ValueError:
            return None
    return None


def _first_second(container: InputContainer) -> float:
    """The earliest start of the picture and the sound, seconds."""
    some = [container.streams.best("video"), container.streams.best("audio")]
    starts = [
        float(one.start_time * one.time_base)
        for one in some
        if one is not None and one.start_time is not None and one.time_base is not None
    ]
    return min(starts, default=0.0)


class VideoWriter:
    """A video file that browsers play: H.264 (VP9 in .webm), with the sound of another file.

    Sides that are odd get one more row or column, since H.264 halves its colours.
    """

    def __init__(self, path: Path, place: Path, reader: VideoReader) -> None:
        """See ``VideoWriter.open``; ``place``: the file that is written, which takes the name
        ``path``.
        """
        import av

        self.path, self.reader = path, reader
        options = {"movflags": "faststart"} if path.suffix.lower() in _MP4_LIKE else {}
        with _explained(path):
            self.container = av.open(
                f"file:{place}", "w", format=_MUXER[path.suffix.lower()], options=options
            )
        self.stream: VideoStream | None = None
        self.sound: Sound | None = None
        self.size = (0, 0)

    @staticmethod
    @contextmanager
    def open(path: Path, reader: VideoReader) -> Iterator[VideoWriter]:
        """A writer for the length of a ``with`` block, at whose end the file appears at ``path``.

        ``reader``: of the video whose rate, start and sound are taken over. Raises BadVideo when
        the file can't be written; nothing is left of it then.
        """
        check_drawing(path)
        with replaced_file(path) as place:
            writer = VideoWriter(path, place, reader)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()

    @property
    def without_sound(self) -> str:
        """Why the sound is missing, else ""."""
        return "" if self.sound is None else self.sound.lost

    def write(self, image: Bytes, time: float) -> None:
        """Add an (H, W, 3) uint8 RGB frame that is shown ``time`` seconds after the first.

        Raises BadVideo when the file can't be written.
        """
        import av

        height, width = image.shape[:2]
        if self.stream is None:
            self._begin(width, height)
        assert self.stream is not None
        if (width, height) != self.size:  # the video changes its size
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        even = cv2.copyMakeBorder(
            image, 0, self.size[1] % 2, 0, self.size[0] % 2, cv2.BORDER_REPLICATE
        )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.time_base = _CLOCK
        frame.pts = round((self.reader.start + time) / _CLOCK)
        self._mux(self.stream.encode(frame))
        if self.sound is not None:
            self._mux(self.sound.until(self.reader.start + time))

    def finish(self) -> None:
        """Write what is left. Raises BadVideo when the file can't be written."""
        if self.stream is not None:
            self._mux(self.stream.encode(None))
        if self.sound is not None:
            self._mux(self.sound.until(np.inf))
        with _explained(self.path):
            self.container.close()

    def close(self) -> None:
        """Let go of the files."""
        if self.sound is not None:
            self.sound.close()
        with suppress(BadVideo), _explained(self.path):
            self.container.close()

    def _begin(self, width: int, height: int) -> None:
        web = self.path.suffix.lower() == ".webm"
        rate = Fraction(self.reader.rate).limit_denominator(1001)
        codec, options = ("libvpx-vp9", _VP9) if web else ("libx264", _X264)
        stream: VideoStream = self.container.add_stream(codec, rate=rate, options=dict(options))  # type: ignore[assignment]
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _CLOCK
        self.stream, self.size = stream, (width, height)
        self.sound = Sound.open(self.reader.path, self.container, self.path.suffix.lower())

    def _mux(self, packets: list[Packet[Any]]) -> None:
        with _explained(self.path):
            for packet in packets:
                self.container.mux(packet)


class Sound:
    """The sound of a video file, for another one: copied where browsers play it, else encoded."""

    def __init__(
        self, source: InputContainer, stream: AudioStream, container: OutputContainer, suffix: str
    ) -> None:
        self.source, self.stream = source, stream
        self.packets = source.demux(stream)
        self.base = _first_second(source)  # seconds
        self.lost = ""
        self.done = False
        self.ahead: list[Packet[Any]] = []
        codec = stream.codec_context.name
        self.copied = codec in (_WEBM_AUDIO if suffix == ".webm" else _MP4_AUDIO)
        if self.copied:
            self.out = container.add_stream_from_template(stream)
        else:
            self.out = container.add_stream(
                "libopus" if suffix == ".webm" else "aac",
                rate=48000 if suffix == ".webm" else stream.codec_context.sample_rate,
            )

    @staticmethod
    def open(path: Path, container: OutputContainer, suffix: str) -> Sound | None:
        """The sound of the file at ``path``; None where it has none."""
        import av

        source = _open_container(path)
        stream = source.streams.best("audio")
        if stream is None:
            source.close()
            return None
        try:
            return Sound(source, stream, container, suffix)  # type: ignore[arg-type]
        except (av.FFmpegError, ValueError):
            source.close()
            return None

    def until(self, time: float) -> list[Packet[Any]]:
        """The packets to write for the sound up to ``time`` seconds."""
        import av

        out: list[Packet[Any]] = []
        try:
            while not self.done:
                packet = next(self.packets, None)
                if packet is None or packet.dts is None:
                    self.done = True
                    out += [] if self.copied else self._encoded(None)
                    break
                assert packet.time_base is not None
                out += self._copied(packet) if self.copied else self._encoded(packet)
                if float(packet.dts * packet.time_base) - self.base >= time:
                    break
        except av.FFmpegError as error:  # the pictures are worth more than the sound
            self.done, self.lost = True, f"the sound ends early: {error.strerror}"
        return out

    def close(self) -> None:
        self.source.close()

    def _copied(self, packet: Packet[Any]) -> list[Packet[Any]]:
        assert packet.time_base is not None
        shift = round(self.base / packet.time_base)
        packet.stream = self.out
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.pts = None if packet.pts is None else packet.pts - shift
        return [packet]

    def _encoded(self, packet: Packet[Any] | None) -> list[Packet[Any]]:
        out: list[Packet[Any]] = []
        for frame in self.stream.codec_context.decode(packet):
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(self.base / frame.time_base)
            out += self.out.encode(frame)
        if packet is None:
            out += self.out.encode(None)
        return out


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors in writing the video at ``path`` as BadVideo."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise BadVideo(f"{path} can't be written: {error.strerror}") from error


def check_drawing(path: Path) -> None:
    """Raise BadVideo for a name that no video can be written to."""
    if path.suffix.lower() not in DRAWINGS:
        raise BadVideo(f"{path} can't be written: a drawn video ends in {', '.join(DRAWINGS)}")
