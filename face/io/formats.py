"""File formats of published face models: bytes in, raw arrays out.

Nothing of these models is shipped. Sources of the layouts: the Basel Face Model 2009 (Matlab), 2017
and 2019 (HDF5, the format of Statismo), the eos library (cereal binary archives, in which the
Surrey Face Model is published), and the package ``body-models``, which reads FLAME and GNM Head.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.extras import require_extra
from dff.face.io.raw_model import RawModel
from dff.face.model.landmarks import NAMES

BASEL_LICENCE = "LicenseRef-Basel-Face-Model"
SURREY_LICENCE = "LicenseRef-Surrey-Face-Model"
BODY_MODELS = {"FLAME": "LicenseRef-FLAME", "GNM": "Apache-2.0"}
AT_ONCE = 32  # shapes that body-models makes in one call
JAW_OPEN = 0.35  # radians

BASEL_LANDMARKS = {  # identifiers in the metadata of the HDF5 files
    "center.nose.tip": "nose_tip",
    "center.chin.tip": "chin",
    "right.eye.corner_outer": "eye_right_outer",
    "right.eye.corner_inner": "eye_right_inner",
    "left.eye.corner_outer": "eye_left_outer",
    "left.eye.corner_inner": "eye_left_inner",
    "right.lips.corner": "mouth_right",
    "left.lips.corner": "mouth_left",
    "center.lips.upper.outer": "lip_upper_middle",
    "center.lips.lower.outer": "lip_lower_middle",
    "center.lips.upper.inner": "lip_upper_inner_middle",
    "center.lips.lower.inner": "lip_lower_inner_middle",
}


def landmark_table(text: str) -> dict[str, int]:
    """Vertices by landmark from a mapping file of eos.

    Lines are ``37 = 2602`` or ``37 2602``: the landmark counts from 1, the vertex from 0. Comments
    begin with # or ;. Raises ValueError when there is no such line.
    """
    body = re.sub(r"[#;].*", "", text.split("contour_landmarks")[0])
    pairs = [(int(a), int(b)) for a, b in re.findall(r"^\s*(\d+)\s*=?\s*(\d+)\s*$", body, re.M)]
    if not pairs or not all(1 <= number <= 68 for number, _ in pairs):
        raise ValueError("no mapping from the 68 landmarks to vertices")
    return {NAMES[number - 1]: vertex for number, vertex in pairs}


def basel_2009(data: bytes, landmarks: Mapping[str, int]) -> RawModel:
    """Basel Face Model 2009 (``01_MorphableModel.mat``), in micrometres.

    Arrays: shapeMU (3V, 1), shapePC (3V, K), shapeEV (K, 1) standard deviations, tl (F, 3) from 1.
    """
    from scipy.io import loadmat

    arrays = loadmat(BytesIO(data), variable_names=("shapeMU", "shapePC", "shapeEV", "tl"))
    modes = (
        np.asarray(arrays["shapePC"], np.float32)
        * np.asarray(arrays["shapeEV"], np.float32).ravel()
    )
    template = np.asarray(arrays["shapeMU"], np.float64).reshape(-1, 3)
    return RawModel(
        name="basel-2009",
        licence=BASEL_LICENCE,
        provenance="Basel Face Model 2009, University of Basel; a file supplied by the user",
        template=template,
        identity=_rows(modes),
        expression=np.zeros((0, *template.shape), np.float32),
        units=np.zeros((0, *template.shape), np.float32),
        unit_names=(),
        faces=np.asarray(arrays["tl"], np.int64) - 1,
        landmarks=landmarks,
    )


def basel_h5(data: bytes, landmarks: Mapping[str, int]) -> RawModel:
    """Basel Face Model 2017 or 2019 (.h5), in millimetres.

    The groups shape and expression hold a PCA model each. Landmarks of the file's own metadata
    complete those that are given. Raises MissingExtra
    without h5py.
    """
    with require_extra("models"):
        import h5py

    with h5py.File(BytesIO(data), "r") as file:
        mean, modes = _statismo(file["shape"])
        faces = np.asarray(file["shape/representer/cells"], np.int64)
        expression = np.zeros((0, *mean.shape), np.float32)
        if "expression" in file:
            resting, expression = _statismo(file["expression"])
            mean = mean + resting
        marks = _metadata_landmarks(file, mean)
        year = "2019" if "2019" in str(file.attrs.get("version", "")) else "2017"
    return RawModel(
        name=f"basel-{year}",
        licence=BASEL_LICENCE,
        provenance=f"Basel Face Model {year}, University of Basel; a file supplied by the user",
        template=mean,
        identity=modes,
        expression=expression,
        units=np.zeros((0, *mean.shape), np.float32),
        unit_names=(),
        faces=faces.T if faces.shape[0] == 3 else faces,
        landmarks={**marks, **landmarks},
    )


def _statismo(group: Any) -> tuple[Floats, Floats]:
    """(V, 3) mean and (K, V, 3) modes at one standard deviation of a Statismo PCA model."""
    mean = np.asarray(group["model/mean"], np.float64).reshape(-1, 3)
    sd = np.sqrt(np.asarray(group["model/pcaVariance"], np.float32).ravel())
    return mean, _rows(np.asarray(group["model/pcaBasis"], np.float32) * sd)


def _metadata_landmarks(file: Any, mean: Floats) -> dict[str, int]:
    if "metadata/landmarks/json" not in file:
        return {}
    stored = np.asarray(file["metadata/landmarks/json"]).ravel()[0]
    found = {}
    for entry in json.loads(stored if isinstance(stored, str) else bytes(stored).decode()):
        name = BASEL_LANDMARKS.get(entry["id"])
        if name is not None:
            away = np.linalg.norm(mean - np.asarray(entry["coordinates"], np.float64), axis=1)
            found[name] = int(away.argmin())
    return found


def _rows(columns: Floats) -> Floats:
    """(K, V, 3) of (3V, K) modes in columns."""
    return np.ascontiguousarray(columns.T).reshape(columns.shape[1], -1, 3)


def eos(data: bytes, landmarks: Mapping[str, int]) -> RawModel:
    """A model of the eos library (.bin), such as sfm_shape_3448.bin.

    Versions 1 to 4 of its cereal archive are read. Raises ValueError for another version or a file
    that ends too early.
    """
    read = _Cereal(data)
    version = read.number("<I")
    if not 1 <= version <= 4:
        raise ValueError(f"an eos model of version {version}; 1 to 4 are read")
    mean, modes, faces = read.pca()
    read.pca()  # colour
    expression, units, names = *np.zeros((2, 0, *mean.shape), np.float32), tuple[str, ...]()
    if version >= 2 and not read.number("<?"):
        if read.number("<i") == 0:
            resting, expression, _ = read.pca()
            mean = mean + resting if resting.size else mean
        else:
            names, units = read.blendshapes()
    if version >= 3 and not read.number("<?"):
        for _ in range(read.number("<Q")):
            read.text()
            read.number("<i")
    uv = read.vector(np.dtype("<f8"), 2)
    uv_faces = read.vector(np.dtype("<i4"), 3) if version == 4 else np.zeros((0, 3), np.int32)
    if len(uv_faces) == 0 and len(uv) == len(mean):
        uv_faces = faces
    return RawModel(
        name="surrey",
        licence=SURREY_LICENCE,
        provenance="a model of the eos library (Surrey Face Model, University of Surrey); "
        "a file supplied by the user",
        template=mean,
        identity=modes,
        expression=expression,
        units=units,
        unit_names=names,
        faces=faces.astype(np.int64),
        landmarks=landmarks,
        uv=np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)
        if len(uv_faces)
        else None,  # eos counts v downwards
        uv_faces=uv_faces.astype(np.int64) if len(uv_faces) else None,
    )


class _Cereal:
    """Reads a little-endian binary archive of the cereal library from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, format_: str) -> int:
        return int(struct.unpack(format_, self._take(struct.calcsize(format_)))[0])

    def text(self) -> str:
        return self._take(self.number("<Q")).decode()

    def matrix(self) -> Floats:
        """An Eigen matrix of float: rows, columns, then values column by column."""
        rows, columns = self.number("<i"), self.number("<i")
        if rows < 0 or columns < 0:
            raise ValueError("a matrix of negative size")
        values = np.frombuffer(self._take(4 * rows * columns), "<f4")
        return values.reshape(columns, rows).T

    def vector(self, kind: np.dtype[Any], width: int) -> Any:
        """(N, width) std::vector of std::array."""
        count = self.number("<Q")
        return np.frombuffer(self._take(count * width * kind.itemsize), kind).reshape(count, width)

    def pca(self) -> tuple[Floats, Floats, Ints]:
        """(V, 3) mean, (K, V, 3) modes at one standard deviation, (F, 3) triangles.

        Stored are the mean, the orthonormal basis, the eigenvalues and the triangles.
        """
        mean, basis, eigenvalues = self.matrix(), self.matrix(), self.matrix()
        faces = self.vector(np.dtype("<i4"), 3)
        modes = basis * np.sqrt(eigenvalues.ravel())
        return (
            mean.reshape(-1, 3).astype(np.float64),
            _rows(modes) if modes.size else np.zeros((0, 0, 3), np.float32),
            faces,
        )

    def blendshapes(self) -> tuple[tuple[str, ...], Floats]:
        """Names and (E, V, 3) offsets."""
        names, shapes = [], []
        for _ in range(self.number("<Q")):
            names.append(self.text())
            shapes.append(self.matrix().reshape(-1, 3))
        return tuple(names), np.array(shapes, np.float32)

    def _take(self, count: int) -> bytes:
        out = self._data[self._at : self._at + count]
        if len(out) != count:
            raise ValueError("the file ends too early")
        self._at += count
        return out


