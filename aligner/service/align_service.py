"""The service behind the routes: decodes and aligns photos, within limits, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import numpy as np
from fastapi import UploadFile

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.face_description import FaceDescriber
from dff.aligner.image_checks import MIN_SIDE
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.landmark_sets import WrongModel
from dff.aligner.service.face_aligner import FaceAligner, warm_up
from dff.aligner.service.garbage import exempt_objects
from dff.aligner.service.http.forms import (
    BoxCorners,
    read_pixel_count,
    read_upload,
    to_boxes,
)
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.http.measures import Measures, get_measures, measuring
from dff.aligner.service.http.problems import KINDS, Problem, log_defect, to_problem
from dff.aligner.service.http.worker_threads import run_to_end
from dff.aligner.service.memory import DECODING, DecodingMemory
from dff.aligner.service.scheduler import Scheduler, refuse_deadline
from dff.aligner.service.schema import (
    FaceAnswer,
    ImageSize,
    ModelInfo,
    PhotoFaces,
    PhotoRefused,
    Timing,
    WeightsInfo,
)
from dff.face.arrays import Bytes, Ints
from dff.face.errors import BadPhoto, NoFace
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import DecodedImage

INSIDE = ("teeth", "tongue", "mouth")  # regions behind the lips, which a drawing leaves out
# Pixels of a photo from which on it is decoded alone: two of 12 megapixels together took all cores
# from the aligner of a small one, which then took 0.3 s.
LARGE = 4_000_000


Describe = Callable[[Alignment, Intrinsics], FaceAnswer]
"""A face, and the camera of its photo, as they are answered."""
Render = Callable[[Sequence[Alignment], Bytes], bytes]
"""Makes a file of the faces, at least one, and the (H, W, 3) uint8 RGB photo that shows them."""
RenderPerson = Callable[[PersonAlignment, Sequence[Bytes]], bytes]
"""The same of a person; with a photo for each of the person's faces."""


@dataclass(frozen=True)
class PhotoResult:
    """The faces of one photo, at least one."""

    faces: list[Alignment]
    image: ImageSize
    camera: Intrinsics
    timing: Timing
    warnings: list[str] | None = None  # what the faces may lack, if anything
    rendered: bytes | None = None  # by the ``Render`` of the call, if there was one


@dataclass(frozen=True)
class BatchResult:
    """Faces or a problem for each photo of a batch."""

    photos: list[PhotoFaces | PhotoRefused]
    timing: Timing


@dataclass(frozen=True)
class PersonResult:
    """One person in the photos of a request; each photo has a face or a problem."""

    person: PersonAlignment
    photos: list[tuple[Alignment, ImageSize, Intrinsics] | Problem]
    doubts: Mapping[int, str]  # about the person, by number of the photo
    timing: Timing
    rendered: bytes | None = None  # by the ``RenderPerson`` of the call, if there was one


