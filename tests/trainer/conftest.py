"""A small dataset for training tests: renderings of the open head in colours easy to learn."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dff.face.arrays import Floats, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import SHIPPED, read_arrays
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import kernels
from dff.face.render.frame import interpolate, render
from dff.infra.datasets.dataset import MANIFEST, Dataset, Manifest, Shards, data_key, open_dataset
from dff.infra.datasets.shards import SCHEMA_VERSION, ViewRow, make_sample_id, rows_to_parquet
from dff.infra.datasets.split import assign_split, default_group
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import StoredView, ViewStore, open_views

SIZE = 96


def colours(model: MorphableModel) -> Floats:
    """(V, 3) colours 0..1 that vary over the surface, the same on every identity."""
    rng = np.random.default_rng(5)
    waves = rng.normal(0, 60.0, (3, 6, 3))
    phase = rng.uniform(0, 2 * np.pi, (6, 3))
    return np.asarray(
        0.5 + 0.12 * np.sin(np.einsum("vc,cwk->vwk", model.template, waves) + phase).sum(1)
    ).clip(0, 1)


def make_row(
    model: MorphableModel, identity: str, view: int, *, rng: np.random.Generator
) -> ViewRow:
    """One view of an identity: a neutral expression, yaw up to 50 degrees."""
    k, e = len(model.identity), len(model.expression)
    shape = np.random.default_rng(int(identity[2:])).normal(0, 0.7, k)
    coefficients = Coefficients(shape, np.zeros(e))
    yaw, pitch, roll = rng.uniform([-50, -15, -10], [50, 15, 10])
    pose = Rigid(rotation_from_angles(yaw, pitch, roll), np.zeros(3))
    vertices = pose.apply(model.vertices(coefficients))
    scale = 0.8 * SIZE / float(np.ptp(vertices[:, :2], axis=0).max())
    camera = WeakPerspective(
        scale, SIZE / 2 - scale * (vertices[:, :2].min(0) + vertices[:, :2].max(0)) / 2
    )
    frame = render(vertices, model.faces, camera, (SIZE, SIZE))
    image = interpolate(frame, colours(model), model.faces)
    image[~frame.mask] = rng.uniform(0, 1, (int((~frame.mask).sum()), 3))
    _, jpeg = cv2.imencode(
        ".jpg", (image[..., ::-1] * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95]
    )
    landmarks = camera.px_from_cam(vertices[model.landmarks.vertex])
    return ViewRow(
        sample_id=make_sample_id(identity, view),
        identity_id=identity,
        photo_id="",
        photo_sha256="",
        view=view,
        split=assign_split(default_group(identity)),
        mode="rerender",
        seed=view,
        image=jpeg.tobytes(),
        width=SIZE,
        height=SIZE,
        triangle_ids=frame.triangle,
        camera=camera,
        cam_from_head=pose,
        identity=coefficients.identity,
        expression=coefficients.expression,
        light=np.zeros((9, 3)),
        landmarks_2d=landmarks,
        landmarks_3d=landmarks,
        visible_2d=np.ones(68, bool),
        visible_3d=np.ones(68, bool),
        pose=(yaw, pitch, roll),
        model=model.name,
        licence=model.licence,
        fit_error=0.0,
        recipe="{}",
    )


def write_dataset(folder: Path, rows: list[ViewRow], *, shards: int = 2) -> Dataset:
    """A finished dataset whose identities are divided over its shards in their order."""
    identities = list(dict.fromkeys(row.identity_id for row in rows))
    infos = []
    for index, chosen in enumerate(np.array_split(identities, shards)):
        part = [row for row in rows if row.identity_id in set(chosen.tolist())]
        data = rows_to_parquet(part, {"plan": "test"})
        key = data_key(index, shards)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
        infos.append((len(part), len(data), hashlib.sha256(data).hexdigest()))
    counts, sizes, hashes = zip(*infos, strict=True)
    manifest = Manifest(
        SCHEMA_VERSION, "test", len(identities), 0, {}, {}, {}, Shards.of(counts, sizes, hashes)
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return open_dataset(str(folder))


def barycentrics(view: StoredView, faces: Ints) -> Floats:
    """(H, W, 3) barycentric weights of a view's pixels; background 0."""
    ids = np.where(view.triangle < len(faces), view.triangle.astype(np.int32), -1)
    shape = (*ids.shape, 3)
    out, depth, normal = np.zeros(shape), np.zeros(ids.shape), np.zeros(shape)
    vertices = np.zeros((len(view.vertex_px), 3))
    kernels.resolve(
        ids,
        np.empty((0, 0, 2)),
        vertices,
        faces,
        view.vertex_px,
        view.vertex_weight,
        vertices,
        out,
        depth,
        normal,
    )
    return out


@pytest.fixture(scope="session")
def rows(open_head: MorphableModel) -> list[ViewRow]:
    """12 identities of 6 views each; two identities are held out."""
    names = [f"id{i:03d}" for i in range(200)]
    chosen = [n for n in names if assign_split(default_group(n)) == "train"][:10] + [
        n for n in names if assign_split(default_group(n)) == "dev"
    ][:2]
    rng = np.random.default_rng(0)
    return [
        make_row(open_head, name, view, rng=rng) for name in sorted(chosen) for view in range(6)
    ]


@pytest.fixture(scope="session")
def dataset(rows: list[ViewRow], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("dataset"), rows)


@pytest.fixture(scope="session")
def store(
    dataset: Dataset, open_head: MorphableModel, tmp_path_factory: pytest.TempPathFactory
) -> ViewStore:
    return open_views([dataset], open_head, CacheConfig(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def surface(open_head: MorphableModel) -> TrainingSurface:
    return build_training_surface(open_head)


@pytest.fixture(scope="session")
def mirrored_model(open_head: MorphableModel) -> MorphableModel:
    """The open head moved out of symmetry: mirrored coordinates are not those of opposite sign."""
    return replace(open_head, template=open_head.template + np.float32([0.001, 0, 0]))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file: the open head under another name."""
    path = tmp_path_factory.mktemp("model") / "other.npz"
    arrays = read_arrays(SHIPPED["open-head"]) | {"name": np.array("other-head")}
    np.savez(path, **arrays)
    return path
