"""The paper's aligner: a cascade of learned linear regressors on descriptors at the projected
points of the face.

Each stage looks at the photo where the state of a face puts it, reads a descriptor at each of a few
points of the model as far as the fitted mesh lets them be seen, and adds to pose and shape what a
linear map makes of them. The descriptor is the Deep Face Feature or, as the foil, SIFT at the same
points of the same crops. Sources: Jiang, Zhang, Deng, Guo, Liu, "Deep Face Feature for Face
Alignment" (arXiv 1708.02721); cascades on SIFT: Xiong and De la Torre 2013.

The *change* of B faces is (B, 6 + P) in the axes of their crops: log scale, rotation vector on the
left, motion of the centre as a fraction of the face's unit, latent coefficients. From the second
stage on there are three maps, of which the yaw so far chooses: a single one would have to average
over what turns out of sight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from dff.aligner.align import AlignConfig, Aligner, Watch, load_aligner
from dff.aligner.alignment import Alignment, Iteration
from dff.aligner.confidence import Calibration, probe
from dff.aligner.detector import Detection, FaceDetector
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.loop import (
    MIN_PIXELS,
    OCCLUSION,
    FitModel,
    crops_of_boxes,
    crops_of_state,
    fit_model_of,
    sane,
    sight_of,
    state_in_boxes,
)
from dff.face.arrays import Bytes, Floats, Ints
from dff.face.descriptor import STRIDE, Anchors, Network, image_batch
from dff.face.errors import BadWeights
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation
from dff.face.model.landmarks import LandmarkOffsets
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import POSE, FaceState, apply_step, evaluate_shape, project
from dff.infra import cascade_file
from dff.infra.weights import DEFAULT

Kind = Literal["dff", "sift"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TURNS = (-25.0, 25.0)  # degrees of yaw in the crop between the maps of a stage
WIDEST = 3.0  # standard deviations: no latent coefficient goes beyond
BATCH = 32  # images in one call of the network


@dataclass(frozen=True)
class Stage:
    """One look, and the maps from what it shows to the change of a face. Raises ValueError when
    shapes disagree.
    """

    mean: Floats  # (M, D) float32: what each point looks like where it is seen, on average
    weight: Floats  # (1 or len(TURNS) + 1, M * D, 6 + P) float32
    offset: Floats  # (the same first, 6 + P) float32

    def __post_init__(self) -> None:
        maps, rows, changes = self.weight.shape if self.weight.ndim == 3 else (0, 0, 0)
        if maps not in (1, len(TURNS) + 1) or rows != self.mean.size or changes <= POSE:
            raise ValueError(
                f"a stage with weights {self.weight.shape} for means {self.mean.shape}"
            )
        if self.mean.ndim != 2 or self.offset.shape != (maps, changes):
            raise ValueError(
                f"a stage with means {self.mean.shape} and offsets {self.offset.shape}"
            )
        if not all(np.isfinite(part).all() for part in (self.mean, self.weight, self.offset)):
            raise ValueError("a stage with numbers that are not finite")

    def rows(self, seen: Floats, visible: Floats) -> Floats:
        """(B, M * D) what the maps take of (B, M, D) descriptors: nothing of what is hidden."""
        return np.asarray((seen - self.mean) * visible[..., None]).reshape(len(seen), -1)

    def change(self, rows: Floats, yaw: Floats) -> Floats:
        """(B, 6 + P) for (B,) degrees of yaw in the crop."""
        which = turn_of(yaw) if len(self.weight) > 1 else np.zeros(len(rows), int)
        out = np.zeros((len(rows), self.offset.shape[1]))
        for i in np.unique(which):
            out[which == i] = rows[which == i] @ self.weight[i] + self.offset[i]
        return out


@dataclass(frozen=True)
class Cascade:
    """Stages and what they look at. Raises ValueError when they disagree."""

    kind: Kind
    points: Ints  # (M,) rows of the rig's landmarks and, counted on from them, its anchors
    # (P, K + E) float32 the rig's latent directions: another machine might choose others
    directions: Floats
    extent: float  # crop pixels that a SIFT descriptor covers; the network knows its own
    components: Floats | None  # (128, D) float32 of SIFT descriptors; None for DFF
    stages: tuple[Stage, ...]
    anchors: str  # ``fingerprint`` of the anchors that it was learned with
    card: dict[str, Any]  # provenance
    calibration: Calibration | None = (
        None  # what evidence for its fits is worth; None: as for votes, though fits differ
    )

    def __post_init__(self) -> None:
        if (
            self.kind not in KINDS
            or not self.stages
            or self.points.ndim != 1
            or (self.points < 0).any()
        ):
            raise ValueError(
                f"a cascade of kind {self.kind!r} with {len(self.stages)} stages, points {self.points}"
            )
        if (self.components is None) != (self.kind == "dff") or not 1 <= self.extent <= 256:
            raise ValueError(
                f"a cascade of kind {self.kind!r} with extent {self.extent} and the other's components"
            )
        if self.directions.ndim != 2 or not np.isfinite(self.directions).all():
            raise ValueError(f"a cascade with directions {self.directions.shape}, or not finite")
        shapes = {(stage.mean.shape, stage.offset.shape[1]) for stage in self.stages}
        if len(shapes) != 1 or len(self.stages[0].mean) != len(self.points):
            raise ValueError(f"stages of {sorted(shapes)} for {len(self.points)} points")
        if self.stages[0].offset.shape[1] != POSE + len(self.directions):
            raise ValueError(f"stages of {sorted(shapes)} for {len(self.directions)} directions")
        if self.components is not None and self.components.shape != (
            128,
            self.stages[0].mean.shape[1],
        ):
            raise ValueError(
                f"components {self.components.shape} for means {self.stages[0].mean.shape}"
            )


def fingerprint(anchors: Anchors) -> str:
    """Names a set of anchors and, through their descriptors, the network that they belong to."""
    both = anchors.vertex.astype("<i4").tobytes() + anchors.descriptor.astype("<f4").tobytes()
    return hashlib.sha256(both).hexdigest()


def turn_of(yaw: Floats) -> Ints:
    """(B,) which map of a stage is for (B,) degrees of yaw."""
    return np.searchsorted(TURNS, yaw, side="right")


def points_of(fit_model: FitModel, points: Ints, state: FaceState) -> Floats:
    """(B, M, 3) metres in the head frame: where a cascade's points lie on B faces."""
    mean = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean])[points]
    basis = np.concatenate([fit_model.landmark_basis, fit_model.anchor_basis])[points]
    return evaluate_shape(mean, basis, state.coefficients)


