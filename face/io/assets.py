"""Files of face models and albedo models: the only module of this room that opens files."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from dff.face.errors import BadModel, UnknownModel
from dff.face.extras import require_extra
from dff.face.io import formats
from dff.face.io.adapters import from_ict_facekit, is_ict_facekit
from dff.face.io.raw_model import RawModel, completed
from dff.face.io.transfer import Correspondence, carried_albedo, carried_regions, correspondence
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import LandmarkTable
from dff.face.model.morphable import MorphableModel

DATA = Path(__file__).parents[1] / "data"
SHIPPED = {"open-head": DATA / "open_head.npz"}
SHIPPED_ALBEDO = {"open-albedo": DATA / "open_albedo.npz"}
MODEL_FORMAT = "dff-face-model 1"
ALBEDO_FORMAT = "dff-albedo-model 1"


@dataclass(frozen=True)
class ListedModel:
    """A listed model, which need not be loaded."""

    # what load_model takes; for a model that the user supplies, what the loaded model calls itself
    name: str
    licence: str
    bytes: int  # size of the file; 0 when it is not here
    available: bool  # whether load_model(name) works without further files
    description: str
    vertices: int
    modes: str  # "identity + expression"


SUPPLIED = (
    ListedModel(
        "ict-facekit",
        "MIT",
        0,
        False,
        "ICT-FaceKit Light as one .npz that you supply",
        24591,
        "100 + 55",
    ),
    ListedModel(
        "gnm", "Apache-2.0", 0, False, "GNM Head 3.0 (.npz) through body-models", 17821, "150 + 100"
    ),
    ListedModel(
        "flame",
        "LicenseRef-FLAME",
        0,
        False,
        "FLAME (.pkl, .npz) through body-models",
        5023,
        "150 + 101",
    ),
    ListedModel(
        "basel-2009", formats.BASEL_LICENCE, 0, False, "01_MorphableModel.mat", 53490, "150 + 0"
    ),
    ListedModel(
        "basel-2017", formats.BASEL_LICENCE, 0, False, "an .h5 of 2017 or 2019", 53149, "150 + 100"
    ),
    ListedModel(
        "surrey", formats.SURREY_LICENCE, 0, False, "a .bin of the eos library", 3448, "63 + 6"
    ),
)
FOLDER = "DFF_MODELS"
"""Environment variable that names a folder of the user's models and albedos."""

FILES = {
    "ict": "ict_facekit_light.npz",
    "ict-facekit": "ict_facekit_light.npz",
    "gnm": "gnm_head.npz",
    "flame": "FLAME_NEUTRAL.pkl",
    "basel-2009": "01_MorphableModel.mat",
    "basel-2017": "model2017-1_face12_nomouth.h5",
    "basel-2019": "model2019_fullHead.h5",
    "surrey": "sfm_shape_3448.bin",
}
"""File names of known models in that folder."""


def model_path(name: str) -> Path:
    """The file of a model or albedo: shipped, a path, or a name in the folder of DFF_MODELS.

    It need not exist; reading it then fails. Raises BadModel for an address.
    """
    if "://" in name:
        raise BadModel(f"{name} is an address: a face model is a file on this machine")
    shipped = SHIPPED.get(name) or SHIPPED_ALBEDO.get(name)
    if shipped is not None:
        return shipped
    folder = os.environ.get(FOLDER, "")
    if folder and not Path(name).exists():
        return Path(folder) / FILES.get(name, name)
    return Path(name)


def list_models() -> list[ListedModel]:
    """The shipped models, and those that can be read from the user's files."""
    out = []
    for name, path in SHIPPED.items():
        model = load_model(name)
        modes = f"{len(model.identity)} + {len(model.expression)}"
        about = (
            f"shipped: {len(model.faces)} triangles, eyes, teeth, tongue; from MakeHuman and "
            "ICT-FaceKit"
        )
        size = path.stat().st_size
        out.append(ListedModel(name, model.licence, size, True, about, len(model.template), modes))
    return [*out, *SUPPLIED]


def load_model(name: str = "open-head") -> MorphableModel:
    """A shipped model by name, or a model file by path. The same call returns the same object.

    A path may name a file of this project's format or of another, recognised by its kind:
    ICT-FaceKit, GNM or FLAME (.npz), FLAME (.pkl, which body-models unpickles: only a file that you
    trust), Basel 2009 (.mat), Basel 2017 and 2019 (.h5), Surrey and others of eos (.bin). What such
    a file lacks is found by registration to the open head, which takes some seconds; landmarks may
    be given in a file beside it (``landmarks_beside``). A name that is no path is looked up in the
    folder that the environment variable DFF_MODELS names. Raises BadModel, with the file's name,
    when the file is missing, malformed or of another format, or the package that reads it is not
    installed.
    """
    return _loaded_model(model_path(name))


def load_albedo(name: str = "open-albedo", *, model: MorphableModel | None = None) -> AlbedoModel:
    """A shipped albedo model by name, or an albedo file by path.

    It is in the uv of the ``model``: one that was made for the open head is transferred by a
    registration of the templates, which takes some seconds once in a process. Without a model it
    keeps the uv of the file. The same call returns the same object. Raises BadModel, with the
    file's name, when the file is missing, malformed, of another format, or of an unknown model.
    """
    albedo = _loaded_albedo(model_path(name))
    if model is None or model.name == albedo.uv_of:
        return albedo
    key = (model, albedo)
    if key not in _carried:
        if albedo.uv_of not in SHIPPED:
            raise BadModel(f"{name} is in the uv of {albedo.uv_of}, not of {model.name}")
        _carried[key] = carried_albedo(
            albedo, load_model(albedo.uv_of), model, load_correspondence(model)
        )
    return _carried[key]


