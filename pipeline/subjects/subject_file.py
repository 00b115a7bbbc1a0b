"""A person as bytes: what rendering needs of a face, stored once beside its views.

Views are rendered from what these bytes give back, never from what went in: ``store_person`` is the
gate that every person passes before its first view. So a row and its person make the same pixels
again, on any day, without the photo.

The bytes are a ZIP archive, its members stored as they are and checked by CRC. ``person.json`` has
every field but what the model gives back (the shape at rest, from the coefficients); arrays are
members beside it, as ``.npy``: numbers keep their last bit. Pictures are JPEG without subsampling
of colours (their fourth channel a PNG): the step where a person loses something, once.
"""

from __future__ import annotations

import io
import json
import math
import struct
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np

from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadDataset
from dff.face.model.morphable import MorphableModel
from dff.pipeline.subjects.subject import Person

FORMAT = 2
IMAGE_QUALITY: Mapping[str, int] = {
    "texture": 95,
    "own.photo": 95,
    "own.surroundings": 95,
    "own.fill": 90,
}
"""Fields of (H, W, 3) or (H, W, 4) float32 in 0..1 that are stored as pictures, and their JPEG
quality. At 95 a texture of 512 texels takes 60 kB and errs by 1.0 / 255 (root of the mean square),
the photo's crop by 1.4 / 255."""

STORED_TYPES: Mapping[str, str] = {
    "Accessories": "Outfit",
    "FaceCover": "Cover",
    "Hand": "Held",
}
"""Classes whose name in the bytes is not that in the program (program: bytes)."""

STORED_FIELDS: Mapping[tuple[str, str], str] = {
    ("Person", "accessories"): "outfit",
    ("Person", "photo_scene"): "own",
    ("PhotoScene", "crop"): "photo",
    ("PhotoScene", "lit_texture"): "fill",
}
"""Fields whose name in the bytes is not that in the program ((class, field): bytes)."""

_DOCUMENT = "person.json"
_CREATED = (1980, 1, 1, 0, 0, 0)  # of every member: the bytes don't depend on the clock
_ARRAYS = ("bool", "uint8", "int32", "int64", "float32", "float64")


_DERIVED = ("neutral", "deformation")  # fields that follow from the stored identity row


@dataclass(frozen=True)
class StoredPerson:
    """A person as its views see it, and the bytes that give it back."""

    person: Person
    data: bytes


def store_person(person: Person, model: MorphableModel) -> StoredPerson:
    """The person after storing and reading: the one to render. Raises ValueError for what can't be
    stored.
    """
    data = encode_person(person, model)
    return StoredPerson(decode_person(data, model, name=person.id), data)


def encode_person(person: Person, model: MorphableModel) -> bytes:
    """The person's bytes: the same for the same person.

    Raises ValueError when its shape is not what its coefficients give, or a field is neither
    numbers, text, arrays nor dataclasses of them.
    """
    at_rest = model.vertices(person.coefficients(np.zeros(len(model.expression))))
    if at_rest.shape != person.neutral.shape or np.abs(at_rest - person.neutral).max() > 1e-9:
        raise ValueError(
            f"the shape of {person.id} is not what {model.name} gives for its coefficients"
        )
    members: dict[str, bytes] = {}
    identity = model.pack_identity(person.coefficients(np.zeros(0)))
    packed = replace(person, identity=identity)
    content = {
        name: _written(getattr(packed, field), name, members)
        for field, name in stored_fields(Person).items()
        if field not in _DERIVED and (field != "split_group" or person.split_group)
    }
    document = {"format": FORMAT, "model": model.name, "person": content}
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {_DOCUMENT: text.encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, _CREATED), data)
    return out.getvalue()


