"""The answers of the HTTP interface, and what OpenAPI says about them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from dff.aligner.service.http.problems import PhotoProblem, describe_problems

Point2 = tuple[float, float]
Point3 = tuple[float, float, float]
Landmarks2D = Annotated[list[Point2], Field(min_length=68, max_length=68)]
Landmarks3D = Annotated[list[Point3], Field(min_length=68, max_length=68)]
Probabilities = Annotated[list[float], Field(min_length=68, max_length=68)]
Triangles = Annotated[
    list[tuple[int, int, int]],
    SkipValidation,  # the same for every answer
]


class Answer(BaseModel):
    """A part of an answer. Raises ValueError for unknown fields and for numbers that JSON lacks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Angles(Answer):
    """Euler angles of a head in degrees, with the signs of AFLW2000-3D."""

    yaw: float = Field(description="degrees")
    pitch: float = Field(description="degrees")
    roll: float = Field(description="degrees")


class HeadPose(Angles):
    """Rotation of a head, with the signs of AFLW2000-3D."""

    matrix: tuple[Point3, Point3, Point3] = Field(
        description="3 x 3 rotation; unlike the angles it is well defined beyond 90 degrees of yaw"
    )


class CameraAnswer(Answer):
    """The camera of a photo: px = scale * (x, y) / (1 + inverse_depth * z) + centre."""

    scale: float = Field(description="pixels a metre at the head's distance")
    centre: Point2 = Field(description="pixels")
    inverse_depth: float = Field(description="1 / metres; one photo hardly tells it, so it is set")


class HeadPlacement(Answer):
    """Where the head is: x right, y down, z away from the camera; metres."""

    rotation: tuple[Point3, Point3, Point3] = Field(
        description="3 x 3, from the head (x to its left, y up, z out of the face) to the camera"
    )
    translation: Point3 = Field(description="metres")


class IntrinsicsAnswer(Answer):
    """The camera of the whole photo, without distortion."""

    focal: float = Field(description="pixels")
    centre: Point2 = Field(description="pixels: the principal point, the middle of the photo")
    source: Literal["given", "exif", "assumed"] = Field(
        description="whose focal length it is: `focal_px`, the photo's EXIF data, or 1.2 times the "
        "longer side"
    )


class HeadInCamera(Answer):
    """The head before the camera of `intrinsics`: x right, y down, z away from it.

    Distances hold for a head of the size that the face model says, and as far as the focal length
    is right.
    """

    rotation: tuple[Point3, Point3, Point3] = Field(
        description="3 x 3, from the head (x to its left, y up, z out of the face) to the camera"
    )
    quaternion: tuple[float, float, float, float] = Field(
        description="x, y, z, w of the same rotation"
    )
    translation: Point3 = Field(description="metres: the head's origin")


class Irises(Answer):
    """Centres of the irises, as the fitted face has them, in pixels."""

    right: Point2 = Field(description="of the person's right eye")
    left: Point2


class IterationState(Answer):
    """The fit after one iteration."""

    landmarks_2d: Landmarks2D = Field(description="68 x (x, y) in pixels")
    pose: Angles
    residual: float | None = Field(
        description="robust mean distance of the matches from the fitted face, fraction of the box"
    )
    motion: float | None = Field(
        description="mean distance the landmarks moved, fraction of the box; null in the first"
    )


class FaceAnswer(Answer):
    """One aligned face."""

    box: tuple[float, float, float, float] = Field(
        description="x0, y0, x1, y1 in pixels: the given or detected box"
    )
    landmarks_2d: Landmarks2D = Field(
        description="68 x (x, y) in pixels; the jaw points lie on the visible contour (300-W)"
    )
    landmarks_3d: Landmarks3D = Field(
        description="68 x (x, y, z); z in pixels towards the viewer (AFLW2000-3D)"
    )
    pose: HeadPose
    visibility: Probabilities = Field(
        description="68 probabilities that landmarks_3d are visible: not self-occluded, not covered"
    )
    confidence: Probabilities = Field(
        description="68 probabilities that a landmark is visible and at most 5 % of the face's "
        "size from the truth"
    )
    face_confidence: float = Field(
        description="probability that the mean landmark error is below 8 % of the face's size"
    )
    failed: bool = Field(description="the fit was rejected: the other numbers mean nothing")
    reason: str = Field(description="why it failed, else empty")
    model: str = Field(description="the face model of identity, expression and mesh")
    identity: list[float] = Field(description="coefficients in standard deviations")
    expression: list[float] = Field(
        description="activation of each of `model.expression_names`: 0 neutral, 1 full"
    )
    camera: CameraAnswer
    cam_from_head: HeadPlacement
    intrinsics: IntrinsicsAnswer
    head_in_camera: HeadInCamera
    landmarks: dict[str, list[Point2] | list[Point3]] | None = Field(
        None,
        description="with landmarks=: each set by name, (x, y) in pixels; of dense478 "
        "(x, y, z), z towards the viewer",
    )
    landmark_visibility: dict[str, list[float]] | None = Field(
        None,
        description="with landmarks=aflw21: probabilities that people would mark the points, "
        "by the name of the set",
    )
    irises: Irises | None = Field(None, description="with landmarks=irises")
    blendshapes: dict[str, float] | None = Field(
        None, description="with landmarks=blendshapes: activations 0 to 1 by MediaPipe's names"
    )
    mesh: list[Point3] | None = Field(
        None, description="with mesh=1: vertices (x, y, z) in pixels; z towards the viewer"
    )
    trace: list[IterationState] | None = Field(
        None, description="with trace=1: the state after each iteration"
    )


