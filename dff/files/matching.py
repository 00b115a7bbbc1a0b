"""Evaluate descriptor matching between views of a dataset, or between labelled photos."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from dff.face.errors import BadDataset, BadLandmarks, BadPhoto
from dff.face.io.assets import load_model
from dff.face.matching import CROP, augment_for_matching
from dff.infra.datasets.dataset import open_dataset
from dff.infra.datasets.split import Split
from dff.infra.networks import weights as weights_files
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_mat, parse_reannotated
from dff.infra.storage import WITH_CREDENTIALS, S3Access
from dff.trainer.data.datasets import load_dataset_model
from dff.trainer.evaluation.baselines import (
    make_anchor_descriptor,
    make_baselines,
    make_network_descriptor,
)
from dff.trainer.evaluation.config import MatchingConfig
from dff.trainer.evaluation.figures import draw_view_pairs
from dff.trainer.evaluation.matching import Describe, Matching, compare_descriptors
from dff.trainer.evaluation.pairs import (
    LabelledPhoto,
    ViewPair,
    sample_photo_pairs,
    sample_view_pairs,
)

IDENTITIES = 30  # whose views are paired; reading more takes long and changes little


def load_methods(
    weights: str | None,
    *,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> dict[str, Describe]:
    """``dff``: probabilities of the anchors, as the aligner uses them. ``raw``: the descriptor."""
    loaded = weights_files.load(
        weights or weights_files.DEFAULT, endpoint_url=endpoint_url, access=access
    )
    network = augment_for_matching(loaded.net, multiple=loaded.net.config.multiple)
    return {
        "dff": make_anchor_descriptor(network, loaded.anchors, mirrored=True),
        "raw": make_network_descriptor(loaded.net),
    }


def evaluate_matching(
    source: str,
    weights: str | None,
    *,
    model: str | None = None,
    count: int,
    split: Split | None,
    labels: Path | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> tuple[Matching, list[ViewPair]]:
    """Figures on up to ``count`` pairs for each row of the table, and an example pair of each.

    ``source``: a finished dataset, or a folder of images with their AFLW2000-3D ``.mat`` files,
    whose points ``labels`` may replace. ``model``: the face model of the views, by default the
    dataset's own. ``split``: of a dataset; None: both.
    ``endpoint_url`` and ``access``: of an S3 server other than AWS, and as whom it is asked, for
    the dataset and the weights. Raises
    BadDataset without views, BadLandmarks for unreadable labels.
    """
    rng = np.random.default_rng(0)
    if any(Path(source).glob("*.mat")):
        face_model = load_model(model) if model else load_model()
        photos = read_labelled_photos(Path(source), labels)
        pairs = sample_photo_pairs(photos, face_model, count=count, size=CROP, rng=rng)
    else:
        pairs = _pair_views(
            source,
            model,
            count=count,
            split=split,
            rng=rng,
            endpoint_url=endpoint_url,
            access=access,
        )
    config = MatchingConfig()
    first = {(config.find_yaw_bin(pair.yaw), pair.same): pair for pair in reversed(pairs)}
    methods = load_methods(weights, endpoint_url=endpoint_url, access=access)
    report = compare_descriptors(pairs, methods, make_baselines())
    return report, [first[cell] for cell in sorted(first)]


def _pair_views(
    dataset: str,
    model: str | None,
    *,
    count: int,
    split: Split | None,
    rng: np.random.Generator,
    endpoint_url: str | None,
    access: S3Access,
) -> list[ViewPair]:
    opened = open_dataset(dataset, endpoint_url=endpoint_url, access=access)
    rows = []
    identities: set[str] = set()
    for index in range(len(opened.shards)):
        held = [row for row in opened.read_shard(index) if split in (None, row.split)]
        rows += held
        identities |= {row.identity_id for row in held}
        if len(identities) >= IDENTITIES:
            break
    if not rows:
        raise BadDataset(f"{dataset} has no held-out identity; --all uses the others too")
    face_model = load_dataset_model(opened, model)
    return sample_view_pairs(rows, face_model, count=count, size=CROP, rng=rng)


def read_labelled_photos(folder: Path, labels: Path | None) -> list[LabelledPhoto]:
    """The photos of a folder that have ``.mat`` files.

    ``labels``: a ``.npz`` of landmarks by image stem; the photos that it lacks are left out. Raises
    BadLandmarks and BadPhoto with the unreadable file.
    """
    try:
        table = parse_reannotated(labels.read_bytes()) if labels else None
    except BadLandmarks as error:
        raise BadLandmarks(f"{labels}: {error}") from error
    if table is not None and not isinstance(table, dict):
        raise BadLandmarks(f"{labels} names no images")
    out = []
    for path in sorted(folder.glob("*.mat")):
        photo = path.with_suffix(".jpg")
        if not photo.exists() or (table is not None and path.stem not in table):
            continue
        try:
            label = parse_mat(path.read_bytes())
        except BadLandmarks as error:
            raise BadLandmarks(f"{path}: {error}") from error
        points = table[path.stem] if table is not None else label.landmarks[:, :2]
        try:
            image = decode(photo.read_bytes(), upright=False)  # labels are of the stored pixels
        except BadPhoto as error:
            raise BadPhoto(f"{photo}: {error}") from error
        out.append(LabelledPhoto(image, points, (label.yaw, label.pitch, label.roll)))
    return out


def draw_matched_pairs(
    pairs: list[ViewPair],
    weights: str | None,
    *,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> bytes:
    """JPEG of the pairs with the matches of the descriptor and of SIFT."""
    methods = {
        "dff": load_methods(weights, endpoint_url=endpoint_url, access=access)["dff"],
        "sift": make_baselines()["sift 48"],
    }
    picture = draw_view_pairs(pairs, methods)
    good, data = cv2.imencode(".jpg", picture[..., ::-1])
    assert good
    return bytes(data)


def encode_matching(report: Matching) -> bytes:
    """Rows and thresholds as JSON."""
    content = {
        "rows": [asdict(row) for row in report.rows],
        "thresholds": [asdict(threshold) for threshold in report.thresholds()],
    }
    return json.dumps(content, indent=1).encode()
