"""What the routes call: photos are decoded and aligned, within limits and off the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import numpy as np
from fastapi import UploadFile

from dff.aligner.align import MIN_SIDE
from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.service.admission import AdmissionControl
from dff.aligner.service.batching import (
    AlignPhotos,
    FaceAligner,
    Outcome,
    Photo,
    align_each,
    warm_up,
)
from dff.aligner.service.forms import BoxCorners, read_pixels, to_boxes
from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem, log_defect, to_problem
from dff.aligner.service.schema import (
    FaceAnswer,
    ImageSize,
    ModelInfo,
    PhotoFaces,
    PhotoRefused,
    Timing,
)
from dff.face.arrays import Bytes, Ints
from dff.face.errors import BadPhoto, NoFace
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel

INSIDE = ("teeth", "tongue", "mouth")  # regions behind the lips, which a drawing leaves out


@dataclass(frozen=True)
class PhotoResult:
    """The faces of one photo, at least one."""

    faces: list[Alignment]
    image: ImageSize
    timing: Timing


@dataclass(frozen=True)
class BatchResult:
    """Faces or a problem for each photo of a batch."""

    photos: list[PhotoFaces | PhotoRefused]
    timing: Timing


@dataclass(frozen=True)
class PersonResult:
    """One person in the photos of a request; each photo has a face or a problem."""

    person: PersonAlignment
    photos: list[tuple[Alignment, ImageSize] | Problem]
    timing: Timing


class AlignService:
    """An aligner within limits; one for each application, as ``app.state.service``.

    ``align`` replaces direct calls of ``aligner.align_batch`` in threads: a server that batches the
    photos of all requests gives its own.
    """

    def __init__(
        self,
        aligner: FaceAligner,
        *,
        limits: Limits,
        align: AlignPhotos | None = None,
        root_path: str = "",
    ) -> None:
        self.aligner, self.limits, self.root_path = aligner, limits, root_path
        self.ready = False  # whether the aligner has aligned once
        self.model = aligner.model
        self.model_info = ModelInfo(
            face_model=self.model.name,
            face_model_licence=self.model.licence,
            expression_names=list(self.model.expression_names),
            weights=dict(aligner.card),
        )
        self.triangles: list[tuple[int, int, int]] = drawn_triangles(self.model).tolist()
        self._admission = AdmissionControl(limits)
        self._threads = anyio.CapacityLimiter(limits.alignments)
        self._align = align or self._align_in_thread

    async def warm_up(self) -> None:
        """Align once; ``ready`` tells whether that went well."""
        try:
            await anyio.to_thread.run_sync(warm_up, self.aligner, limiter=self._threads)
        except Exception:
            logging.getLogger(__name__).exception("warming up failed: this server stays unready")
        else:
            self.ready = True

    async def align_photo(
        self, image: UploadFile, corners: Sequence[BoxCorners] | None
    ) -> PhotoResult:
        """Every face of a photo; in ``corners`` only, where they are given.

        Raises BadPhoto, and Problem ``busy``, ``too-large``, ``bad-boxes`` or ``no-face``.
        """
        async with self._admission.admit():
            started = time.perf_counter()
            pixels = await read_pixels(image, self.limits)
            boxes = None if corners is None else to_boxes(corners, pixels)
            decoded = time.perf_counter()
            (outcome,) = await self._align([(pixels, boxes)])
            if isinstance(outcome, Exception):
                raise outcome
            if not outcome:
                raise Problem("no-face")
            return PhotoResult(outcome, image_size(pixels), _timing(started, decoded))

    async def align_batch(
        self,
        images: Sequence[UploadFile],
        corners: Sequence[Sequence[BoxCorners] | None],
        *,
        mesh: bool,
        request_id: str,
    ) -> BatchResult:
        """Every face of several photos, of which each fails alone; answers with ``mesh`` on demand.

        Photos are aligned as soon as a batch is decoded, and let go. Raises Problem ``busy``.
        """
        async with self._admission.admit():
            photos: dict[int, PhotoFaces | PhotoRefused] = {}
            held: dict[int, Photo] = {}
            decoding = aligning = 0.0
            for number, (image, some) in enumerate(zip(images, corners, strict=True)):
                started = time.perf_counter()
                try:
                    pixels = await read_pixels(image, self.limits)
                    held[number] = pixels, None if some is None else to_boxes(some, pixels)
                except (Problem, BadPhoto) as error:
                    photos[number] = refuse_photo(error, self.root_path)
                decoded = time.perf_counter()
                decoding += decoded - started
                if held and (number == len(images) - 1 or self._is_full(held)):
                    outcomes = await self._align([*held.values()])
                    aligning += time.perf_counter() - decoded
                    answer = partial(
                        _answer_photos,
                        mesh=mesh,
                        request_id=request_id,
                        root_path=self.root_path,
                    )
                    photos |= await anyio.to_thread.run_sync(answer, held, outcomes)
                    held.clear()
            timing = Timing(decode_ms=_milliseconds(decoding), align_ms=_milliseconds(aligning))
            return BatchResult([photos[number] for number in range(len(images))], timing)

    async def align_person(
        self, images: Sequence[UploadFile], corners: Sequence[BoxCorners | None]
    ) -> PersonResult:
        """One person in several photos; photos that can't be used have a problem instead of a face.

        Raises Problem ``busy``, ``too-many-pixels``, ``no-face`` when no photo shows a face, or the
        first photo's problem when none is readable.
        """
        async with self._admission.admit(person=True):
            started = time.perf_counter()
            problems: dict[int, Problem] = {}
            held: dict[int, tuple[Bytes, Box | None]] = {}
            for number, (image, some) in enumerate(zip(images, corners, strict=True)):
                try:
                    held[number] = await self._read_person_photo(image, some)
                except (Problem, BadPhoto) as error:
                    problems[number] = to_problem(error)
                self._check_person_pixels(held)
            if not held:
                raise problems[0]
            decoded = time.perf_counter()
            person = await self._align_person_in_thread(held)
            photos: list[tuple[Alignment, ImageSize] | Problem] = []
            places = {number: place for place, number in enumerate(held)}
            for number in range(len(images)):
                if number in problems:
                    photos.append(problems[number])
                elif (face := person.faces[places[number]]) is None:
                    photos.append(Problem("no-face", person.left_out[places[number]]))
                else:
                    photos.append((face, image_size(held[number][0])))
            return PersonResult(person, photos, _timing(started, decoded))

    async def _align_in_thread(self, photos: Sequence[Photo]) -> list[Outcome]:
        return await anyio.to_thread.run_sync(
            align_each, self.aligner, photos, limiter=self._threads
        )

    def _is_full(self, held: dict[int, Photo]) -> bool:
        pixels = sum(image.shape[0] * image.shape[1] for image, _ in held.values())
        return len(held) == self.limits.batch or pixels >= self.limits.pixels

    async def _read_person_photo(
        self, image: UploadFile, corners: BoxCorners | None
    ) -> tuple[Bytes, Box | None]:
        pixels = await read_pixels(image, self.limits)
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise Problem("unusable-image")
        return pixels, None if corners is None else to_boxes([corners], pixels)[0]

    def _check_person_pixels(self, held: dict[int, tuple[Bytes, Box | None]]) -> None:
        if sum(im.shape[0] * im.shape[1] for im, _ in held.values()) > self.limits.person_pixels:
            most = self.limits.person_pixels / 1e6
            raise Problem(
                "too-many-pixels",
                f"the photos of one person may have {most:.0f} megapixels together",
            )

    async def _align_person_in_thread(
        self, held: dict[int, tuple[Bytes, Box | None]]
    ) -> PersonAlignment:
        images: list[Bytes] = [pixels for pixels, _ in held.values()]
        boxes: list[Box | None] = [box for _, box in held.values()]
        try:
            return await anyio.to_thread.run_sync(
                self.aligner.align_person, images, boxes, limiter=self._threads
            )
        except NoFace as error:
            raise Problem("no-face", "no photo shows a face that can be aligned") from error


def drawn_triangles(model: MorphableModel) -> Ints:
    """(F, 3) triangles of the model's outside."""
    inside = [i for i, name in enumerate(model.region_names) if name in INSIDE]
    return np.asarray(model.faces[~np.isin(model.region, inside)])


