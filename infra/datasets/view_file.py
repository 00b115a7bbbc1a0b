"""View files: the columns of a shard that training reads, laid out for random access.

A file holds the JPEG images and packed triangle ids of the views one after another, then the
vertices of each person without expression, which take longer to compute than a view to read, then
one record for each view. It is about as large as those columns of the shard: images are not
decoded, and vertices are stored as 16-bit integers. Views are read by position, so any number of
processes share a file without mapping it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dff.face.arrays import Array, Float, Floats, Integer, Shaped
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box, Pinhole, WeakPerspective
from dff.infra.datasets.shards import open_parquet

with require_extra("train"):
    import pyarrow as pa

_COLUMNS = [
    "image",
    "width",
    "height",
    "triangle_ids",
    "triangle_ids_dtype",
    "camera",
    "focal_or_scale",
    "camera_centre",
    "rotation",
    "translation",
    "identity",
    "expression",
    "landmarks_3d",
    "model",
]
FORMAT = 2
"""Number of this layout, for the names of kept files."""

BuildShape = Callable[[Floats], Floats]
"""(V, 3) metres from the model's template to the vertices of a stored identity."""

_LONGEST = 1 << 16  # activations of an expression
_TAIL = np.dtype("<u8")
"""The file ends in four of these: where the records begin, how many there are, the number of
vertices, and the length of an expression.
"""
_STEPS = 32767  # of the largest displacement of a person's vertices


@cache
def _record_dtype(expressions: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("image", "<u8", 2),
            ("ids", "<u8", 2),
            ("height", "<i4"),
            ("width", "<i4"),
            ("wide", "?"),  # triangle ids are of 32 bits
            ("pinhole", "?"),
            ("focal_or_scale", "<f8"),
            ("camera_centre", "<f8", 2),
            ("rotation", "<f8", (3, 3)),
            ("translation", "<f8", 3),
            ("box", "<f8", 4),
            ("shape", "<u8"),  # byte of the person's vertices
            ("shape_step", "<f4"),  # metres of one in them
            ("expressions", "<i4"),
            ("expression", "<f8", (expressions,)),
        ]
    )


@dataclass(frozen=True)
class ViewFile:
    """Where the records of a view file lie."""

    path: Path
    start: int  # byte of the first record
    rows: int
    vertices: int
    dtype: np.dtype[np.void]  # of a record


@dataclass(frozen=True)
class EncodedView:
    """One view as it is stored: image and triangle ids are still encoded."""

    image: bytes  # JPEG
    height: int  # px
    width: int
    # rows of the model's faces; the type's largest number is background, the one before occluders
    triangle: Integer[Array, "height width"]
    camera: Pinhole | WeakPerspective
    rotation: Float[Array, "3 3"]  # cam_from_head
    translation: Float[Array, " 3"]  # metres
    # vertices of the person without expression: metres from the model's template
    shape: Float[Array, "vertices 3"]
    expression: Shaped[Array, " expressions"]  # activations
    box: Box  # of the 68 landmarks of the 3D scheme, px


def count_shape_bytes(vertices: int) -> int:
    """Bytes of the vertices of one person."""
    return 6 * vertices


def write_view_file(
    shard: bytes, file: BinaryIO, name: str, *, model: str, build_shape: BuildShape
) -> None:
    """Write the view file of a shard's bytes; ``name`` is the shard's, for messages.

    ``model``: name of the face model that all views must show. Raises BadDataset when the shard is
    damaged, of another schema or another model; OSError for a full disk; and what ``build_shape``
    raises.
    """
    parquet = open_parquet(shard, name)
    try:
        table = parquet.read(columns=_COLUMNS, use_threads=False).combine_chunks()
        columns = {n: _column(table, n) for n in _COLUMNS}
        images, ids = columns["image"].field("bytes"), columns["triangle_ids"]
        records = _build_records(columns, table.num_rows)
        parts, start = [], 0
        for field, blobs in (("image", images), ("ids", ids)):
            offsets = np.frombuffer(blobs.buffers()[1], np.int32)[
                blobs.offset : blobs.offset + len(blobs) + 1
            ].astype(np.int64)
            parts.append(memoryview(blobs.buffers()[2] or b"")[offsets[0] : offsets[-1]])
            bounds = offsets - offsets[0] + start
            records[field] = np.stack([bounds[:-1], bounds[1:]], axis=1)
            start = int(bounds[-1])
        identity, models = columns["identity"].to_pylist(), columns["model"].to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise BadDataset(f"{name} is damaged: {error}") from error
    if other := set(models) - {model}:
        raise BadDataset(f"{name} shows the model {min(other)!r}, not {model!r}")
    for part in parts:
        file.write(part)
    vertices = 0
    stored: dict[bytes, tuple[int, float]] = {}  # place and step of a person's vertices
    for row, values in enumerate(identity):
        coefficients = np.asarray(values, dtype=np.float64)
        key = coefficients.tobytes()
        if key not in stored:
            shape = build_shape(coefficients)
            step = max(float(np.abs(shape).max(initial=0.0)), 1e-9) / _STEPS
            file.write(np.rint(shape / step).astype("<i2").tobytes())
            stored[key] = start, step
            vertices, start = len(shape), start + count_shape_bytes(len(shape))
        records["shape"][row], records["shape_step"][row] = stored[key]
    file.write(records.tobytes())
    expressions = records.dtype["expression"].shape[0]
    file.write(np.array([start, len(records), vertices, expressions], _TAIL).tobytes())


