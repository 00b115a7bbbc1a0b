from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from dff.face.errors import BadPhoto
from dff.infra.images import BadImage, as_stored, decode
from tests.aligner.image_files import animated, bomb, encoded, pixels, turned

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


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
        decode(data)
    assert caught.value.fault == fault
    assert isinstance(caught.value, BadPhoto)


def test_a_bomb_is_never_unpacked() -> None:
    data = bomb()
    assert len(data) < 200_000
    tracemalloc.start()
    with pytest.raises(BadImage):
        decode(data)
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
def test_orientation(orientation: int) -> None:
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