def image_size(pixels: Bytes) -> ImageSize:
    """Size of an (H, W, 3) image."""
    return ImageSize(width=pixels.shape[1], height=pixels.shape[0])


def answer_face(face: Alignment, *, mesh: bool = False, trace: bool = False) -> FaceAnswer:
    """A face as it is answered."""
    return FaceAnswer.model_validate(face.to_json(mesh=mesh, trace=trace))


def refuse_photo(error: Problem | BadPhoto, root_path: str) -> PhotoRefused:
    """A photo's problem in the photo's place. ``root_path``: prefix of the service's paths."""
    return PhotoRefused(problem=to_problem(error).describe(root_path))


def _answer_photos(
    held: Mapping[int, Photo],
    outcomes: Sequence[Outcome],
    *,
    mesh: bool,
    request_id: str,
    root_path: str,
) -> dict[int, PhotoFaces | PhotoRefused]:
    out: dict[int, PhotoFaces | PhotoRefused] = {}
    for (number, (pixels, _)), outcome in zip(held.items(), outcomes, strict=True):
        if isinstance(outcome, BadPhoto):
            out[number] = refuse_photo(outcome, root_path)
        elif isinstance(outcome, Exception):
            log_defect(outcome, request_id)
            out[number] = refuse_photo(Problem("internal"), root_path)
        elif not outcome:
            out[number] = refuse_photo(Problem("no-face"), root_path)
        else:
            faces = [answer_face(face, mesh=mesh) for face in outcome]
            out[number] = PhotoFaces(faces=faces, image=image_size(pixels))
    return out


def _timing(started: float, decoded: float) -> Timing:
    return Timing(
        decode_ms=_milliseconds(decoded - started),
        align_ms=_milliseconds(time.perf_counter() - decoded),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
