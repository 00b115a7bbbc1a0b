"""Shards: synthesised views as Parquet files for pyarrow and Hugging Face ``datasets``.

A row is one view of one identity. With the identity's ``person``, stored once in its first row, it
holds everything needed to make the view again. All views of an identity lie in one row group, so
pairs of views come from one group. The dense ground truth of a view is the triangle that each pixel
shows; depth, barycentric coordinates and normals follow exactly from it and are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats, Integer, Ints
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import OCCLUDER, Frame, resolve
from dff.infra.datasets.split import Split, default_group

with require_extra("train"):
    import pyarrow as pa
    import pyarrow.parquet as pq

SCHEMA_VERSION = 2
# Identities are added to a row group until it has this many rows: a group costs about 4 kB.
MIN_GROUP_ROWS = 128

CONVENTIONS = {
    "units": "metres; pixels with the first pixel's centre at (0.5, 0.5); degrees; "
    "identity in standard deviations",
    "frames": "head: x to the face's left, y up, z out of the face; "
    "cam: x right, y down, z forward",
    "camera": "pinhole: px = focal_or_scale * (x, y) / z + camera_centre; "
    "weak_perspective: the same without / z",
    "light": "9 real spherical harmonics of order 0 to 2 by RGB, in cam "
    "(Ramamoorthi and Hanrahan 2001)",
    "landmarks": "68 points of iBUG; landmarks_2d: jaw on the visible contour; "
    "landmarks_3d: jaw fixed to the surface",
    "triangle_ids": "zstd of (height, width) little-endian integers of triangle_ids_dtype; "
    "its maximum is background, the number before it something else that hides the model",
    "person": "in an identity's first row, null elsewhere: "
    "what its views were made of (pipeline.person_file)",
}


@dataclass(frozen=True, eq=False)
class ViewRow:
    """One synthesised view. Arrays are cast to the stored type: a row read equals the row written.

    Raises ValueError when a shape is wrong, a number is not finite, or the sample id is not of this
    identity and view.
    """

    sample_id: str  # "<identity_id>/<view as four digits>"
    identity_id: str
    photo_id: str  # "" when the identity is sampled
    photo_sha256: str  # of the photo file's bytes, "" when sampled
    view: int
    split: Split
    mode: str  # how the view was made: "rerender"
    seed: int  # below 2**63
    image: bytes  # JPEG
    width: int  # pixels
    height: int
    # int32 rows of the model's faces; -1 background, OCCLUDER what hides the model
    triangle_ids: Integer[Array, "height width"]
    camera: Pinhole | WeakPerspective  # of the image
    cam_from_head: Rigid
    identity: Float[Array, " stored"]  # a row of ``MorphableModel.pack_identity``
    expression: Float[Array, " expressions"]  # activations
    light: Float[Array, "9 3"]  # float32, cam
    landmarks_2d: Float[Array, "68 2"]  # float32 pixels, jaw on the visible contour
    landmarks_3d: Float[Array, "68 2"]  # float32 pixels, jaw fixed to the surface
    visible_2d: Bool[Array, " 68"]
    visible_3d: Bool[Array, " 68"]
    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees
    model: str
    licence: str  # of the row: the strictest of model, photo and textures
    fit_error: float  # of the inverse rendering the identity comes from; 0 when sampled
    recipe: str  # JSON: everything else needed to make the view again
    person: bytes | None = None  # in an identity's first row of a shard: what all its views share

    def __post_init__(self) -> None:
        if self.sample_id != make_sample_id(self.identity_id, self.view):
            raise ValueError(
                f"sample id {self.sample_id!r} is not view {self.view} of {self.identity_id!r}"
            )
        wanted: dict[str, tuple[tuple[int, ...], Any]] = {
            "triangle_ids": ((self.height, self.width), np.int32),
            "light": ((9, 3), np.float32),
            "landmarks_2d": ((68, 2), np.float32),
            "landmarks_3d": ((68, 2), np.float32),
            "visible_2d": ((68,), np.bool_),
            "visible_3d": ((68,), np.bool_),
        }
        for name, (shape, dtype) in wanted.items():
            value = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if value.shape != shape or (dtype is np.float32 and not np.isfinite(value).all()):
                raise ValueError(
                    f"ViewRow.{name} of {self.sample_id} must be finite and {shape}, "
                    f"got {value.shape}"
                )
            object.__setattr__(self, name, value)
        for name in ("identity", "expression"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(f"ViewRow.{name} of {self.sample_id} must be one finite row")
            object.__setattr__(self, name, value)
        if not 0 <= self.seed < 2**63:
            raise ValueError(
                f"ViewRow.seed of {self.sample_id} must be in 0 .. 2**63 - 1, got {self.seed}"
            )
        if not np.isfinite([*self.pose, self.fit_error]).all():
            raise ValueError(
                f"ViewRow of {self.sample_id} has a pose or fit error that is not finite"
            )

    @property
    def split_group(self) -> str:
        """The name of the group that decided the split (``dff.infra.datasets.split``)."""
        try:
            named = json.loads(self.recipe).get("split_group")
        except ValueError:  # a damaged recipe, which whoever renders the view again reports
            named = None
        return str(named or default_group(self.photo_id or self.identity_id))

    def coefficients(self, model: MorphableModel) -> Coefficients:
        """The coefficients of the face in the view. ``model``: the row's own."""
        return model.unpack_identity(self.identity, self.expression)

    def pixels(self) -> Bytes:
        """(height, width, 3) uint8 RGB of the image.

        Raises BadDataset when it is not an image of that size.
        """
        bgr = cv2.imdecode(np.frombuffer(self.image, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None or bgr.shape != (self.height, self.width, 3):
            raise BadDataset(
                f"the image of {self.sample_id} is not a JPEG of {self.width} x {self.height}"
            )
        return np.ascontiguousarray(bgr[..., ::-1])


def make_sample_id(identity_id: str, view: int) -> str:
    """``identity/0003``: the name of a view, from which its seed is derived."""
    return f"{identity_id}/{view:04d}"


def resolve_frame(row: ViewRow, model: MorphableModel) -> Frame:
    """The dense ground truth of a view, equal to that of rendering; OCCLUDER where it is hidden.

    Raises BadDataset when the row is of another model.
    """
    if row.model != model.name:
        raise BadDataset(f"{row.sample_id} shows the model {row.model!r}, not {model.name!r}")
    vertices = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
    return resolve(row.triangle_ids, vertices, model.faces, row.camera)


def _matrix(rows: int, columns: int, item: Any) -> Any:
    return pa.list_(pa.list_(item, columns), rows)


SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("identity_id", pa.string()),
        ("photo_id", pa.string()),
        ("photo_sha256", pa.string()),
        ("view", pa.int32()),
        ("split", pa.string()),
        ("mode", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("triangle_ids", pa.binary()),
        ("triangle_ids_dtype", pa.string()),
        ("camera", pa.string()),
        ("focal_or_scale", pa.float64()),
        ("camera_centre", pa.list_(pa.float64(), 2)),
        ("rotation", _matrix(3, 3, pa.float64())),  # cam_from_head
        ("translation", pa.list_(pa.float64(), 3)),  # cam_from_head
        ("identity", pa.list_(pa.float64())),
        ("expression", pa.list_(pa.float64())),
        ("light", _matrix(9, 3, pa.float32())),
        ("landmarks_2d", _matrix(68, 2, pa.float32())),
        ("landmarks_3d", _matrix(68, 2, pa.float32())),
        ("visible_2d", pa.list_(pa.bool_(), 68)),
        ("visible_3d", pa.list_(pa.bool_(), 68)),
        ("yaw", pa.float64()),
        ("pitch", pa.float64()),
        ("roll", pa.float64()),
        ("model", pa.string()),
        ("licence", pa.string()),
        ("fit_error", pa.float64()),
        ("recipe", pa.string()),
        ("person", pa.binary()),
    ]
)
# Tells the ``datasets`` library to decode the column; the other columns need no hint.
_HUGGING_FACE = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
_BLOBS = ("image", "triangle_ids")  # already compressed
_REPEATED = (
    "identity_id",
    "photo_id",
    "photo_sha256",
    "split",
    "mode",
    "triangle_ids_dtype",
    "camera",
    "model",
    "licence",
)
_SEARCHED = (
    "sample_id",
    "identity_id",
    "view",
    "split",
    "mode",
    "yaw",
    "pitch",
    "roll",
    "licence",
    "fit_error",
)


@cache
def _leaves() -> tuple[str, ...]:
    """Parquet's own path of every leaf column: ``light.list.element.list.element``."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMA.empty_table(), sink)
    schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return tuple(schema.column(i).path for i in range(len(schema)))


def _nested(arrays: Sequence[Floats | Bools], kind: Any) -> Any:
    """Arrow fixed-size lists of equally shaped arrays."""
    stacked = np.stack(arrays) if arrays else np.empty((0,))
    item = kind
    lengths = []
    while pa.types.is_fixed_size_list(item):
        lengths.append(item.list_size)
        item = item.value_type
    out = pa.array(stacked.ravel(), item)
    for length in reversed(lengths):
        out = pa.FixedSizeListArray.from_arrays(out, length)
    return out


def _pack(triangle_ids: Ints) -> tuple[bytes, str]:
    """zstd of the triangles, and their type: the narrowest one whose two largest numbers are free
    for OCCLUDER and background.
    """
    dtype = "uint16" if triangle_ids.max(initial=-1) < 0xFFFE else "uint32"
    # Negative ids wrap round: -1 becomes the type's maximum, OCCLUDER the number before it.
    stored = triangle_ids.astype(f"<{np.dtype(dtype).str[1:]}")
    packed: bytes = pa.Codec("zstd", compression_level=3).compress(stored.tobytes(), asbytes=True)
    return packed, dtype


def _unpack(packed: bytes, dtype: str, height: int, width: int) -> Ints:
    size = height * width * np.dtype(dtype).itemsize
    raw = np.frombuffer(
        pa.Codec("zstd").decompress(packed, size, asbytes=True), f"<{np.dtype(dtype).str[1:]}"
    )
    ids = raw.astype(np.int32)
    ids[raw == np.iinfo(dtype).max] = -1
    ids[raw == np.iinfo(dtype).max - 1] = OCCLUDER
    return ids.reshape(height, width)


def _table(rows: Sequence[ViewRow]) -> Any:
    packed = [_pack(row.triangle_ids) for row in rows]
    values: dict[str, Any] = {
        "image": [{"bytes": row.image, "path": None} for row in rows],
        "triangle_ids": [data for data, _ in packed],
        "triangle_ids_dtype": [dtype for _, dtype in packed],
        "camera": [
            "pinhole" if isinstance(row.camera, Pinhole) else "weak_perspective" for row in rows
        ],
        "focal_or_scale": [
            r.camera.focal if isinstance(r.camera, Pinhole) else r.camera.scale for r in rows
        ],
        "camera_centre": [row.camera.centre for row in rows],
        "rotation": [row.cam_from_head.rotation for row in rows],
        "translation": [row.cam_from_head.translation for row in rows],
        "identity": [row.identity for row in rows],
        "expression": [row.expression for row in rows],
        "yaw": [row.pose[0] for row in rows],
        "pitch": [row.pose[1] for row in rows],
        "roll": [row.pose[2] for row in rows],
    }
    columns = []
    for field in SCHEMA:
        column = values.get(field.name) or [getattr(row, field.name, None) for row in rows]
        fixed = pa.types.is_fixed_size_list(field.type)
        columns.append(_nested(column, field.type) if fixed else pa.array(column, field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def collect_persons(rows: Sequence[ViewRow]) -> dict[str, bytes]:
    """The stored person of each identity of a shard's ``rows``: what
    ``dff.pipeline.subjects.subject_file`` decodes.

    Raises BadDataset when an identity has none, or one anywhere but in its first row.
    """
    found: dict[str, bytes] = {}
    for identity, views in groupby(rows, key=lambda row: row.identity_id):
        first, *others = views
        if first.person is None:
            raise BadDataset(f"{first.sample_id}, the first row of {identity!r}, has no person")
        misplaced = [row.sample_id for row in others if row.person is not None]
        if misplaced:
            raise BadDataset(
                f"{misplaced[0]} has a person, which only the first row of {identity!r} may have"
            )
        found[identity] = first.person
    return found


def _groups(rows: Sequence[ViewRow]) -> list[list[ViewRow]]:
    """Rows in their order, whole identities to a group.

    Raises ValueError when an identity's rows are apart.
    """
    groups: list[list[ViewRow]] = [[]]
    seen: set[str] = set()
    for identity, views in groupby(rows, key=lambda row: row.identity_id):
        if identity in seen:
            raise ValueError(f"the rows of identity {identity!r} are not together")
        seen.add(identity)
        if len(groups[-1]) >= MIN_GROUP_ROWS:
            groups.append([])
        first, *others = views
        if any(row.person is not None for row in others):
            raise ValueError(f"the person of {identity!r} is stored in another row than its first")
        groups[-1] += [first, *others]
    return groups


def rows_to_parquet(rows: Sequence[ViewRow], metadata: Mapping[str, str]) -> bytes:
    """A shard's bytes, a function of its rows and ``metadata`` alone.

    The file's metadata also holds the schema's version, units, frames, and licences. Raises
    ValueError when two rows share a sample id, an identity's rows are not together, or a
    person is stored anywhere but in its first row.
    """
    if len({row.sample_id for row in rows}) != len(rows):
        raise ValueError("two rows share a sample id")
    licences = sorted({row.licence for row in rows})
    described = {
        **CONVENTIONS,
        **metadata,
        "schema_version": str(SCHEMA_VERSION),
        "licence": " AND ".join(licences),
        "huggingface": _HUGGING_FACE,
    }
    roots = {path: path.partition(".")[0] for path in _leaves()}
    floats = {
        field.name for field in SCHEMA if "float" in str(field.type) or "double" in str(field.type)
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        SCHEMA.with_metadata(described),
        compression={path: "NONE" if root in _BLOBS else "ZSTD" for path, root in roots.items()},
        use_dictionary=list(_REPEATED),
        use_byte_stream_split=[path for path, root in roots.items() if root in floats],
        write_statistics=list(_SEARCHED),
        write_page_checksum=True,
    ) as writer:
        for group in _groups(rows):
            writer.write_table(_table(group), row_group_size=max(len(group), 1))
    out: bytes = sink.getvalue().to_pybytes()
    return out


def open_parquet(data: bytes, name: str) -> Any:
    """The ``pyarrow.parquet.ParquetFile`` of a shard's bytes.

    Raises BadDataset when it is none, or of another schema version.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise BadDataset(f"{name} is not a Parquet file: {error}") from error
    found = (file.schema_arrow.metadata or {}).get(b"schema_version", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise BadDataset(f"{name} has schema version {found}, this program reads {SCHEMA_VERSION}")
    return file


def read_metadata(data: bytes, name: str = "shard") -> dict[str, str]:
    """The file's metadata. Raises BadDataset when it is not a shard of this schema."""
    return {
        k.decode(): v.decode() for k, v in open_parquet(data, name).schema_arrow.metadata.items()
    }


def read_columns(data: bytes, names: Sequence[str], name: str = "shard") -> dict[str, list[Any]]:
    """Some columns as plain Python values, without decoding the others.

    Raises BadDataset, and ValueError for an unknown name.
    """
    unknown = set(names) - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"a shard has no column {sorted(unknown)}")
    file = open_parquet(data, name)
    try:
        columns: dict[str, list[Any]] = file.read(
            columns=list(names), use_threads=False
        ).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise BadDataset(f"{name} is damaged: {error}") from error
    return columns


def parquet_to_rows(data: bytes, name: str = "shard") -> list[ViewRow]:
    """All rows of a shard, equal to those written.

    Raises BadDataset when it is damaged or of another schema.
    """
    file = open_parquet(data, name)
    try:
        table = file.read(use_threads=False)
        if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
            raise BadDataset(f"{name} has other columns than schema version {SCHEMA_VERSION}")
        return _rows(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadDataset(f"{name} is damaged: {error}") from error


def _rows(table: Any) -> list[ViewRow]:
    plain: dict[str, Any] = {}
    for field in SCHEMA:
        column = table.column(field.name).combine_chunks()
        if pa.types.is_fixed_size_list(field.type):
            shape, item = [], field.type
            while pa.types.is_fixed_size_list(item):
                shape.append(item.list_size)
                column, item = column.flatten(), item.value_type
            plain[field.name] = column.to_numpy(zero_copy_only=False).reshape(-1, *shape)
        else:
            plain[field.name] = column.to_pylist()
    same = [
        f
        for f in ViewRow.__dataclass_fields__
        if f in plain and f not in ("image", "triangle_ids", "camera")
    ]
    rows = []
    for i in range(table.num_rows):
        at = {key: values[i] for key, values in plain.items()}
        camera = Pinhole if at["camera"] == "pinhole" else WeakPerspective
        rows.append(
            ViewRow(
                **{key: at[key] for key in same},
                image=at["image"]["bytes"],
                triangle_ids=_unpack(
                    at["triangle_ids"], at["triangle_ids_dtype"], at["height"], at["width"]
                ),
                camera=camera(at["focal_or_scale"], at["camera_centre"]),
                cam_from_head=Rigid(at["rotation"], at["translation"]),
                pose=(at["yaw"], at["pitch"], at["roll"]),
            )
        )
    return rows
