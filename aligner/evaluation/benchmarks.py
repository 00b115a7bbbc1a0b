"""Accuracy on public benchmarks, by stated protocols, with figures and the worst faces.

AFLW2000-3D (Zhu et al. 2016): 68 points of the 3D scheme, ``nme_box`` over the label's own tight
box, in bins of the labelled yaw and the mean of the bins; pose against ``Pose_Para``. 300-W
(Sagonas et al. 2013): ``nme_iod``, inner 51 and all 68 points of the 2D scheme.

Boxes: "landmarks" gives the aligner the tight box of the labelled points (of the ``.mat`` for both
labellings of AFLW2000-3D, as is usual); "detector" gives it the detection of largest overlap, and a
face that no detection overlaps by IoU 0.3 counts as not found. All errors are fractions in the rows
and per cent in the summary; averages are over found faces, failed ones included.
"""

from __future__ import annotations

import io
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import cv2
import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.detection import overlap
from dff.aligner.draw import draw_landmarks
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation, geodesic_degrees, rotation_from_angles
from dff.face.model.landmarks import INNER, nme_box, nme_iod
from dff.infra.datasets.split import Split, find_split_groups
from dff.infra.files import strip_suffix
from dff.infra.photos.image_listing import IMAGE_SUFFIXES
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_mat, parse_pts, parse_reannotated
from dff.infra.storage import Storage, is_missing, open_storage

with require_extra("train"):
    from matplotlib.figure import Figure

Boxes = Literal["landmarks", "detector"]
T = TypeVar("T")

YAW_BINS = (0.0, 30.0, 60.0, 90.0)  # degrees; the last takes what lies beyond
STEEP = 99.0  # degrees: images whose labelled pose has a larger angle are left out, as usual
FOUND = 0.3  # intersection over union from which a detection is the labelled face
CHUNK = 64  # images in memory at a time
WORST = 15  # images on the sheet of worst faces


@dataclass(frozen=True)
class Sample:
    """One labelled image, not yet read."""

    name: str
    image_key: str
    landmarks: Float[Array, "68 2"]  # pixels
    box: Box
    rotation: Float[Array, "3 3"] | None  # cam_from_head; None where the set has no pose
    yaw: float  # degrees, label; 0 where the set has no pose


@dataclass(frozen=True)
class Row:
    """The result for one image."""

    sample: Sample
    alignment: Alignment | None  # None: not found
    landmarks: Float[Array, "landmarks 2"]  # pixels compared with the label; empty: not found
    # nme_box, or nme_iod_51 and nme_iod_68 (fractions); geodesic, yaw, pitch, roll (degrees)
    errors: dict[str, float]


@dataclass(frozen=True)
class Report:
    """An evaluation: the protocol in words, the summary and the rows behind it."""

    protocol: str
    error: str  # the name of the error that the curve and the sheet show
    summary: dict[str, Any]
    rows: tuple[Row, ...]
    storage: Storage

    def to_json(self) -> dict[str, Any]:
        """Protocol, summary, and one line for each image."""
        return {
            "protocol": self.protocol,
            **self.summary,
            "images": {
                row.sample.name: {
                    **{name: round(value, 5) for name, value in row.errors.items()},
                    "found": row.alignment is not None,
                    "failed": row.alignment is None or row.alignment.failed,
                    "confidence": 0.0
                    if row.alignment is None
                    else round(row.alignment.face_confidence, 4),
                }
                for row in self.rows
            },
        }


@dataclass(frozen=True)
class Disturbance:
    """A change of a box that imitates errors of a detector: shifts are fractions of its size."""

    right: float = 0.0
    down: float = 0.0
    scale: float = 1.0

    def __str__(self) -> str:
        parts = [
            f"{abs(value):.0%} {word}"
            for value, word in (
                (self.right, "right" if self.right > 0 else "left"),
                (self.down, "down" if self.down > 0 else "up"),
            )
            if value
        ]
        parts += [f"x {self.scale:g}"] if self.scale != 1.0 else []
        return ", ".join(parts) or "as labelled"

    def of(self, box: Box) -> Box:
        """The shifted and scaled ``box``."""
        centre = box.centre + box.size * np.array([self.right, self.down])
        half = self.scale * np.array([box.width, box.height]) / 2
        return Box(*(centre - half).tolist(), *(centre + half).tolist())


DISTURBANCES = (
    *(
        Disturbance(right=x, down=y)
        for x, y in ((-0.15, 0.0), (0.15, 0.0), (0.0, -0.15), (0.0, 0.15))
    ),
    *(Disturbance(right=x, down=y) for x in (-0.106, 0.106) for y in (-0.106, 0.106)),
    Disturbance(scale=0.75),
    Disturbance(scale=1.35),
)
"""Boxes shifted by 15 per cent in every direction, or scaled."""


