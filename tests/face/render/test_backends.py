"""The backends against each other, against ray casting, and over thousands of frames."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from dff.face.arrays import Floats, Ints
from dff.face.errors import NoRenderer
from dff.face.geometry.camera import Camera, Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import gl, zbuffer
from dff.face.render.frame import render
from dff.face.render.visibility import REACH, Visibility


@pytest.fixture(scope="module")
def opengl() -> Visibility:
    try:
        gl.renderer_name()
    except NoRenderer as error:
        pytest.skip(str(error))
    return gl.visibility


def random_view(
    model: MorphableModel, size: tuple[int, int], rng: np.random.Generator, perspective: bool
) -> tuple[Floats, Camera]:
    """(V, 3) vertices of a random face in ``cam``, and a camera that may cut it off."""
    identity = rng.normal(size=min(40, len(model.identity)))
    expression = rng.uniform(0, 0.5, size=len(model.expression)) * (
        rng.random(len(model.expression)) < 0.2
    )
    turn = rotation_from_angles(*rng.uniform([-95, -50, -60], [95, 50, 60]))
    distance = rng.uniform(0.4, 2.0)
    cam_from_head = Rigid(turn, np.array([*rng.uniform(-0.03, 0.03, 2), distance]))
    vertices = cam_from_head.apply(model.vertices(Coefficients(identity, expression)))
    scale = rng.uniform(2.5, 5.0) * min(size)  # pixels per metre at the head
    centre = np.array([size[1], size[0]]) * rng.uniform(0.4, 0.6, 2)
    if perspective:
        return vertices, Pinhole(scale * distance, centre)
    return vertices, WeakPerspective(scale, centre)


def rays(camera: Camera, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Origins and unit directions, (H * W, 3) each, of the rays through the pixel centres."""
    row, column = np.mgrid[: size[0], : size[1]].reshape(2, -1) + 0.5
    px = np.stack([column, row], axis=1)
    if isinstance(camera, Pinhole):
        directions = np.concatenate(
            [(px - camera.centre) / camera.focal, np.ones((len(px), 1))], axis=1
        )
        return np.zeros((len(px), 3)), directions / np.linalg.norm(
            directions, axis=1, keepdims=True
        )
    assert isinstance(camera, WeakPerspective)
    origins = np.concatenate(
        [(px - camera.centre) / camera.scale, np.full((len(px), 1), -10.0)], axis=1
    )
    return origins, np.broadcast_to([0.0, 0.0, 1.0], origins.shape)


def cast(vertices: Floats, faces: Ints, origins: Floats, directions: Floats) -> tuple[Ints, Floats]:
    """(N,) first triangle hit, or -1, and its distance, or infinity.

    Brute force in float64 (Möller and Trumbore 1997).
    """
    hit, nearest = np.full(len(origins), -1), np.full(len(origins), np.inf)
    a, ab, ac = (
        vertices[faces[:, 0]],
        *(vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2)),
    )
    for n in range(len(origins)):
        p = np.cross(directions[n], ac)
        det = (ab * p).sum(1)
        flat = det == 0
        inverse = 1.0 / np.where(flat, 1.0, det)
        t = origins[n] - a
        q = np.cross(t, ab)
        u, v = (t * p).sum(1) * inverse, (q @ directions[n]) * inverse
        far = (ac * q).sum(1) * inverse
        far[flat | (u < 0) | (v < 0) | (u + v > 1) | (far <= 0)] = np.inf
        hit[n] = far.argmin()
        nearest[n] = far[hit[n]]
    return np.where(np.isfinite(nearest), hit, -1), nearest


@pytest.mark.parametrize("model_name", ["toy_model", "open_head"])
def test_backends_agree(
    model_name: str, opengl: Visibility, request: pytest.FixtureRequest
) -> None:
    """At most two pixels of a frame differ, whatever the pose, camera and size."""
    model: MorphableModel = request.getfixturevalue(model_name)
    rng = np.random.default_rng(1)
    sizes = [(256, 256), (100, 143), (64, 64), (33, 7), (301, 200)]
    differing = []
    for n in range(200):
        size = sizes[n % len(sizes)]
        vertices, camera = random_view(model, size, rng, perspective=n % 2 == 0)
        by_cpu = render(vertices, model.faces, camera, size)
        by_gl = render(vertices, model.faces, camera, size, visibility=opengl)
        differing.append(int((by_cpu.triangle != by_gl.triangle).sum()))
        same = by_cpu.triangle == by_gl.triangle
        assert np.array_equal(by_cpu.barycentric[same], by_gl.barycentric[same])
        assert np.array_equal(by_cpu.depth[same], by_gl.depth[same])
    assert max(differing) <= 2, sorted(differing)[-5:]
    assert np.mean(differing) < 0.3