def describe_dff(net: Network, pixels: Bytes, places: Floats) -> Floats:
    """(B, M, D) float32 what the network says at (B, M, 2) ``places`` of (B, S, S, 3) crops."""
    with torch.inference_mode():
        maps = net(image_batch(torch.from_numpy(pixels))).descriptor.float()
    grid = torch.from_numpy((2 * places / pixels.shape[1] - 1).astype(np.float32))[:, None]
    found = functional.grid_sample(maps, grid, align_corners=False, padding_mode="border")
    return np.ascontiguousarray(found[:, :, 0].permute(0, 2, 1).numpy())


def describe_sift(pixels: Bytes, places: Floats, extent: float) -> Floats:
    """(B, M, 128) float32 upright SIFT descriptors of unit length, ``extent`` pixels wide, at the
    same places.
    """
    sift = cv2.SIFT.create()
    out = []
    for crop, points in zip(pixels, places, strict=True):
        # OpenCV counts the first pixel's centre as 0, and its cells are 1.5 times the keypoint's
        # size wide.
        keys = [cv2.KeyPoint(float(x) - 0.5, float(y) - 0.5, extent / 6.0, 0.0) for x, y in points]
        _, found = sift.compute(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), keys)
        out.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6))
    return np.asarray(out, dtype=np.float32)


