from __future__ import annotations

import io
import re
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto
from dff.infra.photos.images import (
    OWN_FILES,
    UPLOADS,
    BadImage,
    as_stored,
    decode,
    decode_image,
    recognise,
)
from tests.aligner.image_files import animated, bomb, chunk, encoded, pixels, turned, with_exif

pytestmark = pytest.mark.filterwarnings("error")

MISSING = r"the image is truncated or damaged: (its last bytes|\d+ of 240 rows) are missing"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_lossless_files_give_their_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(pixels(), form, **options)), pixels())


def test_jpeg_gives_nearly_its_pixels() -> None:
    assert np.abs(decode(encoded(pixels(), "JPEG", quality=95)).astype(int) - pixels()).mean() < 1.0


def test_a_jpeg_can_be_decoded_at_a_fraction_of_its_size() -> None:
    image = np.repeat(np.repeat(pixels(), 10, axis=0), 10, axis=1)
    height, width = image.shape[:2]
    wanted = min(height, width) // 3
    small = decode(encoded(image, "JPEG", quality=95), reduce_to=wanted)
    assert small.shape == (-(-height // 2), -(-width // 2), 3)
    assert decode(encoded(image, "PNG"), reduce_to=wanted).shape == image.shape


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (b"hello, I am a photo.jpg", "not-an-image"),
        (encoded(pixels(), "GIF"), "not-an-image"),
        (encoded(pixels(), "TIFF"), "not-an-image"),
        (encoded(pixels(), "JPEG")[:20], "damaged"),
        (encoded(pixels(), "JPEG")[:-200], "damaged"),
        (encoded(pixels(), "PNG")[:-60], "damaged"),
        (encoded(pixels(), "WEBP")[:60], "damaged"),
        (animated("PNG"), "animated"),
        (animated("WEBP"), "animated"),
        (bomb(), "too-many-pixels"),
        (bomb(20_000, 20_000), "too-many-pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_bad_files_are_refused_by_name(data: bytes, fault: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data, limits=UPLOADS)
    assert caught.value.fault == fault
    assert isinstance(caught.value, BadPhoto)


def test_a_bomb_is_never_unpacked() -> None:
    data = bomb()
    assert len(data) < 200_000
    tracemalloc.start()
    with pytest.raises(BadImage):
        decode(data, limits=UPLOADS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# what each EXIF orientation asks for, as numpy operations on the stored pixels
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_turned_upright(orientation: int) -> None:
    data = turned(pixels(), orientation)
    stored = decode(data, upright=False)
    np.testing.assert_array_equal(decode(data), TURNS[orientation](stored))
    assert stored.shape == pixels().shape


def test_a_phone_picture_with_a_second_frame_is_its_first_frame() -> None:
    first, second = (Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (40, 220))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(decode(buffer.getvalue()), 40, atol=2)


def test_transparency_lies_over_white_and_16_bit_grey_keeps_its_high_bits() -> None:
    clear = np.dstack([pixels(), np.zeros((120, 160), np.uint8)])
    np.testing.assert_array_equal(decode(encoded(clear)), 255)
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    np.testing.assert_array_equal(decode(encoded(grey))[..., 1], grey >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_of_the_upright_image_lie_on_the_same_things_in_the_stored_one(
    orientation: int,
) -> None:
    stored = np.zeros((40, 56, 3), np.uint8)
    stored[8:16, 40:48] = 255  # whole blocks of a JPEG
    upright = decode(turned(stored, orientation))
    centre = np.argwhere(upright[..., 0] > 128).mean(0)[::-1] + 0.5
    (found,), mirrored = as_stored(turned(stored, orientation), centre[None])
    assert np.allclose(found, (44.0, 12.0))
    assert mirrored == (orientation in (2, 4, 5, 7))  # by the EXIF standard


ORIENTATION = 0x0112
SHORT_6 = (3, 1, b"\0\x06\0\0")


@pytest.mark.parametrize(
    ("entries", "orientation"),
    [
        ({ORIENTATION: SHORT_6}, 6),
        ({ORIENTATION: (4, 1, b"\0\0\0\x06")}, 6),
        ({ORIENTATION: (3, 1, b"\0\x09\0\0")}, 1),
        ({ORIENTATION: (3, 1, bytes(4))}, 1),
        ({ORIENTATION: (2, 4, b"top\0")}, 1),
        # a digit as text: Gecko and Skia take one 16-bit integer only; Pillow does not turn it
        ({ORIENTATION: (2, 2, b"6\0\0\0")}, 1),
        ({ORIENTATION: (2, 99, b"\0\0\xff\xff")}, 1),
        ({0x011A: (2, 4, b"72\0\0"), ORIENTATION: SHORT_6}, 6),  # a resolution in text
        ({0x011A: (10, 1, b"\0\0\0\x08"), ORIENTATION: SHORT_6}, 6),  # as a wild rational
        ({0x8769: (4, 1, b"\xff" * 4), ORIENTATION: SHORT_6}, 6),  # a directory beyond the end
        ({tag: (3, 1, bytes(4)) for tag in range(300, 900)}, 1),
    ],
)
def test_of_exif_only_an_orientation_that_makes_sense_counts(
    entries: dict[int, tuple[int, int, bytes]], orientation: int
) -> None:
    image = encoded(pixels(), "JPEG", quality=95)
    expected = decode(turned(pixels(), orientation))
    np.testing.assert_array_equal(decode(with_exif(image, entries)), expected)
    assert decode(with_exif(image, entries), upright=False).shape == pixels().shape
    as_stored(with_exif(image, entries), np.zeros((1, 2)))


@pytest.mark.parametrize("cut", [0, 1, 7, 9, 13, 20])
def test_exif_that_is_cut_off_is_as_none(cut: int) -> None:
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"[:cut]
    image = encoded(pixels(), "JPEG", quality=95)
    data = image[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + image[2:]
    np.testing.assert_array_equal(decode(data), decode(image))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "AVIF"])
def test_orientation_counts_in_every_format(form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(pixels(), form, exif=exif)
    assert decode(data).shape == (160, 120, 3)
    assert decode(data, upright=False).shape == (120, 160, 3)
    corner = np.s_[5:35, 85:115]  # the dark block, upper right after a quarter turn
    assert decode(data)[corner].mean() < 40 < decode(data)[:, :70].mean()


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    data = encoded(pixels())
    return data[:33] + b"".join(chunk(*each) for each in chunks) + data[33:]


BOMB = zlib.compress(bytes(80_000_000), 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"tEXt", b"Comment\0" + b"x" * 3_000_000)],
        [(b"zTXt", b"Comment\0\0" + BOMB)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)],
        [(b"iCCP", b"icc\0\0" + BOMB)],
        [(b"iCCP", b"icc\0\0no zlib data")],
        [(b"eXIf", b"MM\0*" + b"\xff" * 40)],
        [(b"tEXt", b"no separator"), (b"pHYs", b"\0"), (b"gAMA", b""), (b"cHRM", b"\0\0")],
    ],
    ids=["text", "packed text", "XMP", "profile", "broken profile", "EXIF", "short chunks"],
)
def test_metadata_of_a_png_never_makes_it_unreadable(chunks: list[tuple[bytes, bytes]]) -> None:
    tracemalloc.start()
    np.testing.assert_array_equal(decode(png_with(*chunks)), pixels())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "segment",
    [b"\xff\xe0\0\x02", b"\xff\xe2\0\x08MPF\0xx", b"\xff\xed\0\x04ab", b"\xff\xee\0\x07Adobe"],
)
def test_a_short_segment_of_a_jpeg_never_makes_it_unreadable(segment: bytes) -> None:
    image = encoded(pixels(), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(image[:2] + segment + image[2:]), decode(image))


