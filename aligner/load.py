"""Weights files to aligners."""

from __future__ import annotations

from pathlib import Path

from dff.aligner.align import Aligner
from dff.aligner.confidence import Calibration
from dff.aligner.config import AlignConfig
from dff.aligner.detection import FaceDetector
from dff.aligner.preset import AlignPreset
from dff.face.descriptor import DescriptorNet, DeviceNetwork, Network
from dff.face.errors import BadWeights
from dff.face.fused_network import FusedDetectorNet, FusedNetwork
from dff.face.io.assets import load_model
from dff.face.model.landmark_offsets import LandmarkOffsets, PoseCorrection
from dff.face.solve.landmark_refinement import LandmarkRefinement
from dff.infra.networks import weights as weights_files
from dff.infra.networks.detector_file import load_detector
from dff.infra.storage import WITH_CREDENTIALS, S3Access


def load_aligner(
    weights: Path | str | None = None,
    *,
    detector: FaceDetector | None = None,
    config: AlignConfig | None = None,
    preset: AlignPreset | str = AlignPreset.balanced,
    calibration: Calibration | None = None,
    landmark_offsets: LandmarkOffsets | None = None,
    pose_correction: PoseCorrection | None = None,
    landmark_refinement: LandmarkRefinement | None = None,
    device: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> Aligner:
    """The aligner of a weights file; of the shipped weights when none is named.

    ``config``: by default that of ``preset``, "fast", "balanced" or "best", with crops as large as
    those that the network was trained on. ``calibration``, ``landmark_offsets`` and
    ``pose_correction`` instead of the file's own; with ``landmark_offsets`` comes the
    ``landmark_refinement`` that was learned beside them, or none. ``device``: of torch, on which
    the network runs, such as "cuda"; the fit runs on the CPU in any case. By default the network
    runs there too, by ``FusedNetwork``. ``endpoint_url`` and ``access``: of an S3 server other than
    AWS, and as whom it is asked, for weights in a bucket.
    Raises BadWeights when the file cannot be used, BadModel when its model is not found, ValueError
    for a device that is not there.
    """
    path = weights_files.DEFAULT if weights is None else weights
    loaded = weights_files.load(path, endpoint_url=endpoint_url, access=access)
    model = load_model(str(loaded.card["model"]))
    weights_files.check_model(path, loaded, model)
    try:
        if calibration is None and loaded.calibration is not None:
            calibration = Calibration.from_json(loaded.calibration)
    except (TypeError, ValueError) as error:
        raise BadWeights(f"{path}: {error}") from error
    if config is None:
        crop = int(loaded.card.get("config", {}).get("size", AlignConfig.crop))
        config = AlignConfig.of(AlignPreset(preset), crop=crop)
    card = dict(loaded.card)
    if loaded.landmark_offsets_source:
        # Answers name whose labels say where their landmarks lie, as the weights' other sources.
        card["landmarks_from"] = loaded.landmark_offsets_source
    refinement = landmark_refinement
    if landmark_offsets is None and refinement is None:
        refinement = loaded.landmark_refinement
    reduced = config.reduced_precision
    return Aligner(
        _place_network(loaded.net, device, reduced=reduced),
        loaded.anchors,
        model,
        detector=detector,
        detector_net=FusedDetectorNet(load_detector().net, reduced=reduced),
        config=config,
        card=card,
        calibration=calibration,
        landmark_offsets=landmark_offsets or loaded.landmark_offsets,
        pose_correction=pose_correction or loaded.pose_correction,
        mean_identity=loaded.mean_identity,
        fit_correction=loaded.fit_correction,
        landmark_refinement=refinement,
        expression_correction=loaded.expression_correction,
    )


def _place_network(net: DescriptorNet, device: str | None, *, reduced: bool) -> Network:
    if device in (None, "cpu"):
        return FusedNetwork(net, reduced=reduced)
    try:
        return DeviceNetwork(net, str(device))
    except (RuntimeError, AssertionError) as error:  # torch raises either for missing devices
        reason = str(error).splitlines()[0]
        raise ValueError(f"no network runs on {device!r} here: {reason}") from error
