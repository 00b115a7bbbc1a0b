"""Protocols on sets of known error: an exact network and labels with known shifts."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.detector import Detection
from dff.aligner.evaluation.benchmarks import (
    DISTURBANCES,
    Disturbance,
    Report,
    curve_picture,
    evaluate_300w,
    evaluate_aflw2000,
    robustness,
    worst_picture,
)
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.split import assign_split, default_group
from dff.infra.photos.landmark_files import format_pts
from tests.aligner.oracle import READING, PositionCode, make_scene

SHIFT = np.array([3.0, 4.0])  # pixels


def save_image(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def aflw(
    tmp_path_factory: pytest.TempPathFactory,
    oracle_aligner: Aligner,
    open_head: MorphableModel,
    code: PositionCode,
) -> Path:
    """Four faces labelled with their alignments, one of too steep a pose to count."""
    folder = tmp_path_factory.mktemp("aflw")
    rng = np.random.default_rng(1)
    points = {}
    for number, yaw in enumerate((5.0, -20.0, 45.0, 75.0, 0.0)):
        scene = make_scene(open_head, code, yaw=yaw, rng=rng, size=240)
        face = oracle_aligner.align(scene.image, [scene.box])[0]
        yaw_, pitch, roll = angles_from_rotation(face.pose.matrix)
        if number == 4:
            yaw_ = 120.0
        label = face.landmarks_3d[:, :2]
        points[f"image{number}"] = label - 0.5
        pose = np.zeros((1, 7))
        pose[0, :3] = np.deg2rad([pitch, yaw_, roll])
        save_image(folder / f"image{number}.png", scene.image)
        three = np.column_stack([label + 0.5, np.zeros(68)]).T
        scipy.io.savemat(folder / f"image{number}.mat", {"pt3d_68": three, "Pose_Para": pose})
    np.savez(folder / "better.npz", **{name: p + SHIFT for name, p in points.items()})
    np.save(
        folder / "better.npy",
        np.stack([points[f"image{i}"] + SHIFT for i in range(5)]).swapaxes(1, 2),
    )
    return folder


def test_labels_that_agree_give_no_error(aflw: Path, oracle_aligner: Aligner) -> None:
    report = evaluate_aflw2000(str(aflw), oracle_aligner)
    assert report.summary["count"] == 4
    assert (
        report.summary["nme_box"]["mean"] < 0.6
    )  # boxes of labels differ a little from those of the scenes
    assert report.summary["geodesic"]["mean"] < 1.0
    bins = report.summary["nme_box_by_yaw"]
    assert [bins[f"{name} count"] for name in ("0-30", "30-60", "60-90")] == [2, 1, 1]
    assert bins["mean of bins"] == pytest.approx(
        np.mean([bins["0-30"], bins["30-60"], bins["60-90"]]), abs=2e-3
    )
    assert "mean lacks" not in bins


def test_a_mean_over_fewer_bins_names_the_empty_ones(
    aflw: Path, oracle_aligner: Aligner, tmp_path: Path
) -> None:
    for path in aflw.glob("image2.*"):
        shutil.copy(path, tmp_path)
    bins = evaluate_aflw2000(str(tmp_path), oracle_aligner).summary["nme_box_by_yaw"]
    assert bins["mean of bins"] == bins["30-60"]
    assert bins["mean lacks"] == "0-30, 60-90"


@pytest.mark.parametrize("labels", ["better.npz", "better.npy"])
def test_a_shift_of_the_labels_is_the_error(
    aflw: Path, oracle_aligner: Aligner, labels: str
) -> None:
    report = evaluate_aflw2000(str(aflw), oracle_aligner, labels=aflw / labels)
    straight = evaluate_aflw2000(str(aflw), oracle_aligner)
    for moved, true in zip(report.rows, straight.rows, strict=True):
        assert np.allclose(moved.sample.landmarks, true.sample.landmarks + SHIFT)
        size = Box.around(true.sample.landmarks).size
        assert moved.errors["nme_box"] == pytest.approx(5.0 / size, abs=0.008)
        assert moved.errors["nme_box"] == pytest.approx(
            nme_box(moved.landmarks, moved.sample.landmarks)
        )


def test_the_report_is_json_and_pictures(aflw: Path, oracle_aligner: Aligner) -> None:
    report = evaluate_aflw2000(str(aflw), oracle_aligner, labels=aflw / "better.npz")
    content = json.loads(json.dumps(report.to_json()))
    assert set(content["images"]) == {f"image{i}" for i in range(4)}
    assert "reannotated" in content["protocol"]
    assert Image.open(io.BytesIO(curve_picture(report))).size == (660, 440)
    assert Image.open(io.BytesIO(worst_picture(report, columns=2, side=100))).size == (200, 200)


def test_faces_that_no_detection_overlaps_count_as_not_found(
    aflw: Path, oracle_aligner: Aligner, open_head: MorphableModel
) -> None:
    class Elsewhere:
        def find(self, image: np.ndarray) -> list[Detection]:
            return [Detection(Box(0, 0, 20, 20))]

    blind = Aligner(
        oracle_aligner.net, oracle_aligner.anchors, open_head, detector=Elsewhere(), config=READING
    )
    report = evaluate_aflw2000(str(aflw), blind, box="detector")
    assert report.summary["not_found"] == 1.0
    assert report.summary["share_over_10_percent"] == 1.0
    assert Image.open(io.BytesIO(worst_picture(report, columns=2, side=100))).size == (200, 200)


def test_labels_of_other_images_are_refused(
    aflw: Path, oracle_aligner: Aligner, tmp_path: Path
) -> None:
    np.savez(tmp_path / "other.npz", somebody=np.zeros((68, 2)))
    np.save(tmp_path / "short.npy", np.zeros((3, 68, 2)))
    for name in ("other.npz", "short.npy"):
        with pytest.raises(BadLandmarks, match=name):
            evaluate_aflw2000(str(aflw), oracle_aligner, labels=tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadLandmarks, match="no labelled images"):
        evaluate_aflw2000(str(tmp_path / "empty"), oracle_aligner)


def test_300w_compares_the_visible_contour_of_the_asked_photos(
    tmp_path: Path, oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    names = [f"set/photo{i}" for i in range(60)]
    dev = next(name for name in names if assign_split(default_group(name)) == "dev")
    train = next(name for name in names if assign_split(default_group(name)) == "train")
    (tmp_path / "set").mkdir()
    for name, yaw in ((dev, 30.0), (train, 0.0)):
        scene = make_scene(open_head, code, yaw=yaw, rng=np.random.default_rng(2), size=240)
        face = oracle_aligner.align(scene.image, [Box.around(scene.landmarks_2d)])[0]
        save_image(tmp_path / f"{name}.png", scene.image)
        rows = "\n".join(f"{x} {y}" for x, y in face.landmarks_2d + 0.5)
        (tmp_path / f"{name}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")
    report = evaluate_300w(str(tmp_path), oracle_aligner)
    assert [row.sample.name for row in report.rows] == [dev]
    assert report.rows[0].errors["nme_iod_51"] < 0.01
    assert report.rows[0].errors["nme_iod_68"] < 0.012
    assert evaluate_300w(str(tmp_path), oracle_aligner, split="all").summary["count"] == 2
    (tmp_path / "persons.csv").write_text(f"photo,person\n{train},Ann\n{dev},Ann\n")
    assert assign_split("Ann") == "train"
    report = evaluate_300w(str(tmp_path), oracle_aligner, split="train")
    assert {row.sample.name for row in report.rows} == {dev, train}
    with pytest.raises(BadLandmarks, match="none of 2 labelled photos is in the dev split;"):
        evaluate_300w(str(tmp_path), oracle_aligner)


def test_disturbances_shift_and_scale_boxes() -> None:
    box = Box(10.0, 20.0, 50.0, 110.0)
    assert Disturbance().of(box) == box
    shifted = Disturbance(right=0.15, down=-0.15).of(box)
    np.testing.assert_allclose(shifted.centre - box.centre, [0.15 * box.size, -0.15 * box.size])
    assert shifted.width == pytest.approx(box.width)
    small = Disturbance(scale=0.75).of(box)
    assert (small.width, small.height) == pytest.approx((30.0, 67.5))
    np.testing.assert_allclose(small.centre, box.centre)
    assert [str(d) for d in (Disturbance(), Disturbance(right=-0.15, scale=1.35))] == [
        "as labelled",
        "15% left, x 1.35",
    ]
    assert len({str(d) for d in DISTURBANCES}) == len(DISTURBANCES)


def test_disturbed_boxes_change_an_oracles_error_little(
    aflw: Path, oracle_aligner: Aligner
) -> None:
    asked = []

    def measured(moved: Disturbance) -> Report:
        asked.append(moved)
        return evaluate_aflw2000(str(aflw), oracle_aligner, disturbance=moved)

    errors = robustness(measured)
    assert list(errors) == asked == [Disturbance(), *DISTURBANCES]
    plain = errors.pop(Disturbance())
    assert max(abs(error - plain) for error in errors.values()) < 0.5


class Blind:
    """An aligner that detects no face."""

    def align_batch(self, images: list[np.ndarray], boxes: object = None) -> list[list[Alignment]]:
        return [[] for _ in images]


@pytest.mark.parametrize("protocol", ["aflw", "300w"])
def test_without_detections_the_error_is_nan(tmp_path: Path, protocol: str) -> None:
    points = np.random.default_rng(0).uniform(10, 50, (68, 2))
    save_image(tmp_path / "a.png", np.full((64, 64, 3), 90, np.uint8))
    three = np.column_stack([points, np.zeros(68)]).T
    scipy.io.savemat(tmp_path / "a.mat", {"pt3d_68": three, "Pose_Para": np.zeros((1, 7))})
    (tmp_path / "a.pts").write_bytes(format_pts(points))

    def measured(moved: Disturbance) -> Report:
        if protocol == "aflw":
            return evaluate_aflw2000(str(tmp_path), Blind(), disturbance=moved)  # type: ignore[arg-type]
        return evaluate_300w(str(tmp_path), Blind(), split="all", disturbance=moved)  # type: ignore[arg-type]

    errors = robustness(measured)
    assert list(errors) == [Disturbance(), *DISTURBANCES]
    assert np.isnan([*errors.values()]).all()
    report = measured(Disturbance())
    assert report.summary["not_found"] == 1.0
    assert (
        json.loads(json.dumps(report.to_json(), allow_nan=False))["images"]["a"]["found"] is False
    )
    assert Image.open(io.BytesIO(curve_picture(report))).size == (660, 440)


@pytest.mark.parametrize(
    ("broken", "error"), [("set/a.png", BadPhoto), ("set/a.pts", BadLandmarks)]
)
def test_a_broken_file_is_named(tmp_path: Path, broken: str, error: type[Exception]) -> None:
    (tmp_path / "set").mkdir()
    for name in "ab":
        save_image(tmp_path / "set" / f"{name}.png", np.full((64, 64, 3), 90, np.uint8))
        (tmp_path / "set" / f"{name}.pts").write_bytes(
            format_pts(np.random.default_rng(0).uniform(10, 50, (68, 2)))
        )
    (tmp_path / broken).write_bytes(b"broken")
    with pytest.raises(error, match=f"^{broken}: "):
        evaluate_300w(str(tmp_path), Blind(), split="all")  # type: ignore[arg-type]