def look(
    fit_model: FitModel,
    net: Network,
    images: Sequence[Bytes],
    crops: Crops,
    state: FaceState,
    *,
    points: Ints,
    extent: float,
    components: Floats | None,
) -> tuple[Floats, Floats]:
    """(B, M, D) descriptors at the points of B faces and (B, M) how far the fitted mesh lets them
    be seen, 0 to 1.

    With ``components`` those of SIFT descriptors, ``extent`` pixels wide; without, the network's.
    """
    places = crops.crop_from_photo(project(state, points_of(fit_model, points, state)))
    sight = sight_of(fit_model, state)
    exposure = sight.landmarks
    landmarks = np.clip((exposure[..., 0] + 0.1) / 0.2, 0.0, 1.0) * (exposure[..., 1] <= OCCLUSION)
    visible = np.concatenate([landmarks, sight.anchors], axis=1)[:, points].astype(np.float32)
    pixels = np.stack([crops.cut(image, i) for i, image in enumerate(images)])
    if components is None:
        parts = range(0, len(pixels), BATCH)
        return np.concatenate(
            [describe_dff(net, pixels[i : i + BATCH], places[i : i + BATCH]) for i in parts]
        ), visible
    return np.asarray(describe_sift(pixels, places, extent) @ components), visible


def yaw_in_crop(state: FaceState, angle: Floats) -> Floats:
    """(B,) degrees by which faces look to the right of crops turned by (B,) ``angle``; 0 looks out
    of the photo.
    """
    gaze = np.einsum("bij,bj->bi", _turns(-angle), state.rotation[:, :, 2])
    return np.asarray(np.rad2deg(np.arctan2(gaze[:, 0], -gaze[:, 2])))


def change_between(before: FaceState, after: FaceState, angle: Floats, unit: Floats) -> Floats:
    """(B, 6 + P) the change from one state to another: what ``changed`` applies."""
    turn = _turns(-angle)
    rotation = (
        turn @ (after.rotation @ np.swapaxes(before.rotation, 1, 2)) @ np.swapaxes(turn, 1, 2)
    )
    motion = np.einsum("bij,bj->bi", turn[:, :2, :2], after.centre - before.centre) / unit[:, None]
    return np.concatenate(
        [
            np.log(after.scale / before.scale)[:, None],
            Rotation.from_matrix(rotation).as_rotvec(),
            motion,
            after.coefficients - before.coefficients,
        ],
        axis=1,
    )


def changed(state: FaceState, change: Floats, angle: Floats, unit: Floats) -> FaceState:
    """The state after a (B, 6 + P) change in the axes of crops turned by (B,) ``angle``; as it was
    where absurd.
    """
    turn = _turns(angle)
    delta = np.array(change, dtype=np.float64)
    delta[:, 1:4] = np.einsum("bij,bj->bi", turn, change[:, 1:4])
    delta[:, 4:6] = np.einsum("bij,bj->bi", turn[:, :2, :2], change[:, 4:6]) * unit[:, None]
    found = apply_step(state, delta)
    return sane(
        replace(found, coefficients=np.clip(found.coefficients, -WIDEST, WIDEST)), state, unit
    )


def start_of(
    fit_model: FitModel, detections: Sequence[Detection], margin: float, size: int
) -> tuple[FaceState, Crops]:
    """Where a cascade begins, as it was learned: the mean face looking ahead in each box, and crops
    about the boxes.

    Of a sighting's pose only the turn in the plane of the photo is taken, and the box in the axes
    so turned.
    """
    boxes, angle = [one.box for one in detections], np.zeros(len(detections))
    for i, one in enumerate(detections):
        if one.pose is not None:
            seen = replace(one.pose, coefficients=np.zeros((1, len(fit_model.modes))))
            angle[i] = crops_of_state(fit_model, seen, margin, size).angle[0]
            boxes[i] = Box.around(
                fit_model.landmarks(seen)[0] @ _turns(angle[i : i + 1])[0, :2, :2]
            )
    turn = _turns(angle)
    state, crops = state_in_boxes(fit_model, boxes), crops_of_boxes(boxes, margin, size)
    return (
        replace(
            state,
            rotation=turn @ state.rotation,
            centre=np.einsum("bij,bj->bi", turn[:, :2, :2], state.centre),
        ),
        replace(crops, centre=np.einsum("bij,bj->bi", turn[:, :2, :2], crops.centre), angle=angle),
    )