def decode_person(data: bytes, model: MorphableModel, *, name: str) -> Person:
    """The person of ``encode_person``. ``name`` is whose it should be.

    Raises BadDataset, naming the part that is wrong, when the bytes are damaged, another person's,
    of another model or of another format.
    """
    try:
        members = _members(data)
        document = json.loads(members.pop(_DOCUMENT))
        if document.get("format") != FORMAT:
            raise _Broken(f"is of format {document.get('format')}, this program reads {FORMAT}")
        if document["model"] != model.name:
            raise _Broken(f"is of the model {document['model']!r}, not {model.name!r}")
        content = document["person"]
        if content.get("id") != name:
            raise _Broken(f"is that of {content.get('id')!r}")
        values = {
            field: _read(content.pop(name), name, members)
            for field, name in stored_fields(Person).items()
            if field not in _DERIVED and (field != "split_group" or name in content)
        }
        if content:
            raise TypeError(f"a person has no {min(content)}")
        face = model.unpack_identity(values.pop("identity"), np.zeros(len(model.expression)))
        return Person(
            **values,
            identity=face.identity,
            deformation=face.deformation,
            neutral=model.vertices(face),
        )
    except _Broken as error:
        raise BadDataset(f"the stored person of {name} {error}") from error
    # zipfile raises RuntimeErrors for methods of compression and encryption that it does not know
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, struct.error) as error:
        raise BadDataset(f"the stored person of {name} is cut off or damaged: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataset(
            f"the stored person of {name} does not fit this program: {error!r}"
        ) from error


class _Broken(Exception):
    """The defect of stored bytes, as the rest of a sentence that begins with their name."""


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        out = {}
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:  # nothing here can unfold into gigabytes
                raise _Broken(f"has a compressed part {info.filename!r}")
            try:
                out[info.filename] = archive.read(info)
            except zipfile.BadZipFile as error:
                raise _Broken(f"is damaged in {info.filename}: {error}") from error
        if _DOCUMENT not in out:
            raise _Broken(f"has no {_DOCUMENT}")
        return out


