"""Frames per second and core of the renderers, by part: ``python -m benchmarks.render``.

All variants take turns within one run, on the same random views of the open head, and the fastest
round of each counts: ratios are more reliable than absolute numbers. CPU time, so that threads of
the OpenGL driver count too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from dff.face.arrays import Floats
from dff.face.errors import NoRenderer
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import load_model
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import frame as fr, gl, kernels, shading, zbuffer

VIEWS, ROUNDS = 24, 8
SIZES = (256, 512)


def random_views(model: MorphableModel, rng: np.random.Generator) -> list[Floats]:
    """(V, 3) vertices of random faces in ``cam``, one metre away."""
    views = []
    for _ in range(VIEWS):
        turn = rotation_from_angles(*rng.uniform([-90, -30, -30], [90, 30, 30]))
        face = Coefficients(rng.normal(size=len(model.identity)), np.zeros(len(model.expression)))
        views.append(Rigid(turn, np.array([0.0, 0.0, 1.0])).apply(model.vertices(face)))
    return views


def milliseconds(work: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """CPU time of each kind of work for one view: the fastest round, all taking turns."""
    best = dict.fromkeys(work, np.inf)
    for _ in range(ROUNDS + 1):  # the first compiles
        for name, do in work.items():
            start = time.process_time()
            for view in range(VIEWS):
                do(view)
            best[name] = min(best[name], (time.process_time() - start) / VIEWS * 1e3)
    return best


def variants(
    size: int, model: MorphableModel, views: list[Floats]
) -> dict[str, Callable[[int], object]]:
    """The measured work at ``size`` x ``size`` pixels, by name."""
    rng = np.random.default_rng(1)
    camera = Pinhole(2.7 * size, np.array([size / 2, size / 2]))
    shape = (size, size)
    texture = rng.random((512, 512, 3)).astype(np.float32)
    in_bytes = shading.Texture.of(
        np.dstack([texture, np.zeros((512, 512))]), model.uv, model.uv_faces
    )
    canvas = np.zeros((size, size, 3), dtype=np.float32)
    light = rng.normal(size=(9, 3))
    seen = [fr.render(v, model.faces, camera, shape) for v in views]
    albedo = [fr.sample_texture(f, texture, model.uv, model.uv_faces) for f in seen]
    px = [camera.px_from_cam(v) for v in views]
    depth = [camera.screen_depth(v) for v in views]
    written = [np.empty((size, size, n), dtype=np.float32) for n in (1, 3, 1, 3, 3)]

    def colour(frame: fr.Frame) -> fr.Image:
        return fr.shaded(frame, fr.sample_texture(frame, texture, model.uv, model.uv_faces), light)

    def write(n: int) -> None:
        for image in written:
            image.fill(n)

    def painted(n: int, smooth: bool) -> shading.ShadedImage:
        mesh = fr.Mesh.of(views[n], model.faces, camera)
        out = shading.shading_pass(mesh, mesh.seen(shape), in_bytes, light, canvas)
        if smooth:
            shading.antialias(out, mesh)
        return out

    def supersampled(n: int) -> tuple[fr.Image, fr.Image]:
        frame = fr.render(views[n], model.faces, camera, shape)
        return fr.supersampled(frame, views[n], model.faces, camera, colour)

    work: dict[str, Callable[[int], object]] = {
        "zbuffer, all outputs": lambda n: colour(fr.render(views[n], model.faces, camera, shape)),
        "zbuffer, without colour": lambda n: fr.render(views[n], model.faces, camera, shape),
        "resolve from stored ids": lambda n: fr.resolve(
            seen[n].triangle, views[n], model.faces, camera
        ),
        "zbuffer, all outputs, supersampled outlines": supersampled,
        "shading pass": lambda n: painted(n, False),
        "shading pass, smooth outlines": lambda n: painted(n, True),
        "- project": lambda n: (camera.px_from_cam(views[n]), camera.screen_depth(views[n])),
        "- raster (zbuffer)": lambda n: zbuffer.visibility(px[n], depth[n], model.faces, shape),
        "- vertex normals": lambda n: kernels.smooth_normals(views[n], model.faces),
        "- texture": lambda n: fr.sample_texture(seen[n], texture, model.uv, model.uv_faces),
        "- shade": lambda n: fr.shaded(seen[n], albedo[n], light),
        "writing the outputs once": write,
    }
    try:
        gl.renderer_name()
    except NoRenderer:
        return work
    work["pyrender, all outputs"] = lambda n: colour(
        fr.render(views[n], model.faces, camera, shape, visibility=gl.visibility)
    )
    work["- raster (pyrender)"] = lambda n: gl.visibility(px[n], depth[n], model.faces, shape)
    return work


def main() -> None:
    console = Console()
    model = load_model()
    views = random_views(model, np.random.default_rng(0))
    try:
        console.print(f"{len(model.faces)} triangles; OpenGL: {gl.renderer_name()}")
    except NoRenderer as error:
        console.print(f"{len(model.faces)} triangles; {error}")
    for size in SIZES:
        found = milliseconds(variants(size, model, views))
        whole = found["zbuffer, all outputs"]
        table = Table("", "ms", "frames/s/core", "of the first", title=f"{size} x {size}")
        for name, each in sorted(found.items(), key=lambda item: item[0].startswith("- ")):
            table.add_row(name, f"{each:.3f}", f"{1e3 / each:.0f}", f"{each / whole:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
