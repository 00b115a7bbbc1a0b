"""Several photos in one request: strangers, each with its own answer or problem, or one person in
all of them.
"""

# No ``from __future__ import annotations``: FastAPI reads the annotations of functions that are
# made here.

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from pydantic import TypeAdapter

from dff.aligner.align import MIN_SIDE
from dff.aligner.alignment import Alignment
from dff.aligner.fitting.multi_image import PersonAlignment
from dff.aligner.mesh_file import glb
from dff.aligner.service.admission import WaitingRoom
from dff.aligner.service.answers import answered
from dff.aligner.service.forms import Row, boxes_of, check_count, milliseconds, parsed, pixels_of
from dff.aligner.service.limits import AlignAll, Boxes, FaceAligner, Limits, Outcome
from dff.aligner.service.problems import Problem, described, problem_of, report
from dff.aligner.service.schema import MANY_RESPONSES, TOGETHER_GLB_RESPONSES, TOGETHER_RESPONSES
from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto, NoFace
from dff.face.geometry.camera import Box

MANY, TOGETHER = "/v1/align-many", "/v1/align-together"
PATHS = (MANY, TOGETHER, f"{TOGETHER}.glb")

T = TypeVar("T")
_ROWS_OF_EACH: TypeAdapter[list[list[Row] | None]] = TypeAdapter(list[list[Row] | None])
_ROW_OF_EACH: TypeAdapter[list[Row | None]] = TypeAdapter(list[Row | None])
Photos = Annotated[
    list[UploadFile], File(description="JPEG, PNG or WebP files: the field is repeated for each")
]


@dataclass(frozen=True)
class Person:
    """One person in the photos of a request."""

    found: PersonAlignment
    faces: list[Alignment | None]  # of each photo
    problems: list[Problem | None]  # of each photo without a face
    sizes: list[tuple[int, int]]  # (width, height) of each photo, zeros for what is none
    timing: dict[str, float]  # milliseconds