def from_body_models(model: Any, landmarks: Mapping[str, int]) -> RawModel:
    """A head of the package ``body-models`` (FLAME, GNM) in its rest pose.

    Only its public interface is used. Its shape and expression coefficients become modes, and the
    rotation of the jaw a facial unit.
    """
    rest = model.get_rest_pose(batch_dims=(1,))
    template = np.asarray(model.forward_vertices(**rest), np.float64)[0]

    def moved(key: str, values: Floats) -> Floats:
        """(N, V, 3) offsets for (N, ...) values of one parameter."""
        out = []
        for rows in np.array_split(np.asarray(values, np.float32), max(len(values) // AT_ONCE, 1)):
            pose = model.get_rest_pose(batch_dims=(len(rows),)) | {key: rows}
            out.append(
                (np.asarray(model.forward_vertices(**pose), np.float64) - template).astype(
                    np.float32
                )
            )
        return np.concatenate(out)

    units, names = np.zeros((0, *template.shape), np.float32), tuple[str, ...]()
    if "jaw" in model.joint_names:
        pose = np.array(rest["head_pose"])
        pose[0, model.joint_names.index("jaw") - 1, 0] = JAW_OPEN  # the root has no control
        units, names = moved("head_pose", pose), ("jawOpen",)
    kind = type(model).__name__
    return RawModel(
        name=f"{kind.lower()}",
        licence=BODY_MODELS[kind],
        provenance=f"{kind} through the package body-models; a file supplied by the user",
        template=template,
        identity=moved("shape", np.eye(rest["shape"].shape[-1])),
        expression=moved("expression", np.eye(rest["expression"].shape[-1])),
        units=units,
        unit_names=names,
        faces=np.asarray(model.faces, np.int64),
        landmarks=landmarks,
    )
