"""Images to alignments: boxes, then iterations of what the network sees and what the model
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from dff.aligner.alignment import Alignment, Iteration, Pose, landmarks_of
from dff.aligner.confidence import (
    DEFAULT,
    FAILED_BELOW,
    Calibration,
    Evidence,
    agreement,
    face_evidence,
    landmark_evidence,
    probe,
    surroundings,
)
from dff.aligner.detector import DescriptorDetector, Detection, FaceDetector, same_face
from dff.aligner.fitting.correspondence import Matches, match, pooled
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.loop import (
    MIN_PIXELS,
    FitModel,
    Look,
    Sight,
    Solver,
    build_fit_model,
    crops_of_boxes,
    crops_of_state,
    first_fit,
    put,
    refine,
    resume,
    sight_of,
    state_in_boxes,
)
from dff.aligner.fitting.multi_image import (
    PersonAlignment,
    fit_person,
    one_person,
    person_alignment,
    state_of,
)
from dff.aligner.fitting.perspective import PerspectiveFitModel, build_perspective_fit_model
from dff.aligner.fitting.photometric import Skin
from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import FRAMING, STRIDE, Anchors, DescriptorNet, Network, image_batch
from dff.face.errors import BadPhoto, BadWeights, NoFace
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation, rotation_from_vector
from dff.face.io.assets import load_model
from dff.face.model.landmarks import MIRROR, LandmarkOffsets
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState
from dff.face.tta import TtaNetwork, TtaTransform
from dff.infra import weights as weights_files

Fit = Callable[[int, Look, FaceState, Sight], FaceState]
"""(pass number, what is seen of B faces, their B states, what these let be seen) to B states."""

# side of the box in which a face that failed is looked for once more, over that of its own
SECOND_LOOK = 0.75
MIN_SIDE = 16  # pixels: no face can be aligned in less

REFERENCE_ROTATION: dict[str, tuple[float, float, float]] = {"open-head": (4.8, 0.0, 0.0)}
"""Rotation vector in degrees, head_from_reference: where each model's head frame sees the frontal
face of AFLW2000-3D.

