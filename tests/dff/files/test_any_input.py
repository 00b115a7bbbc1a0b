"""Whatever files a folder holds: each is answered, refused by name, or counted as passed over."""

from __future__ import annotations

import io
import logging
import os
import struct
import tempfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from dff.face.arrays import Bytes
from dff.face.errors import BadLandmarks
from dff.face.model.morphable import MorphableModel
from dff.files.alignments import align_files
from dff.files.images import find_images
from dff.files.labels import label_photos
from dff.infra.image_listing import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dff.infra.images import OWN_FILES, BadImage, as_stored, decode_image
from dff.infra.landmark_files import LANDMARK_SUFFIXES, format_pts, parse_pts
from dff.infra.printing import printable
from dff.infra.storage import open_storage
from dff.pipeline.recovery.photos import find_photos, read_photo
from tests.aligner.image_files import animated, chunk
from tests.aligner.known_aligner import KnownAligner

COMMON = partial(
    settings,
    deadline=5000,  # ms: nothing hangs
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LIMITS = replace(OWN_FILES, pixels=2_000_000)  # or a flipped bit would ask for seconds of work

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


@COMMON(max_examples=600)
@given(data=image_files(), upright=st.booleans(), reduce_to=st.sampled_from([None, 1, 8]))
def test_bytes_are_pixels_or_a_bad_image(data: bytes, upright: bool, reduce_to: int | None) -> None:
    try:
        image = decode_image(data, upright=upright, limits=LIMITS, reduce_to=reduce_to)
    except BadImage:
        return
    pixels: Bytes = image.pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    points, _ = as_stored(data, np.zeros((3, 2)))
    assert points.shape == (3, 2)


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


@COMMON(max_examples=150)
@given(data=label_files())
def test_label_files_are_points_or_bad_landmarks(data: bytes) -> None:
    try:
        points = parse_pts(data)
    except BadLandmarks:
        return
    assert points.shape == (68, 2)
    assert np.isfinite(points).all()


SUFFIXES = ["", *sorted(IMAGE_SUFFIXES), *sorted(OTHER_SUFFIXES)[:4], ".pts", ".PTS", ".JPG", ".x"]
STEMS = st.one_of(
    st.sampled_from(["a", "b", "a b", "ü", ".", "a.b", "-", "\n", "\x1b[31m", "persons"]),
    st.binary(min_size=1, max_size=8).map(os.fsdecode),
)


@st.composite
def file_names(draw: st.DrawFn) -> str:
    name = (draw(STEMS) + draw(st.sampled_from(SUFFIXES))).replace("/", "").replace("\0", "")
    folder = draw(st.sampled_from(["", "", "sub/", "sub/deep/"]))
    return folder + (name if name.strip(".") else "x")


@COMMON(max_examples=120)
@given(
    files=st.dictionaries(
        file_names(), st.one_of(image_files(), image_files(), label_files()), max_size=6
    )
)
def test_no_file_of_a_folder_is_passed_over_in_silence(
    files: dict[str, bytes], toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "sure.png").write_bytes(IMAGES[8])
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                path.write_bytes(data)
        written = [path for path in root.rglob("*") if path.is_file()]
        aligner = KnownAligner(toy_model)

        found = find_images([root])
        for result in align_files(aligner, found.images):  # type: ignore[arg-type]
            assert result.error or result.lines()
            for line in result.lines():
                printable(line).encode("ascii", "backslashreplace").decode().isprintable()
        named = {text.split(" (")[0] for text in found.passed_over}
        images = {path.with_suffix("") for path in found.images}
        for path in written:
            beside = path.suffix.lower() in LANDMARK_SUFFIXES and path.with_suffix("") in images
            assert path in found.images or str(path) in named or beside

        caplog.clear()
        storage = open_storage(place)
        listing = find_photos(storage)
        outcomes = list(label_photos(storage, aligner, confidence=0.5))
        keys = {ref.image_key for ref in listing.photos}
        assert {one.key for one in outcomes} == {
            ref.image_key for ref in listing.photos if ref.landmark_key is None
        }
        used = {ref.landmark_key for ref in listing.photos} | {"persons.csv"}
        for path in written:
            key = str(path.relative_to(root))
            told = (
                key in keys
                or key in used
                or any(text.split(" (")[0] == key for text in listing.passed_over)
                or f"{ascii(str(path))[1:-1]} (its name is not UTF-8" in caplog.text
            )
            beside = any(
                key.removesuffix(path.suffix) == k.removesuffix(Path(k).suffix) for k in keys
            )
            assert told or beside, key
        # what was labelled is read back
        labelled = {one.key for one in outcomes if not one.reason}
        for ref in find_photos(storage).photos:
            if ref.image_key in labelled and min(size_of(root / ref.image_key)) >= 16:
                assert read_photo(storage, ref).landmarks.shape == (68, 2)


def size_of(path: Path) -> tuple[int, int]:
    height, width = decode_image(path.read_bytes()).pixels.shape[:2]
    return width, height
