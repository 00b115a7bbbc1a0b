"""Photos without landmarks get them, once, where synthesis looks for them."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.errors import BadPhoto
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import MIRROR
from dff.face.model.morphable import MorphableModel
from dff.files.labels import (
    LabelCounts,
    PhotoLabel,
    Refusal,
    find_duplicate_photos,
    label_photos,
)
from dff.infra.photos.landmark_files import format_pts, parse_pts
from dff.infra.storage import LocalStorage, open_storage
from dff.pipeline.recovery.photos import list_photos, read_photo
from tests.aligner.image_files import encoded, turned, with_exif
from tests.aligner.known_aligner import KnownAligner

GREY = np.full((80, 120, 3), 90, np.uint8)


def labelled(folder: Path, model: MorphableModel, *, confidence: float = 0.5) -> list[PhotoLabel]:
    return list(label_photos(open_storage(str(folder)), KnownAligner(model), confidence=confidence))


def test_synthesis_reads_the_landmarks_that_the_aligner_found(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    (tmp_path / "ümläut").mkdir()
    Image.fromarray(GREY).save(tmp_path / "ümläut" / "a photo.png")
    assert labelled(tmp_path, toy_model) == [PhotoLabel("ümläut/a photo.png")]
    storage = open_storage(str(tmp_path))
    (ref,) = list_photos(storage)
    (face,) = KnownAligner(toy_model).align(GREY)
    assert np.allclose(read_photo(storage, ref).landmarks, face.landmarks_2d, atol=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_landmarks_lie_on_the_stored_pixels(
    tmp_path: Path, toy_model: MorphableModel, orientation: int
) -> None:
    (tmp_path / "a.jpg").write_bytes(turned(GREY, orientation))
    labelled(tmp_path, toy_model)
    storage = open_storage(str(tmp_path))
    found = read_photo(storage, list_photos(storage)[0]).landmarks
    width, height = (80, 120) if orientation >= 5 else (120, 80)
    (face,) = KnownAligner(toy_model).align(np.full((height, width, 3), 90, np.uint8))
    upright = face.landmarks_2d - [width / 2, height / 2]
    # A turn about the image's centre, or a reflection: of a reflected face the left is named the
    # right.
    reflected = orientation in (2, 4, 5, 7)
    turn = np.linalg.lstsq(upright[MIRROR] if reflected else upright, found - [60, 40], rcond=None)[
        0
    ]
    assert np.allclose(turn @ turn.T, np.eye(2), atol=1e-3)
    assert np.linalg.det(turn) == pytest.approx(-1 if reflected else 1, abs=1e-3)


def test_labels_are_kept_and_photos_without_a_confident_face_are_named(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    mine = format_pts(np.random.default_rng(0).uniform(0, 60, (68, 2)))
    for name, pixels in (("black.png", 0 * GREY), ("mine.png", GREY), ("new.png", GREY)):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "mine.pts").write_bytes(mine)
    (tmp_path / "text.jpg").write_text("no image")
    (sure,) = KnownAligner(toy_model).align(GREY)

    class Doubtful(KnownAligner):
        def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
            return [replace(face, face_confidence=0.6) for face in super().align(image, boxes)]

    place = open_storage(str(tmp_path))
    assert sure.face_confidence > 0.6
    assert [one.reason for one in label_photos(place, Doubtful(toy_model), confidence=0.8)] == [
        "no face found",
        "confidence 0.60 is below 0.8",
        "this is not an image; JPEG, PNG, WebP, AVIF and HEIC are read",
    ]
    first = {one.key: one.reason for one in labelled(tmp_path, toy_model)}
    assert first["new.png"] == ""
    assert [one.key for one in labelled(tmp_path, toy_model)] == ["black.png", "text.jpg"]
    assert (tmp_path / "mine.pts").read_bytes() == mine


def test_no_photo_stops_the_others(
    tmp_path: Path, toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    class Fragile(KnownAligner):
        def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
            if image.shape[0] == 41:
                raise TypeError("a defect")
            return super().align(image, boxes)

    text_as_orientation = with_exif(encoded(GREY, "JPEG"), {0x0112: (2, 4, b"top\0")})
    (tmp_path / "a.jpg").write_bytes(text_as_orientation)
    Image.fromarray(GREY[:41]).save(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.jpg").write_bytes(encoded(GREY, "JPEG")[:-2])
    (tmp_path / "e").write_bytes(encoded(GREY, "JPEG"))
    (tmp_path / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (tmp_path / "g.gif").write_bytes(b"GIF89a")
    (tmp_path / os.fsdecode(b"h\xe9.jpg")).write_bytes(encoded(GREY, "JPEG"))
    outcomes = {
        one.key: one
        for one in label_photos(open_storage(str(tmp_path)), Fragile(toy_model), confidence=0.5)
    }
    assert list(outcomes) == ["a.jpg", "b.png", "d.jpg", "e", "f.heic"]
    assert [one.reason for one in outcomes.values() if one.key not in ("f.heic",)] == [
        "",
        "TypeError: a defect",
        "",
        "",
    ]
    assert outcomes["f.heic"].reason
    assert "is truncated or damaged: " in outcomes["d.jpg"].warning
    assert sorted(path.name for path in tmp_path.glob("*.pts")) == ["a.pts", "d.pts", "e.pts"]
    assert "1 file passed over, not images that can be read: g.gif (GIF)" in caplog.text
    passed = caplog.text.partition("2 entries passed over: ")[2]
    assert r"h\udce9.jpg (its name is not UTF-8; rename it)" in passed
    assert "c.png (an empty folder)" in passed
    refused = {one.key: one.refused for one in outcomes.values() if one.refused}
    assert refused == {"b.png": Refusal.DEFECT, "f.heic": Refusal.UNREAD}


def test_photos_that_share_a_label_file_are_not_labelled(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    for name in ("a.png", "a.webp", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    reasons = {one.key: one.reason for one in labelled(tmp_path, toy_model)}
    assert reasons["a.png"] == reasons["a.webp"] != ""
    assert reasons["b.png"] == ""
    assert [path.name for path in tmp_path.glob("*.pts")] == ["b.pts"]


def test_the_summary_counts_and_names_each_cause_by_itself() -> None:
    counts = LabelCounts()
    counts.add(PhotoLabel("a.png"))
    counts.add(PhotoLabel("b.png", "no face found"))
    assert counts.describe("photos") == "1 photo labelled in photos; 1 without landmarks"
    again = LabelCounts(before=2)
    again.add(PhotoLabel("a.png"))
    assert again.describe("photos") == (
        "3 photos labelled in photos (2 before, 1 new); 0 without landmarks"
    )
    for i in range(7):
        counts.add(PhotoLabel(f"{i}.png", "damaged", refused=Refusal.UNREAD))
    for name in ("c.jpg", "c.png"):
        counts.add(PhotoLabel(name, "another has this name", refused=Refusal.SHARED_NAME))
    assert counts.describe("photos") == (
        "1 photo labelled in photos; 10 without landmarks; "
        "7 of these could not be read (0.png, 1.png, 2.png, 3.png, 4.png and 2 more); "
        "2 of these share their name with another (c.jpg, c.png)"
    )


def test_workers_run_in_parallel_and_write_the_same_labels(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    meet = threading.Barrier(3, timeout=30)

    class PersonAlignment(KnownAligner):
        def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
            meet.wait()  # all photos are in work before one goes on
            return super().align(image, boxes)

    for folder in ("one", "three"):
        (tmp_path / folder).mkdir()
        for i in range(6):
            Image.fromarray(GREY[: 40 + i]).save(tmp_path / folder / f"{i}.png")
    storage = open_storage(str(tmp_path / "three"))
    told = list(label_photos(storage, PersonAlignment(toy_model), confidence=0.5, workers=3))
    assert (
        told == labelled(tmp_path / "one", toy_model) == [PhotoLabel(f"{i}.png") for i in range(6)]
    )
    for i in range(6):
        assert (tmp_path / "one" / f"{i}.pts").read_bytes() == (
            tmp_path / "three" / f"{i}.pts"
        ).read_bytes()


def test_a_stopped_run_labels_no_further_photo(tmp_path: Path, toy_model: MorphableModel) -> None:
    for i in range(20):
        Image.fromarray(GREY).save(tmp_path / f"{i:02}.png")
    run = label_photos(
        open_storage(str(tmp_path)), KnownAligner(toy_model, seconds=0.1), confidence=0.5
    )
    assert next(run) == PhotoLabel("00.png")
    run.close()  # type: ignore[attr-defined]
    assert len(list(tmp_path.glob("*.pts"))) < 20
    assert len([one for one in labelled(tmp_path, toy_model) if not one.reason]) > 0


def test_near_duplicates_are_found(tmp_path: Path) -> None:
    first, other = (np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8) for i in (0, 1))
    for name, pixels in (("a.png", first), ("copy.jpg", first), ("other.png", other)):
        Image.fromarray(pixels).resize((160, 160)).save(tmp_path / name)
    storage = open_storage(str(tmp_path))
    assert find_duplicate_photos(storage) == (("a", "copy"),)
    (tmp_path / "copy.jpg").unlink()
    assert find_duplicate_photos(storage) == ()


def test_each_photo_is_read_once(tmp_path: Path, toy_model: MorphableModel) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_text("no image")
    read: list[str] = []

    class CountingStorage(LocalStorage):
        def read(self, key: str) -> bytes:
            read.append(key)
            return super().read(key)

    storage = CountingStorage(tmp_path)
    labels = list(label_photos(storage, KnownAligner(toy_model), confidence=0.5))
    hashes = {one.key: one.hash for one in labels if one.hash is not None}
    assert find_duplicate_photos(storage, hashes) == (("a", "b"),)
    assert read.count("a.png") == read.count("b.png") == 1


def test_a_place_without_photos_is_named(tmp_path: Path, toy_model: MorphableModel) -> None:
    with pytest.raises(BadPhoto, match="no photo in"):
        labelled(tmp_path, toy_model)
    with pytest.raises(BadPhoto, match=r"there is no folder .*nowhere"):
        labelled(tmp_path / "nowhere", toy_model)


def test_the_surest_of_several_faces_is_labelled_with_a_warning(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    small, large = Box(10, 10, 20, 20), Box(20, 20, 60, 60)

    class Crowd(KnownAligner):
        chances: tuple[float, float]

        def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
            found = super().align(image, [large, small])
            return [
                replace(face, face_confidence=c)
                for face, c in zip(found, self.chances, strict=True)
            ]

    for chances, chosen in (((0.82, 0.99), small), ((0.994, 0.991), large)):
        (tmp_path / "a.pts").unlink(missing_ok=True)
        storage = open_storage(str(tmp_path))
        crowd = Crowd(toy_model)
        crowd.chances = chances
        (label,) = label_photos(storage, crowd, confidence=0.5)
        assert label.reason == ""
        assert "2 faces found" in label.warning
        points = parse_pts((tmp_path / "a.pts").read_bytes())
        assert abs(np.ptp(points[:, 0]) / chosen.width - 1.0) < 0.05


def test_the_command_counts_what_was_labelled_before(
    tmp_path: Path, toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_known(*arguments: object, **options: object) -> KnownAligner:
        return KnownAligner(toy_model)

    monkeypatch.setattr("dff.aligner.load.load_aligner", load_known)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    first = CliRunner().invoke(app, ["label", str(tmp_path)])
    assert f"1 photo labelled in {tmp_path}; 0 without landmarks" in first.output
    Image.fromarray(GREY[:70]).save(tmp_path / "b.png")
    second = CliRunner().invoke(app, ["label", str(tmp_path)])
    assert f"2 photos labelled in {tmp_path} (1 before, 1 new); 0 without" in second.output