def _turns(angle: Floats) -> Floats:
    """(B, 3, 3) rotations about the z axis, (B,) radians."""
    return np.asarray(
        Rotation.from_rotvec(np.asarray(angle)[:, None] * [0.0, 0.0, 1.0]).as_matrix()
    )


class CascadeAligner(Aligner):
    """An aligner whose states come from a cascade. Its confidence rests on the same evidence as its
    parent's: what the network sees at the end of the fit, which was not fitted to it."""

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        *,
        cascade: Cascade,
        detector: FaceDetector | None = None,
        config: AlignConfig | None = None,
        card: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
        landmark_offsets: LandmarkOffsets | None = None,
    ) -> None:
        """``calibration`` counts where the cascade has none.

        Raises ValueError when the cascade was learned with other anchors, or looks at points that
        they lack.
        """
        worth = cascade.calibration or calibration
        super().__init__(
            net,
            anchors,
            model,
            detector=detector,
            config=config,
            card=card,
            calibration=worth,
            landmark_offsets=landmark_offsets,
        )
        if cascade.anchors != fingerprint(anchors):
            raise ValueError("the cascade was learned with other weights")
        wide = len(model.identity) + len(model.expression)
        if cascade.points.max() >= 68 + len(anchors.vertex) or cascade.directions.shape[1] != wide:
            raise ValueError(
                "the cascade looks at points or fits directions that these weights do not have"
            )
        self.cascade = cascade
        self.cascade_fit_model = fit_model_of(model, anchors, cascade.directions)

    def _align_faces(self, images: list[Bytes], detections: list[Detection]) -> list[Alignment]:
        fit_model, config, cascade = self.cascade_fit_model, self.config, self.cascade
        state, crops = start_of(fit_model, detections, config.margin, config.crop)
        traces: list[list[Iteration]] = [[] for _ in detections]
        landmarks = fit_model.landmarks(state)
        annotated = fit_model.as_annotated(self.landmark_offsets)
        for number, stage in enumerate(cascade.stages):
            if number:
                crops = crops_of_state(fit_model, state, config.margin, config.crop)
            before = landmarks
            state = advanced(fit_model, self.net, cascade, stage, images, crops, state)
            landmarks = fit_model.landmarks(state)
            motion = np.linalg.norm(landmarks - before, axis=2).mean(1) / fit_model.unit(state)
            shown = annotated.landmarks(state)
            for face, trace in enumerate(traces):
                yaw, pitch, roll = angles_from_rotation(state.rotation[face] @ self.reference)
                step = float(motion[face]) if number else np.inf
                trace.append(Iteration(shown[face], yaw, pitch, roll, np.nan, step))
        watch = self._judged(images, state, before)
        for face, trace in enumerate(traces):
            trace[-1] = replace(trace[-1], residual=float(watch.residual[face]))
        evidence = watch.evidence(state, fit_model.unit(state))
        return self._answers(
            state, [one.box for one in detections], evidence, traces, fit_model=fit_model
        )

    def _judged(self, images: list[Bytes], state: FaceState, before: Floats) -> Watch:
        """What the network sees where the fit ended; its last stage began at the (B, 68, 2)
        landmarks ``before``.
        """
        fit_model, config = self.cascade_fit_model, self.config
        crops = crops_of_state(fit_model, state, config.margin, config.crop)
        matches, features = self._look(self.net, images, crops)
        watch = Watch.nothing(len(fit_model.anchor_mean), config.pixels, before.copy())
        everyone = np.arange(len(images))
        watch.lost[:] = (matches.mask > 0).sum(1) < MIN_PIXELS
        px = crops.photo_from_crop(matches.grid)
        watch.update(
            fit_model, everyone, state, matches, px, matches.pitch * crops.side / crops.size
        )
        places = crops.crop_from_photo(watch.landmarks) / STRIDE
        watch.probes[:] = probe(*features, places, self.landmark_descriptor)
        return watch