def add_routes(
    app: FastAPI,
    aligner: FaceAligner,
    *,
    limits: Limits,
    align: AlignAll,
    slots: anyio.CapacityLimiter,
    waiting: WaitingRoom,
    about: dict[str, Any],
    drawn: list[list[int]],
) -> None:
    """``/v1/align-many`` and ``/v1/align-together``; ``slots`` bound what is aligned together at
    the same time.
    """
    turns = asyncio.Semaphore(1)  # of one person's photos, which are all held in memory

    @app.post(MANY, responses=MANY_RESPONSES, tags=["align"])
    async def align_many(
        request: Request,
        images: Photos,
        boxes: Annotated[
            str | None,
            Form(
                description="JSON: for each image null (faces are found) or [[x0, y0, x1, y1], ...] in pixels"
            ),
        ] = None,
        mesh: Annotated[
            bool, Query(description="also the meshes in pixels, and their triangles")
        ] = False,
    ) -> Response:
        """Every face of several photos, each as from `/v1/align`.

        One photo's problem is that photo's: it stands in the photo's place, and the others have
        their faces.
        """
        rows = _for_each(images, boxes, _ROWS_OF_EACH, limits)
        check_count(sum(len(some or ()) for some in rows), limits)
        with waiting.place():
            async with waiting.decoding:
                photos, timing = await aligned_each(
                    images, rows, mesh, request_id=request.state.request_id
                )

        def answer() -> dict[str, Any]:
            return {
                "photos": photos,
                "model": about,
                "timing": timing,
                "request_id": request.state.request_id,
            } | ({"triangles": drawn} if mesh else {})

        return await answered(answer)

    async def aligned_each(
        images: Sequence[UploadFile],
        rows: Sequence[list[Row] | None],
        mesh: bool,
        *,
        request_id: str,
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """What is answered for each photo, and milliseconds."""
        photos: list[dict[str, Any]] = [{} for _ in images]
        held: list[tuple[int, Bytes, Boxes]] = []
        seconds = {"decode": 0.0, "align": 0.0}

        async def answer_held() -> None:
            started = time.perf_counter()
            outcomes = await align([(pixels, some) for _, pixels, some in held])
            seconds["align"] += time.perf_counter() - started

            def write() -> None:
                for (i, pixels, _), outcome in zip(held, outcomes, strict=True):
                    photos[i] = _answered(outcome, pixels, mesh, request_id=request_id)

            await anyio.to_thread.run_sync(write)
            held.clear()

        for i, (image, some) in enumerate(zip(images, rows, strict=True)):
            started = time.perf_counter()
            try:
                pixels = await pixels_of(image, limits)
                where = None if some is None else boxes_of(some, pixels)
            except (Problem, BadPhoto) as error:
                photos[i] = _refused(error)
                continue
            finally:
                seconds["decode"] += time.perf_counter() - started
            held.append((i, pixels, where))
            if (
                len(held) == limits.batch
                or sum(p.shape[0] * p.shape[1] for _, p, _ in held) >= limits.pixels
            ):
                await answer_held()
        if held:
            await answer_held()
        return photos, {f"{what}_ms": milliseconds(took) for what, took in seconds.items()}

    async def person(
        images: Photos,
        boxes: Annotated[
            str | None,
            Form(
                description="JSON: for each image null (the largest face) or [x0, y0, x1, y1] in pixels"
            ),
        ] = None,
    ) -> Person:
        rows = _for_each(images, boxes, _ROW_OF_EACH, limits)
        with waiting.place():
            async with turns, waiting.decoding:
                return await aligned_together(images, rows)

    async def aligned_together(images: Sequence[UploadFile], rows: Sequence[Row | None]) -> Person:
        started = time.perf_counter()
        problems: list[Problem | None] = [None] * len(images)
        sizes = [(0, 0)] * len(images)
        held: dict[int, Bytes] = {}
        places: list[Box | None] = []
        for i, (image, row) in enumerate(zip(images, rows, strict=True)):
            try:
                pixels = await pixels_of(image, limits)
                if min(pixels.shape[:2]) < MIN_SIDE:
                    raise Problem("unusable-image")
                box = None if row is None else boxes_of([row], pixels)[0]
            except (Problem, BadPhoto) as error:
                problems[i] = problem_of(error)
                continue
            held[i] = pixels
            places.append(box)
            sizes[i] = (pixels.shape[1], pixels.shape[0])
            if sum(width * height for width, height in sizes) > limits.pixels_together:
                most = limits.pixels_together / 1e6
                raise Problem(
                    "too-many-pixels",
                    f"all photos of one person have at most {most:.0f} megapixels",
                )
        if not held:
            raise next(problem for problem in problems if problem is not None)
        decoded = time.perf_counter()
        try:
            found = await anyio.to_thread.run_sync(
                aligner.align_person, [*held.values()], places, limiter=slots
            )
        except NoFace as error:
            raise Problem("no-face", "no photo shows a face that can be aligned") from error
        faces: list[Alignment | None] = [None] * len(images)
        for number, i in enumerate(held):
            faces[i] = found.faces[number]
            if number in found.left_out:
                problems[i] = Problem("no-face", found.left_out[number])
        timing = {
            "decode_ms": milliseconds(decoded - started),
            "align_ms": milliseconds(time.perf_counter() - decoded),
        }
        return Person(found, faces, problems, sizes, timing)

    @app.post(TOGETHER, responses=TOGETHER_RESPONSES, tags=["align"])
    async def align_person(
        request: Request,
        person: Annotated[Person, Depends(person)],
        mesh: Annotated[
            bool, Query(description="also the face at rest, the meshes and their triangles")
        ] = False,
    ) -> Response:
        """One person in several photos: one identity, and of each photo its pose, expression and
        landmarks.

        Photos in which the person is not found, or does not match, are left out, and say why.
        """

        def answer() -> dict[str, Any]:
            photos = []
            for face, problem, (width, height) in zip(
                person.faces, person.problems, person.sizes, strict=True
            ):
                if face is not None:
                    photos.append(
                        {
                            "face": face.to_json(mesh=mesh),
                            "image": {"width": width, "height": height},
                        }
                    )
                else:
                    assert problem is not None
                    photos.append(_refused(problem))
            rest = {"rest": person.found.vertices.round(6).tolist(), "triangles": drawn}
            return {
                "identity": person.found.identity.round(4).tolist(),
                "photos": photos,
                "model": about,
                "timing": person.timing,
                "request_id": request.state.request_id,
            } | (rest if mesh else {})

        return await answered(answer)

    @app.post(
        f"{TOGETHER}.glb", responses=TOGETHER_GLB_RESPONSES, response_class=Response, tags=["align"]
    )
    async def align_person_glb(person: Annotated[Person, Depends(person)]) -> Response:
        """The person's face at rest as binary glTF: metres, y up, looking along z."""
        data = await anyio.to_thread.run_sync(glb, person.found, aligner.model)
        return Response(data, media_type="model/gltf-binary")


def _for_each(
    images: Sequence[UploadFile], boxes: str | None, form: TypeAdapter[list[T]], limits: Limits
) -> list[T | None]:
    """What the field ``boxes`` says of each image; Nones when there is none."""
    if len(images) > limits.photos:
        raise Problem(
            "too-many-images",
            f"{len(images)} images; at most {limits.photos} are taken in one request",
        )
    if boxes is None:
        return [None] * len(images)
    rows = parsed(form, boxes)
    if len(rows) != len(images):
        raise Problem("bad-boxes", f"boxes of {len(rows)} images with {len(images)} images")
    return [*rows]


def _answered(outcome: Outcome, pixels: Bytes, mesh: bool, *, request_id: str) -> dict[str, Any]:
    if isinstance(outcome, BadPhoto):
        return _refused(outcome)
    if isinstance(outcome, Exception):
        report(outcome, request_id)
        return _refused(Problem("internal"))
    if not outcome:
        return _refused(Problem("no-face"))
    height, width = pixels.shape[:2]
    return {
        "faces": [face.to_json(mesh=mesh) for face in outcome],
        "image": {"width": width, "height": height},
    }


def _refused(error: Problem | BadPhoto) -> dict[str, Any]:
    known = problem_of(error)
    return {"problem": described(known.kind, known.detail)}