def _written(value: Any, path: str, members: dict[str, bytes]) -> Any:
    """A value as JSON; its pictures go to ``members``."""
    if path in IMAGE_QUALITY and value is not None:
        members |= _picture(np.asarray(value), path)
        return {"picture": path, "channels": int(value.shape[2])}
    if isinstance(value, np.ndarray):
        members[f"{path}.npy"] = _array(value, path)
        return {"array": f"{path}.npy"}
    if is_dataclass(value) and not isinstance(value, type):
        if type(value) not in _kinds().values():
            raise ValueError(f"{path}: no field of a person is declared as {type(value).__name__}")
        return {
            "is": _stored_type(type(value)),
            "of": {
                name: _written(getattr(value, field), f"{path}.{name}", members)
                for field, name in stored_fields(type(value)).items()
            },
        }
    if isinstance(value, tuple):
        return {"tuple": [_written(item, f"{path}[{i}]", members) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_written(item, f"{path}[{i}]", members) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{path}: only text names the items of a dictionary")
        return {
            "dict": {key: _written(item, f"{path}.{key}", members) for key, item in value.items()}
        }
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{path}: {value!r:.60} can't be stored")


def _read(value: Any, path: str, members: Mapping[str, bytes]) -> Any:
    """The value that ``_written`` wrote."""
    if isinstance(value, list):
        return [_read(item, f"{path}[{i}]", members) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "picture" in value:
        return _pixels(value["picture"], int(value["channels"]), members)
    if "array" in value:
        return _array_of(value["array"], members)
    if "tuple" in value:
        return tuple(_read(item, f"{path}[{i}]", members) for i, item in enumerate(value["tuple"]))
    if "dict" in value:
        return {key: _read(item, f"{path}.{key}", members) for key, item in value["dict"].items()}
    kind = _kinds().get(str(value.get("is")))
    if kind is None:
        raise _Broken(f"has in {path} a {value.get('is')}, which this program does not know")
    of = {name: _read(item, f"{path}.{name}", members) for name, item in value["of"].items()}
    names = stored_fields(kind)
    missing = set(names.values()) ^ set(of)
    if missing:
        raise _Broken(f"and this program disagree about {path}.{min(missing)}")
    return kind(**{field: of[name] for field, name in names.items()})


def _stored_type(kind: type) -> str:
    return STORED_TYPES.get(kind.__name__, kind.__name__)


def stored_fields(kind: Any) -> dict[str, str]:
    """The fields of a dataclass, and their names in the bytes."""
    return {f.name: STORED_FIELDS.get((kind.__name__, f.name), f.name) for f in fields(kind)}


@cache
def _kinds() -> dict[str, Any]:
    """The dataclasses that a person's fields are declared to hold, by their name in the bytes.

    Nothing else is ever made of bytes.
    """
    found: dict[str, Any] = {}

    def visit(hint: Any) -> None:
        for part in typing.get_args(hint):
            visit(part)
        if is_dataclass(hint) and isinstance(hint, type) and _stored_type(hint) not in found:
            found[_stored_type(hint)] = hint
            for inner in typing.get_type_hints(hint).values():
                visit(inner)

    for hint in typing.get_type_hints(Person).values():
        visit(hint)
    return found


def _array(values: np.ndarray[Any, Any], path: str) -> bytes:
    if values.dtype.name not in _ARRAYS:
        raise ValueError(
            f"{path}: arrays of {values.dtype} can't be stored, only {', '.join(_ARRAYS)}"
        )
    out = io.BytesIO()
    np.save(
        out, np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")), allow_pickle=False
    )
    return out.getvalue()


def _array_of(name: str, members: Mapping[str, bytes]) -> np.ndarray[Any, Any]:
    if name not in members:
        raise _Broken(f"has no {name}")
    file = io.BytesIO(members[name])
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is of another version")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if by_columns or dtype.name not in _ARRAYS:
            raise ValueError(f"it is of {dtype}")
        # By hand, since numpy would make room for whatever the header says before it looks for the
        # bytes.
        values = np.frombuffer(file.read(), dtype).reshape(shape)
    except ValueError as error:
        raise _Broken(f"has a {name} that is no array of numbers: {error}") from error
    return np.array(values, dtype=dtype.newbyteorder("="))


def _picture(values: Floats, path: str) -> dict[str, bytes]:
    if values.ndim != 3 or values.shape[2] not in (3, 4) or not np.isfinite(values).all():
        raise ValueError(f"{path} wants finite (H, W, 3) or (H, W, 4), got {values.shape}")
    levels: Bytes = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    how = [cv2.IMWRITE_JPEG_QUALITY, IMAGE_QUALITY[path], cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    how += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    out = {
        f"{path}.jpg": cv2.imencode(".jpg", np.ascontiguousarray(levels[..., 2::-1]), how)[
            1
        ].tobytes()
    }
    if values.shape[2] == 4:
        out[f"{path}.png"] = cv2.imencode(".png", np.ascontiguousarray(levels[..., 3]))[1].tobytes()
    return out


def _pixels(path: str, channels: int, members: Mapping[str, bytes]) -> Floats:
    colour = _decoded(f"{path}.jpg", cv2.IMREAD_COLOR_RGB, members)
    parts = (
        [colour]
        if channels == 3
        else [colour, _decoded(f"{path}.png", cv2.IMREAD_GRAYSCALE, members)[..., None]]
    )
    if len({part.shape[:2] for part in parts}) != 1:
        raise _Broken(f"has parts of different sizes in {path}")
    return np.concatenate(parts, axis=2).astype(np.float32) / np.float32(255.0)


def _decoded(name: str, how: int, members: Mapping[str, bytes]) -> Bytes:
    if name not in members:
        raise _Broken(f"has no {name}")
    try:
        pixels = cv2.imdecode(np.frombuffer(members[name], np.uint8), how)
    except cv2.error as error:
        raise _Broken(f"has a {name} that is no picture: {error}") from error
    if pixels is None:
        raise _Broken(f"has a {name} that is no picture")
    return np.asarray(pixels, dtype=np.uint8)