def advanced(
    fit_model: FitModel,
    net: Network,
    cascade: Cascade,
    stage: Stage,
    images: Sequence[Bytes],
    crops: Crops,
    state: FaceState,
) -> FaceState:
    """The state of B faces after one stage that looks at their crops."""
    seen, visible = look(
        fit_model,
        net,
        images,
        crops,
        state,
        points=cascade.points,
        extent=cascade.extent,
        components=cascade.components,
    )
    change = stage.change(stage.rows(seen, visible), yaw_in_crop(state, crops.angle))
    return changed(state, change, crops.angle, fit_model.unit(state))


def save_cascade(path: Path | str, cascade: Cascade) -> None:
    """Write a cascade to a file, its weights as half floats."""
    arrays: dict[str, Floats | Ints] = {"points": cascade.points.astype(np.int32)}
    arrays["directions"] = cascade.directions.astype(np.float32)
    if cascade.components is not None:
        arrays["components"] = cascade.components.astype(np.float32)
    for number, stage in enumerate(cascade.stages):
        arrays[f"{number}.mean"] = stage.mean.astype(np.float16)
        arrays[f"{number}.weight"] = stage.weight.astype(np.float16)
        arrays[f"{number}.offset"] = stage.offset.astype(np.float32)
    about = {name: getattr(cascade, name) for name in ("kind", "extent", "anchors", "card")}
    if cascade.calibration is not None:
        about["calibration"] = cascade.calibration.to_json()
    cascade_file.write(path, arrays, {**about, "stages": len(cascade.stages)})


def load_cascade(path: Path | str) -> Cascade:
    """Read a cascade, or the one that ships for weights of that name.

    Raises BadWeights, naming the file and what is wrong with it.
    """
    path = cascade_file.SHIPPED.get(str(path), Path(path))
    arrays, about = cascade_file.read(path)
    try:
        count = int(about["stages"])
        wanted = {
            "points",
            "directions",
            *(f"{i}.{part}" for i in range(count) for part in ("mean", "weight", "offset")),
        }
        if set(arrays) - {"components"} != wanted:
            raise ValueError(f"arrays {sorted(arrays)} for {count} stages")
        stages = tuple(
            Stage(
                *(arrays[f"{i}.{part}"].astype(np.float32) for part in ("mean", "weight", "offset"))
            )
            for i in range(count)
        )
        return Cascade(
            about["kind"],
            arrays["points"].astype(np.int64),
            arrays["directions"].astype(np.float32),
            float(about["extent"]),
            arrays["components"].astype(np.float32) if "components" in arrays else None,
            stages,
            str(about["anchors"]),
            dict(about["card"]),
            Calibration.from_json(about["calibration"]) if "calibration" in about else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{path} is not a usable cascade: {error!r}") from error


def load_cascade_aligner(
    weights: Path | str | None = None,
    cascade: Path | str | None = None,
    *,
    detector: FaceDetector | None = None,
    config: AlignConfig | None = None,
    calibration: Calibration | None = None,
) -> CascadeAligner:
    """The aligner of a weights file and a cascade; of what ships with the weights when none is
    named.

    Raises BadWeights when a file cannot be used, no cascade ships with the weights, or the two do
    not belong together.
    """
    base = load_aligner(weights, detector=detector, config=config, calibration=calibration)
    name = str(weights or DEFAULT)
    if cascade is None and not (
        name in cascade_file.SHIPPED and cascade_file.SHIPPED[name].exists()
    ):
        raise BadWeights(
            f"no cascade ships with the weights {name}: make one with dff train-cascade, and name it"
        )
    path = name if cascade is None else cascade
    try:
        return CascadeAligner(
            base.net,
            base.anchors,
            base.model,
            cascade=load_cascade(path),
            detector=base.detector,
            config=base.config,
            card=base.card,
            calibration=base.calibration,
            landmark_offsets=base.landmark_offsets,
        )
    except ValueError as error:
        raise BadWeights(f"{path}: {error}") from error
