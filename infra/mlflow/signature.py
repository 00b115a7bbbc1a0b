"""The signature of a registered model of MLflow: an image in, a record for each face out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dff.face.extras import require_extra
from dff.face.private_folder import set_missing_home

with require_extra("train"):
    set_missing_home()  # mlflow asks for it when it is imported
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, ColSpec, Object, Property

_NUMBER, _TEXT, _TRUTH = DataType.double, DataType.string, DataType.boolean
_NUMBERS = Array(_NUMBER)
_TABLE = Array(_NUMBERS)


def _describe_object(fields: Mapping[str, DataType | Array]) -> Object:
    return Object([Property(name, kind) for name, kind in fields.items()])


COLUMNS: Mapping[str, DataType | Array | Object] = {
    "box": _NUMBERS,
    "landmarks_2d": _TABLE,
    "landmarks_3d": _TABLE,
    "pose": _describe_object({"yaw": _NUMBER, "pitch": _NUMBER, "roll": _NUMBER, "matrix": _TABLE}),
    "visibility": _NUMBERS,
    "confidence": _NUMBERS,
    "face_confidence": _NUMBER,
    "failed": _TRUTH,
    "reason": _TEXT,
    "model": _TEXT,
    "identity": _NUMBERS,
    "expression": _NUMBERS,
    "camera": _describe_object({"scale": _NUMBER, "centre": _NUMBERS, "inverse_depth": _NUMBER}),
    "cam_from_head": _describe_object({"rotation": _TABLE, "translation": _NUMBERS}),
}
"""What a face's record has (``Alignment.to_json``), with the types that MLflow shows."""


def describe_signature() -> ModelSignature:
    """(H, W, 3) uint8 RGB to records of ``COLUMNS``."""
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, 3))]),
        outputs=Schema([ColSpec(kind, name) for name, kind in COLUMNS.items()]),
    )