def robustness(evaluate: Callable[[Disturbance], Report]) -> dict[Disturbance, float]:
    """Mean error in per cent without a disturbance and under each of ``DISTURBANCES``.

    The mean of the yaw bins where the protocol has them; NaN where no face was found. Faces count
    whether their alignment failed or not.
    """
    return {
        disturbance: _mean_error(evaluate(disturbance))
        for disturbance in (Disturbance(), *DISTURBANCES)
    }


def _mean_error(report: Report) -> float:
    bins = report.summary.get("nme_box_by_yaw")
    mean = bins["mean of bins"] if bins else report.summary.get(report.error, {}).get("mean")
    return float("nan") if mean is None else float(mean)


def evaluate_aflw2000(
    folder: str,
    aligner: Aligner,
    *,
    labels: Path | str | None = None,
    box: Boxes = "landmarks",
    disturbance: Disturbance | None = None,
) -> Report:
    """Evaluate on a folder (or s3:// prefix) of AFLW2000-3D images with their ``.mat`` files.

    ``labels``: the reannotated points as ``.npz`` by image stem, or as the ``.npy`` of all images
    in name order; else the original points of the ``.mat`` files. ``disturbance`` of the boxes of
    landmarks. Raises BadLandmarks for labels that are unreadable or of other images, BadPhoto for
    an unreadable image.
    """
    storage = open_storage(folder)
    keys = dict(_image_keys(storage, ".mat"))
    originals = {stem: _label(storage, key, ".mat", parse_mat) for stem, key in keys.items()}
    table = {stem: label.landmarks[:, :2] for stem, label in originals.items()}
    if labels is not None:
        table = _relabelled(Path(labels), sorted(originals))
    samples = []
    for stem, key in keys.items():
        label = originals[stem]
        if stem not in table or max(abs(label.yaw), abs(label.pitch), abs(label.roll)) > STEEP:
            continue
        rotation = rotation_from_angles(label.yaw, label.pitch, label.roll)
        samples.append(
            Sample(stem, key, table[stem], Box.around(label.landmarks[:, :2]), rotation, label.yaw)
        )
    return _evaluate(
        storage,
        samples,
        aligner,
        box,
        disturbance or Disturbance(),
        protocol=f"AFLW2000-3D, {'original' if labels is None else 'reannotated'} labels, "
        f"box from {box}; {len(keys) - len(samples)} images without label or with an angle above "
        f"{STEEP:.0f} degrees left out",
        error="nme_box",
    )


def evaluate_300w(
    folder: str,
    aligner: Aligner,
    *,
    box: Boxes = "landmarks",
    split: Split | Literal["all"] = "dev",
    disturbance: Disturbance | None = None,
) -> Report:
    """Evaluate on a folder (or s3:// prefix) of images with iBUG ``.pts`` files.

    Subfolders are read, too. ``split`` excludes the training photos of weights that were trained on
    the same folder; "all" is for the official test parts. Raises what ``evaluate_aflw2000`` raises,
    and BadPhoto for a malformed ``persons.csv``.
    """
    storage = open_storage(folder)
    samples = list_300w(storage, split)
    if not samples and (others := len(list_300w(storage, "all"))):
        hint = "; `dff evaluate 300w --all` takes all of them" if split == "dev" else ""
        raise BadLandmarks(
            f"{storage.uri}: none of {others} labelled photos is in the {split} split{hint}"
        )
    protocol = f"300-W, {split} photos, box from {box}"
    moved = disturbance or Disturbance()
    return _evaluate(storage, samples, aligner, box, moved, protocol=protocol, error="nme_iod_51")


def list_300w(storage: Storage, split: Split | Literal["all"]) -> list[Sample]:
    """The labelled photos of a ``split``, as ``evaluate_300w`` takes them and raises."""
    keys = _image_keys(storage, ".pts")
    if split != "all":
        groups = find_split_groups(storage, dict(_image_keys(storage)))
        keys = [(stem, key) for stem, key in keys if groups.split(stem) == split]
    labelled = [(stem, key, _label(storage, key, ".pts", parse_pts)) for stem, key in keys]
    return [Sample(stem, key, at, Box.around(at), None, 0.0) for stem, key, at in labelled]


