"""Weights files: safetensors of the network and the anchors, with metadata that describes them.

Nothing in the file runs when it is read. The metadata has one key, ``descriptor`` (several would be
written in random order, and the same weights should be the same bytes). It is JSON:

* ``format``, ``config`` (of ``NetConfig``) and ``scale`` of the log odds;
* ``card``: where the weights come from and under which terms;
* ``calibration``, if measured: of the aligner's confidence with these weights;
* ``landmark_offsets``, if measured: the source of the labels that ``LandmarkOffsets`` were measured
  from; their tables are tensors, and so are those of ``PoseCorrection``, ``FitCorrection``,
  ``ExpressionCorrection`` and ``LandmarkRefinement``, if they were measured, and ``mean_identity``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save as save_bytes
from torch import Tensor

from dff.face.arrays import Array, Float, Floats
from dff.face.descriptor import Anchors, DescriptorNet, NetConfig
from dff.face.errors import BadPlace, BadWeights, NotFound
from dff.face.model.landmark_offsets import LandmarkOffsets, PoseCorrection
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import ExpressionCorrection
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.landmark_refinement import LandmarkRefinement
from dff.infra.files import check_format, check_output_file, replaced_file
from dff.infra.networks.tensor_file import read_tensor_file
from dff.infra.networks.weights_names import (
    BUCKET as BUCKET,
    DEFAULT as DEFAULT,
    NAMED as NAMED,
    REGISTERED as REGISTERED,
    RESEARCH as RESEARCH,
    RESEARCH_TERMS as RESEARCH_TERMS,
    SHIPPED as SHIPPED,
    everywhere as everywhere,
    find_file,
)
from dff.infra.redaction import hide_secrets
from dff.infra.storage import WITH_CREDENTIALS, S3Access, Storage, open_storage

FORMAT = "dff-descriptor-1"
Tables = TypeVar(
    "Tables",
    LandmarkOffsets,
    PoseCorrection,
    FitCorrection,
    LandmarkRefinement,
    ExpressionCorrection,
)
Learned = TypeVar("Learned", FitCorrection, LandmarkRefinement, ExpressionCorrection)
LEARNED: dict[
    type[FitCorrection] | type[LandmarkRefinement] | type[ExpressionCorrection], tuple[str, str]
] = {
    FitCorrection: ("fit_correction", "correction of fits"),
    ExpressionCorrection: ("expression_correction", "correction of expressions"),
    LandmarkRefinement: ("landmark_refinement", "refinement of landmarks"),
}
"""Maps learned for a network: the first part of their tensors' names, and what they are called."""

CARD_KEYS = ("model", "model_licence", "data_licences", "steps")
"""Keys of every card: face model's name and licence, licences of the training data, optimiser
steps.
"""


@dataclass(frozen=True)
class Weights:
    """A trained descriptor: ready to use."""

    net: DescriptorNet  # in evaluation mode, on the CPU
    anchors: Anchors
    card: dict[str, Any]  # provenance: at least ``CARD_KEYS``
    # Read by ``dff.aligner.confidence``. None: not measured with these weights.
    calibration: dict[str, Any] | None = None
    landmark_offsets: LandmarkOffsets | None = None  # None: not measured with these weights
    landmark_offsets_source: str = ""  # whose labels they were measured from, for people
    pose_correction: PoseCorrection | None = None  # None: not measured with these weights
    # standard deviations, mean of the identities that are fitted to photos; empty: not measured
    mean_identity: Float[Array, " identities"] = field(default_factory=partial(np.zeros, 0))
    fit_correction: FitCorrection | None = None  # None: not learned for these weights
    landmark_refinement: LandmarkRefinement | None = None  # None: not learned for these weights
    expression_correction: ExpressionCorrection | None = None  # None: not learned for these