def _column(table: Any, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _build_records(columns: dict[str, Any], rows: int) -> Shaped[Array, " views"]:
    expression = columns["expression"].to_pylist()
    records = np.zeros(rows, _record_dtype(max(map(len, expression), default=0)))
    for name in ("height", "width", "focal_or_scale"):
        records[name] = columns[name].to_numpy(zero_copy_only=False)
    for name, shape in (("camera_centre", (2,)), ("rotation", (3, 3)), ("translation", (3,))):
        records[name] = _flatten(columns[name]).reshape(-1, *shape)
    spread = np.abs(records["rotation"] @ records["rotation"].transpose(0, 2, 1) - np.eye(3))
    if spread.max(initial=0.0) > 1e-4 or not np.isfinite(records["translation"]).all():
        raise ValueError("a pose is no rigid transform")
    records["wide"] = [value == "uint32" for value in columns["triangle_ids_dtype"].to_pylist()]
    records["pinhole"] = [value == "pinhole" for value in columns["camera"].to_pylist()]
    landmarks = _flatten(columns["landmarks_3d"]).reshape(-1, 68, 2)
    records["box"] = np.concatenate([landmarks.min(1), landmarks.max(1)], axis=1)
    for row, value in enumerate(expression):
        records["expressions"][row] = len(value)
        records["expression"][row, : len(value)] = value
    return records


def _flatten(column: Any) -> Any:
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def open_view_file(path: Path) -> ViewFile:
    """Look up the layout of a view file. Nothing of it is kept open.

    Raises FileNotFoundError, and BadDataset for a damaged file.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - 4 * _TAIL.itemsize
        tail = os.pread(file.fileno(), 4 * _TAIL.itemsize, max(end, 0))
    start, rows, vertices, length = map(int, np.frombuffer(tail, _TAIL)) if end >= 0 else (1,) * 4
    dtype = _record_dtype(length if length <= _LONGEST else 0)
    if length > _LONGEST or start + rows * dtype.itemsize != end:
        raise BadDataset(f"{path} is damaged")
    return ViewFile(path, start, rows, vertices, dtype)


def read_views(file: ViewFile, rows: Sequence[int]) -> list[EncodedView]:
    """Some views of a file. Raises FileNotFoundError, and BadDataset for damaged views."""
    with file.path.open("rb") as opened:
        out = []
        shapes: dict[int, Floats] = {}
        for row in rows:
            at, size = file.start + row * file.dtype.itemsize, file.dtype.itemsize
            record = np.frombuffer(os.pread(opened.fileno(), size, at), file.dtype)[0]
            place = int(record["shape"])
            if place not in shapes:  # views of one person are read together
                stored = os.pread(opened.fileno(), count_shape_bytes(file.vertices), place)
                steps = np.frombuffer(stored, "<i2").reshape(-1, 3)
                shapes[place] = steps * record["shape_step"]
            name = f"{file.path}, view {row}"
            out.append(_read_view(opened.fileno(), record, shapes[place], name))
        return out


def _read_view(descriptor: int, record: Any, shape: Floats, name: str) -> EncodedView:
    image, ids = (
        os.pread(descriptor, int(stop - start), int(start))
        for start, stop in (record["image"], record["ids"])
    )
    height, width = int(record["height"]), int(record["width"])
    dtype = "<u4" if record["wide"] else "<u2"
    try:
        raw = pa.Codec("zstd").decompress(
            ids, height * width * np.dtype(dtype).itemsize, asbytes=True
        )
        triangle = np.frombuffer(raw, dtype).reshape(height, width)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadDataset(f"{name} is damaged: {error}") from error
    camera = Pinhole if record["pinhole"] else WeakPerspective
    return EncodedView(
        image=image,
        height=height,
        width=width,
        triangle=triangle,
        camera=camera(float(record["focal_or_scale"]), record["camera_centre"]),
        rotation=record["rotation"],
        translation=record["translation"],
        shape=shape,
        expression=record["expression"][: record["expressions"]],
        box=Box(*map(float, record["box"])),
    )
