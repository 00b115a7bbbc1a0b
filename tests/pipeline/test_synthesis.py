"""The job from photos to a finished dataset: failures stay failures, bytes stay bytes, inspection
finds the truth.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.arrays import Bytes
from dff.face.errors import BadDataset, BadPhoto, BudgetExceeded, NoRenderer
from dff.face.model.morphable import MorphableModel
from dff.face.render import backends
from dff.face.render.frame import render, sample_texture, shaded
from dff.infra.datasets.dataset import open_dataset
from dff.infra.datasets.split import assign_split
from dff.infra.storage import LocalStorage
from dff.pipeline import synthesis
from dff.pipeline.inspection import verify
from dff.pipeline.inspection.inspect import inspect_dataset
from dff.pipeline.job.run import RunConfig
from dff.pipeline.job.work import ShardPlan, Subject
from dff.pipeline.recovery.photos import list_photos
from dff.pipeline.synthesis import Options, synthesize

POINTS = Path(__file__).parents[2] / "dff/data/astronaut.pts"
OPTIONS = Options(views=3, size=256, texture_size=256)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good photo and three that can't be used."""
    folder = tmp_path_factory.mktemp("photos")
    good = skimage.data.astronaut()[..., ::-1]
    cv2.imwrite(str(folder / "astronaut.png"), good)
    (folder / "astronaut.pts").write_bytes(POINTS.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    (folder / "broken.pts").write_bytes(POINTS.read_bytes())
    cv2.imwrite(str(folder / "alone.png"), good)
    cv2.imwrite(str(folder / "mistaken.png"), good)
    shuffled = np.random.default_rng(0).uniform(20, 480, (68, 2))
    lines = "\n".join(f"{x:.2f} {y:.2f}" for x, y in shuffled)
    (folder / "mistaken.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
    return folder


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "set"
    summary = synthesis.synthesize(
        str(photos),
        str(out),
        views=3,
        identities=2,
        seed=3,
        config=RunConfig(budget=0.8),
        shard_subjects=3,
    )
    assert summary.manifest is not None
    return out


def test_bad_photos_are_failures_with_reasons(photos: Path) -> None:
    storage = LocalStorage(photos)
    refs = {ref.id: ref for ref in list_photos(storage)}
    shard = ShardPlan(0, tuple(Subject(name, refs[name]) for name in sorted(refs)))
    result = synthesis.make_shard_rows(shard, storage=storage, seed=3, options=OPTIONS)
    assert {row.identity_id for row in result.rows} == {"astronaut"}
    assert len(result.rows) == 3
    assert {f.subject: f.reason for f in result.failures} == {
        "alone": "BadLandmarks",
        "broken": "BadPhoto",
        "mistaken": "BadFit",
    }
    again = synthesis.make_shard_rows(shard, storage=storage, seed=3, options=OPTIONS)
    assert [row.image for row in again.rows] == [row.image for row in result.rows]
    assert again.failures == result.failures


def test_a_photo_that_vanished_is_a_failure(photos: Path, tmp_path: Path) -> None:
    ref = list_photos(LocalStorage(photos))[0]
    shard = ShardPlan(0, (Subject(ref.id, ref),))
    result = synthesis.make_shard_rows(
        shard, storage=LocalStorage(tmp_path), seed=0, options=OPTIONS
    )
    assert [f.reason for f in result.failures] == ["NotFound"]


def test_the_recovered_face_gives_back_the_photo(photos: Path, open_head: MorphableModel) -> None:
    storage = LocalStorage(photos)
    ref = next(ref for ref in list_photos(storage) if ref.id == "astronaut")
    person = synthesis.build_person(
        Subject("astronaut", ref), storage=storage, seed=3, options=OPTIONS
    )
    own = person.photo_scene
    assert own is not None
    cam = own.cam_from_head.apply(person.vertices(own.expression, open_head))
    frame = render(cam, open_head.faces, own.camera, own.crop.shape[:2])
    colour = shaded(
        frame,
        sample_texture(frame, person.texture[..., :3], open_head.uv, open_head.uv_faces),
        own.light,
    )
    face = np.zeros(len(open_head.faces) + 1, bool)
    face[open_head.find_triangles("face", "lips", "brows")] = True
    error = np.abs(np.clip(colour, 0, 1) - own.crop[..., :3]).mean(2)
    brows = own.camera.px_from_cam(cam[open_head.landmarks.vertex[17:27]])[:, 1].min()
    below = np.arange(len(error))[:, None] > brows
    assert error[face[frame.triangle] & below].mean() < 0.04
    # A fringe lies over the forehead: it is hair of its own, and no part of the skin's texture.
    assert error[face[frame.triangle] & ~below].mean() > 0.06
    assert person.accessories.style is not None
    assert person.accessories.style.fringe > 0.3


def test_a_dataset_is_complete_and_verified(dataset: Path, tmp_path: Path) -> None:
    html = tmp_path / "gallery.html"
    found = inspect_dataset(str(dataset), html=html, verify=True)
    assert found.manifest.rows == 9
    assert found.identities == 3
    assert found.manifest.failures == {"BadLandmarks": 1, "BadPhoto": 1, "BadFit": 1}
    assert set(found.failures) == set(found.manifest.failures)
    assert found.manifest.counts["licence"] == {
        "CC0-1.0 AND MIT": 6,
        "LicenseRef-photo AND CC0-1.0 AND MIT": 3,
    }
    assert {sum(h.counts) + h.unknown for h in found.histograms if h.name != "skin tone"} == {9}
    assert {sum(t.counts.values()) for t in found.name_counts} == {9}
    assert found.checks is not None
    assert found.checks.points > 300
    assert found.checks.worst < 0.1
    assert found.checks.rows == found.checks.same == 9
    text = "\n".join(found.lines())
    assert "9 views of 3 identities" in text
    assert "BadFit 1" in text
    assert "mistaken" in text
    page = html.read_text()
    assert page.count("data:image/jpeg;base64,") > 15
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert f"<h1>Dataset {dataset.name}</h1>" in page  # not its whole path, which stands below
    assert str(dataset) in page


def test_the_same_seed_gives_the_same_bytes(dataset: Path, photos: Path, tmp_path: Path) -> None:
    again = synthesis.synthesize(
        str(photos),
        str(tmp_path / "b"),
        views=3,
        identities=2,
        seed=3,
        config=RunConfig(budget=0.8),
        shard_subjects=3,
    )
    assert again.manifest == open_dataset(str(dataset)).manifest
    other = synthesis.synthesize(
        None, str(tmp_path / "c"), views=3, identities=2, seed=4, shard_subjects=3
    )
    assert other.manifest is not None
    assert {s.sha256 for s in other.manifest.shards}.isdisjoint(
        s.sha256 for s in again.manifest.shards
    )


def test_a_dry_run_counts_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "dry"
    summary = synthesis.synthesize(str(photos), str(out), views=5, identities=7, dry_run=True)
    assert summary.manifest is None
    assert not out.exists()
    assert (summary.estimate.photos, summary.estimate.identities, summary.estimate.rows) == (
        4,
        7,
        50,
    )
    assert summary.estimate.unlabelled == 1
    assert summary.estimate.bytes > 0
    assert summary.estimate.seconds > 0
    assert any("4 photos and 7 sampled identities" in line for line in summary.estimate.lines(2))
    assert "photos without landmarks beside them, which will fail: 1" in str(
        summary.estimate.lines(2)
    )


def test_photos_without_landmarks_stop_a_job_before_its_work(photos: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "photos", tmp_path / "out"
    place.mkdir()
    (place / "a.png").write_bytes((photos / "astronaut.png").read_bytes())
    with pytest.raises(BudgetExceeded, match=r"1 of 3 inputs lack landmarks, more than .* 20%"):
        synthesis.synthesize(str(place), str(out), identities=2)
    assert not out.exists()
    dry = CliRunner().invoke(app, ["synthesize", str(place), str(out), "--dry-run"])
    assert dry.exit_code == 1
    assert "1 photo and 0 sampled identities in 1 shard\n" in dry.output
    assert "1 of 1 input lack" in str(dry.exception)


def test_near_duplicates_are_reported(photos: Path, tmp_path: Path) -> None:
    """A photo under another name, in another format and size; the faces of one photo are none."""
    place = tmp_path / "photos"
    place.mkdir()
    pixels = cv2.imread(str(photos / "astronaut.png"))
    cv2.imwrite(str(place / "one.jpg"), pixels)
    cv2.imwrite(str(place / "other.png"), cv2.resize(pixels, None, fx=0.5, fy=0.5))
    cv2.imwrite(str(place / "group_1.png"), pixels[::-1])
    cv2.imwrite(str(place / "group_2.png"), pixels[::-1])
    summary = synthesis.synthesize(str(place), str(tmp_path / "dry"), dry_run=True)
    assert summary.estimate.near_duplicates == (("one", "other"),)
    line = summary.estimate.lines(1)[-1]
    assert line == (
        "2 photos are near-duplicates, in 1 group: one, other; each group is in one split"
    )


def test_nothing_to_make_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither photos nor identities"):
        synthesis.synthesize(None, str(tmp_path / "x"))
    with pytest.raises(
        BadPhoto, match=r"there is no folder .*nowhere"
    ):  # not a dataset of sampled faces alone
        synthesis.synthesize(str(tmp_path / "nowhere"), str(tmp_path / "x"), identities=1)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="at least one view"):
        synthesis.synthesize(None, str(tmp_path / "x"), identities=1, views=0)


def test_copies_of_a_photo_have_one_split(tmp_path: Path) -> None:
    """The rows carry the group, so that a verified dataset stays verified."""
    names = [f"name{i}" for i in range(100)]
    train = next(n for n in names if assign_split(n) == "train")
    dev = next(n for n in names if assign_split(n) == "dev")
    folder = tmp_path / "photos"
    folder.mkdir()
    good = skimage.data.astronaut()[..., ::-1]
    cv2.imwrite(str(folder / f"{train}.png"), good)
    cv2.imwrite(str(folder / f"{dev}.jpg"), good, [cv2.IMWRITE_JPEG_QUALITY, 80])
    for name in (train, dev):
        (folder / f"{name}.pts").write_bytes(POINTS.read_bytes())
    out = str(tmp_path / "set")
    assert synthesize(str(folder), out, views=1).manifest is not None
    rows = [row for i in range(2) for row in open_dataset(out).read_shard(i)]
    assert {row.photo_id for row in rows} == {train, dev}
    assert {row.split_group for row in rows} == {min(train, dev)}
    assert {row.split for row in rows} == {assign_split(min(train, dev))}
    checks = inspect_dataset(out, verify=True).checks
    assert checks is not None
    assert checks.same == 2
    (folder / "persons.csv").write_text(f"photo,person\n{train}.png,Eileen\nunknown.png,Ann\n")
    with pytest.raises(BadPhoto, match=r"persons\.csv, row 3: there is no photo 'unknown\.png'"):
        synthesize(str(folder), str(tmp_path / "other"), views=1)


def test_view_zero_of_a_photo_shows_the_photo(dataset: Path, photos: Path) -> None:
    rows = [
        row
        for i in range(2)
        for row in open_dataset(str(dataset)).read_shard(i)
        if row.photo_id == "astronaut"
    ]
    own: Bytes = rows[0].pixels()
    assert rows[0].view == 0
    # Corners are the photo's own surroundings, down to the JPEG.
    assert '"background": null' in rows[0].recipe
    assert rows[0].mode == "profile"
    assert all(('"background": null' in row.recipe) == (row.mode == "profile") for row in rows)
    assert own.std() > 30
    assert rows[0].fit_error > 0
    assert len(rows[0].photo_sha256) == 64


def test_an_altered_shard_is_found(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shard = next((copy / "data").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(BadDataset, match="altered"):
        inspect_dataset(str(copy), verify=True)


def test_another_model_file_is_named(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "digest", lambda name: "0" * 64)
    with pytest.raises(BadDataset, match="another file of open-head"):
        inspect_dataset(str(dataset), verify=True)


def test_the_renderer_is_a_choice_that_the_plan_names(tmp_path: Path) -> None:
    try:
        drawn_by = backends.identity("pyrender")
    except NoRenderer as error:
        pytest.skip(f"no off-screen OpenGL here: {error}")
    made = {
        name: synthesize(None, str(tmp_path / name), identities=1, views=3, size=128, renderer=name)
        for name in ("zbuffer", "pyrender")
    }
    assert made["pyrender"].plan.renderer == drawn_by
    assert made["pyrender"].plan.fingerprint != made["zbuffer"].plan.fingerprint
    rows = {name: open_dataset(summary.uri).read_shard(0) for name, summary in made.items()}
    for a, b in zip(rows["zbuffer"], rows["pyrender"], strict=True):
        assert (a.triangle_ids != b.triangle_ids).sum() <= 2
    checks = inspect_dataset(made["pyrender"].uri, verify=True).checks
    assert checks is not None
    assert checks.rows == 3


def test_an_unknown_renderer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no renderer 'crayon'"):
        synthesize(None, str(tmp_path), identities=1, renderer="crayon")