@pytest.mark.parametrize("perspective", [False, True])
def test_ray_casting_sees_the_same(open_head: MorphableModel, perspective: bool) -> None:
    """Where ray casting and z-buffer differ, the ray passes within 0.01 px of both triangles."""
    rng = np.random.default_rng(2)
    size = (30, 30)
    for _ in range(2):
        vertices, camera = random_view(open_head, size, rng, perspective)
        frame = render(vertices, open_head.faces, camera, size)
        origins, directions = rays(camera, size)
        hit, distance = cast(vertices, open_head.faces, origins, directions)
        ours = frame.triangle.ravel()
        assert (ours != hit).sum() <= 6
        assert ((ours >= 0) != (hit >= 0)).sum() <= 1
        both = (ours >= 0) & (ours == hit)
        assert both.sum() > 100
        there = origins[both] + directions[both] * distance[both, None]
        points = frame.points().of(vertices, open_head.faces)[(ours == hit)[ours >= 0]]
        off = np.linalg.norm(camera.px_from_cam(points) - camera.px_from_cam(there), axis=1)
        assert off.max() < 0.01
        assert np.median(np.linalg.norm(points - there, axis=1)) < 1e-7


def test_embree_sees_the_same(open_head: MorphableModel) -> None:
    """The same at full size, against Embree's float32 ray caster."""
    ray = pytest.importorskip("trimesh.ray.ray_pyembree", reason="needs embreex")
    trimesh = pytest.importorskip("trimesh")
    rng = np.random.default_rng(3)
    size = (256, 256)
    for n in range(6):
        vertices, camera = random_view(open_head, size, rng, perspective=n % 2 == 0)
        frame = render(vertices, open_head.faces, camera, size)
        caster = ray.RayMeshIntersector(trimesh.Trimesh(vertices, open_head.faces, process=False))
        origins, directions = rays(camera, size)
        hit = caster.intersects_first(origins, directions)
        ours = frame.triangle.ravel()
        covered = int(frame.mask.sum())
        assert (ours != hit).sum() < 0.01 * covered  # Embree's own shared edges
        assert ((ours >= 0) != (hit >= 0)).sum() < 0.002 * covered
        points = frame.points().of(vertices, open_head.faces)
        row, column = np.nonzero(frame.mask)
        centres = np.stack([column, row], axis=1) + 0.5
        assert np.linalg.norm(camera.px_from_cam(points) - centres, axis=1).max() < 0.01


@pytest.mark.parametrize("backend", ["zbuffer", "opengl"])
def test_every_pixel_of_a_torn_sheet_is_covered_once(
    backend: str, request: pytest.FixtureRequest
) -> None:
    """Triangles that tile a square cover each pixel centre once, on shared edges too."""
    visibility = zbuffer.visibility if backend == "zbuffer" else request.getfixturevalue("opengl")
    rng = np.random.default_rng(4)
    side, n = 32, 9
    grid = np.stack(np.meshgrid(np.linspace(0, side, n), np.linspace(0, side, n)), axis=-1)
    inner = grid[1:-1, 1:-1]
    grid[1:-1, 1:-1] = (
        np.round((inner + rng.uniform(-1.2, 1.2, inner.shape)) * 2) / 2
    )  # many on pixel centres
    px = grid.reshape(-1, 2)
    at = np.arange(n * n).reshape(n, n)
    a, b, c, d = (x.ravel() for x in (at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, d, c], 1)]).astype(
        np.int32
    )  # both windings
    owners = np.zeros((side, side), dtype=int)
    for face in faces:
        owners += visibility(px, np.ones(len(px)), face[None], (side, side)) == 0
    assert (owners == 1).all()