What is frontal is a convention of each model. Measured by fitting the model to the labelled
landmarks of 92 images and averaging the rotation to their labelled pose (5.1, 0.1, -0.1 with the
original labels, 4.5, -0.5, 0.4 with the reannotated ones); the parts that break the left-right
symmetry are noise. A model without an entry gets none.
"""


@dataclass(frozen=True)
class AlignConfig:
    """How faces are aligned. Raises ValueError for what makes no sense."""

    crop: int = 128  # pixels of the side that the network sees
    margin: float = FRAMING  # side of a crop over the longer side of the landmark box
    # the same of later passes, which know better where the landmarks are and want them large
    closer: float = 1.3
    mirror: bool = True  # every second pass looks at the mirrored photo, and the next counts both
    passes: int = 3  # at most; each looks at the photo again
    # mean landmark motion from pass to pass, fraction of the face's size: then a face is done
    still: float = 0.01
    batch: int = 32  # faces that are aligned at a time
    per_call: int = (
        4  # of them in one call of the network: the maps of more leave the cache of a CPU's core
    )
    pixels: int = 300  # of each face that are matched; 500 are no more accurate
    keep: int = 6  # anchors that a pixel may mean
    near: float = 0.012  # metres from its best anchor within which they lie
    doubt: float = 0.4  # cosine at which a pixel is as likely to match nothing
    modes: int = 60  # directions of shape that are fitted
    nearness: float = (
        1.0  # 1 / metres: of cameras to faces; one photo hardly tells, but few are taken from afar
    )
    # metres, sd: how far ``align_person`` lets a face lie off the model's; 0: not at all
    beyond: float = 0.005
    sizes: tuple[float, ...] = (
        0.8,
        1.0,
        1.2,
    )  # of a crop, at which ``align_person`` looks, over ``crop``
    solver: Solver = field(default_factory=Solver)

    def __post_init__(self) -> None:
        counts = (self.crop, self.passes, self.batch, self.per_call, self.pixels, self.keep)
        if min(counts) < 1 or not self.sizes or min(self.margin, self.closer, *self.sizes) <= 0:
            raise ValueError(f"AlignConfig wants positive sizes: {self}")


@dataclass(frozen=True)
class Watch:
    """What is known of B faces beside their state; rows are rewritten as faces move."""

    sight: Sight
    probes: Floats  # (B, 68, 4) what the network sees at them
    landmarks: Floats  # (B, 68, 2) pixels
    px: Floats  # (B, N, 2) matched pixels
    mask: Floats  # (B, N) probability that they show the face
    agrees: Floats  # (B, N) their agreement with the fit
    pitch: Floats  # (B,) pixels between neighbouring matched pixels
    residual: Floats  # (B,) fraction of the unit
    motion: Floats  # (B,) how far the last pass moved the landmarks, fraction of the unit
    lost: Bools  # (B,) too few pixels of a face were seen

    @staticmethod
    def nothing(anchors: int, pixels: int, landmarks: Floats) -> Watch:
        b = len(landmarks)
        none = np.zeros((b, pixels))
        return Watch(
            sight=Sight.unknown(b, anchors),
            probes=np.zeros((b, 68, 4)),
            landmarks=landmarks,
            px=np.zeros((b, pixels, 2)),
            mask=none,
            agrees=none.copy(),
            pitch=np.ones(b),
            residual=np.zeros(b),
            motion=np.full(b, np.inf),
            lost=np.zeros(b, dtype=bool),
        )

    def update(
        self,
        fit_model: FitModel,
        faces: Ints,
        state: FaceState,
        matches: Matches,
        px: Floats,
        pitch: Floats,
    ) -> Floats:
        """Look at the new ``state`` of the rows ``faces``; (F,) how far their landmarks moved,
        fraction of the unit.
        """
        unit = fit_model.unit(state)
        sight = sight_of(fit_model, state)
        landmarks = fit_model.landmarks(state)
        motion = np.linalg.norm(landmarks - self.landmarks[faces], axis=2).mean(1) / unit
        self.sight.put(faces, sight)
        self.landmarks[faces] = landmarks
        self.px[faces], self.mask[faces], self.pitch[faces] = px, matches.mask, pitch
        self.motion[faces] = motion
        self.agrees[faces], self.residual[faces] = agreement(
            matches, px, fit_model.anchors(state), sight.anchors, unit
        )
        return np.asarray(motion)

    def evidence(self, state: FaceState, unit: Floats) -> Evidence:
        """What all faces' confidence rests on; the lost have none."""
        around = surroundings(self.agrees, self.mask, self.px, self.landmarks, unit, self.pitch)
        exposure = self.sight.landmarks
        face = face_evidence(self.agrees, self.mask, self.residual, self.motion, exposure, around)
        return Evidence(face, landmark_evidence(exposure, around, self.probes), self.lost)


