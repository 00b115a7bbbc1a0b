"""Files of folders at random, as Hypothesis draws them: images, landmarks, and what is neither."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import partial

import numpy as np
from hypothesis import HealthCheck, settings, strategies as st
from PIL import Image

from dff.infra.photos.image_listing import IMAGE_SUFFIXES
from dff.infra.photos.landmark_files import format_pts
from tests.aligner.image_files import animated, chunk

COMMON = partial(
    settings,
    deadline=5000,  # ms: nothing hangs; the whole test has a time limit, too
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "MPO")
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA")


def encode(form: str, mode: str, size: tuple[int, int]) -> bytes:
    """A file of this form, and of this mode where the form has it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size)
    for one in (mode, "RGB"):
        buffer = io.BytesIO()
        try:
            image.convert(one).save(buffer, form)
        except (OSError, ValueError):
            continue
        return buffer.getvalue()
    raise AssertionError(form)


IMAGES = [
    *(encode(form, mode, size) for form in FORMATS for mode in MODES for size in ((32, 20),)),
    *(encode(form, "RGB", size) for form in FORMATS for size in ((1, 1), (90, 3))),
    animated("PNG"),
    animated("WEBP"),
]


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Images with odd metadata, cut off, with altered bytes; and files that are none."""
    data = draw(st.sampled_from(IMAGES))
    if data[:2] == b"\xff\xd8":
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"MPF\0"]))
            body = start + draw(st.binary(max_size=60))
            marker = draw(st.integers(0xE0, 0xFE))
            segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
            data = data[:2] + segment + data[2:]
    elif data[:4] == b"\x89PNG":
        for _ in range(draw(st.integers(0, 2))):
            kinds = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"acTL", b"tRNS"]
            body = draw(st.one_of(st.binary(max_size=60), st.just(b"a\0\0" + zlib.compress(b"x"))))
            data = data[:33] + chunk(draw(st.sampled_from(kinds)), body) + data[33:]
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    altered = bytearray(data)
    for _ in range(draw(st.integers(0, 3)) if altered else 0):
        altered[draw(st.integers(0, len(altered) - 1))] = draw(st.integers(0, 255))
    heads = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x18ftypheic"]
    other = st.builds(bytes.__add__, st.sampled_from([b"", *heads]), st.binary(max_size=80))
    return draw(st.one_of(st.just(bytes(altered)), other))


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    """Landmark files with marks of byte order, altered, cut off; and files that are none."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"]))
    text = format_pts(np.linspace(1, 18, 136).reshape(68, 2)).decode()
    word = draw(st.sampled_from(["", "nan", "1e999", "1,5", "-", "é", "}", "{"]))
    at = draw(st.integers(0, len(text)))
    data = (text[:at] + word + text[at:]).encode(encoding)
    data = data[: draw(st.integers(len(data) // 2, len(data)))]
    return draw(st.one_of(st.just(data), st.binary(max_size=40)))


SUFFIXES = ["", *sorted(IMAGE_SUFFIXES), ".csv", ".gif", ".txt", ".pts", ".PTS", ".JPG", ".x"]
STEMS = st.one_of(
    st.sampled_from(["a", "b", "a b", "ü", ".", "a.jpg", "-", "\n", "\x1b[31m", "persons"]),
    st.binary(min_size=1, max_size=8).map(os.fsdecode),
)


@st.composite
def file_names(draw: st.DrawFn) -> str:
    name = (draw(STEMS) + draw(st.sampled_from(SUFFIXES))).replace("/", "").replace("\0", "")
    folder = draw(st.sampled_from(["", "", "sub/", "sub/deep/"]))
    return folder + (name if name.strip(".") else "x")


def folders() -> st.SearchStrategy[dict[str, bytes]]:
    """Files by their path in a folder."""
    content = st.one_of(image_files(), image_files(), label_files())
    return st.dictionaries(file_names(), content, max_size=6)
