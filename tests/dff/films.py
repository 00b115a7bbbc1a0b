"""Video files that tests make."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dff.face.arrays import Bytes

CLOCK = Fraction(1, 90000)  # seconds
SAMPLES = 1024  # in a frame of sound


def write_film(
    path: Path,
    frames: Sequence[Bytes],
    *,
    codec: str = "libx264",
    sound: str | None = None,
    times: Sequence[float] | None = None,  # seconds; by default 25 frames a second
    pixel: Fraction | None = None,  # aspect ratio of a pixel
    muxer: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A film of (H, W, 3) RGB frames of even sides, with a tone where ``sound`` names a codec."""
    times = [i / 25.0 for i in range(len(frames))] if times is None else times
    with av.open(str(path), "w", format=muxer, options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = {"ffv1": "bgr0", "gif": "rgb8"}.get(codec, "yuv420p")
        if codec in ("libx264", "ffv1", "libvpx-vp9"):
            stream.codec_context.time_base = CLOCK
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        tone = container.add_stream(sound, rate=44100) if sound else None
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base, frame.pts = CLOCK, round(time / CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for i in range(int(times[-1] * 44100 / SAMPLES) if tone else 0):
            wave = 8000 * np.sin(0.05 * np.arange(SAMPLES)[None])
            part = av.AudioFrame.from_ndarray(wave.astype(np.int16), format="s16", layout="mono")
            part.sample_rate, part.time_base, part.pts = 44100, Fraction(1, 44100), i * SAMPLES
            container.mux(tone.encode(part))  # type: ignore[union-attr]
        if tone:
            container.mux(tone.encode(None))
    return path


def turn_film(path: Path, out: Path, degrees: int) -> Path:
    """A copy whose file says that players turn it counterclockwise by ``degrees``."""
    with av.open(str(path)) as source, av.open(str(out), "w") as container:
        (stream,) = source.streams.video
        copied = container.add_stream_from_template(stream)
        copied.set_display_rotation(degrees)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                container.mux(packet)
    return out


def moving_edge(count: int, width: int = 96, height: int = 64) -> list[Bytes]:
    """Frames whose white left part grows, so that each is another."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, : 8 + (width - 16) * i // count] = 200
    return list(frames)