_carried: dict[tuple[MorphableModel, AlbedoModel], AlbedoModel] = {}
_correspondences: dict[MorphableModel, Correspondence] = {}


def load_correspondence(model: MorphableModel) -> Correspondence:
    """The correspondence of a model's template with the open head's, found once for a model."""
    if model not in _correspondences:
        _correspondences[model] = correspondence(model, load_model())
    return _correspondences[model]


@cache
def _loaded_model(path: Path) -> MorphableModel:
    try:
        raw = _raw_model(path)
        if raw is not None:
            model, found = completed(raw, load_model())
            _correspondences[model] = found
            return model
        arrays = read_arrays(path)
        if is_ict_facekit(arrays):
            return _finished(from_ict_facekit(arrays))
        if str(arrays.get("format", "")) != MODEL_FORMAT:
            raise BadModel(f"{path} is not a face model that this version reads")
        return model_from_arrays(arrays)
    except OSError as error:
        raise _missing(path, error) from error
    except (
        KeyError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        struct.error,
        UnpicklingError,
    ) as error:
        raise BadModel(f"{path}: {error}") from error


def _raw_model(path: Path) -> RawModel | None:
    """The arrays of a published model in a file of a known kind; None for other kinds."""
    known = landmarks_beside(path)
    match path.suffix:
        case ".mat":
            return formats.basel_2009(path.read_bytes(), known)
        case ".h5":
            return formats.basel_h5(path.read_bytes(), known)
        case ".bin":
            return formats.eos(path.read_bytes(), known)
        case ".pkl" | ".npz":
            kind = "FLAME" if path.suffix == ".pkl" else _kind_in(path)
            if kind == "FLAME":
                with require_extra("models"):
                    from body_models.flame.numpy import FLAME

                return formats.from_body_models(FLAME(model_path=path), known)
            if kind == "GNM":
                with require_extra("models"):
                    from body_models.gnm.numpy import GNM

                return formats.from_body_models(GNM(model_path=path), known)
    return None


def _kind_in(path: Path) -> str:
    """FLAME, GNM or nothing, by the names of the arrays in an .npz file, none of which is read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise _missing(path, error) from error
    if {"v_template", "shapedirs", "J_regressor"} <= names:
        return "FLAME"
    return "GNM" if {"template_vertex_positions", "vertex_identity_basis"} <= names else ""


def landmarks_beside(path: Path) -> dict[str, int]:
    """Vertices by landmark from the eos mapping file beside a model; {} when there is none.

    Its name is the model's with ``.landmarks.txt`` in place of its ending, or ``ibug_to_sfm.txt``
    for Surrey.
    """
    for beside in (path.with_suffix(".landmarks.txt"), path.with_name("ibug_to_sfm.txt")):
        if beside.is_file() and (beside.stem != "ibug_to_sfm" or path.suffix == ".bin"):
            return formats.landmark_table(beside.read_text())
    return {}


def _finished(model: MorphableModel) -> MorphableModel:
    """A published model with the open head's regions of the skin: lips, brows, ears."""
    found = correspondence(model, load_model())
    names = load_model().region_names
    out = replace(model, region=carried_regions(model, load_model(), found), region_names=names)
    _correspondences[out] = found
    return out


@cache
def _loaded_albedo(path: Path) -> AlbedoModel:
    arrays = read_arrays(path)
    try:
        if str(arrays.get("format", "")) != ALBEDO_FORMAT:
            raise BadModel(f"{path} is not an albedo model that this version reads")
        scale = np.asarray(arrays["components_scale"], np.float32)
        return AlbedoModel(
            name=str(arrays["name"]),
            licence=str(arrays["licence"]),
            provenance=str(arrays["provenance"]),
            mean=arrays["mean"].astype(np.float32) / np.float32(255),
            components=arrays["components"] * scale[:, None, None, None],
            uv_of=str(arrays.get("uv_of", "open-head")),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise BadModel(f"{path}: {error}") from error


def digest(name: str) -> str:
    """SHA-256 of the file of a model or albedo, as ``model_path`` finds it.

    Raises BadModel when it is missing.
    """
    path = model_path(name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: Exception) -> BadModel:
    if path.exists():
        return BadModel(f"{path} cannot be read as a model: {error}")
    kind = BadModel if len(path.parts) > 1 or path.suffix else UnknownModel
    hint = "" if os.environ.get(FOLDER) else f"; {FOLDER} names no folder to look for models in"
    return kind(f"{path} is neither a model's name (`dff models`) nor a file{hint}")


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of an .npz file; BadModel when it cannot be read. Pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise _missing(path, error) from error


def model_from_arrays(arrays: Mapping[str, Any]) -> MorphableModel:
    """The model of the arrays of a file of this project's format.

    Raises KeyError or ValueError when they do not fit together.
    """

    def basis(key: str) -> Any:
        return (arrays[key] * arrays[f"{key}_scale"][:, None, None]).astype(np.float32)

    return MorphableModel(
        name=str(arrays["name"]),
        licence=str(arrays["licence"]),
        provenance=str(arrays["provenance"]),
        template=arrays["template"],
        identity=basis("identity"),
        expression=basis("expression"),
        expression_names=tuple(str(n) for n in arrays["expression_names"]),
        expression_sd=arrays["expression_sd"],
        faces=arrays["faces"].astype(np.int32),
        uv=arrays["uv"],
        uv_faces=arrays["uv_faces"].astype(np.int32),
        region=arrays["region"],
        region_names=tuple(str(n) for n in arrays["region_names"]),
        landmarks=LandmarkTable(
            *(arrays[key].astype(np.int64) for key in ("landmarks", "contour", "landmarks_2d"))
        ),
        mirror=arrays["mirror"].astype(np.int64),
    )