def save(
    path: Path | str,
    net: DescriptorNet,
    anchors: Anchors,
    card: Mapping[str, Any],
    *,
    calibration: Mapping[str, Any] | None = None,
    landmark_offsets: LandmarkOffsets | None = None,
    landmark_offsets_source: str = "",
    pose_correction: PoseCorrection | None = None,
    mean_identity: Floats | None = None,
    fit_correction: FitCorrection | None = None,
    landmark_refinement: LandmarkRefinement | None = None,
    expression_correction: ExpressionCorrection | None = None,
    endpoint_url: str | None = None,
) -> None:
    """Write a weights file, whole or not at all, to a path or to ``s3://bucket/key``.

    ``endpoint_url``: of an S3 server other than AWS. Raises StorageError, and ValueError when the
    card lacks one of ``CARD_KEYS`` or the anchors have another length than the network's.
    """
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise ValueError(f"a weights card must say {missing}")
    if anchors.descriptor.shape[1] != net.config.dims:
        raise ValueError(
            f"anchors of {anchors.descriptor.shape[1]} numbers for a network of {net.config.dims}"
        )
    tensors = {
        f"net.{name}": value.detach().cpu().contiguous() for name, value in net.state_dict().items()
    }
    tensors["anchors.vertex"] = torch.from_numpy(anchors.vertex.astype(np.int32))
    tensors["anchors.position"] = torch.from_numpy(anchors.position.astype(np.float32))
    tensors["anchors.descriptor"] = torch.from_numpy(anchors.descriptor.astype(np.float32))
    if anchors.error_fields.size:
        fields = anchors.error_fields.astype(np.float32)
        tensors["anchors.error_fields"] = torch.from_numpy(fields)
    about = {
        "format": FORMAT,
        "config": asdict(net.config),
        "scale": float(anchors.scale),
        "card": dict(card),
    }
    if calibration is not None:
        about["calibration"] = dict(calibration)
    if landmark_offsets is not None:
        about["landmark_offsets"] = landmark_offsets_source
        tensors |= _tensors("landmark_offsets", landmark_offsets)
    if pose_correction is not None:
        tensors |= _tensors("pose_correction", pose_correction)
    if mean_identity is not None and mean_identity.size:
        tensors["mean_identity"] = torch.from_numpy(mean_identity.astype(np.float32))
    if fit_correction is not None:
        tensors |= _tensors("fit_correction", fit_correction, np.float16)
    if landmark_refinement is not None:
        tensors |= _tensors("landmark_refinement", landmark_refinement, np.float16)
    if expression_correction is not None:
        tensors |= _tensors("expression_correction", expression_correction, np.float16)
    data = save_bytes(tensors, {"descriptor": json.dumps(about, sort_keys=True)})
    if str(path).startswith(BUCKET):
        storage, key = _open_parent(str(path), endpoint_url)
        storage.write(key, data)
        return
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def check_destination(path: Path | str, *, endpoint_url: str | None = None) -> None:
    """Raises StorageError where ``save`` could write no file: to be asked before long work.

    An address of another kind is refused, since it would be taken for the name of a folder. Raises
    ValueError for another suffix.
    """
    text = str(path)
    check_format(text, (".safetensors",))
    if text.startswith(BUCKET):
        _open_parent(text, endpoint_url)[0].check_writable()
    elif "://" in text or text.startswith(REGISTERED):
        raise BadPlace(
            f"weights can't be written to {hide_secrets(text)}: give a file or s3://bucket/key"
        )
    else:
        check_output_file(path)


def _open_parent(
    address: str, endpoint_url: str | None = None, access: S3Access = WITH_CREDENTIALS
) -> tuple[Storage, str]:
    """The storage and the key of a weights file in a bucket. Raises BadPlace without a key."""
    parent, _, key = address.rpartition("/")
    if not key or len(parent) < len(BUCKET):
        raise BadPlace(f"{hide_secrets(address)} names no file: give {BUCKET}bucket/key")
    return open_storage(parent, endpoint_url=endpoint_url, access=access), key


def rewrite(path: Path | str, loaded: Weights, *, endpoint_url: str | None = None) -> None:
    """``save`` loaded weights, with what was measured since."""
    save(
        path,
        loaded.net,
        loaded.anchors,
        loaded.card,
        calibration=loaded.calibration,
        landmark_offsets=loaded.landmark_offsets,
        landmark_offsets_source=loaded.landmark_offsets_source,
        pose_correction=loaded.pose_correction,
        mean_identity=loaded.mean_identity,
        fit_correction=loaded.fit_correction,
        landmark_refinement=loaded.landmark_refinement,
        expression_correction=loaded.expression_correction,
        endpoint_url=endpoint_url,
    )


def add_licence(loaded: Weights, licence: str) -> Weights:
    """The weights with the licence of data that they were also trained on, in their card."""
    known = list(loaded.card["data_licences"])
    if licence in known:
        return loaded
    return replace(loaded, card={**loaded.card, "data_licences": [*known, licence]})


def _tensors(
    prefix: str, tables: Tables, kind: type[np.floating[Any]] = np.float32
) -> dict[str, Tensor]:
    return {
        f"{prefix}.{each.name}": torch.from_numpy(
            np.ascontiguousarray(getattr(tables, each.name), kind)
        )
        for each in fields(tables)
    }