class AlignService:
    """An aligner within limits; one for each application, as ``app.state.service``.

    Its methods take a ``deadline``, seconds of the monotonic clock. They raise Problem ``busy``
    when the service holds as many requests as it may, and ``deadline`` when the answer would be
    late; as soon as that is known.
    """

    def __init__(self, aligner: FaceAligner, *, limits: Limits, root_path: str = "") -> None:
        self.limits, self.root_path = limits, root_path
        self.ready = False  # whether the aligner has aligned once
        self._take(aligner)
        self.scheduler = Scheduler(aligner, limits)
        self.memory = DecodingMemory(limits.decoded, small=limits.small_decoded)
        self.held = 0  # requests
        self.sessions = 0  # of tracking
        self._decoding = asyncio.Semaphore(1)  # of large photos
        self._person = asyncio.Semaphore(1)  # all photos of one person are held at once
        self._rendering = asyncio.Semaphore(1)  # beside the aligner's thread, one more computes

    def replace_aligner(self, aligner: FaceAligner) -> None:
        """Answer further requests by another aligner, which has aligned once."""
        self._take(aligner)
        self.scheduler.aligner = aligner
        exempt_objects()

    def _take(self, aligner: FaceAligner) -> None:
        self.aligner, self.model = aligner, aligner.model
        self.model_info = describe_model(aligner)
        self.triangles: list[tuple[int, int, int]] = drawn_triangles(self.model).tolist()

    async def warm_up(self) -> None:
        """Align once; ``ready`` tells whether that went well."""
        try:
            await self.scheduler.run(partial(warm_up, self.aligner))
        except Exception:
            logging.getLogger(__name__).exception("warming up failed: this server stays unready")
        else:
            self.ready = True

    async def align_photo(
        self,
        image: UploadFile,
        corners: Sequence[BoxCorners] | None,
        *,
        focal: float | None = None,
        deadline: float = math.inf,
        slowdown: float = math.inf,
        render: Render | None = None,
    ) -> PhotoResult:
        """Every face of a photo; in ``corners`` only, where they are given.

        ``focal``: pixels, if the client gave it. ``slowdown``: how many times as long as alone a
        photo of many faces may take. ``render`` runs in a thread. Raises BadPhoto,
        Problem ``too-large``, ``bad-boxes`` or ``no-face``, and what ``render`` raises.
        """
        async with self.admit(deadline):
            return await self._align(
                image, corners, deadline, slowdown=slowdown, focal=focal, render=render
            )

    async def align_batch(
        self,
        images: Sequence[UploadFile],
        corners: Sequence[Sequence[BoxCorners] | None],
        *,
        describe: Describe,
        request_id: str,
        focal: float | None = None,
        deadline: float = math.inf,
    ) -> BatchResult:
        """Every face of several photos, of which each fails alone; answers as of ``describe``.

        ``focal``: pixels, of every photo, if the client gave it.
        As many photos at a time as the aligner takes in one call.
        """
        started = time.monotonic()
        decoding: list[float] = []
        turns = asyncio.Semaphore(self.limits.batch)

        async def answer(image: UploadFile, some: Sequence[BoxCorners] | None) -> Any:
            async with turns:
                try:
                    result = await self._align(image, some, deadline, focal=focal)
                except (Problem, BadPhoto) as error:
                    return refuse_photo(error, self.root_path)
                except Exception as error:
                    log_defect(error, request_id)
                    return refuse_photo(Problem("internal"), self.root_path)
                decoding.append(result.timing.decode_ms)
                return await anyio.to_thread.run_sync(partial(_answer_photo, result, describe))

        async with self.admit(deadline), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(answer(image, some))
                for image, some in zip(images, corners, strict=True)
            ]
        photos = [task.result() for task in tasks]
        took = _milliseconds(time.monotonic() - started)
        decode = round(sum(decoding), 1)
        align = round(max(took - decode, 0.0), 1)
        return BatchResult(photos, Timing(queue_ms=0.0, decode_ms=decode, align_ms=align))

    async def align_person(
        self,
        uploads: Sequence[UploadFile],
        corners: Sequence[BoxCorners | None],
        *,
        focal: float | None = None,
        deadline: float = math.inf,
        render: RenderPerson | None = None,
    ) -> PersonResult:
        """One person in several photos; photos that can't be used have a problem instead of a face.

        Raises Problem ``too-many-pixels``, ``no-face`` when no photo shows a face, or the first
        photo's problem when none is readable.
        """
        arrived = time.monotonic()
        measures = get_measures()
        most = self.limits.person_pixels * 3 + self.limits.pixels * DECODING
        async with self.admit(deadline), self._person, self.memory.hold(most):
            measures.count("queue", time.monotonic() - arrived)
            problems: dict[int, Problem] = {}
            held: dict[int, tuple[Bytes, Box | None]] = {}
            cameras: dict[int, Intrinsics] = {}
            for number, (upload, some) in enumerate(zip(uploads, corners, strict=True)):
                try:
                    held[number], cameras[number] = await self._read_person_photo(
                        upload, some, focal
                    )
                except (Problem, BadPhoto) as error:
                    problems[number] = to_problem(error)
                self._check_person_pixels(held)
            if not held:
                raise problems[0]
            person = await self._align_person(held)
            photos: list[tuple[Alignment, ImageSize, Intrinsics] | Problem] = []
            places = {number: place for place, number in enumerate(held)}
            for number in range(len(uploads)):
                if number in problems:
                    photos.append(problems[number])
                elif (face := person.faces[places[number]]) is None:
                    photos.append(Problem("no-face", person.left_out[places[number]]))
                else:
                    photos.append((face, image_size(held[number][0]), cameras[number]))
            count_faces([face for face in person.faces if face is not None])
            rendered = None
            if render is not None:
                images = [pixels for pixels, _ in held.values()]
                rendered = await self._run_apart(partial(render, person, images))
            doubts = {n: person.doubts[p] for n, p in places.items() if p in person.doubts}
            return PersonResult(person, photos, doubts, tell_timing(measures), rendered)

    @asynccontextmanager
    async def admit(self, deadline: float = math.inf) -> AsyncIterator[None]:
        """Hold a request for the length of a ``with`` block, which ends at the deadline.

        For routes that call the aligner themselves, by ``scheduler.run`` and ``decoded_photos``.
        Raises Problem ``busy`` or ``deadline``.
        """
        get_measures().waiting = self.scheduler.waiting
        if self.held >= self.limits.requests:
            wait = max(1, math.ceil(self.scheduler.expect_wait(0.0)))
            raise Problem("busy", headers={"Retry-After": str(wait)})
        self.scheduler.check_deadline(self.scheduler.durations.unit, deadline)
        left = None if math.isinf(deadline) else max(deadline - time.monotonic(), 0.0)
        self.held += 1
        try:
            async with asyncio.timeout(left):
                yield
        except TimeoutError as error:
            raise refuse_deadline(self.scheduler.expect_wait(0.0)) from error
        finally:
            self.held -= 1

    @asynccontextmanager
    async def decoded_photos(self, *images: UploadFile) -> AsyncIterator[list[DecodedImage]]:
        """The images of uploaded files, upright, within the memory for decoded photos.

        Waits while others hold that memory. Measures the request. Raises BadImage, and Problem
        ``too-large``.
        """
        arrived = time.monotonic()
        counts = [await read_pixel_count(image, self.limits) for image in images]
        async with self.memory.hold(DECODING * sum(counts)) as holding:
            get_measures().count("queue", time.monotonic() - arrived)
            photos = [
                await self._decode(image, count)
                for image, count in zip(images, counts, strict=True)
            ]
            holding.shrink(sum(photo.pixels.nbytes for photo in photos))
            yield photos

    async def _decode(self, image: UploadFile, count: int) -> DecodedImage:
        """The image of a file of ``count`` pixels; large ones are decoded one after another."""
        measures, arrived = get_measures(), time.monotonic()
        async with nullcontext() if count < LARGE else self._decoding:
            measures.count("queue", time.monotonic() - arrived)
            with measures.timed("decode"):
                photo = await read_upload(image, self.limits)
        measures.decoded += photo.pixels.nbytes
        return photo

    async def _align(
        self,
        image: UploadFile,
        corners: Sequence[BoxCorners] | None,
        deadline: float,
        *,
        slowdown: float = math.inf,
        focal: float | None = None,
        render: Render | None = None,
    ) -> PhotoResult:
        """The faces of one photo, at least one. Raises what the aligner and ``render`` raise."""
        with measuring() as measures:
            async with self.decoded_photos(image) as (photo,):
                pixels, size = photo.pixels, image_size(photo.pixels)
                camera = Intrinsics.of_photo(
                    size.width, size.height, focal=focal, focal_35mm=photo.focal_35mm
                )
                boxes = None if corners is None else to_boxes(corners, pixels)
                outcome = await self.scheduler.align((pixels, boxes), deadline, slowdown=slowdown)
                if isinstance(outcome, Exception):
                    raise outcome
                count_faces(outcome)
                missing = self.aligner.describe_search(pixels) if boxes is None else ""
                if not outcome:
                    raise Problem(
                        "no-face", missing and f"{KINDS['no-face'].help} Note: {missing}."
                    )
                rendered = None
                if render is not None:
                    rendered = await self._run_apart(partial(render, outcome, pixels))
        warnings = [missing] if missing else None
        return PhotoResult(outcome, size, camera, tell_timing(measures), warnings, rendered)

    async def _run_apart(self, render: Callable[[], bytes]) -> bytes:
        """A file of faces, which takes up to a second, while the aligner goes on."""
        async with self._rendering:
            return await run_to_end(render)

    async def _read_person_photo(
        self, image: UploadFile, corners: BoxCorners | None, focal: float | None
    ) -> tuple[tuple[Bytes, Box | None], Intrinsics]:
        photo = await self._decode(image, await read_pixel_count(image, self.limits))
        pixels, size = photo.pixels, image_size(photo.pixels)
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise Problem("unusable-image")
        camera = Intrinsics.of_photo(
            size.width, size.height, focal=focal, focal_35mm=photo.focal_35mm
        )
        return (pixels, None if corners is None else to_boxes([corners], pixels)[0]), camera

    def _check_person_pixels(self, held: dict[int, tuple[Bytes, Box | None]]) -> None:
        if sum(im.shape[0] * im.shape[1] for im, _ in held.values()) > self.limits.person_pixels:
            most = self.limits.person_pixels / 1e6
            raise Problem(
                "too-many-pixels",
                f"the photos of one person may have at most {most:.0f} megapixels together: "
                "shrink them, or send fewer",
            )

    async def _align_person(self, held: dict[int, tuple[Bytes, Box | None]]) -> PersonAlignment:
        images: list[Bytes] = [pixels for pixels, _ in held.values()]
        boxes: list[Box | None] = [box for _, box in held.values()]
        steps = self.aligner.align_person_in_steps(images, boxes, faces=self.limits.step)
        try:
            return await self.scheduler.run_steps(steps, self.aligner)
        except NoFace as error:
            raise Problem("no-face", "no photo shows a face that can be aligned") from error


