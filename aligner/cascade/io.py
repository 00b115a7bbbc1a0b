"""Files of cascades, and aligners that fit by a cascade."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.cascade.fitter import CascadeFitter
from dff.aligner.cascade.model import Cascade, Stage
from dff.aligner.confidence import Calibration
from dff.aligner.config import AlignConfig
from dff.aligner.detection import FaceDetector
from dff.aligner.load import load_aligner
from dff.aligner.preset import AlignPreset
from dff.face.arrays import Floats, Ints
from dff.face.errors import BadWeights
from dff.infra.networks import cascade_file
from dff.infra.networks.weights import DEFAULT
from dff.infra.storage import WITH_CREDENTIALS, S3Access


def save_cascade(path: Path | str, cascade: Cascade) -> None:
    """Write a cascade to a file, its weights as half floats."""
    arrays: dict[str, Floats | Ints] = {"points": cascade.points.astype(np.int32)}
    arrays["directions"] = cascade.directions.astype(np.float32)
    if cascade.components is not None:
        arrays["components"] = cascade.components.astype(np.float32)
    for number, stage in enumerate(cascade.stages):
        arrays[f"{number}.mean"] = stage.mean.astype(np.float16)
        arrays[f"{number}.weight"] = stage.weight.astype(np.float16)
        arrays[f"{number}.offset"] = stage.offset.astype(np.float32)
    about = {name: getattr(cascade, name) for name in ("kind", "extent", "anchors", "card")}
    if cascade.calibration is not None:
        about["calibration"] = cascade.calibration.to_json()
    cascade_file.write_cascade(path, arrays, {**about, "stages": len(cascade.stages)})


def load_cascade(path: Path | str) -> Cascade:
    """Read a cascade, or the one that ships for weights of that name.

    Raises BadWeights, naming the file and what is wrong with it.
    """
    path = cascade_file.SHIPPED.get(str(path), path)
    arrays, about = cascade_file.read_cascade(path)
    try:
        count = int(about["stages"])
        wanted = {
            "points",
            "directions",
            *(f"{i}.{part}" for i in range(count) for part in ("mean", "weight", "offset")),
        }
        if set(arrays) - {"components"} != wanted:
            raise ValueError(f"arrays {sorted(arrays)} for {count} stages")
        stages = tuple(
            Stage(
                *(arrays[f"{i}.{part}"].astype(np.float32) for part in ("mean", "weight", "offset"))
            )
            for i in range(count)
        )
        return Cascade(
            about["kind"],
            arrays["points"].astype(np.int64),
            arrays["directions"].astype(np.float32),
            float(about["extent"]),
            arrays["components"].astype(np.float32) if "components" in arrays else None,
            stages,
            str(about["anchors"]),
            dict(about["card"]),
            Calibration.from_json(about["calibration"]) if "calibration" in about else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{path} is not a usable cascade: {error!r}") from error


def load_cascade_aligner(
    weights: Path | str | None = None,
    cascade: Path | str | None = None,
    *,
    detector: FaceDetector | None = None,
    config: AlignConfig | None = None,
    preset: AlignPreset | str = AlignPreset.balanced,
    calibration: Calibration | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> Aligner:
    """The aligner of a weights file that fits by a cascade.

    When no cascade is named, by the one that ships with the weights. ``endpoint_url`` and
    ``access``: as ``load_aligner``. Raises BadWeights when a file cannot be used, no cascade ships
    with the weights, or the two do not belong together.
    """
    base = load_aligner(
        weights,
        detector=detector,
        config=config,
        preset=preset,
        calibration=calibration,
        endpoint_url=endpoint_url,
        access=access,
    )
    name = str(weights or DEFAULT)
    shipped = cascade_file.SHIPPED.get(name)
    if cascade is None and not (shipped and shipped.exists()):
        raise BadWeights(
            f"no cascade ships with the weights {name}: "
            "train one with `dff train-cascade`, and name its file"
        )
    path = name if cascade is None else cascade
    try:
        return with_cascade(base, load_cascade(path))
    except ValueError as error:
        raise BadWeights(f"{path}: {error}") from error


def with_cascade(aligner: Aligner, cascade: Cascade) -> Aligner:
    """The same aligner, which fits by a cascade.

    The aligner's calibration is used where the cascade has none. Raises ValueError as
    ``CascadeFitter``.
    """
    parts = aligner.net, aligner.anchors, aligner.model
    return Aligner(
        *parts,
        fitter=CascadeFitter(*parts, cascade, aligner.config),
        detector=aligner.detector,
        config=aligner.config,
        card=aligner.card,
        calibration=cascade.calibration or aligner.calibration,
        landmark_offsets=aligner.landmark_offsets,
        pose_correction=aligner.pose_correction,
        mean_identity=aligner.mean_identity,
    )
