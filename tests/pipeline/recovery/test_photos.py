"""Reading photos and their landmarks: what is accepted, what is refused and how it is named."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dff.face.arrays import Floats
from dff.face.errors import BadLandmarks, BadPhoto
from dff.infra.photos.images import OWN_FILES
from dff.infra.storage import open_storage
from dff.pipeline.recovery.photos import PhotoRef, find_photos, list_photos, read_photo


def points() -> Floats:
    """68 points on a spiral within 100 x 80."""
    t = np.arange(68)
    return np.stack([50 + 0.4 * t * np.cos(t), 40 + 0.4 * t * np.sin(t)], axis=1)


def pts(landmarks: Floats) -> bytes:
    rows = "\n".join(f"{x:.6f} {y:.6f}" for x, y in landmarks)
    return f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n".encode()


def picture(mode: str = "RGB", size: tuple[int, int] = (100, 80)) -> Image.Image:
    grey = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 256
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def store(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_a_pts_photo_comes_back_in_our_pixels(tmp_path: Path) -> None:
    data = encoded(picture())
    store(tmp_path, {"set/a.png": data, "set/a.pts": pts(points())})
    storage = open_storage(str(tmp_path))
    (ref,) = list_photos(storage)
    photo = read_photo(storage, ref)
    assert (ref.id, photo.id, photo.scheme) == ("set/a", "set/a", "2d")
    assert photo.sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_allclose(photo.landmarks, points() - 0.5, atol=1e-5)
    np.testing.assert_array_equal(photo.pixels, np.asarray(picture()))


def test_a_mat_photo_has_the_3d_scheme(tmp_path: Path) -> None:
    label = io.BytesIO()
    three = np.vstack([points().T, np.zeros(68)])
    scipy.io.savemat(label, {"pt3d_68": three, "Pose_Para": np.zeros((1, 7))})
    store(tmp_path, {"b.jpg": encoded(picture(), "JPEG"), "b.mat": label.getvalue()})
    storage = open_storage(str(tmp_path))
    photo = read_photo(storage, list_photos(storage)[0])
    assert photo.scheme == "3d"
    np.testing.assert_allclose(photo.landmarks, points() - 0.5)


def test_the_list_is_sorted_unique_and_keeps_what_has_no_landmarks(tmp_path: Path) -> None:
    store(
        tmp_path,
        {
            "b.JPG": b"",
            "b.pts": b"",
            "a.png": b"",
            "c.jpg": b"",
            "c.webp": b"",
            "c.pts": b"",
            "x.txt": b"",
        },
    )
    refs = list_photos(open_storage(str(tmp_path)))
    assert refs == [
        PhotoRef("a", "a.png", None),
        PhotoRef("b", "b.JPG", "b.pts"),
        PhotoRef("c.jpg", "c.jpg", "c.pts"),
        PhotoRef("c.webp", "c.webp", "c.pts"),
    ]


def test_photos_are_found_by_content_and_the_other_files_named(tmp_path: Path) -> None:
    jpeg = encoded(picture(), "JPEG")
    images = ["a.jfif", "b.JPE", "c.mpo", "d", "e.photo", "f.heic", "g.txt", "sub/.jpg"]
    files = dict.fromkeys(images, jpeg) | {
        "a.PTS": b"", "d.pts": b"", "e.pts": b"", "e.PTS": b"", "e.mat": b"", "sub/.jpg.pts": b"",
        "orphan.pts": b"", "old.gif": b"GIF89a", "old": b"GIF89a", "film.mp4": b"film",
        "persons.csv": b"",
    }  # fmt: skip
    store(tmp_path, files)
    listing = find_photos(open_storage(str(tmp_path)))
    assert {ref.image_key: (ref.id, ref.landmark_key) for ref in listing.photos} == {
        "a.jfif": ("a", "a.PTS"),
        "b.JPE": ("b", None),
        "c.mpo": ("c", None),
        "d": ("d", "d.pts"),
        "e.photo": ("e", "e.pts"),
        "f.heic": ("f", None),
        "g.txt": ("g", None),
        "sub/.jpg": ("sub/.jpg", "sub/.jpg.pts"),
    }
    assert listing.passed_over == (
        "e.PTS", "film.mp4", "old (GIF)", "old.gif (GIF)", "orphan.pts"
    )  # fmt: skip


def test_a_photo_without_landmarks_is_refused_by_name(tmp_path: Path) -> None:
    store(tmp_path, {"a.png": encoded(picture())})
    storage = open_storage(str(tmp_path))
    with pytest.raises(BadLandmarks, match=r"a\.png.*beside"):
        read_photo(storage, list_photos(storage)[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(50), "a GIF image; JPEG, PNG"),
        (encoded(picture())[:150], "damaged"),
        (encoded(picture(), "JPEG")[:-200], "damaged"),
        (encoded(picture(), "BMP"), "a BMP image; JPEG, PNG"),
        (encoded(Image.new("RGB", (1, 1))), "shorter"),
        (encoded(Image.new("RGB", (5000, 4))), "shorter"),
        (png_header(50_000, 50_000), "megapixels"),
        (png_header(OWN_FILES.pixels // 5000 + 1, 5000), "megapixels"),
        (png_header(20_000, 15_000), "megapixels"),
    ],
)
def test_bad_photos_are_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    store(tmp_path, {"sub/bad.png": data, "sub/bad.pts": pts(points())})
    storage = open_storage(str(tmp_path))
    with pytest.raises(BadPhoto, match=rf"sub/bad\.png.*{reason}"):
        read_photo(storage, list_photos(storage)[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "points"),
        (pts(points()[:67]), "134 numbers"),
        (pts(np.where(np.arange(136).reshape(68, 2) == 7, np.nan, points())), "finite"),
        (pts(points() + np.array([900.0, 0.0])), "the image is 100 x 80"),
        (pts(points() - [0.0, 500.0]), "the image is 100 x 80"),
        (pts(np.full((68, 2), 30.0)), "one line"),
    ],
)
def test_bad_landmarks_are_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    store(tmp_path, {"a.png": encoded(picture()), "a.pts": data})
    storage = open_storage(str(tmp_path))
    with pytest.raises(BadLandmarks, match=rf"a\.pts.*{reason}"):
        read_photo(storage, list_photos(storage)[0])


def test_landmarks_may_lie_a_little_outside(tmp_path: Path) -> None:
    store(tmp_path, {"a.png": encoded(picture()), "a.pts": pts(points() + np.array([45.0, 0.0]))})
    storage = open_storage(str(tmp_path))
    assert read_photo(storage, list_photos(storage)[0]).landmarks.max() > 100


def test_pixels_are_those_that_are_stored_whatever_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    store(tmp_path, {"a.jpg": encoded(picture(), "JPEG", exif=exif), "a.pts": pts(points())})
    storage = open_storage(str(tmp_path))
    assert read_photo(storage, list_photos(storage)[0]).pixels.shape == (80, 100, 3)


def test_grey_photos_get_three_channels(tmp_path: Path) -> None:
    store(tmp_path, {"a.png": encoded(picture("L")), "a.pts": pts(points())})
    storage = open_storage(str(tmp_path))
    np.testing.assert_array_equal(
        read_photo(storage, list_photos(storage)[0]).pixels, np.asarray(picture())
    )


def test_every_photo_has_an_id_of_its_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.jpg.png", "b.jpg", "b.jpg.png.webp", "b.jpg.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    ids = [ref.id for ref in list_photos(open_storage(str(tmp_path)))]
    assert ids == ["a.jpg", "a.jpg.png", "a.png", "b", "b.jpg.png", "b.jpg.png.webp"]
