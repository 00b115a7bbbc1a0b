"""Binary glTF 2.0 (GLB) with morph targets and animation, as the Khronos specification has it."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from dff.face.arrays import Floats, Ints

UNLIT = "KHR_materials_unlit"
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963  # targets of buffer views
_KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class GlbBuilder:
    """Collects arrays and images, and writes them behind the JSON that refers to them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def add_floats(self, values: Floats, *, of_vertices: bool = False, bounds: bool = False) -> int:
        """The number of the accessor of (N,) or (N, C) values."""
        flat = np.ascontiguousarray(values, dtype="<f4")
        kind = _KINDS[1 if flat.ndim == 1 else flat.shape[1]]
        view = self._add_view(flat.tobytes(), _VERTICES if of_vertices else None)
        accessor = {"bufferView": view, "componentType": _FLOAT, "count": len(flat), "type": kind}
        return self._add_accessor(accessor | (_bounds(flat) if bounds else {}))

    def add_sparse(self, values: Floats) -> int:
        """The number of the accessor of (N, 3) values of which most rows are zero."""
        flat = np.ascontiguousarray(values, dtype="<f4")
        rows = np.flatnonzero(flat.any(1))
        if len(rows) == 0:
            rows = np.array([0])
        wide = len(flat) > 65535
        indices = self._add_view(rows.astype("<u4" if wide else "<u2").tobytes(), None)
        accessor = {
            "componentType": _FLOAT,
            "count": len(flat),
            "type": "VEC3",
            "sparse": {
                "count": len(rows),
                "indices": {
                    "bufferView": indices,
                    "componentType": _UINT32 if wide else _UINT16,
                },
                "values": {"bufferView": self._add_view(flat[rows].tobytes(), None)},
            },
        }
        return self._add_accessor(accessor | _bounds(flat))

    def add_triangles(self, triangles: Ints) -> int:
        """The number of the accessor of (F, 3) vertex numbers."""
        view = self._add_view(np.ascontiguousarray(triangles, dtype="<u4").tobytes(), _INDICES)
        return self._add_accessor(
            {
                "bufferView": view,
                "componentType": _UINT32,
                "count": triangles.size,
                "type": "SCALAR",
            }
        )

    def add_image(self, data: bytes, mime: str) -> int:
        """The number of an image file."""
        self.images.append({"bufferView": self._add_view(data, None), "mimeType": mime})
        return len(self.images) - 1

    def encode(self, content: dict[str, Any]) -> bytes:
        """The file; ``content``: the JSON but for buffers, views, accessors and images."""
        told = {
            **content,
            "buffers": [{"byteLength": len(self._data)}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        if self.images:
            told["images"] = self.images
        text = json.dumps(told, separators=(",", ":")).encode()
        chunks = [(b"JSON", text + b" " * (-len(text) % 4)), (b"BIN\0", bytes(self._data))]
        body = b"".join(struct.pack("<I", len(data)) + kind + data for kind, data in chunks)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body

    def _add_view(self, data: bytes, target: int | None) -> int:
        view = {"buffer": 0, "byteOffset": len(self._data), "byteLength": len(data)}
        self.views.append(view | ({"target": target} if target else {}))
        self._data += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def _add_accessor(self, accessor: dict[str, Any]) -> int:
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _bounds(values: Floats) -> dict[str, list[float]]:
    columns = values.reshape(len(values), -1)
    return {"min": columns.min(0).tolist(), "max": columns.max(0).tolist()}