class Aligner:
    """A frozen aligner: network, anchors and face model, and where to look for faces. Safe to share
    by threads.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        *,
        detector: FaceDetector | None = None,
        config: AlignConfig | None = None,
        card: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
        landmark_offsets: LandmarkOffsets | None = None,
    ) -> None:
        """``landmark_offsets``: where the landmarks lie that are answered; by default on the
        vertices of ``model``.
        """
        self.net = net
        self.anchors = anchors
        self.model = model
        self.config = config or AlignConfig()
        self.multiple = net.config.multiple if isinstance(net, DescriptorNet) else 32
        self.card = dict(card or {})  # where the weights come from
        self.calibration = calibration or DEFAULT
        self.landmark_offsets = landmark_offsets or LandmarkOffsets()
        settings = self.config
        self.fit_model = build_fit_model(
            model, anchors, modes=settings.modes, mirrored=settings.mirror, near=settings.nearness
        )
        apart = np.linalg.norm(self.fit_model.landmark_mean[:, None] - anchors.position, axis=2)
        self.landmark_descriptor = anchors.descriptor[apart.argmin(1)]  # (68, D)
        self.detector = detector or DescriptorDetector(
            net, anchors, self.fit_model, multiple=self.multiple
        )
        self.reference = rotation_from_vector(
            np.deg2rad(REFERENCE_ROTATION.get(model.name, (0.0, 0.0, 0.0)))
        )

    def without_landmark_offsets(self) -> Self:
        """The same aligner, whose landmarks are vertices of the model: as those of rendered faces
        are.
        """
        bare = copy(self)
        bare.landmark_offsets = LandmarkOffsets()
        return bare

    def align(self, image: Bytes, boxes: Sequence[Box] | None = None) -> list[Alignment]:
        """One alignment for each box of an (H, W, 3) uint8 RGB image, or for each face found; none:
        an empty list.

        A box's alignment may say that it failed; what was only found and fails is no face and left
        out. Raises BadPhoto for an array that is no such image, ValueError for a box that does not
        meet it.
        """
        return self.align_batch([image], None if boxes is None else [boxes])[0]

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        """``align`` of many images at once, many faces in each call of the network; boxes of None
        are looked for.
        """
        if boxes is not None and len(boxes) != len(images):
            raise ValueError(f"{len(images)} images with boxes for {len(boxes)}")
        for image in images:
            _check_image(image)
        asked = [None] * len(images) if boxes is None else boxes
        places: list[list[Detection]] = []
        for image, some in zip(images, asked, strict=True):
            given = None if some is None else [Detection(check_box(box, image)) for box in some]
            places.append(self.detector.find(image) if given is None else given)
        faces = [(i, detection) for i, some in enumerate(places) for detection in some]
        out: list[list[Alignment]] = [[] for _ in images]
        for begin in range(0, len(faces), self.config.batch):
            chunk = faces[begin : begin + self.config.batch]
            found = self._align_faces(
                [images[i] for i, _ in chunk], [detection for _, detection in chunk]
            )
            failed = [
                k for k, (i, _) in enumerate(chunk) if asked[i] is not None and found[k].failed
            ]
            for k, second in self._closer(images, chunk, failed):
                found[k] = second
            for (i, _), alignment in zip(chunk, found, strict=True):
                out[i].append(alignment)
        return [_accepted(some) if asked[i] is None else some for i, some in enumerate(out)]

    def follow(
        self, images: Sequence[Bytes], before: Sequence[Sequence[Alignment]]
    ) -> list[list[Alignment]]:
        """Alignments that begin from those of a neighbouring frame, as ``align`` gave them; nothing
        is searched.

        For each image one alignment for each of ``before``, in their order; it may say that it
        failed. Raises BadPhoto as ``align``, ValueError when there are not as many lists as images.
        """
        if len(images) != len(before):
            raise ValueError(f"{len(images)} images with alignments for {len(before)}")
        for image in images:
            _check_image(image)
        fit_model, config = self.fit_model, self.config
        faces = [(image, face) for image, some in zip(images, before, strict=True) for face in some]
        out: list[Alignment] = []
        for begin in range(0, len(faces), config.batch):
            chunk = faces[begin : begin + config.batch]
            state = state_of(fit_model, [face for _, face in chunk])
            crops = crops_of_state(fit_model, state, config.margin, config.crop)
            boxes = [Box.around(face.landmarks_3d[:, :2]) for _, face in chunk]
            fit = partial(_fitted, fit_model, config.solver, resume)
            out += self._iterate(
                [image for image, _ in chunk], boxes, state, crops, fit=fit, resumed=True
            )
        rest = iter(out)
        return [[next(rest) for _ in some] for some in before]

    def align_person(
        self, images: Sequence[Bytes], boxes: Sequence[Box | None] | None = None
    ) -> PersonAlignment:
        """One identity for several photos of one person, and a pose and expression for each.

        Where no box is given, the largest face that is found is the person. Photos without a face,
        or whose alignment failed, are left out and named in the answer. Raises NoFace when that
        leaves none, else as ``align``. The face may lie off what identities of the model form, by
        ``PersonAlignment.beyond``.
        """
        if not images or (boxes is not None and len(boxes) != len(images)):
            raise ValueError(
                f"{len(images)} images with boxes for {len(images if boxes is None else boxes)}"
            )
        asked = None if boxes is None else [None if box is None else [box] for box in boxes]
        alone: dict[int, Alignment] = {}
        left_out: dict[int, str] = {}
        for i, found in enumerate(self.align_batch(images, asked)):
            face = max(found, key=lambda face: face.camera.scale, default=None)
            if face is None:
                left_out[i] = "no face found"
            elif face.failed:
                left_out[i] = face.reason
            else:
                alone[i] = face
        while alone:
            seen = [images[i] for i in alone]
            found = self._align_one_person(seen, [*alone.values()])
            if any(face.failed for face in found):  # by votes alone it may not
                found = self._align_one_person(seen, [*alone.values()], agree=False)
            faces = dict(zip(alone, found, strict=True))
            lost = {i: face.reason for i, face in faces.items() if face.failed}
            if not lost:
                return person_alignment(self.model, len(images), faces, left_out)
            left_out |= lost  # and the others once more, since these had a say
            alone = {i: face for i, face in alone.items() if i not in lost}
        raise NoFace("; ".join(f"photo {i + 1}: {why}" for i, why in sorted(left_out.items())))

    @cached_property
    def perspective_fit_model(self) -> PerspectiveFitModel:
        """The rig of several photos of one person."""
        return build_perspective_fit_model(self.model, self.anchors, beyond=self.config.beyond)

    @cached_property
    def near_skin(self) -> Skin:
        """Its points on which the photos agree."""
        return Skin.of(self.perspective_fit_model)

    def _align_one_person(
        self, images: list[Bytes], alone: list[Alignment], *, agree: bool = True
    ) -> list[Alignment]:
        """``agree``: on the skin, beside the votes."""
        fit_model, config = self.perspective_fit_model, self.config
        solver = config.solver if agree else replace(config.solver, skin=0.0)
        state = one_person(fit_model, alone)
        crops = crops_of_state(fit_model, state, config.margin, config.crop)
        trust = np.array([face.face_confidence for face in alone])
        fit = partial(fit_person, fit_model, self.near_skin, solver, images, trust)
        boxes = [face.box for face in alone]
        looks = TtaNetwork(
            self.net, [TtaTransform(size) for size in config.sizes], multiple=self.multiple
        )
        return self._iterate(
            images, boxes, state, crops, fit_model=fit_model, net=looks, fit=fit, as_one=True
        )

    def _closer(
        self, images: Sequence[Bytes], faces: Sequence[tuple[int, Detection]], failed: Sequence[int]
    ) -> Iterator[tuple[int, Alignment]]:
        """Those of the ``failed`` faces that do align in the middle of their box: beside them it
        holds another.
        """
        if not failed:
            return
        again = [Detection(_middle(faces[k][1].box)) for k in failed]
        found = self._align_faces([images[faces[k][0]] for k in failed], again)
        for k, second in zip(failed, found, strict=True):
            if not second.failed:
                yield k, replace(second, box=faces[k][1].box)

    def _align_faces(self, images: list[Bytes], detections: list[Detection]) -> list[Alignment]:
        state, first = self._start(detections)
        boxes = [detection.box for detection in detections]
        return self._iterate(
            images,
            boxes,
            state,
            first,
            fit=partial(_fitted, self.fit_model, self.config.solver, first_fit),
        )

    def _iterate(
        self,
        images: list[Bytes],
        boxes: list[Box],
        state: FaceState,
        first: Crops,
        *,
        fit: Fit,
        fit_model: FitModel | None = None,
        net: Network | None = None,
        resumed: bool = False,
        as_one: bool = False,
    ) -> list[Alignment]:
        """Passes over the B images from ``state``, the first through the crops ``first``.

        ``fit_model`` and ``net``: what is fitted and what looks, if not the aligner's own.
        ``resumed``: the state is an alignment already, so the first pass may be the last.
        ``as_one``: no face is done before all are.
        """
        fit_model, net, config = fit_model or self.fit_model, net or self.net, self.config
        annotated = fit_model.as_annotated(self.landmark_offsets)
        b = len(boxes)
        watch = Watch.nothing(len(fit_model.anchor_mean), config.pixels, fit_model.landmarks(state))
        traces: list[list[Iteration]] = [[] for _ in boxes]
        active = np.arange(b)
        earlier: tuple[Matches, Floats] | None = (
            None  # of the active faces: the last pass's matches and their pixels
        )
        for number in range(config.passes):
            before = state[active]
            crops = (
                first
                if number == 0
                else crops_of_state(fit_model, before, config.closer, config.crop)
            )
            mirrored = fit_model.mirrored and number % 2 == 1
            matches, features = self._look(
                net, [images[i] for i in active], crops, mirrored=mirrored
            )
            able = (matches.mask > 0).sum(1) >= MIN_PIXELS
            watch.lost[active[~able]] = True
            px = crops.photo_from_crop(matches.grid)[able]
            active, matches, before = active[able], matches[able], before[able]
            if len(active) == 0:
                break
            counted = matches, px
            if earlier is not None and fit_model.mirrored and number > 1:
                old, old_px = earlier[0][able], earlier[1][able]
                counted = (
                    pooled(old, matches),
                    np.concatenate([old_px[:, ::2], px[:, 1::2]], axis=1),
                )
            descriptor, face_logit = features
            if not able.all():  # maps are large: copied only if need be
                descriptor, face_logit = descriptor[able], face_logit[able]
            look = Look(*counted, face_logit, crops[able], active)
            after = fit(number, look, before, watch.sight[active])
            state = put(state, active, after)
            pitch = matches.pitch * (crops.side / crops.size)[able]
            motion = watch.update(fit_model, active, after, matches, px, pitch)
            places = look.crops.crop_from_photo(watch.landmarks[active]) / STRIDE
            expected = self.landmark_descriptor[MIRROR] if mirrored else self.landmark_descriptor
            watch.probes[active] = probe(descriptor, face_logit, places, expected)
            if number == 0 and not resumed:
                motion = np.full_like(motion, np.inf)
            shown = annotated.landmarks(after)
            for row, face in enumerate(active):
                yaw, pitch_angle, roll = angles_from_rotation(after.rotation[row] @ self.reference)
                traces[face].append(
                    Iteration(
                        shown[row],
                        yaw,
                        pitch_angle,
                        roll,
                        float(watch.residual[face]),
                        float(motion[row]),
                    )
                )
            moving = motion > config.still
            going = moving.any() | np.zeros_like(moving) if as_one else moving
            active, earlier = active[going], (matches[going], px[going])
            if len(active) == 0:
                break
        return self._answers(
            state, boxes, watch.evidence(state, fit_model.unit(state)), traces, fit_model=fit_model
        )

    def _answers(
        self,
        state: FaceState,
        boxes: list[Box],
        evidence: Evidence,
        traces: list[list[Iteration]],
        *,
        fit_model: FitModel | None = None,
    ) -> list[Alignment]:
        """What is said of faces whose fit has ended; ``fit_model``: whose latents the state holds,
        if another's.
        """
        fit_model = fit_model or self.fit_model
        vertices = fit_model.vertices(state)
        whole = self.calibration.face_confidence(evidence)
        seen, right = self.calibration.landmark_confidence(evidence)
        return [
            self._alignment(
                state,
                i,
                fit_model=fit_model,
                box=boxes[i],
                vertices=vertices[i],
                visibility=seen[i],
                confidence=right[i],
                face_confidence=float(whole[i]),
                evidence=evidence[i],
                trace=tuple(traces[i]),
            )
            for i in range(len(boxes))
        ]

    def _start(self, detections: list[Detection]) -> tuple[FaceState, Crops]:
        """Where fitting begins, and the first crops: as the finder saw the faces, else upright
        about the boxes.
        """
        fit_model, config = self.fit_model, self.config
        boxes = [detection.box for detection in detections]
        state, crops = (
            state_in_boxes(fit_model, boxes),
            crops_of_boxes(boxes, config.margin, config.crop),
        )
        for i, detection in enumerate(detections):
            if detection.pose is not None:
                seen = replace(detection.pose, coefficients=np.zeros((1, len(fit_model.modes))))
                state = put(state, np.array([i]), seen)
                turned = crops_of_state(fit_model, seen, config.margin, config.crop)
                crops.centre[i], crops.side[i], crops.angle[i] = (
                    turned.centre[0],
                    turned.side[0],
                    turned.angle[0],
                )
        return state, crops

    def _look(
        self, net: Network, images: list[Bytes], crops: Crops, *, mirrored: bool = False
    ) -> tuple[Matches, tuple[Floats, Floats]]:
        """What the network sees, in the crops' own pixels even if it looks at their ``mirrored``
        pictures.
        """
        pixels = np.stack([crops.cut(image, i) for i, image in enumerate(images)])
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        with torch.inference_mode():
            parts = [
                net(part)
                for part in torch.split(image_batch(torch.from_numpy(pixels)), self.config.per_call)
            ]
        descriptor = np.concatenate([part.descriptor.float().numpy() for part in parts])
        face_logit = np.concatenate([part.face_logit.float().numpy() for part in parts])
        if mirrored:
            descriptor, face_logit = descriptor[..., ::-1], face_logit[..., ::-1]
        matches = match(
            descriptor,
            face_logit,
            self.anchors.descriptor,
            stride=STRIDE,
            pixels=self.config.pixels,
            keep=self.config.keep,
            place=self.anchors.position,
            near=self.config.near,
            sharpness=self.anchors.scale,
            doubt=self.config.doubt,
        )
        if mirrored:
            matches = replace(matches, anchor=matches.anchor + len(self.anchors.vertex))
        return matches, (descriptor, face_logit)

    def _alignment(
        self,
        state: FaceState,
        i: int,
        *,
        fit_model: FitModel,
        box: Box,
        vertices: Floats,
        visibility: Floats,
        confidence: Floats,
        face_confidence: float,
        evidence: Evidence,
        trace: tuple[Iteration, ...],
    ) -> Alignment:
        camera, cam_from_head = fit_model.camera(state, i), state.cam_from_head(i)
        coefficients = fit_model.coefficients(state.coefficients[i])
        flat, deep = landmarks_of(
            self.model, self.landmark_offsets, vertices, coefficients, cam_from_head, camera
        )
        matrix = state.rotation[i] @ self.reference
        yaw, pitch, roll = angles_from_rotation(matrix)
        reason = ""
        if evidence.lost:
            reason = "no part of the box looks like a face"
        elif face_confidence < FAILED_BELOW:
            reason = f"the face model does not explain what is in the box (confidence {face_confidence:.2f})"
        return Alignment(
            box=box,
            landmarks_2d=flat,
            landmarks_3d=deep,
            pose=Pose(yaw, pitch, roll, matrix),
            visibility=visibility,
            confidence=confidence,
            face_confidence=face_confidence,
            failed=bool(reason),
            reason=reason,
            vertices=vertices,
            coefficients=coefficients,
            cam_from_head=cam_from_head,
            camera=camera,
            model=self.model.name,
            trace=trace,
            evidence=evidence,
        )


Begin = Callable[[FitModel, Solver, Look, FaceState], FaceState]


def _fitted(
    fit_model: FitModel,
    solver: Solver,
    begin: Begin,
    number: int,
    look: Look,
    before: FaceState,
    sight: Sight,
) -> FaceState:
    """``begin`` is ``first_fit`` for a new face, ``resume`` for one that was aligned a frame
    ago.
    """
    if number == 0:
        return begin(fit_model, solver, look, before)
    return refine(fit_model, solver, look, before, sight)


def load_aligner(
    weights: Path | str | None = None,
    *,
    detector: FaceDetector | None = None,
    config: AlignConfig | None = None,
    calibration: Calibration | None = None,
    landmark_offsets: LandmarkOffsets | None = None,
) -> Aligner:
    """The aligner of a weights file; of the shipped weights when none is named.

    ``config``: by default crops are as large as those that the network was trained on.
    ``calibration`` and ``landmark_offsets`` instead of the file's own. Raises BadWeights when the
    file cannot be used, BadModel when its model is not at hand.
    """
    path = weights_files.DEFAULT if weights is None else weights
    loaded = weights_files.load(path)
    model = load_model(str(loaded.card["model"]))
    weights_files.check_model(path, loaded, model)
    net = loaded.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the fast layout on CPUs
    try:
        if calibration is None and loaded.calibration is not None:
            calibration = Calibration.from_json(loaded.calibration)
    except (TypeError, ValueError) as error:
        raise BadWeights(f"{path}: {error}") from error
    if config is None:
        config = AlignConfig(crop=int(loaded.card.get("config", {}).get("size", AlignConfig.crop)))
    return Aligner(
        net,
        loaded.anchors,
        model,
        detector=detector,
        config=config,
        # Whoever reads an answer is told whose labels say where its landmarks lie, as of the
        # weights' other sources.
        card=loaded.card
        | (
            {"landmarks_from": loaded.landmark_offsets_source}
            if loaded.landmark_offsets_source
            else {}
        ),
        calibration=calibration,
        landmark_offsets=landmark_offsets or loaded.landmark_offsets,
    )


def _accepted(found: list[Alignment]) -> list[Alignment]:
    """What was found and did not fail, the surest first, each face once."""
    kept: list[Alignment] = []
    for one in sorted(found, key=lambda face: -face.face_confidence):
        box = Box.around(one.landmarks_3d[:, :2])
        if not one.failed and not any(
            same_face(box, Box.around(other.landmarks_3d[:, :2])) for other in kept
        ):
            kept.append(one)
    return kept


def _middle(box: Box) -> Box:
    half = SECOND_LOOK / 2 * np.array([box.width, box.height])
    return Box(*(box.centre - half).tolist(), *(box.centre + half).tolist())


def _check_image(image: Bytes) -> None:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
    ):
        what = (
            f"{image.dtype} {image.shape}"
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        raise BadPhoto(f"an image is (H, W, 3) uint8 RGB (dff.read_image reads a file), not {what}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise BadPhoto(
            f"an image of {image.shape[1]} x {image.shape[0]} pixels is too small to hold a face"
        )


def check_box(box: Box, image: Bytes) -> Box:
    """``box``. Raises ValueError for one in which an (H, W, 3) image can't show a face."""
    if not isinstance(box, Box):
        raise ValueError(f"a box is a dff.Box(x0, y0, x1, y1), not {box!r}")
    height, width = image.shape[:2]
    if box.x0 >= width or box.y0 >= height or box.x1 <= 0 or box.y1 <= 0:
        raise ValueError(f"{box} lies outside the image of {width} x {height} pixels")
    if box.size < 1 or max(box.width, box.height) > 8 * max(width, height):
        raise ValueError(
            f"{box} has no size a face could have in an image of {width} x {height} pixels"
        )
    return box
