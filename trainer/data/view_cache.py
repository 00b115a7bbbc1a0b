"""A cache of a dataset's views in flat files, which every process of a machine maps into memory.

Shards are compact; training needs random access. The store holds the JPEG of each view and its
dense ground truth: the triangle of each pixel and two barycentric weights in 1/255, accurate to
0.02 mm. So no training step computes geometry again.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from dff.face.arrays import Array, Bools, Bytes, Floats, Integer, Ints, UInt8
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame
from dff.infra.shards import ViewRow, resolve_frame

MAX_CLAMPED = 0.1
"""Share of a view's pixels clamped to an edge of their triangle above which the mesh is wrong."""

_INDEX = "views.npz"


@dataclass(frozen=True)
class StoredView:
    """One view with its dense ground truth."""

    image: UInt8[Array, "height width 3"]  # RGB
    triangle: Integer[Array, "height width"]  # row of the model's faces; the maximum: background
    weight: UInt8[Array, "height width 2"]  # first two barycentric weights times 255
    box: Box  # of the 68 landmarks, px


@dataclass(frozen=True)
class ViewStore:
    """An opened store. Pickling it sends only the folder; the other process maps the files."""

    folder: Path

    @cached_property
    def _index(self) -> dict[str, Any]:
        with np.load(self.folder / _INDEX) as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def _files(self) -> tuple[Bytes, Ints, Bytes]:
        triangles = np.dtype(str(self._index["triangle_dtype"]))
        kinds = (
            ("images", np.dtype(np.uint8)),
            ("triangles", triangles),
            ("weights", np.dtype(np.uint8)),
        )
        images, ids, weights = (
            np.memmap(self.folder / f"{name}.bin", kind, "r") for name, kind in kinds
        )
        return images, ids, weights

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __len__(self) -> int:
        return len(self._index["identity"])

    @property
    def identity(self) -> Ints:
        """(N,) index of the identity that each view shows, in the dataset's order."""
        return cast(Ints, self._index["identity"])

    @property
    def is_dev(self) -> Bools:
        """(N,) whether the view belongs to the validation split."""
        return cast(Bools, self._index["is_dev"])

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of the rows, sorted."""
        return tuple(map(str, self._index["licences"]))

    @property
    def poses(self) -> Floats:
        """(N, 3) yaw, pitch, roll in degrees."""
        return cast(Floats, self._index["pose"])

    def view(self, number: int) -> StoredView:
        """Decode the ``number``-th view. Raises BadDataset when its image is damaged."""
        images, triangles, weights = self._files
        at = self._index
        height, width = (int(n) for n in at["size"][number])
        start, end = at["image_start"][number : number + 2]
        bgr = cv2.imdecode(np.asarray(images[start:end]), cv2.IMREAD_COLOR)
        if bgr is None or bgr.shape != (height, width, 3):
            raise BadDataset(
                f"the image of {at['sample_id'][number]} is not a JPEG of {width} x {height}"
            )
        first, last = at["pixel_start"][number : number + 2]
        return StoredView(
            image=cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False),
            triangle=np.asarray(triangles[first:last]).reshape(height, width),
            weight=np.asarray(weights[2 * first : 2 * last]).reshape(height, width, 2),
            box=Box(*map(float, at["box"][number])),
        )


def write_view_store(rows: Iterable[ViewRow], model: MorphableModel, folder: Path) -> ViewStore:
    """Unpack rows into ``folder``, which appears only when complete; open it if it exists.

    Raises BadDataset when there are no rows, or when a row was made with another model or another
    version of it. Of a store that exists, only the first row is checked.
    """
    if (folder / _INDEX).exists():
        for row in itertools.islice(rows, 1):
            _resolve_checked_frame(row, model)
        return ViewStore(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose folders are shut to other users of a shared cache.
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        _unpack(rows, model, temporary)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process of this machine has made the store meanwhile
            if not (folder / _INDEX).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ViewStore(folder)


def _resolve_checked_frame(row: ViewRow, model: MorphableModel) -> Frame:
    """The row's dense ground truth. Raises BadDataset when it was made with another mesh.

    Another version of the mesh is recognised by pixels that lie outside the triangles that the row
    assigns them: resolving the row clamps these to an edge.
    """
    try:
        frame = resolve_frame(row, model)
    except ValueError as error:
        raise BadDataset(
            f"{row.sample_id} was made with another version of {model.name}: {error}"
        ) from error
    outside = (frame.barycentric[frame.mask] <= 0.0).any(1)
    if outside.size and outside.mean() > MAX_CLAMPED:
        raise BadDataset(
            f"{row.sample_id} was made with another version of {model.name}: make the dataset again"
        )
    return frame


def _unpack(rows: Iterable[ViewRow], model: MorphableModel, folder: Path) -> None:
    dtype, background = ("uint16", 0xFFFF) if len(model.faces) < 0xFFFF else ("uint32", 0xFFFFFFFF)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("sample_id", "identity", "is_dev", "size", "box", "pose")
    }
    image_start, pixel_start = [0], [0]
    identities: dict[str, int] = {}
    licences: set[str] = set()
    with (
        (folder / "images.bin").open("wb") as images,
        (folder / "triangles.bin").open("wb") as triangles,
        (folder / "weights.bin").open("wb") as weights,
    ):
        for row in rows:
            frame = _resolve_checked_frame(row, model)
            images.write(row.image)
            triangles.write(
                np.where(frame.triangle < 0, background, frame.triangle).astype(dtype).tobytes()
            )
            weights.write(
                (frame.barycentric[..., :2].clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).tobytes()
            )
            box = Box.around(row.landmarks_3d)
            columns["sample_id"].append(row.sample_id)
            columns["identity"].append(identities.setdefault(row.identity_id, len(identities)))
            columns["is_dev"].append(row.split == "dev")
            columns["size"].append((row.height, row.width))
            columns["box"].append((box.x0, box.y0, box.x1, box.y1))
            columns["pose"].append(row.pose)
            image_start.append(image_start[-1] + len(row.image))
            pixel_start.append(pixel_start[-1] + row.height * row.width)
            licences.add(row.licence)
    if not identities:
        raise BadDataset("the dataset has no views to train on")
    columns |= {
        "image_start": image_start,
        "pixel_start": pixel_start,
        "licences": sorted(licences),
    }
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    np.savez(folder / _INDEX, triangle_dtype=np.array(dtype), **arrays)
