"""Whatever files a folder holds: each is answered, refused by name, or counted as passed over."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from dff.aligner.image_checks import check_image
from dff.commands.app import app
from dff.face.arrays import Bytes
from dff.face.errors import BadFit, BadLandmarks
from dff.face.model.morphable import MorphableModel
from dff.files.alignments import align_files
from dff.files.images import find_images
from dff.files.labels import label_photos
from dff.infra.files import strip_suffix
from dff.infra.photos.images import OWN_FILES, BadImage, as_stored, decode_image
from dff.infra.photos.landmark_files import LANDMARK_SUFFIXES, format_pts, parse_pts
from dff.infra.printing import printable
from dff.infra.storage import open_storage
from dff.pipeline import synthesis
from dff.pipeline.recovery.photos import find_photos, read_photo
from dff.pipeline.synthesis import Options
from tests.aligner.known_aligner import KnownAligner
from tests.any_files import COMMON, IMAGES, folders, image_files, label_files

LIMITS = replace(OWN_FILES, pixels=2_000_000)  # or a flipped bit would ask for seconds of work


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


@COMMON(max_examples=150)
@given(data=label_files())
def test_label_files_are_points_or_bad_landmarks(data: bytes) -> None:
    try:
        points = parse_pts(data)
    except BadLandmarks:
        return
    assert points.shape == (68, 2)
    assert np.isfinite(points).all()


@COMMON(max_examples=80, deadline=None)
@given(files=folders())
def test_no_file_of_a_folder_is_passed_over_in_silence(
    files: dict[str, bytes], toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        written = write_files(root, files)
        aligner = KnownAligner(toy_model)

        found = find_images([root])
        for result in align_files(aligner, found.images):  # type: ignore[arg-type]
            assert result.error or result.lines()
            for line in result.lines():
                printable(line).encode("ascii", "backslashreplace").decode().isprintable()
        named = {text.split(" (")[0] for text in found.passed_over}
        images = {*map(strip_suffix, found.images)}
        for path in written:
            beside = path.suffix.lower() in LANDMARK_SUFFIXES and strip_suffix(path) in images
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


def write_files(root: Path, files: dict[str, bytes]) -> list[Path]:
    """The files in a folder, with one that is an image for certain."""
    (root / "sure.png").write_bytes(IMAGES[8])
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_bytes(data)
    return [path for path in root.rglob("*") if path.is_file()]


class StrictAligner(KnownAligner):
    """Refuses images that are too small, as the real one does."""

    def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
        check_image(image)
        return super().align(image, boxes)


@COMMON(max_examples=15, deadline=None)  # the first one may compile kernels
@given(files=folders(), output=st.sampled_from(["a.json", "a.jsonl", "a.csv"]))
def test_the_command_answers_or_names_every_file(
    files: dict[str, bytes],
    output: str,
    toy_model: MorphableModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dff.commands.align.load_aligner_for", lambda *_: StrictAligner(toy_model))
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as out:
        write_files(Path(place), files)
        images = find_images([Path(place)]).images
        target = Path(out) / output
        option = "--csv" if output.endswith("csv") else "--json"
        drawn = Path(out) / "drawn"
        words = ["align", place, option, str(target), "--draw", str(drawn)]
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, SystemExit | None), done.exception
        refused = [path for path in images if f"{printable(path)}: " in done.stderr]
        last = done.stdout.splitlines()[-1]
        assert f" of {len(images)} image" in last
        assert (done.exit_code == 1) == ("refused" in last)
        named = {"a.csv": 0, "a.json": len(images), "a.jsonl": len(images)}[output]
        if output == "a.jsonl":
            assert len([json.loads(line) for line in target.open()]) == named
        elif output == "a.json":
            assert len(json.loads(target.read_text())) == named
        answered = len(list(drawn.glob("*"))) if drawn.exists() else 0
        without = [path for path in refused if f"{printable(path)}: no face" in done.stderr]
        warned = [path for path in refused if f"{printable(path)}: the JPEG" in done.stderr]
        assert answered + len(refused) - len(without) - len(warned) == len(images)


@COMMON(max_examples=25, deadline=None)
@given(files=folders())
def test_every_photo_of_a_synthesis_is_made_or_is_a_failure(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def no_fit(photo, **_):  # type: ignore[no-untyped-def]
        reached.append(photo.id)
        raise BadFit("not tried")

    monkeypatch.setattr(synthesis, "invert", no_fit)
    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place), files)
        points = format_pts(np.stack([np.linspace(1, 30, 68), np.geomspace(1, 20, 68)], 1))
        (Path(place) / "sure.pts").write_bytes(points)
        storage, options = open_storage(place), Options(views=1, size=32, texture_size=64)
        plan, _ = synthesis.plan_synthesis(storage, identities=0, seed=0, options=options)
        shards = [plan.shards[i] for i in range(len(plan.shards))]
        results = [
            synthesis.make_shard_rows(shard, storage=storage, seed=0, options=options)
            for shard in shards
        ]
        failures = [failure for result in results for failure in result.failures]
        assert sorted(failure.subject for failure in failures) == [ref.id for ref in plan.photos]
        assert all(failure.detail for failure in failures)
        assert "sure" in reached
