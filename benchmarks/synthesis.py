"""Views per second and core of synthesis with its rows written, and where a view's time goes.

    python -m benchmarks.synthesis

CPU time of this process, without the fit of photos and the making of textures, which happen once for each person.
The fastest of some rounds counts; compare the parts with each other rather than with another machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from face.assets import load_albedo, load_model
from face.render import frame as fr
from face.render import zbuffer
from infra.shards import rows_to_parquet
from pipeline import backgrounds, sensor, texture, views
from pipeline.outfit import draw_behind
from pipeline.persons import sampled_person
from pipeline.plan import seed_of

VIEWS, ROUNDS, SIZE, TEXELS = 40, 5, 256, 512


def milliseconds(work: Callable[[int], object]) -> float:
    """CPU time of one view, the fastest of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        for view in range(VIEWS):
            work(view)
        best = min(best, (time.process_time() - start) / VIEWS * 1e3)
    return best


def main() -> None:
    """Measure and show."""
    model, albedo = load_model(), load_albedo()
    rng = np.random.default_rng(0)
    person = sampled_person("sampled-000000", model=model, albedo=albedo, texture_size=TEXELS, rng=rng)
    seeds = [seed_of(0, f"{person.id}/{view}") for view in range(VIEWS)]
    make = [views.make_view(person, v, model=model, seed=seeds[v], size=SIZE) for v in range(VIEWS)]  # compiles

    def drawn(v: int) -> views.Scene:
        return views.draw_scene(person, v, model=model, rng=np.random.default_rng(seeds[v]), size=SIZE)

    scenes = [drawn(v) for v in range(VIEWS)]
    cams = [s.cam_from_head.apply(model.vertices(make[v].coefficients)) for v, s in enumerate(scenes)]
    frames = [fr.render(c, model.faces, s.camera, (SIZE, SIZE)) for c, s in zip(cams, scenes, strict=True)]
    surfaces = [fr.sample_texture(f, person.texture, model.uv, model.uv_faces) for f in frames]
    colours = [fr.shaded(f, t[..., :3], s.light) for f, t, s in zip(frames, surfaces, scenes, strict=True)]
    walls = [backgrounds.draw(s.background, (SIZE, SIZE)) for s in scenes if s.background]
    images = [
        sensor.exposed(sensor.over(c, f, t[..., 3], w), s.sensor)
        for c, f, t, w, s in zip(colours, frames, surfaces, walls, scenes, strict=True)
    ]

    def wall(v: int) -> object:
        s = scenes[v]
        assert s.background is not None
        drawn_wall = backgrounds.draw(s.background, (SIZE, SIZE))
        return draw_behind(drawn_wall, person.outfit, model, person.neutral, s.cam_from_head, s.camera, s.light)

    def visibility(v: int) -> object:
        camera = scenes[v].camera
        px, depth = camera.px_from_cam(cams[v]), camera.screen_depth(cams[v])
        return zbuffer.visibility(px, depth, model.faces, (SIZE, SIZE))

    def textured(v: int) -> object:
        surface = fr.sample_texture(frames[v], person.texture, model.uv, model.uv_faces)
        return fr.shaded(frames[v], surface[..., :3], scenes[v].light)

    parts: dict[str, Callable[[int], object]] = {
        "draw the scene": drawn,
        "geometry": lambda v: scenes[v].cam_from_head.apply(views.vertices_of(person, scenes[v].expression, model)),
        "visibility": visibility,
        "resolve": lambda v: fr.resolve(frames[v].triangle, cams[v], model.faces, scenes[v].camera),
        "texture and shading": textured,
        "background, clothes, hair": wall,
        "composite and sensor": lambda v: sensor.exposed(
            sensor.over(colours[v], frames[v], surfaces[v][..., 3], walls[v]), scenes[v].sensor
        ),
        "landmarks": lambda v: views.project_landmarks(cams[v], frames[v], scenes[v].camera, model),
        "JPEG": lambda v: sensor.jpeg(images[v], scenes[v].sensor.quality),
    }
    table = Table("part", "ms per view", title=f"one view at {SIZE} px, mesh of {len(model.faces)} triangles")
    for name, work in parts.items():
        table.add_row(name, f"{milliseconds(work):.2f}")
    whole = milliseconds(lambda v: views.make_view(person, v, model=model, seed=seeds[v], size=SIZE))
    data = rows_to_parquet(make, {})
    write = milliseconds(lambda v: rows_to_parquet(make, {}) if v == 0 else None)
    table.add_section()
    table.add_row("a whole row", f"{whole:.2f}")
    table.add_row("its share of writing the shard", f"{write:.2f}")
    table.add_row("views per second and core", f"{1e3 / (whole + write):.0f}")
    table.add_row("bytes per row", f"{len(data) / VIEWS:.0f}")
    Console().print(table)
    start = time.process_time()
    texture.atlas_of(model, TEXELS)
    sampled_person("sampled-000001", model=model, albedo=albedo, texture_size=TEXELS, rng=rng)
    Console().print(f"a sampled person: {(time.process_time() - start) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
