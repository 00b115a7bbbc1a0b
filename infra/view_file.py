"""View files: the columns of a shard that training reads, laid out for random access.

A file holds the JPEG images and packed triangle ids of the views one after another, then one
record for each view. It is as large as those columns of the shard: nothing is decoded. Views are
read by position, so any number of processes share a file without mapping it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dff.face.arrays import Array, Integer, Shaped
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box, Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.infra.shards import open_parquet

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
_POINTER = np.dtype("<u8")  # the file's last bytes: where the records begin


@dataclass(frozen=True)
class EncodedView:
    """One view as it is stored: image and triangle ids are still encoded."""

    image: bytes  # JPEG
    height: int  # px
    width: int
    # rows of the model's faces; the type's largest number is background, the one before occluders
    triangle: Integer[Array, "height width"]
    camera: Pinhole | WeakPerspective
    cam_from_head: Rigid
    identity: Shaped[Array, " stored"]  # a row of ``MorphableModel.pack_identity``
    expression: Shaped[Array, " expressions"]  # activations
    box: Box  # of the 68 landmarks of the 3D scheme, px


def write_view_file(shard: bytes, file: BinaryIO, name: str) -> None:
    """Write the view file of a shard's bytes; ``name`` is the shard's, for messages.

    Raises BadDataset when the shard is damaged or of another schema.
    """
    parquet = open_parquet(shard, name)
    try:
        table = parquet.read(columns=_COLUMNS, use_threads=False).combine_chunks()
        columns = {n: _column(table, n) for n in _COLUMNS}
        images, ids = columns["image"].field("bytes"), columns["triangle_ids"]
        records = _build_records(columns, table.num_rows)
        start = 0
        for field, blobs in (("image", images), ("ids", ids)):
            offsets = np.frombuffer(blobs.buffers()[1], np.int32)[
                blobs.offset : blobs.offset + len(blobs) + 1
            ].astype(np.int64)
            file.write(memoryview(blobs.buffers()[2] or b"")[offsets[0] : offsets[-1]])
            bounds = offsets - offsets[0] + start
            records[field] = np.stack([bounds[:-1], bounds[1:]], axis=1)
            start = int(bounds[-1])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise BadDataset(f"{name} is damaged: {error}") from error
    np.lib.format.write_array(file, records, allow_pickle=False)
    file.write(np.array(start, _POINTER).tobytes())


def _column(table: Any, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _build_records(columns: dict[str, Any], rows: int) -> Shaped[Array, " views"]:
    identity = columns["identity"].to_pylist()
    expression = columns["expression"].to_pylist()
    longest = [max(map(len, values), default=0) for values in (identity, expression)]
    records = np.zeros(
        rows,
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
            ("identities", "<i4"),
            ("identity", "<f8", longest[0]),
            ("expressions", "<i4"),
            ("expression", "<f8", longest[1]),
            ("model", "S64"),
        ],
    )
    for name in ("height", "width", "focal_or_scale"):
        records[name] = columns[name].to_numpy(zero_copy_only=False)
    for name, shape in (("camera_centre", (2,)), ("rotation", (3, 3)), ("translation", (3,))):
        records[name] = _flatten(columns[name]).reshape(-1, *shape)
    records["wide"] = [value == "uint32" for value in columns["triangle_ids_dtype"].to_pylist()]
    records["pinhole"] = [value == "pinhole" for value in columns["camera"].to_pylist()]
    records["model"] = [value.encode()[:64] for value in columns["model"].to_pylist()]
    landmarks = _flatten(columns["landmarks_3d"]).reshape(-1, 68, 2)
    records["box"] = np.concatenate([landmarks.min(1), landmarks.max(1)], axis=1)
    for name, values in (("identity", identity), ("expression", expression)):
        count = "identities" if name == "identity" else "expressions"
        for row, value in enumerate(values):
            records[count][row] = len(value)
            records[name][row, : len(value)] = value
    return records


def _flatten(column: Any) -> Any:
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def read_records(path: Path) -> Shaped[Array, " views"]:
    """The records of a view file, which ``read_views`` takes; about 1.5 kB a view.

    Raises FileNotFoundError, and BadDataset for a damaged file.
    """
    with path.open("rb") as file:
        try:
            file.seek(-_POINTER.itemsize, os.SEEK_END)
            end = file.tell()
            start = int(np.frombuffer(file.read(), _POINTER)[0])
            file.seek(start)
            data = io.BytesIO(file.read(end - start))
            return np.asarray(np.lib.format.read_array(data, allow_pickle=False))
        except (OSError, ValueError, IndexError) as error:
            raise BadDataset(f"{path} is damaged: remove it ({error})") from error


def read_views(
    path: Path, records: Shaped[Array, " views"], rows: Sequence[int]
) -> list[EncodedView]:
    """Some views of a file with these ``records``.

    Raises FileNotFoundError, and BadDataset for damaged triangle ids.
    """
    with path.open("rb") as file:
        return [_read_view(file.fileno(), records[row], f"{path}, view {row}") for row in rows]


def _read_view(descriptor: int, record: Any, name: str) -> EncodedView:
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
        cam_from_head=Rigid(record["rotation"], record["translation"]),
        identity=record["identity"][: record["identities"]],
        expression=record["expression"][: record["expressions"]],
        box=Box(*map(float, record["box"])),
    )
