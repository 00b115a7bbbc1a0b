"""What OpenAPI says about the answers of the HTTP interface."""

from __future__ import annotations

from typing import Any

from aligner.problems import responses

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_POINTS = {"type": "array", "items": _NUMBERS}
_FACE_SCHEMA = {
    "type": "object",
    "properties": {
        "box": {**_NUMBERS, "description": "x0, y0, x1, y1 where the face was looked for"},
        "landmarks_2d": {**_POINTS, "description": "68 x (x, y); the jaw points lie on the visible contour (300-W)"},
        "landmarks_3d": {**_POINTS, "description": "68 x (x, y, z); z in pixels towards the viewer (AFLW2000-3D)"},
        "pose": {
            "type": "object",
            "properties": {
                **{angle: {"type": "number", "description": "degrees"} for angle in ("yaw", "pitch", "roll")},
                "matrix": {**_POINTS, "description": "3 x 3 rotation"},
            },
        },
        "visibility": {**_NUMBERS, "description": "68 numbers, 0 hidden to 1 seen"},
        "confidence": {**_NUMBERS, "description": "68 numbers, 0 to 1"},
        "face_confidence": {"type": "number"},
        "failed": {"type": "boolean"},
        "reason": {"type": "string", "description": "why it failed"},
        "mesh": {**_POINTS, "description": "with mesh=1: vertices (x, y, z) in pixels"},
        "trace": {"type": "array", "items": {"type": "object"}, "description": "with trace=1: each iteration"},
    },
}
_ANSWER_SCHEMA = {
    "type": "object",
    "required": ["faces", "image", "model", "timing", "request_id"],
    "properties": {
        "faces": {"type": "array", "items": _FACE_SCHEMA},
        "image": {"type": "object", "description": "width and height in pixels"},
        "model": {"type": "object", "description": "face model, its licence, and where the weights come from"},
        "timing": {"type": "object", "description": "milliseconds of decoding and aligning"},
        "request_id": {"type": "string"},
        "triangles": {**_POINTS, "description": "with mesh=1: vertex numbers of the mesh's triangles"},
    },
}
_PROBLEMS = responses(
    "empty",
    "not-an-image",
    "damaged",
    "animated",
    "too-many-pixels",
    "too-large",
    "unusable-image",
    "bad-boxes",
    "bad-request",
    "no-face",
    "internal",
)
ALIGN_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "the faces", "content": {"application/json": {"schema": _ANSWER_SCHEMA}}},
    **_PROBLEMS,
}
GLB_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the mesh",
        "content": {"model/gltf-binary": {"schema": {"type": "string", "format": "binary"}}},
    },
    **_PROBLEMS,
}