def _tensor_shapes(
    prefix: str, bias: LandmarkOffsets | PoseCorrection
) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{each.name}": getattr(bias, each.name).shape for each in fields(bias)}


def _from_tensors(kind: type[Tables], prefix: str, tensors: Mapping[str, Tensor]) -> Tables | None:
    """None when ``tensors`` hold no such tables."""
    tables = {
        name.removeprefix(f"{prefix}."): value.double().numpy()
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }
    return kind(**tables) if tables else None


def load(
    path: Path | str,
    *,
    model: MorphableModel | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> Weights:
    """Read a weights file, also one at ``s3://bucket/key``, weights of ``NAMED``, or a model that
    MLflow has registered (``models:/name@alias``).

    With ``model``, also check that the anchors are points of it. ``endpoint_url``: of an S3 server
    other than AWS; ``access``: as whom the bucket is asked. Raises BadWeights, naming the file and
    what is wrong with it, and StorageError.
    """
    if str(path).startswith(BUCKET):
        return _load_from_bucket(str(path), model, endpoint_url, access)
    path = find_weights(path)
    about, arrays = read_tensor_file(path, "descriptor", FORMAT, kind="weights file")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        config, card = NetConfig(**about["config"]), dict(about["card"])
        scale = float(about["scale"])
        calibration = dict(about["calibration"]) if "calibration" in about else None
        landmark_offsets_source = str(about.get("landmark_offsets", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{path} has bad metadata: {error!r}") from error
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise BadWeights(f"{path} does not say its {', '.join(missing)}")
    net = DescriptorNet(config)
    wanted = _list_shapes(net, tensors, with_offsets="landmark_offsets" in about)
    _check_tensors(path, tensors, wanted)
    net.load_state_dict(
        {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    )
    loaded = Weights(
        net.eval(),
        _build_anchors(path, tensors, scale),
        card,
        calibration,
        _from_tensors(LandmarkOffsets, "landmark_offsets", tensors),
        landmark_offsets_source,
        _from_tensors(PoseCorrection, "pose_correction", tensors),
        tensors.get("mean_identity", torch.zeros(0)).double().numpy(),
        _build_learned(FitCorrection, path, tensors),
        _build_learned(LandmarkRefinement, path, tensors),
        _build_learned(ExpressionCorrection, path, tensors),
    )
    if model is not None:
        check_model(path, loaded, model)
    return loaded


def find_weights(path: Path | str) -> Path:
    """The file of a path, a name or a registered model.

    Raises BadWeights where there is none: UnknownWeights for what can only be a name.
    """
    if str(path).startswith(REGISTERED):
        # MLflow takes a second to import, and most weights are plain files.
        from dff.infra.mlflow.tracking import registered_weights

        path = registered_weights(str(path))
    return find_file(path)


def _list_shapes(
    net: DescriptorNet, tensors: Mapping[str, Tensor], *, with_offsets: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes that the ``tensors`` of a file must have, by name."""
    wanted = {f"net.{name}": tuple(value.shape) for name, value in net.state_dict().items()}
    anchors = len(tensors["anchors.vertex"]) if "anchors.vertex" in tensors else 0
    wanted |= {
        "anchors.vertex": (anchors,),
        "anchors.position": (anchors, 3),
        "anchors.descriptor": (anchors, net.config.dims),
    }
    if "anchors.error_fields" in tensors:
        wanted["anchors.error_fields"] = (anchors, 3, tensors["anchors.error_fields"].shape[-1])
    if with_offsets:
        response = tensors.get("landmark_offsets.response")
        wide = 0 if response is None else response.shape[-1]
        none = LandmarkOffsets(response=np.zeros((2, 68, 3, wide)))
        wanted |= _tensor_shapes("landmark_offsets", none)
    if any(name.startswith("pose_correction.") for name in tensors):
        wanted |= _tensor_shapes("pose_correction", PoseCorrection())
    if "mean_identity" in tensors:
        wanted["mean_identity"] = (tensors["mean_identity"].numel(),)
    # These check their shapes themselves.
    wanted |= {
        name: tuple(tensors[name].shape)
        for kind, (prefix, _) in LEARNED.items()
        for name in (f"{prefix}.{part.name}" for part in fields(kind))
        if name in tensors
    }
    return wanted


def _build_anchors(path: Path, tensors: Mapping[str, Tensor], scale: float) -> Anchors:
    """The anchors of checked tensors. Raises BadWeights for impossible values."""
    vertex, position, descriptor = (
        tensors[f"anchors.{name}"].numpy() for name in ("vertex", "position", "descriptor")
    )
    try:
        anchors = Anchors(vertex, position, descriptor, scale)
        if "anchors.error_fields" in tensors:
            anchors = replace(anchors, error_fields=tensors["anchors.error_fields"].numpy())
    except ValueError as error:
        raise BadWeights(f"{path} has bad anchors: {error}") from error
    return anchors


def _build_learned(
    kind: type[Learned], path: Path, tensors: Mapping[str, Tensor]
) -> Learned | None:
    """A map of checked tensors, if there is one. Raises BadWeights for impossible shapes."""
    prefix, said = LEARNED[kind]
    wanted = [f"{prefix}.{part.name}" for part in fields(kind)]
    absent = [name for name in wanted if name not in tensors]
    if 0 < len(absent) < len(wanted):
        raise BadWeights(f"{path} has a bad {said}: it lacks {', '.join(absent)}")
    try:
        return _from_tensors(kind, prefix, tensors)
    except ValueError as error:
        raise BadWeights(f"{path} has a bad {said}: {error}") from error


def _load_from_bucket(
    address: str, model: MorphableModel | None, endpoint_url: str | None, access: S3Access
) -> Weights:
    storage, key = _open_parent(address, endpoint_url, access)
    try:
        data = storage.read(key)
    except NotFound as error:
        raise BadWeights(f"there is no weights file {address}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / key
        file.write_bytes(data)
        try:
            return load(file, model=model)
        except BadWeights as error:
            raise BadWeights(str(error).replace(str(file), address)) from error


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    absent, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if absent:
        raise BadWeights(f"{path} lacks {len(absent)} tensors, such as {absent[0]}")
    if extra:
        raise BadWeights(
            f"{path} has {len(extra)} tensors that its configuration does not name, "
            f"such as {extra[0]}"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise BadWeights(
                f"{path}: {name} is {tuple(tensors[name].shape)}, its configuration says {shape}"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise BadWeights(f"{path}: {name} holds numbers that are not finite")


def check_model(path: Path | str, loaded: Weights, model: MorphableModel) -> None:
    """Raises BadWeights, naming the file, when its anchors are not points of ``model``."""
    name, anchors = str(loaded.card["model"]), loaded.anchors
    if name != model.name:
        raise BadWeights(f"{path} was trained on the face model {name!r}, not {model.name!r}")
    if len(anchors.vertex) and int(anchors.vertex.max()) >= len(model.template):
        raise BadWeights(f"{path} names vertices that {model.name} does not have")
    wide = 0 if loaded.landmark_offsets is None else loaded.landmark_offsets.response.shape[3]
    if wide not in (0, len(model.identity) + len(model.expression)):
        raise BadWeights(
            f"{path} moves landmarks by {wide} coefficients, which {model.name} does not have"
        )
    correction = loaded.fit_correction
    wide = 0 if correction is None else correction.directions.shape[1]
    if wide not in (0, len(model.identity) + len(model.expression)):
        raise BadWeights(
            f"{path} corrects fits by {wide} coefficients, which {model.name} does not have"
        )
    if correction is not None and correction.mean.shape[1] != loaded.anchors.descriptor.shape[1]:
        raise BadWeights(
            f"{path} corrects fits by descriptors of {correction.mean.shape[1]} numbers, "
            f"its anchors have {loaded.anchors.descriptor.shape[1]}"
        )
    refinement = loaded.landmark_refinement
    if refinement is not None and refinement.mean.shape[1] != loaded.anchors.descriptor.shape[1]:
        raise BadWeights(
            f"{path} refines landmarks by descriptors of {refinement.mean.shape[1]} numbers, "
            f"its anchors have {loaded.anchors.descriptor.shape[1]}"
        )
    expression = loaded.expression_correction
    if expression is not None and len(expression.offset) != len(model.expression):
        raise BadWeights(
            f"{path} corrects {len(expression.offset)} activations, {model.name} has "
            f"{len(model.expression)}"
        )
    if expression is not None and expression.mean.shape[1] != loaded.anchors.descriptor.shape[1]:
        raise BadWeights(
            f"{path} corrects expressions by descriptors of {expression.mean.shape[1]} numbers, "
            f"its anchors have {loaded.anchors.descriptor.shape[1]}"
        )
    apart = float(np.abs(model.template[anchors.vertex] - anchors.position).max(initial=0.0))
    if apart > 1e-5:
        raise BadWeights(
            f"{path} was trained on another version of {model.name}: "
            f"an anchor lies {apart:.1e} m away"
        )
