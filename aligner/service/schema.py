"""What OpenAPI says about the answers of the HTTP interface."""

from __future__ import annotations

from typing import Any

from dff.aligner.service.problems import responses

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_POINTS = {"type": "array", "items": _NUMBERS}
_FACE_SCHEMA = {
    "type": "object",
    "properties": {
        "box": {**_NUMBERS, "description": "x0, y0, x1, y1 where the face was looked for"},
        "landmarks_2d": {
            **_POINTS,
            "description": "68 x (x, y); the jaw points lie on the visible contour (300-W)",
        },
        "landmarks_3d": {
            **_POINTS,
            "description": "68 x (x, y, z); z in pixels towards the viewer (AFLW2000-3D)",
        },
        "pose": {
            "type": "object",
            "description": "how the head is turned, with the signs of AFLW2000-3D",
            "properties": {
                **{
                    angle: {"type": "number", "description": "degrees"}
                    for angle in ("yaw", "pitch", "roll")
                },
                "matrix": {
                    **_POINTS,
                    "description": "3 x 3 rotation; the angles degenerate beyond 90 degrees of yaw, it does not",
                },
            },
        },
        "visibility": {
            **_NUMBERS,
            "description": "68 probabilities that the photo shows landmarks_3d: not turned away, not covered",
        },
        "confidence": {
            **_NUMBERS,
            "description": "68 probabilities that it is shown and lies within 5 % of the face's size of the truth",
        },
        "face_confidence": {
            "type": "number",
            "description": "probability that the landmarks err by less than 8 % of the face's size on average",
        },
        "failed": {
            "type": "boolean",
            "description": "the face does not match: the other numbers mean nothing",
        },
        "reason": {"type": "string", "description": "why it failed"},
        "model": {
            "type": "string",
            "description": "the face model that identity, expression and mesh are of",
        },
        "identity": {**_NUMBERS, "description": "coefficients in standard deviations"},
        "expression": {
            **_NUMBERS,
            "description": "how far each of `model.expression_names` is active: 0 rest, 1 fully",
        },
        "mesh": {**_POINTS, "description": "with mesh=1: vertices (x, y, z) in pixels"},
        "trace": {
            "type": "array",
            "items": {"type": "object"},
            "description": "with trace=1: each iteration",
        },
    },
}
_IMAGE_SCHEMA = {"type": "object", "description": "width and height in pixels"}
_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "instead of the others: why this photo has no answer",
}


def _answer(*on_demand: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """The schema of an answer: ``properties``, what is there ``on_demand``, and what every answer
    says.
    """
    return {
        "type": "object",
        "required": [*properties, "model", "timing", "request_id"],
        "properties": {
            **properties,
            **{name: schema for some in on_demand for name, schema in some.items()},
            "model": {
                "type": "object",
                "description": "face model, its licence, the names of its expressions, and where the weights come from",
            },
            "timing": {"type": "object", "description": "milliseconds of decoding and aligning"},
            "request_id": {"type": "string"},
            "triangles": {
                **_POINTS,
                "description": "with mesh=1: vertex numbers of the mesh's triangles",
            },
        },
    }


def _each(**properties: Any) -> dict[str, Any]:
    return {
        "type": "array",
        "description": "one for each photo, in the order of the request",
        "items": {
            "type": "object",
            "properties": {**properties, "image": _IMAGE_SCHEMA, "problem": _PROBLEM_SCHEMA},
        },
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_MESH = {
    "description": "the mesh",
    "content": {"model/gltf-binary": {"schema": {"type": "string", "format": "binary"}}},
}
_REQUEST_PROBLEMS = ("too-many-images", "too-large", "bad-boxes", "bad-request", "internal", "busy")
_PHOTO_PROBLEMS = (
    "empty",
    "not-an-image",
    "damaged",
    "animated",
    "too-many-pixels",
    "unusable-image",
    "no-face",
)
_PROBLEMS = responses(*_PHOTO_PROBLEMS, *_REQUEST_PROBLEMS)

_FACES_SCHEMA = {"type": "array", "items": _FACE_SCHEMA}
Responses = dict[int | str, dict[str, Any]]
ALIGN_RESPONSES: Responses = {
    200: _json("the faces", _answer(faces=_FACES_SCHEMA, image=_IMAGE_SCHEMA)),
    **_PROBLEMS,
}
GLB_RESPONSES: Responses = {200: _MESH, **_PROBLEMS}
MANY_RESPONSES: Responses = {
    200: _json("faces or a problem for each photo", _answer(photos=_each(faces=_FACES_SCHEMA))),
    **responses(*_REQUEST_PROBLEMS),
}
TOGETHER_RESPONSES: Responses = {
    200: _json(
        "the person, and a face or a problem for each photo",
        _answer(
            {
                "rest": {
                    **_POINTS,
                    "description": "with mesh=1: vertices (x, y, z) of the face at rest in metres",
                }
            },
            identity={
                **_NUMBERS,
                "description": "of the face model, in standard deviations: one for all photos",
            },
            photos=_each(face=_FACE_SCHEMA),
        ),
    ),
    **_PROBLEMS,
}
TOGETHER_GLB_RESPONSES: Responses = {200: _MESH, **_PROBLEMS}
