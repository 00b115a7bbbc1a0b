"""Images to alignments: detect the faces, fit the face model to them, report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np

from dff.aligner.alignment import (
    Alignment,
    PersonAlignment,
)
from dff.aligner.appearance import AppearanceMeter
from dff.aligner.centre_detector import StagedDetector
from dff.aligner.confidence import (
    DEFAULT,
    SURE_FROM,
    Calibration,
    eye_similarity,
)
from dff.aligner.config import AlignConfig
from dff.aligner.detection import (
    Detection,
    FaceDetector,
    Search,
    overlap,
    same_face,
)
from dff.aligner.detector import DescriptorDetector
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.face_search import (
    Fits,
    build_detector,
    describe_coarse_search,
    find_faces,
    find_turned_faces,
    later_searches,
)
from dff.aligner.fitting.assessment import average_fits
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitModel
from dff.aligner.fitting.fitters import DenseFitter
from dff.aligner.fitting.loop import FaceFitter, Fitter, Pass, fit_passes, last_fit
from dff.aligner.fitting.multi_image import MultiImageFitter
from dff.aligner.fitting.refinement import Refiner
from dff.aligner.found_faces import FoundFaces, accept_faces
from dff.aligner.image_checks import check_box, check_image
from dff.aligner.person_appearance import PersonAppearanceMeter, load_person_statistics
from dff.aligner.person_photos import PersonAligner
from dff.aligner.report import Reporter, SteppedFaces
from dff.aligner.second_attempts import SecondAttempts, start_in_middle
from dff.face.arrays import Array, Bool, Bools, Bytes, Floats
from dff.face.descriptor import Anchors, Network
from dff.face.fused_network import FusedDetectorNet
from dff.face.geometry.camera import Box
from dff.face.model.landmark_offsets import LandmarkOffsets, PoseCorrection
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import ExpressionCorrection
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.landmark_refinement import LandmarkRefinement

T = TypeVar("T")

REPORTERS = 8  # that an aligner keeps, at most: one takes as long as a fifteenth of an alignment


class Aligner:
    """Detects faces, fits the face model to them and reports the alignments.

    Frozen once made: threads may share it.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        *,
        detector: FaceDetector | None = None,
        detector_net: FusedDetectorNet | None = None,
        fitter: FaceFitter | None = None,
        config: AlignConfig | None = None,
        card: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
        landmark_offsets: LandmarkOffsets | None = None,
        pose_correction: PoseCorrection | None = None,
        mean_identity: Floats | None = None,
        fit_correction: FitCorrection | None = None,
        landmark_refinement: LandmarkRefinement | None = None,
        expression_correction: ExpressionCorrection | None = None,
    ) -> None:
        """``fitter``: by default dense correspondence. ``calibration``: of the fitter's fits.
        ``fit_correction``: of dense fits, ``landmark_refinement``: of their landmarks,
        ``expression_correction``: of their activations; by default none.

        ``detector``: by default one of the descriptor network, after a quick search by
        ``detector_net`` where that is given.

        ``landmark_offsets``: where the answered landmarks lie; by default on vertices of ``model``.
        ``pose_correction``: from the pose of the fitted head to the answered one; by default none.
        ``mean_identity``: of fits to photos, relative to which people are compared; by default that
        of the model. Raises ValueError when it has another length.
        """
        self.net = net
        self.anchors = anchors
        self.model = model
        self.config = config or AlignConfig()
        self.multiple: int = net.config.multiple if hasattr(net, "config") else 32
        self.card = dict(card or {})  # where the weights come from
        self.calibration = calibration or DEFAULT
        self.landmark_offsets = landmark_offsets or LandmarkOffsets()
        self.pose_correction = pose_correction or PoseCorrection()
        if mean_identity is None or mean_identity.size == 0:
            mean_identity = np.zeros(len(model.identity))
        if len(mean_identity) != len(model.identity):
            raise ValueError(
                f"a mean identity of {len(mean_identity)} coefficients for a model of "
                f"{len(model.identity)}"
            )
        self.mean_identity = mean_identity
        self.fit_correction, self.landmark_refinement = fit_correction, landmark_refinement
        self.expression_correction = expression_correction
        # by the id of their fit model, with what they were made of
        self._reporters: dict[int, tuple[tuple[Any, ...], Reporter]] = {}
        dense = self._dense_fitter(self.config)
        self.fitter: FaceFitter = fitter or dense
        self.fit_model = dense.fit_model
        self.detector = detector or build_detector(
            net, anchors, self.fit_model, self.config, detector_net, multiple=self.multiple
        )

    def _dense_fitter(self, config: AlignConfig) -> DenseFitter:
        return DenseFitter(
            self.net,
            self.anchors,
            self.model,
            config,
            self.fit_correction,
            self.landmark_refinement,
            self.expression_correction,
        )

    def without_annotation_bias(self) -> Self:
        """The same aligner, whose landmarks are vertices and whose pose is that of the mesh.

        So are those of rendered faces.
        """
        raw = copy(self)
        raw.landmark_offsets, raw.pose_correction = LandmarkOffsets(), PoseCorrection()
        raw.landmark_refinement = None
        vars(raw).pop("patient_fitter", None)  # it was made with the refinement
        return raw.with_refiner(None)

    def with_refiner(self, refiner: Refiner | None) -> Self:
        """The same aligner with another refinement of the landmarks of dense fits, or none."""
        other = copy(self)
        if isinstance(self.fitter, DenseFitter):
            other.fitter = self.fitter.with_refiner(refiner)
        return other

    def with_dense_fits(
        self,
        *,
        anchors: Anchors | None = None,
        fit_correction: FitCorrection | None = None,
        expression_correction: ExpressionCorrection | None = None,
    ) -> Aligner:
        """A dense aligner with other anchors, or with corrections of its fits.

        Without ``pose_correction``, ``mean_identity`` and ``landmark_refinement``, which were
        measured on the fits before.
        """
        return Aligner(
            self.net,
            anchors or self.anchors,
            self.model,
            config=self.config,
            card=self.card,
            calibration=self.calibration,
            landmark_offsets=self.landmark_offsets,
            fit_correction=fit_correction,
            expression_correction=expression_correction,
        )

    def with_quick_search(self) -> Self:
        """The same aligner, which detects faces in a photo shrunk as a whole and upright only.

        For the frames of a video and for a server, which have less time than a person with a large
        photo. Detectors of other programs are kept as they are.
        """
        quick = copy(self)
        quick.config = replace(self.config, quarter_turns=False)
        if isinstance(self.detector, DescriptorDetector | StagedDetector):
            quick.detector = self.detector.without_tiles()
        return quick

    def without_turned_starts(self) -> Self:
        """The same aligner, which begins with upright faces in given boxes only."""
        other = copy(self)
        other.config = replace(self.config, turned_starts=None)
        return other

    def prepare(self) -> None:
        """Build what is otherwise built for the first photos of one person, in 0.8 s."""
        _ = self.person_meter, self.multi_image_fitter

    def describe_search(self, image: Bytes) -> str:
        """A note that an image is searched coarser than by default: small faces may be missing.

        "" for an image that is not: a quick search leaves out the tiles of images of more than
        ``DetectorConfig.untiled`` pixels.
        """
        return describe_coarse_search(self.detector, self.config, image)

    def align(self, image: Bytes, boxes: Sequence[Box] | None = None) -> list[Alignment]:
        """One alignment for each box of an (H, W, 3) uint8 RGB image, or for each face found.

        The alignment of a given box may say that it failed; detected faces whose fit fails are left
        out. So the list may be empty: it is a ``FoundFaces``, which tells what was refused. A face
        in a given box may lie on its side or upside down. Raises BadPhoto for an array that is no
        such image, ValueError for a box outside of the image.
        """
        return self.align_batch([image], None if boxes is None else [boxes])[0]

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        """``align`` of many images at once, many faces in each call of the network.

        Where the boxes of an image are None its faces are detected; where none is surely found
        upright (``SURE_FROM``), in the three other quarter turns of the photo too, shrunk to
        ``DetectorConfig.longest``.
        """
        return self.run_to_end(self.align_in_steps(images, boxes, faces=self.config.batch))

    def align_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Sequence[Box] | None] | None = None,
        *,
        faces: int,
    ) -> Steps[list[list[Alignment]]]:
        """``align_batch`` as a generator that returns its value and yields between steps.

        It yields requests to align at most ``faces`` faces, which ``align_requests`` answers, and
        None between the steps of searches and of second fits. A server can do other work in
        between, and answer several requests at once. Raises as ``align_batch``.
        """
        if boxes is not None and len(boxes) != len(images):
            raise ValueError(f"{len(images)} images with boxes for {len(boxes)}")
        for image in images:
            check_image(image)
        asked = [None] * len(images) if boxes is None else boxes
        detections: list[tuple[int, Detection]] = []
        for i, (image, some) in enumerate(zip(images, asked, strict=True)):
            if i > 0 and some is None:
                yield None
            found = yield from self._detect(image, some)
            detections += [(i, detection) for detection in found]
        given = [some is not None for some in asked]
        fits = yield from self._align_faces(images, detections, given, faces)
        fits = [some if given[i] else self._confirm_fits(some) for i, some in enumerate(fits)]
        out = [
            [face for _, face in some] if given[i] else accept_faces([face for _, face in some])
            for i, some in enumerate(fits)
        ]
        failed = [
            [face for _, face in some if face.failed and not given[i]]
            for i, some in enumerate(fits)
        ]
        for search in later_searches(self.detector, self.config, self._detect_turned):
            unsure = [
                i for i, some in enumerate(fits) if not given[i] and search.is_due(some, out[i])
            ]
            more: list[tuple[int, Detection]] = []
            for i in unsure:
                yield None
                found = yield from search.find(images[i])
                more += [(i, detection) for detection in found]
            second = yield from self._align_faces(images, more, given, faces)
            for i, fitted in enumerate(second):
                if search.needs_eyes:
                    fitted = [(one, face) for one, face in fitted if self._shows_eyes(face)]
                later = self._confirm_fits(fitted) if search.upright else fitted
                if search.upright:
                    fits[i] += later
                failed[i] += [face for _, face in later if face.failed]
                out[i] = accept_faces(out[i] + [face for _, face in later]) if later else out[i]
        for i, fitted in enumerate(fits):
            if not given[i]:
                refits = yield from self._refit(images[i], fitted, out[i])
                out[i] = accept_faces(out[i] + refits) if refits else out[i]
        return [FoundFaces(some, failed[i]) for i, some in enumerate(out)]

    def align_requests(self, requests: Sequence[FaceRequest]) -> list[list[Alignment]]:
        """The alignments that each request of ``align_in_steps`` asks for, all in one batch."""
        images = [image for request in requests for image in request.images]
        detections = [found for request in requests for found in request.detections]
        beside_sure = [sure for request in requests for sure in request.beside_sure]
        rest = iter(self._align_detections(images, detections, beside_sure))
        return [[next(rest) for _ in request.detections] for request in requests]

    def run_to_end(self, steps: Steps[T]) -> T:
        """Run a call in steps without a pause; returns what the call returns."""
        answer: list[Alignment] | None = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            answer = None if request is None else self.align_requests([request])[0]

    def _align_faces(
        self,
        images: Sequence[Bytes],
        faces: Sequence[tuple[int, Detection]],
        given: Sequence[bool],
        step: int,
    ) -> Steps[list[list[tuple[Detection, Alignment]]]]:
        """The alignments of ``faces``, by number of their image; asks for ``step`` at a time.

        ``given``: whether the boxes of an image were given.
        """
        out: list[list[tuple[Detection, Alignment]]] = [[] for _ in images]
        for begin in range(0, len(faces), step):
            chunk = faces[begin : begin + step]
            sure = [any(_is_sure(face) for _, face in some) for some in out]
            answer = yield FaceRequest(
                [images[i] for i, _ in chunk],
                [detection for _, detection in chunk],
                left=len(faces) - begin - len(chunk),
                beside_sure=[sure[i] for i, _ in chunk],
            )
            found = [*(answer or ())]
            known = [k for k, (i, _) in enumerate(chunk) if given[i]]
            upright = [found[k] for k in known]
            attempts = SecondAttempts(self.config, self.fit_model, self.fitter, self.reporter)
            again = yield from attempts.align_in_steps(
                images, [chunk[k] for k in known], upright, step
            )
            for k, face in zip(known, again, strict=True):
                found[k] = face
            for (i, detection), alignment in zip(chunk, found, strict=True):
                out[i].append((detection, alignment))
        return out

    def _shows_eyes(self, face: Alignment) -> bool:
        """Whether the network sees eyes where a fit has them."""
        least = self.config.eye_evidence.least_unlikely
        return face.features is not None and bool(eye_similarity(face.features) >= least)

    def _confirm_fits(self, fits: Fits) -> list[tuple[Detection, Alignment]]:
        """The detections of a photo and their fits, which they may confirm."""
        detections = [detection for detection, _ in fits]
        faces = self._confirm([face for _, face in fits], detections)
        return [*zip(detections, faces, strict=True)]

    def _confirm(
        self, faces: Sequence[Alignment], detections: Iterable[Detection]
    ) -> list[Alignment]:
        """The fitted faces of a photo, in which eyes and ``detections`` may confirm refused ones.

        Confident ones of the quick search do: scores of other detectors are no probabilities.
        """
        config = self.config
        if not any(face.failed for face in faces):
            return [*faces]
        reporter = self.reporter(self.fit_model)
        if isinstance(self.fitter, DenseFitter):
            faces = [reporter.confirm_by_eyes(face, config.eye_evidence) for face in faces]
        likely = [one for one in detections if one.score >= config.centre_detector.sure]
        if not likely or not isinstance(self.detector, StagedDetector):
            return [*faces]
        out = list[Alignment]()
        for face in faces:
            fitted = Box.around(face.landmarks_3d[:, :2]).corners
            scores = [
                one.score
                for one in likely
                if overlap(one.box.corners, fitted) >= config.confirming_overlap
            ]
            out.append(reporter.confirm(face, max(scores)) if scores else face)
        return out

    def _refit(
        self,
        image: Bytes,
        fits: Fits,
        known: Sequence[Alignment],
    ) -> Steps[list[Alignment]]:
        """The fits from other starts and in more passes of likely faces whose fits were rejected.

        Also of those that only a second opinion on the fit has accepted. ``fits``: the detections
        and their fits. ``known``: the faces of the image so far.
        """
        config, is_doubted = self.config.refit, self.reporter(self.fit_model).is_doubted
        if config is None or not isinstance(self.fitter, DenseFitter):
            return []
        doubted = [(detection, face) for detection, face in fits if is_doubted(face)]
        if not doubted:
            return []
        places = [Box.around(face.landmarks_3d[:, :2]) for face in known if not is_doubted(face)]
        largest = max((box.size for box in places), default=0.0)
        starts, boxes = list[Detection](), list[Box]()
        for detection, face in doubted:
            sure = detection.score >= self.config.centre_detector.sure
            is_largest = largest < config.others_size * detection.box.size
            least = config.least_alone if is_largest else np.inf
            if (
                face.face_confidence >= (config.least_confidence if sure else least)
                and detection.box.size >= config.least_size * largest
                and not any(same_face(detection.box, box) for box in places)
            ):
                starts += [
                    detection,
                    *(start_in_middle(detection.box, side) for side in config.boxes),
                ]
                boxes += [detection.box] * (1 + len(config.boxes))
        if not starts:
            return []
        fitter = self.patient_fitter
        images = [image] * len(starts)
        found = yield from self._align_in_steps(fitter, images, boxes, fitter.begin(starts))
        return self._confirm(found, [detection for detection, _ in fits])

    @cached_property
    def patient_fitter(self) -> DenseFitter:
        """The fitter of ``AlignConfig.refit``; made when first used."""
        config = self.config
        if config.refit is not None:
            config = replace(config, passes=max(config.passes, config.refit.passes))
        return self._dense_fitter(config)

    def track(
        self, images: Sequence[Bytes], before: Sequence[Sequence[Alignment]]
    ) -> list[list[Alignment]]:
        """Alignments that begin from those of a neighbouring frame; no face is detected.

        For each image one alignment for each of ``before``, in their order; it may say that it
        failed. Raises BadPhoto as ``align``, ValueError when there are not as many lists as images.
        """
        return self.run_to_end(self.track_in_steps(images, before))

    def track_in_steps(
        self, images: Sequence[Bytes], before: Sequence[Sequence[Alignment]]
    ) -> Steps[list[list[Alignment]]]:
        """``track`` as a generator that returns its value and yields between parts of passes."""
        if len(images) != len(before):
            raise ValueError(f"{len(images)} images with alignments for {len(before)}")
        for image in images:
            check_image(image)
        faces = [(image, face) for image, some in zip(images, before, strict=True) for face in some]
        out: list[Alignment] = []
        for begin in range(0, len(faces), self.config.batch):
            chunk = faces[begin : begin + self.config.batch]
            boxes = [Box.around(face.landmarks_3d[:, :2]) for _, face in chunk]
            start = self.fitter.resume([face for _, face in chunk])
            some = [image for image, _ in chunk]
            found = yield from self._align_in_steps(self.fitter, some, boxes, start)
            out += found
        rest = iter(out)
        return [[next(rest) for _ in some] for some in before]

    def align_person(
        self, images: Sequence[Bytes], boxes: Sequence[Box | None] | None = None
    ) -> PersonAlignment:
        """One identity for several photos of one person, and a pose and expression for each.

        Where no box is given, the face on which the photos agree is the person, among faces that
        agree alike the largest. Photos without a face, whose alignment failed, or whose face is
        someone else's are left out and named in the answer. Photos that may show someone else are
        kept and named in ``PersonAlignment.doubts``. The face may differ from what identities of
        the model form, by ``PersonAlignment.residual_deformation``. Raises NoFace when no photo is
        left, else as ``align``.
        """
        return self.run_to_end(self.align_person_in_steps(images, boxes, faces=self.config.batch))

    def align_person_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Box | None] | None = None,
        *,
        faces: int,
    ) -> Steps[PersonAlignment]:
        """``align_person`` as a generator, as ``align_in_steps`` is one of ``align_batch``.

        It also yields between the parts of the passes of the fit to all photos.
        """
        if not images or (boxes is not None and len(boxes) != len(images)):
            raise ValueError(
                f"{len(images)} images with boxes for {len(images if boxes is None else boxes)}"
            )
        asked = None if boxes is None else [None if box is None else [box] for box in boxes]
        every = yield from self.align_in_steps(images, asked, faces=faces)
        person = PersonAligner(
            self.model,
            self.config.multi_image,
            self.person_meter,
            self._align_photos_of_person,
        )
        aligned = yield from person.align_in_steps(images, every, boxes)
        return aligned

    @cached_property
    def appearance_meter(self) -> AppearanceMeter:
        """Measures the appearance of faces, to compare people; made when first used."""
        return AppearanceMeter(self.model)

    @cached_property
    def person_meter(self) -> PersonAppearanceMeter:
        """Tells whether faces are one person's; made when first used."""
        meter = self.appearance_meter
        statistics = load_person_statistics(self.model, len(meter.points))
        return PersonAppearanceMeter(meter, self.mean_identity, statistics)

    @cached_property
    def multi_image_fitter(self) -> MultiImageFitter:
        """The fitter of several photos of one person; made when first used."""
        return MultiImageFitter(
            self.net,
            self.anchors,
            self.model,
            self.config,
            self.fit_correction,
            self.expression_correction,
            multiple=self.multiple,
        )

    def _align_photos_of_person(
        self, images: Mapping[int, Bytes], alone: Mapping[int, Alignment]
    ) -> Steps[dict[int, Alignment]]:
        """The faces by number of their photo, of one identity, from those aligned alone."""
        boxes = [face.box for face in alone.values()]
        fitter = self.multi_image_fitter
        start = fitter.begin([*alone.values()])
        found = yield from self._align_in_steps(fitter, [*images.values()], boxes, start)
        if any(face.failed for face in found):  # by soft correspondences alone they may not
            dense = fitter.without_photometric()
            found = yield from self._align_in_steps(dense, [*images.values()], boxes, start)
        return dict(zip(alone, found, strict=True))

    def _detect(self, image: Bytes, boxes: Sequence[Box] | None) -> Search[list[Detection]]:
        if boxes is not None:
            return [Detection(check_box(box, image), given=True) for box in boxes]
        found = yield from find_faces(self.detector, image)
        return found

    def _detect_turned(self, image: Bytes) -> Search[list[Detection]]:
        return find_turned_faces(self.detector, image, longest=self.config.detector.longest)

    def _align_detections(
        self, images: list[Bytes], detections: list[Detection], beside_sure: Sequence[bool] = ()
    ) -> list[Alignment]:
        boxes = [detection.box for detection in detections]
        others = self.fitter.at_crops() if isinstance(self.fitter, DenseFitter) else ()
        return self.align_from(
            self.fitter,
            images,
            boxes,
            self.fitter.begin(detections),
            averaged=[(other, other.begin(detections)) for other in others],
            rivals=(
                _group_rivals(images, detections, beside_sure)
                if self.config.doubtful_stop > 0.0
                else ()
            ),
        )

    def align_from(
        self,
        fitter: Fitter,
        images: Sequence[Bytes],
        boxes: Sequence[Box],
        start: FaceFit,
        *,
        averaged: Sequence[tuple[Fitter, FaceFit]] = (),
        rivals: Sequence[Rivals] = (),
    ) -> list[Alignment]:
        """Fit B faces, each in its image, from ``start`` and report them.

        ``averaged``: fitters of the same fit model, with their starts, whose states are averaged
        with those of ``fitter``. ``rivals``: faces of which ``_find_outdone`` gives up some after a
        pass; by default none.
        """
        steps = self._align_in_steps(fitter, images, boxes, start, averaged=averaged, rivals=rivals)
        return self.run_to_end(steps)

    def _align_in_steps(
        self,
        fitter: Fitter,
        images: Sequence[Bytes],
        boxes: Sequence[Box],
        start: FaceFit,
        *,
        averaged: Sequence[tuple[Fitter, FaceFit]] = (),
        rivals: Sequence[Rivals] = (),
    ) -> Steps[list[Alignment]]:
        """``align_from`` as a generator, which yields after each part of a pass."""
        reporter = self.reporter(fitter.fit_model)
        passes: list[SteppedFaces] = []

        def give_up(done: Pass) -> Bools:
            out = np.zeros(len(done.faces), dtype=bool)
            for some in rivals:
                rows = np.flatnonzero(some.faces[done.faces])
                if len(rows) > 1 or (some.beside_sure and len(rows) > 0):
                    fit = done.fit if len(rows) == len(out) else done.fit[rows]
                    out[rows] = self._find_outdone(reporter, fit, some.beside_sure)
            return out

        fit = start
        for done in fit_passes(fitter, images, start, give_up=give_up):
            if done is not None:
                fit = done.all_faces
                passes.append(SteppedFaces.of(done))
            yield None
        if averaged:
            others = []
            for other, begin in averaged:
                last = yield from last_fit(other, images, begin)
                others.append(last)
            fit = average_fits(fitter.fit_model, fit, others)
        return reporter.report(fit, boxes, passes)

    def _find_outdone(self, reporter: Reporter, fit: FaceFit, beside_sure: bool) -> Bools:
        """(B,) which faces of one image are probably none, or repeat the fit of a sure face.

        By ``AlignConfig.doubtful_stop`` and ``repeated_stop``; none where no face is sure.
        ``beside_sure``: whether another one is, which is not among them.
        """
        config, confidence = self.config, reporter.face_confidence(fit)
        sure = confidence >= SURE_FROM
        outdone = (confidence < config.doubtful_stop) & (beside_sure or sure.any())
        size = reporter.fit_model.face_size(fit.state)
        surest_first = np.argsort(-confidence, kind="stable")
        for at, i in enumerate(surest_first):
            better = surest_first[:at]
            apart = np.linalg.norm(fit.landmarks[better] - fit.landmarks[i], axis=2).mean(1)
            outdone[i] |= bool((sure[better] & (apart < config.repeated_stop * size[better])).any())
        return np.asarray(outdone)

    def reporter(self, fit_model: FitModel) -> Reporter:
        """Reports fits of a fit model as this aligner does."""
        config = self.config
        limits = {
            "fewest_visible": config.fewest_visible,
            "turned_away": config.detector.turned_away,
        }
        parts = fit_model, self.calibration, self.landmark_offsets, self.pose_correction
        made = self._reporters.get(id(fit_model))
        # copies of this aligner with other parts share the cache
        key = (*parts, *limits.values())
        if made is None or any(a is not b for a, b in zip(made[0], key, strict=True)):
            if len(self._reporters) >= REPORTERS:
                self._reporters.clear()
            made = self._reporters[id(fit_model)] = key, Reporter(*parts, **limits)  # type: ignore[arg-type]
        return made[1]


@dataclass(frozen=True, eq=False)
class Rivals:
    """Faces that were detected in one image, some of which may be none."""

    faces: Bool[Array, " faces"]  # of all that are aligned at a time: whether a face is one of them
    beside_sure: bool  # whether another face of the image is sure


def _group_rivals(
    images: Sequence[Bytes], detections: Sequence[Detection], beside_sure: Sequence[bool]
) -> list[Rivals]:
    """The rivals of each image that shows several faces.

    ``beside_sure``: of each face, whether a sure one of its image was aligned before; by default
    of none.
    """
    found: dict[int, Bools] = {}
    for i, (image, detection) in enumerate(zip(images, detections, strict=True)):
        if not detection.given:
            found.setdefault(id(image), np.zeros(len(images), dtype=bool))[i] = True
    sure = np.array(beside_sure or [False] * len(images))
    rivals = [Rivals(some, bool(sure[some].any())) for some in found.values()]
    return [some for some in rivals if some.beside_sure or some.faces.sum() > 1]


def _is_sure(face: Alignment) -> bool:
    return not face.failed and face.face_confidence >= SURE_FROM