def describe_model(aligner: FaceAligner) -> ModelInfo:
    """The face model and the weights, without how these were trained."""
    card = aligner.card
    return ModelInfo(
        face_model=aligner.model.name,
        face_model_licence=aligner.model.licence,
        expression_names=list(aligner.model.expression_names),
        weights=WeightsInfo(
            dataset=card.get("dataset"),
            data_licences=list(card.get("data_licences", ())),
            landmarks_from=card.get("landmarks_from"),
            steps=card.get("steps"),
        ),
    )


def drawn_triangles(model: MorphableModel) -> Ints:
    """(F, 3) triangles of the model's outside."""
    inside = [i for i, name in enumerate(model.region_names) if name in INSIDE]
    return np.asarray(model.faces[~np.isin(model.region, inside)])


def image_size(pixels: Bytes) -> ImageSize:
    """Size of an (H, W, 3) image."""
    return ImageSize(width=pixels.shape[1], height=pixels.shape[0])


def answer_face(
    describer: FaceDescriber, face: Alignment, camera: Intrinsics, *, mesh: bool, trace: bool
) -> FaceAnswer:
    """A face as it is answered."""
    try:
        return FaceAnswer.model_validate(describer.describe(face, camera, mesh=mesh, trace=trace))
    except WrongModel as error:
        raise Problem("bad-request", str(error)) from error


def refuse_photo(error: Problem | BadPhoto, root_path: str) -> PhotoRefused:
    """A photo's problem in the photo's place. ``root_path``: prefix of the service's paths."""
    return PhotoRefused(problem=to_problem(error).describe(root_path))


def _answer_photo(result: PhotoResult, describe: Describe) -> PhotoFaces:
    faces = [describe(face, result.camera) for face in result.faces]
    return PhotoFaces(faces=faces, image=result.image, warnings=result.warnings)


def count_faces(faces: Sequence[Alignment]) -> None:
    """Measure the request by the faces that it is answered with."""
    measures = get_measures()
    measures.faces += len(faces)
    measures.failed += sum(face.failed for face in faces)


def tell_timing(measures: Measures) -> Timing:
    """The durations of a request as it is answered."""
    return Timing(
        queue_ms=_milliseconds(measures.queue),
        decode_ms=_milliseconds(measures.decode),
        align_ms=_milliseconds(measures.align),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