@pytest.mark.parametrize("backend", ["zbuffer", "opengl"])
def test_degenerate_triangles_draw_nothing(backend: str, request: pytest.FixtureRequest) -> None:
    """Triangles without area or off the image draw nothing; huge ones fill the image."""
    visibility = zbuffer.visibility if backend == "zbuffer" else request.getfixturevalue("opengl")
    nan, far = np.nan, 1e6
    px = np.array(
        [
            [2, 2],
            [14, 2],
            [2, 14],
            [nan, 3],
            [-far, -far],
            [far, -far],
            [0, far],
            [-50, -9],
            [-60, -9],
        ],
        float,
    )
    px = np.concatenate([px, [[-50, -30], [REACH * 1.5, 0]]])
    depth = np.array([1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0], float)

    def draw(*faces: tuple[int, int, int]) -> Ints:
        return visibility(px, depth, np.array(faces, dtype=np.int32).reshape(-1, 3), (16, 16))

    plain = draw((0, 1, 2))
    assert (plain == 0).sum() == pytest.approx(72, abs=12)  # half of 12 x 12
    spoilt = draw((0, 1, 2), (0, 1, 3), (0, 1, 1), (2, 2, 2), (7, 8, 9), (0, 1, 10), (3, 3, 3))
    assert np.array_equal(plain, spoilt)
    assert (draw((4, 5, 6)) == 0).all()
    assert np.array_equal(draw((4, 5, 6), (0, 1, 2)), np.where(plain == 0, 1, 0))
    assert (draw() == -1).all()
    depth[1] = np.inf
    assert (draw((0, 1, 2)) == -1).all()


@pytest.mark.parametrize("backend", ["zbuffer", "opengl"])
def test_the_same_view_gives_the_same_ids(
    backend: str,
    open_head: MorphableModel,
    toy_model: MorphableModel,
    request: pytest.FixtureRequest,
) -> None:
    """A frame does not depend on what was drawn before it."""
    visibility = zbuffer.visibility if backend == "zbuffer" else request.getfixturevalue("opengl")
    vertices, camera = random_view(open_head, (128, 96), np.random.default_rng(5), perspective=True)
    first = render(vertices, open_head.faces, camera, (128, 96), visibility=visibility)
    other, other_camera = random_view(
        toy_model, (50, 60), np.random.default_rng(6), perspective=False
    )
    render(other, toy_model.faces, other_camera, (50, 60), visibility=visibility)
    render(vertices * 1.01, open_head.faces, camera, (128, 96), visibility=visibility)
    again = render(vertices, open_head.faces, camera, (128, 96), visibility=visibility)
    for name in ("triangle", "barycentric", "depth", "normal"):
        assert np.array_equal(getattr(first, name), getattr(again, name))


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backend", ["zbuffer", "opengl"])
def test_three_thousand_frames_leak_no_memory(
    backend: str, toy_model: MorphableModel, request: pytest.FixtureRequest
) -> None:
    """Resident memory grows by less than 1 kB a frame while sizes and meshes change."""
    visibility = zbuffer.visibility if backend == "zbuffer" else request.getfixturevalue("opengl")
    rng = np.random.default_rng(7)
    views = [random_view(toy_model, (48, 48), rng, perspective=True) for _ in range(8)]
    few = toy_model.faces[: len(toy_model.faces) // 2]

    def draw(frames: int) -> None:
        for n in range(frames):
            vertices, camera = views[n % len(views)]
            size = (48, 48) if n % 50 else (48 + n % 3, 64)
            render(
                vertices,
                few if n % 20 == 0 else toy_model.faces,
                camera,
                size,
                visibility=visibility,
            )

    draw(300)
    before = resident_bytes()
    draw(3000)
    assert resident_bytes() - before < 3_000_000


def in_thread(work: Callable[[], object]) -> object:
    caught: list[object] = []

    def run() -> None:
        try:
            caught.append(work())
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0]


def fails_in_fork() -> None:
    try:
        gl.renderer_name()
    except RuntimeError as error:
        os._exit(7 if "fork" in str(error) else 1)
    os._exit(0)


def test_opengl_in_other_threads_and_forks_is_an_error(opengl: Visibility) -> None:
    """Another thread or a forked process gets an error, not a hang or an old image."""
    error = in_thread(gl.renderer_name)
    assert isinstance(error, RuntimeError)
    assert "thread" in str(error)
    process = multiprocessing.get_context("fork").Process(target=fails_in_fork)
    process.start()
    process.join(30)
    assert process.exitcode == 7


def test_missing_opengl_names_the_packages() -> None:
    """Without drivers the error says what to install."""
    script = "from face.errors import NoRenderer\nfrom face.render import gl\n"
    script += "try:\n    gl.renderer_name()\n"
    script += "except NoRenderer as error:\n    raise SystemExit(str(error))"
    env = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    for package in gl.PACKAGES:
        assert package in done.stderr
