"""``/v1/match`` and ``/v1/features``: points of one photo found in another, and descriptors."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any, TypeVar

import anyio
import cv2
import numpy as np
from fastapi import APIRouter, File, Query, Request, Response, UploadFile
from pydantic import Field, TypeAdapter
from scipy.special import expit
from starlette.exceptions import HTTPException

from dff.aligner.align import Aligner
from dff.aligner.face_request import Steps
from dff.aligner.matching.draw import colour_dense_matches, spread_heat
from dff.aligner.matching.matcher import DescribedFace, Matcher, PointSelection
from dff.aligner.matching.result import PointMatches
from dff.aligner.service.align_service import AlignService, image_size, tell_timing
from dff.aligner.service.http.accept import JSON, choose_media_type, vary_by_accept
from dff.aligner.service.http.fields import FormRoute
from dff.aligner.service.http.forms import (
    BOX,
    BoxCorners,
    JsonField,
    to_boxes,
)
from dff.aligner.service.http.json_response import respond
from dff.aligner.service.http.measures import get_measures
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.match_schema import (
    DenseMatchAnswer,
    FeaturesAnswer,
    MatchAnswer,
    MatchedPoint,
)
from dff.aligner.service.routes.dependencies import LongDeadline, Service
from dff.aligner.service.schema import ALIGN_RESPONSES, BINARY, Responses
from dff.face.arrays import Bytes, Floats
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box

PATH = "/v1/match"
NPY = "application/x-npy"  # NumPy's files
POINTS = 1024  # most points of a request, landmarks and vertices included
HEAT_SIDE = 1024  # pixels: a heat map is at most as wide and as high

MATCH_RESPONSES: Responses = {**ALIGN_RESPONSES, 200: {"description": "the matches"}}
DENSE_RESPONSES: Responses = {
    **ALIGN_RESPONSES,
    200: {
        "description": "the matches; by `Accept` as pictures in JSON or as numbers",
        "content": {NPY: BINARY},
    },
}
FEATURES_RESPONSES: Responses = {**ALIGN_RESPONSES, 200: {"description": "the descriptors"}}
router = APIRouter(tags=["match"], route_class=FormRoute)

T = TypeVar("T")
Several = Field(json_schema_extra={"maxItems": POINTS})
_POINTS: JsonField[list[tuple[float, float]]] = JsonField(
    TypeAdapter(Annotated[list[tuple[float, float]], Several]), "[[x, y], ...] in pixels"
)
_NAMES: JsonField[list[str]] = JsonField(
    TypeAdapter(Annotated[list[str], Several]), 'names such as ["nose_tip", "chin"]'
)
_NUMBERS: JsonField[list[int]] = JsonField(
    TypeAdapter(Annotated[list[int], Several]), "numbers of vertices such as [12, 40]"
)


@router.post(PATH, response_model=MatchAnswer, responses=MATCH_RESPONSES)
async def match(
    request: Request,
    service: Service,
    deadline: LongDeadline,
    image_a: Annotated[UploadFile, File(description="the photo in which the points are given")],
    image_b: Annotated[UploadFile, File(description="the photo in which they are found")],
    points: Annotated[
        str | None, _POINTS.parameter("JSON [[x, y], ...] in pixels of the first photo")
    ] = None,
    landmarks: Annotated[
        str | None, _NAMES.parameter('JSON names of landmarks, such as ["nose_tip", "chin"]')
    ] = None,
    vertices: Annotated[
        str | None, _NUMBERS.parameter("JSON numbers of vertices of the face model")
    ] = None,
    box_a: Annotated[
        str | None,
        BOX.parameter("JSON [x0, y0, x1, y1]: the face of the first photo that is meant"),
    ] = None,
    box_b: Annotated[
        str | None, BOX.parameter("the same of the second; default: its largest face")
    ] = None,
    heat_map: Annotated[bool, Query(description="also where the second photo is similar")] = False,
) -> Response:
    """Find points of a face of one photo in another, of the same person or of someone else.

    Landmarks and vertices are on the largest face of the first photo. Pixels count from the photo's
    upper left corner after its EXIF orientation; the first pixel's centre is (0.5, 0.5).
    """
    wanted = (
        _parse("points", _POINTS, points),
        _parse("landmarks", _NAMES, landmarks),
        _parse("vertices", _NUMBERS, vertices),
    )
    if not 0 < len(wanted[0]) + len(wanted[1]) + len(wanted[2]) <= POINTS:
        raise Problem(
            "bad-request", f"give 1 to {POINTS} points, landmarks and vertices, as JSON lists"
        )
    corners = BOX.parse("box_a", box_a or "null"), BOX.parse("box_b", box_b or "null")
    matcher = find_matcher(service)
    async with service.admit(deadline), service.decoded_photos(image_a, image_b) as decoded:
        first, second = (photo.pixels for photo in decoded)
        boxes = _to_box("box_a", corners[0], first), _to_box("box_b", corners[1], second)
        selection = PointSelection(*wanted, *boxes)
        steps = matcher.match_in_steps(first, second, selection, faces=service.limits.step)
        try:
            found = await _run(service, matcher, steps, faces=2)
        except ValueError as error:
            raise Problem("bad-request", str(error)) from error
    sizes, timing = (image_size(first), image_size(second)), tell_timing(get_measures())

    def build() -> MatchAnswer:
        return MatchAnswer(
            points=[MatchedPoint.model_validate(point) for point in found.to_json()["points"]],
            image_a=sizes[0],
            image_b=sizes[1],
            model=service.model_info,
            timing=timing,
            request_id=request.state.request_id,
            heat_map=_encode_heat(found, second.shape[:2]) if heat_map else None,
        )

    return await respond(build)


@router.post("/v1/match/dense", response_model=DenseMatchAnswer, responses=DENSE_RESPONSES)
async def match_dense(
    request: Request,
    service: Service,
    deadline: LongDeadline,
    image_a: Annotated[UploadFile, File(description="the photo whose face is matched")],
    image_b: Annotated[UploadFile, File(description="the photo in which it is found")],
) -> Response:
    """Match every pixel of the first photo's largest face with the largest face of the second.

    The answer has a picture for each photo, in which the same colour is the same point. With
    `Accept: application/x-npy` it is a NumPy file instead: (H, W, 4) float32, for each pixel of the
    first photo, at most 1024 pixels wide and high, x and y in pixels of the second, the probability
    of the match and of being visible; NaN beside the face.
    """
    matcher = find_matcher(service)
    as_array = choose_media_type(request.headers.get("accept", ""), (JSON, NPY)) == NPY
    async with service.admit(deadline), service.decoded_photos(image_a, image_b) as decoded:
        first, second = (photo.pixels for photo in decoded)
        sizes = image_size(first), image_size(second)
        small = _shrink(first), _shrink(second)
        steps = matcher.match_every_pixel_in_steps(*small, faces=service.limits.step)
        dense = await _run(service, matcher, steps, faces=2)
        shape = small[1].shape[:2]
    if as_array:
        dense[..., :2] *= np.divide(second.shape[1::-1], small[1].shape[1::-1])
        data = await anyio.to_thread.run_sync(_encode_npy, dense)
        return vary_by_accept(Response(data, media_type=NPY))
    timing = tell_timing(get_measures())

    def build() -> DenseMatchAnswer:
        layers = colour_dense_matches(dense, shape)
        face = np.isfinite(dense[..., 3])
        return DenseMatchAnswer(
            colours_a=_encode_rgba(layers[0]),
            colours_b=_encode_rgba(layers[1]),
            visible_share=round(float((dense[face][:, 3] > 0.5).mean()) if face.any() else 0.0, 3),
            image_a=sizes[0],
            image_b=sizes[1],
            model=service.model_info,
            timing=timing,
            request_id=request.state.request_id,
        )

    return vary_by_accept(await respond(build))


@router.post("/v1/features", response_model=FeaturesAnswer, responses=FEATURES_RESPONSES)
async def features(
    request: Request,
    service: Service,
    deadline: LongDeadline,
    image: Annotated[UploadFile, File(description="a JPEG, PNG or WebP file")],
    box: Annotated[
        str | None,
        BOX.parameter("JSON [x0, y0, x1, y1]: the face that is meant; default: the largest"),
    ] = None,
) -> Response:
    """The Deep Face Feature of every pixel of a face, and where the pixels lie in the photo."""
    corners = BOX.parse("box", box or "null")
    matcher = find_matcher(service)
    async with service.admit(deadline), service.decoded_photos(image) as (photo,):
        pixels = photo.pixels
        face = await _run(
            service,
            matcher,
            matcher.describe_largest_in_steps(
                pixels, _to_box("box", corners, pixels), faces=service.limits.step
            ),
            faces=1,
        )
    timing = tell_timing(get_measures())

    def build() -> FeaturesAnswer:
        descriptor = face.features.descriptor[0]
        around = Box.around(face.alignment.landmarks_3d[:, :2])
        return FeaturesAnswer(
            descriptor=_encode_half(descriptor),
            shape=descriptor.shape,
            face_probability=_encode_half(expit(face.features.face_logit)),
            grid_from_photo=find_affine(face),
            box=(around.x0, around.y0, around.x1, around.y1),
            image=image_size(pixels),
            model=service.model_info,
            timing=timing,
            request_id=request.state.request_id,
        )

    return await respond(build)


def find_matcher(service: AlignService) -> Matcher:
    """The matcher of the service's aligner. Raises HTTPException 501 where it has no network."""
    if not isinstance(service.aligner, Aligner):
        raise HTTPException(501, "the aligner of this service can't match")
    return Matcher(service.aligner)