def _image_keys(storage: Storage, suffix: str | None = None) -> list[tuple[str, str]]:
    """(stem, image key) of every image, sorted; with ``suffix`` only those with a label file."""
    keys = {info.key for info in storage.list("")}
    found = []
    for key in sorted(keys):
        path = PurePosixPath(key)
        stem = strip_suffix(path)
        labelled = suffix is None or stem + suffix in keys
        if path.suffix.lower() in IMAGE_SUFFIXES and labelled:
            found.append((stem, key))
    return found


def _label(storage: Storage, image_key: str, suffix: str, parse: Callable[[bytes], T]) -> T:
    """Parse the label file beside an image. Raises BadLandmarks, which names it."""
    key = strip_suffix(image_key) + suffix
    try:
        return parse(storage.read(key))
    except BadLandmarks as error:
        raise BadLandmarks(f"{key}: {error}") from error


def _relabelled(path: Path, stems: list[str]) -> dict[str, Floats]:
    try:
        table = parse_reannotated(path.read_bytes())
    except BadLandmarks as error:
        raise BadLandmarks(f"{path}: {error}") from error
    if isinstance(table, dict):
        named = {
            stem: table[PurePosixPath(stem).name]
            for stem in stems
            if PurePosixPath(stem).name in table
        }
        if not named:
            raise BadLandmarks(f"{path} labels none of these images")
        return named
    if len(table) != len(stems):
        raise BadLandmarks(
            f"{path} labels {len(table)} images in name order, but there are {len(stems)}"
        )
    return dict(zip(stems, table, strict=True))


def _evaluate(
    storage: Storage,
    samples: Sequence[Sample],
    aligner: Aligner,
    box: Boxes,
    disturbance: Disturbance,
    *,
    protocol: str,
    error: str,
) -> Report:
    if not samples:
        if is_missing(storage):
            raise BadLandmarks(f"there is no folder {storage.uri}")
        raise BadLandmarks(f"{storage.uri} holds no labelled images of this protocol")
    rows: list[Row] = []
    seconds = 0.0
    for begin in range(0, len(samples), CHUNK):
        chunk = samples[begin : begin + CHUNK]
        images = [read_sample(storage, sample) for sample in chunk]
        started = time.perf_counter()
        if box == "landmarks":
            found = aligner.align_batch(images, [[disturbance.of(sample.box)] for sample in chunk])
        else:
            found = aligner.align_batch(images)
        seconds += time.perf_counter() - started
        rows += [
            measure_row(sample, some, error) for sample, some in zip(chunk, found, strict=True)
        ]
    summary = {
        "ms_per_image": round(1e3 * seconds / len(samples), 1),
        **summarize_rows(rows, error),
    }
    return Report(protocol, error, summary, tuple(rows), storage)


def read_sample(storage: Storage, sample: Sample) -> Bytes:
    """(H, W, 3) RGB: the photo as stored, which its labels are of. Raises BadPhoto."""
    try:
        # labels are of the stored pixels
        return decode(storage.read(sample.image_key), upright=False)
    except BadPhoto as error:
        raise BadPhoto(f"{sample.image_key}: {error}") from error


def measure_row(sample: Sample, found: Sequence[Alignment], error: str) -> Row:
    """The errors of the face, of those ``found``, that is the labelled one."""

    def meeting(face: Alignment) -> float:
        return overlap(face.box.corners, sample.box.corners)

    best = max(found, key=meeting, default=None)
    if best is None or meeting(best) < FOUND:
        return Row(sample, None, np.zeros((0, 2)), {})
    if error == "nme_box":
        landmarks = best.landmarks_3d[:, :2]
        errors = {"nme_box": nme_box(landmarks, sample.landmarks)}
    else:
        landmarks = best.landmarks_2d
        errors = {
            "nme_iod_51": nme_iod(landmarks, sample.landmarks, INNER),
            "nme_iod_68": nme_iod(landmarks, sample.landmarks),
        }
    if sample.rotation is not None:
        errors["geodesic"] = float(geodesic_degrees(best.pose.matrix, sample.rotation))
    return Row(sample, best, landmarks, errors)