def photo() -> Bytes:
    """(240, 320, 3) with detail everywhere."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return np.asarray(small.resize((320, 240)))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_last_bytes_is_read_with_a_warning(progressive: bool) -> None:
    whole = encoded(photo(), "JPEG", quality=90, progressive=progressive)
    assert decode_image(whole).warning == ""
    for cut in (2, 20, 100):
        image = decode_image(whole[:-cut])
        assert re.fullmatch(MISSING, image.warning)
        np.testing.assert_array_equal(image.pixels[:-32], decode(whole[:-cut])[:-32])
        assert np.abs(image.pixels[:-32].astype(int) - decode(whole)[:-32]).mean() < 2
        with pytest.raises(BadImage) as refused:
            decode(whole[:-cut], limits=UPLOADS)
        assert str(refused.value) == image.warning


def test_half_a_jpeg_is_damaged() -> None:
    whole = encoded(photo(), "JPEG", quality=90)
    said = []
    for limits in (OWN_FILES, UPLOADS):
        with pytest.raises(BadImage, match=r"damaged: 1\d\d of 240 rows are missing") as refused:
            decode(whole[: len(whole) // 2], limits=limits)
        said.append(str(refused.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("size", [(8000, 6000), (12000, 9000)])
def test_photos_of_telephones_are_read_from_own_files_only(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", size, 90).save(buffer, "JPEG", quality=30)
    assert decode(buffer.getvalue(), reduce_to=200).shape[1] == size[0] // 8
    with pytest.raises(BadImage, match="40 megapixels"):
        decode(buffer.getvalue(), limits=UPLOADS)


def test_more_than_the_own_limit_is_refused_before_decoding() -> None:
    with pytest.raises(BadImage, match="250 megapixels") as caught:
        decode(bomb(20_000, OWN_FILES.pixels // 20_000 + 1))
    assert caught.value.fault == "too-many-pixels"


def test_heic_is_read_upright() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels())).save(buffer, quality=90)
    data = buffer.getvalue()
    assert recognise(data) == "HEIC"
    assert np.abs(decode(data).astype(int) - pixels()).mean() < 3
    with pytest.raises(BadImage, match="this is a HEIC image; JPEG, PNG and WebP are read"):
        decode(data, limits=UPLOADS)


def test_heic_without_its_extra_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(BadImage, match=r"HEIC image.*pip install 'deep-face-feature\[heif\]'"):
        decode(data)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP", "JPEG2000"])
def test_formats_that_are_not_read_are_named(form: str) -> None:
    name = "JPEG 2000" if form == "JPEG2000" else form
    with pytest.raises(BadImage, match=f"a {name} image; JPEG, PNG, WebP, AVIF and HEIC are read"):
        decode(encoded(pixels(), form))


def test_avif_is_named_where_it_is_not_read() -> None:
    data = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100)
    with pytest.raises(BadImage, match="this is an AVIF image; JPEG, PNG and WebP are read"):
        decode(data, limits=UPLOADS)