def find_affine(face: DescribedFace) -> Any:
    """Two rows of three numbers: from pixels of the photo to output pixels of the face's crop."""
    origin, x, y = face.grid_from_photo(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return np.column_stack([x - origin, y - origin, origin]).tolist()


async def _run(service: AlignService, matcher: Matcher, steps: Steps[T], *, faces: int) -> T:
    """Run a call of the matcher; other requests have their turn between its steps.

    ``faces``: that it is about, one of each photo, by which the request is measured.
    """
    try:
        result = await service.scheduler.run_steps(steps, matcher.aligner)
    except NoFace as error:
        raise Problem("no-face", str(error)) from error
    get_measures().faces += faces
    return result


def _shrink(image: Bytes) -> Bytes:
    """The photo with at most ``HEAT_SIDE`` pixels a side."""
    shrink = HEAT_SIDE / max(image.shape[:2])
    if shrink >= 1.0:
        return image
    size = max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _parse(name: str, form: JsonField[list[T]], text: str | None) -> list[T]:
    """The list of a form field; an empty one where it is missing. Raises Problem."""
    return [] if text is None else form.parse(name, text)


def _to_box(name: str, corners: BoxCorners | None, pixels: Bytes) -> Box | None:
    return None if corners is None else to_boxes([corners], pixels, name=name)[0]


def _encode_npy(values: Floats) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype("<f4"))
    return buffer.getvalue()


def _encode_half(values: Floats) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f2").tobytes()).decode()


def _encode_heat(found: PointMatches, shape: tuple[int, int]) -> str:
    """Base64 of a PNG: warm colours, opaque where the second photo is similar to a point."""
    shrink = min(1.0, HEAT_SIDE / max(shape))
    size = max(1, round(shape[0] * shrink)), max(1, round(shape[1] * shrink))
    heat = spread_heat(found.heat.max(0), found.crop, size, scale=size[1] / shape[1])
    level = (255 * heat).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2BGRA)
    picture[..., 3] = np.minimum(1.5 * level.astype(np.float32), 230).astype(np.uint8)
    return _encode_bgra(picture)


def _encode_rgba(picture: Bytes) -> str:
    return _encode_bgra(cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))


def _encode_bgra(picture: Bytes) -> str:
    """Base64 of a PNG."""
    good, data = cv2.imencode(".png", picture)
    assert good
    return base64.b64encode(bytes(data)).decode()