class ImageSize(Answer):
    """Size of a photo after its EXIF orientation."""

    width: int = Field(description="pixels")
    height: int = Field(description="pixels")


class Timing(Answer):
    """Durations in milliseconds."""

    queue_ms: float = Field(description="milliseconds of waiting for memory and for the aligner")
    decode_ms: float = Field(description="milliseconds of decoding")
    align_ms: float = Field(description="milliseconds of aligning")


class WeightsInfo(Answer):
    """The weights of the network."""

    dataset: str | None = Field(description="fingerprint of the dataset that they were trained on")
    data_licences: list[str] = Field(description="licences of the photos in that dataset")
    landmarks_from: str | None = Field(
        description="whose labels say where the landmarks lie; null: vertices of the face model"
    )
    steps: int | None = Field(description="steps of their training")


class ModelInfo(Answer):
    """The face model and the weights behind an answer."""

    face_model: str = Field(description="name of the face model")
    face_model_licence: str = Field(description="its licence")
    expression_names: list[str] = Field(description="names of the expression coefficients")
    weights: WeightsInfo


Warnings = Annotated[
    list[str] | None,
    Field(
        description="what the answer may lack, in words, as small faces of a large photo that was "
        "searched only shrunk; left out where there is nothing"
    ),
]


class AlignAnswer(Answer):
    """Answer of `/v1/align`."""

    faces: list[FaceAnswer] = Field(description="every face of the photo, at least one")
    image: ImageSize
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")
    warnings: Warnings = None
    triangles: Triangles | None = Field(
        None, description="with mesh=1: vertex numbers of the triangles of each mesh"
    )


class PhotoFaces(Answer):
    """One photo of a batch with its faces."""

    faces: list[FaceAnswer]
    image: ImageSize
    warnings: Warnings = None


class PhotoFace(Answer):
    """One photo of a person with the person's face."""

    face: FaceAnswer
    image: ImageSize
    doubt: str | None = Field(None, description="why the photo may show someone else, if it may")


class PhotoRefused(Answer):
    """One photo of several that has no answer."""

    problem: PhotoProblem


class BatchAnswer(Answer):
    """Answer of `/v1/align/batch`."""

    photos: list[PhotoFaces | PhotoRefused] = Field(
        description="faces or a problem for each photo, in the order of the request"
    )
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")
    triangles: Triangles | None = Field(
        None, description="with mesh=1: vertex numbers of the triangles of each mesh"
    )


class PersonAnswer(Answer):
    """Answer of `/v1/align/person`."""

    identity: list[float] = Field(
        description="coefficients of the face model in standard deviations, one set for all photos"
    )
    photos: list[PhotoFace | PhotoRefused] = Field(
        description="a face or a problem for each photo, in the order of the request"
    )
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")
    rest: list[Point3] | None = Field(
        None, description="with mesh=1: vertices (x, y, z) of the neutral face in metres"
    )
    triangles: Triangles | None = Field(
        None, description="with mesh=1: vertex numbers of the triangles of each mesh"
    )


GLB, PNG = "model/gltf-binary", "image/png"
BINARY = {"schema": {"type": "string", "format": "binary"}}
Responses = dict[int | str, dict[str, Any]]
_REQUEST_PROBLEMS = (
    "unauthorized",
    "too-many-images",
    "too-large",
    "too-slow",
    "bad-boxes",
    "bad-request",
    "bad-form",
    "bad-http",
    "headers-too-large",
    "internal",
    "stopping",
    "busy",
    "deadline",
)
_PHOTO_PROBLEMS = (
    "empty",
    "not-an-image",
    "damaged",
    "animated",
    "too-many-pixels",
    "unusable-image",
    "no-face",
)
_ALIGN_PROBLEMS: Responses = describe_problems(*_PHOTO_PROBLEMS, *_REQUEST_PROBLEMS)
BATCH_RESPONSES: Responses = {
    200: {"description": "faces or a problem for each photo"},
    **describe_problems(*_REQUEST_PROBLEMS),
}
ALIGN_RESPONSES: Responses = {
    200: {
        "description": "the faces; by `Accept` as JSON, as a mesh, or drawn on the photo",
        "content": {GLB: BINARY, PNG: BINARY},
    },
    **_ALIGN_PROBLEMS,
}
PERSON_RESPONSES: Responses = {
    200: {"description": "the person, and a face or a problem for each photo"},
    **_ALIGN_PROBLEMS,
}
GLB_RESPONSES: Responses = {
    200: {
        "description": "the mesh",
        "content": {GLB: BINARY},
    },
    **_ALIGN_PROBLEMS,
}