def summarize_rows(rows: Sequence[Row], error: str) -> dict[str, Any]:
    """Figures of an evaluation, by name; errors in per cent and degrees."""
    found = [row for row in rows if row.alignment is not None]
    alignments = [row.alignment for row in found if row.alignment is not None]
    values = np.array([row.errors[error] for row in found])
    out: dict[str, Any] = {
        "count": len(rows),
        "not_found": round(1.0 - len(found) / len(rows), 4),
        "failed": round(float(np.mean([a.failed for a in alignments])) if alignments else 0.0, 4),
        "iterations": round(
            float(np.mean([len(a.trace) for a in alignments])) if alignments else 0.0, 2
        ),
        "share_over_10_percent": round(float(np.mean(values > 0.10)) if len(values) else 1.0, 4),
    }
    for name in ("nme_box", "nme_iod_51", "nme_iod_68"):
        if found and name in found[0].errors:
            some = np.array([row.errors[name] for row in found])
            out[name] = {"mean": _percent(some), "median": round(100 * float(np.median(some)), 3)}
    if error == "nme_box":
        out["nme_box_by_yaw"] = _by_yaw(found, "nme_box", 100.0)
        out["geodesic_by_yaw"] = _by_yaw(found, "geodesic", 1.0)
        turns = np.array([row.errors["geodesic"] for row in found])
        if len(turns):
            out["geodesic"] = {
                "mean": round(float(turns.mean()), 3),
                "median": round(float(np.median(turns)), 3),
            }
        out["pose_mae"] = _pose_errors(found)
    return out


def _percent(values: Floats) -> float:
    return round(100 * float(values.mean()), 3)


def _by_yaw(rows: Sequence[Row], error: str, unit: float) -> dict[str, float | int | str | None]:
    """Mean error and number of faces of each yaw bin, the mean of the bins, and the empty bins.

    Means over different bins are not comparable: without the hardest bin a mean is lower.
    """
    out: dict[str, float | int | str | None] = {}
    means, empty = [], []
    for low, high in pairwise(YAW_BINS):
        last = high == YAW_BINS[-1]
        some = [
            r.errors[error]
            for r in rows
            if low <= abs(r.sample.yaw) and (last or abs(r.sample.yaw) < high)
        ]
        name = f"{low:.0f}-{high:.0f}"
        out[name] = round(unit * float(np.mean(some)), 3) if some else None
        out[f"{name} count"] = len(some)
        if some:
            means.append(unit * float(np.mean(some)))
        else:
            empty.append(name)
    out["mean of bins"] = round(float(np.mean(means)), 3) if means else None
    if empty:
        out["mean lacks"] = ", ".join(empty)
    return out


def _pose_errors(rows: Sequence[Row]) -> dict[str, float]:
    """Mean absolute differences of the angles in degrees, between the angles of both matrices."""
    pairs = [
        (angles_from_rotation(row.alignment.pose.matrix), angles_from_rotation(row.sample.rotation))
        for row in rows
        if row.alignment is not None and row.sample.rotation is not None
    ]
    if not pairs:
        return {}
    apart = np.abs(np.array([np.subtract(a, b) for a, b in pairs]))
    apart = np.minimum(apart, 360.0 - apart).mean(0)
    return {
        name: round(float(v), 3) for name, v in zip(("yaw", "pitch", "roll"), apart, strict=True)
    }


def curve_picture(report: Report) -> bytes:
    """PNG of the cumulative error distribution over all faces, found or not."""
    values = np.sort([100 * row.errors[report.error] for row in report.rows if row.errors])
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(values, np.arange(1, len(values) + 1) / len(report.rows))
    axes.set(xlim=(0, 20), ylim=(0, 1), xlabel=f"{report.error}, %", ylabel="share of faces below")
    axes.set_title(textwrap.fill(report.protocol, 90), fontsize=7)
    axes.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def worst_picture(report: Report, *, columns: int = 5, side: int = 300) -> bytes:
    """JPEG of the worst faces: labels in blue, alignments in green."""
    ranked = sorted(report.rows, key=lambda row: -row.errors.get(report.error, np.inf))[:WORST]
    tiles = [
        _tile(row, read_sample(report.storage, row.sample), report.error, side) for row in ranked
    ]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    good, data = cv2.imencode(".jpg", sheet[..., ::-1])
    assert good
    return bytes(data)


def _tile(row: Row, image: Bytes, error: str, side: int) -> Bytes:
    square = row.sample.box.square(1.8)
    scale = side / square.width
    corner = np.array([square.x0, square.y0])
    matrix = np.column_stack([np.eye(2) * scale, -corner * scale + 0.5 * scale - 0.5])
    tile = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR)
    draw_landmarks(tile, (row.sample.landmarks - corner) * scale, np.ones(68), (70, 120, 255))
    if row.alignment is None:
        text = "not found"
    else:
        draw_landmarks(tile, (row.landmarks - corner) * scale, row.alignment.visibility)
        text = f"{100 * row.errors[error]:.1f} %{'  failed' if row.alignment.failed else ''}"
    cv2.putText(
        tile,
        f"{PurePosixPath(row.sample.name).name}  {text}",
        (6, 16),
        0,
        0.45,
        (255, 255, 255),
        1,
        cv2.LINE_AA,
    )
    return np.asarray(tile)
