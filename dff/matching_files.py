"""``dff evaluate matching``: a dataset's views in, figures and a picture out."""

from __future__ import annotations

import json
from dataclasses import asdict

import cv2
import numpy as np

from face.assets import load_model
from face.errors import BadDataset
from infra import weights as weights_files
from infra.dataset import open_dataset
from trainer.matching import Matching, ViewPair, by_network, foils, measure, pairs_picture, view_pairs, yaw_bin

SIZE = 160
"""Crop side, px: in a trial the shipped weights matched two people better at it than at 128 and 192."""
IDENTITIES = 30
"""Identities whose views are paired; reading more takes long and changes little."""


def evaluate_matching(
    dataset: str, weights: str | None, *, model: str, count: int, every: bool
) -> tuple[Matching, list[ViewPair]]:
    """Figures on up to ``count`` pairs for each cell, and a pair of each cell. Raises BadDataset without views.

    ``every``: all identities, not the held-out ones only.
    """
    opened = open_dataset(dataset)
    rows = []
    identities: set[str] = set()
    for index in range(len(opened.shards)):
        held = [row for row in opened.read_shard(index) if every or row.split == "dev"]
        rows += held
        identities |= {row.identity_id for row in held}
        if len(identities) >= IDENTITIES:
            break
    if not rows:
        raise BadDataset(f"{dataset} holds out no identity; --all takes the others too")
    net = weights_files.load(weights or weights_files.DEFAULT).net
    pairs = view_pairs(rows, load_model(model), count=count, size=SIZE, rng=np.random.default_rng(0))
    first = {(yaw_bin(pair.yaw), pair.same): pair for pair in reversed(pairs)}
    return measure(pairs, {"dff": by_network(net), **foils()}), [first[cell] for cell in sorted(first)]


def matching_picture(pairs: list[ViewPair], weights: str | None) -> bytes:
    """JPEG of the pairs with what the descriptor and SIFT find."""
    net = weights_files.load(weights or weights_files.DEFAULT).net
    picture = pairs_picture(pairs, {"dff": by_network(net), "sift": foils()["sift"]})
    good, data = cv2.imencode(".jpg", picture[..., ::-1])
    assert good
    return bytes(data)


def to_json(report: Matching) -> bytes:
    """Rows and bars as JSON."""
    content = {"rows": [asdict(row) for row in report.rows], "bars": [asdict(bar) for bar in report.bars()]}
    return json.dumps(content, indent=1).encode()
