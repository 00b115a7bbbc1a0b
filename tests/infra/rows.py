"""Rows for tests: views of the toy model, rendered; and rows of noise, for what does not depend on
their meaning.
"""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render, shaded
from dff.infra.datasets.shards import ViewRow, make_sample_id
from dff.infra.datasets.split import assign_split, default_group


def toy_view(
    model: MorphableModel,
    identity_id: str,
    view: int,
    *,
    size: int = 48,
    seed: int = 0,
    rng: np.random.Generator,
) -> tuple[ViewRow, Frame]:
    """A random view of a random face of the toy model, and the frame that its image shows."""
    angles = (float(rng.uniform(-60, 60)), float(rng.uniform(-20, 20)), float(rng.uniform(-10, 10)))
    coefficients = Coefficients(rng.normal(size=4), rng.uniform(size=3))
    if view % 2:
        camera: Pinhole | WeakPerspective = Pinhole(size * 3.1, np.array([size * 0.5, size * 0.51]))
    else:
        camera = WeakPerspective(size * 3.3, np.array([size * 0.5, size * 0.51]))
    cam_from_head = Rigid(rotation_from_angles(*angles), np.array([0.0, 0.01, 1.0]))
    vertices = cam_from_head.apply(model.vertices(coefficients))
    frame = render(vertices, model.faces, camera, (size, size))
    light = lighting.ambient(0.8) + rng.normal(0, 0.05, (9, 3))
    image = shaded(frame, np.full((size, size, 3), 0.7, np.float32), light)
    px = camera.px_from_cam(vertices)
    row = ViewRow(
        sample_id=make_sample_id(identity_id, view),
        identity_id=identity_id,
        photo_id="",
        photo_sha256="",
        view=view,
        split=assign_split(default_group(identity_id)),
        mode="rerender",
        seed=seed,
        image=cv2.imencode(".jpg", (np.clip(image, 0, 1) * 255).astype(np.uint8))[1].tobytes(),
        width=size,
        height=size,
        triangle_ids=frame.triangle,
        camera=camera,
        cam_from_head=cam_from_head,
        identity=coefficients.identity,
        expression=coefficients.expression,
        light=light,
        landmarks_2d=px[model.landmarks.contour_vertices(px, model.template)],
        landmarks_3d=px[model.landmarks.vertex],
        visible_2d=rng.random(68) < 0.5,
        visible_3d=rng.random(68) < 0.5,
        pose=angles,
        model=model.name,
        licence=model.licence,
        fit_error=0.0,
        recipe='{"background": "none"}',
    )
    return row, frame


def noise_row(
    identity_id: str, view: int, *, rng: np.random.Generator, triangles: int = 60_000
) -> ViewRow:
    """A row of random numbers of an odd size."""
    width, height = (int(v) for v in rng.integers(5, 40, 2))
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return ViewRow(
        sample_id=make_sample_id(identity_id, view),
        identity_id=identity_id,
        photo_id=f"{identity_id}/ü",
        photo_sha256=rng.bytes(32).hex(),
        view=view,
        split="dev" if view % 2 else "train",
        mode="rerender",
        seed=int(rng.integers(2**63)),
        image=cv2.imencode(".jpg", pixels)[1].tobytes(),
        width=width,
        height=height,
        triangle_ids=rng.integers(-2, triangles, (height, width)),
        camera=(Pinhole if view % 2 else WeakPerspective)(
            float(rng.gamma(2.0)), rng.normal(size=2)
        ),
        cam_from_head=Rigid(rotation_from_angles(*rng.uniform(-80, 80, 3)), rng.normal(size=3)),
        identity=rng.normal(size=int(rng.integers(80))),
        expression=rng.normal(size=int(rng.integers(52))),
        light=rng.normal(size=(9, 3)),
        landmarks_2d=rng.normal(size=(68, 2)),
        landmarks_3d=rng.normal(size=(68, 2)),
        visible_2d=rng.random(68) < 0.5,
        visible_3d=rng.random(68) < 0.5,
        pose=(float(rng.normal()), float(rng.normal()), float(rng.normal())),
        model="noise",
        licence="CC0-1.0" if view % 3 else "research-only",
        fit_error=float(rng.random()),
        recipe='{"n": "顔"}',
        person=rng.bytes(60) if view == 0 else None,
    )


def same_row(a: ViewRow, b: ViewRow) -> bool:
    """Whether two rows agree in every bit and type."""
    return all(_same(getattr(a, name), getattr(b, name)) for name in ViewRow.__dataclass_fields__)


def _same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Pinhole | WeakPerspective | Rigid | Coefficients):
        return all(_same(value, vars(b)[name]) for name, value in vars(a).items())
    return a == b
