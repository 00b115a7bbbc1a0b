"""Views per second and core of synthesis, the time of its parts, and their lower bounds.

    python -m benchmarks.synthesis                    parts, rates, two processes, bytes
    python -m benchmarks.synthesis --soak 20000       resident memory over many views

Sampled persons with the default mix of accessories. CPU time of one process, threads included; the
fastest of some rounds, since other work on the machine only adds time. "Floor" is the time to copy
the bytes that a part must read and write, at the memory bandwidth measured in the same run.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from dff.face.arrays import Floats
from dff.face.errors import NoRenderer
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.morphable import MorphableModel
from dff.face.render import backends, shading, zbuffer
from dff.face.render.frame import Mesh
from dff.face.render.visibility import Visibility
from dff.infra.datasets.shards import ViewRow, make_sample_id, read_columns, rows_to_parquet
from dff.pipeline import synthesis
from dff.pipeline.job.work import derive_seed
from dff.pipeline.recovery.inverse import invert
from dff.pipeline.recovery.photos import Photo
from dff.pipeline.scene import backgrounds, camera_sensor as sensor, views
from dff.pipeline.scene.sampling import draw_scene, make_plain_scene
from dff.pipeline.scene.scene import Scene
from dff.pipeline.subjects import build as persons
from dff.pipeline.subjects.subject_file import StoredPerson, store_person

SIZE, TEXELS = 256, 512
PERSONS, VIEWS, ROUNDS = 8, 20, 5
PERSON_VIEWS = 20  # for each person of a job, unless it says otherwise
READY_SECONDS = 300  # that processes may take to start and compile
SHARD_ROWS = 640  # that a worker holds before it writes them
TARGETS = {"zbuffer": 120, "pyrender": 50}


def sampled(index: int, model: MorphableModel) -> StoredPerson:
    name, rng = f"sampled-{index:06d}", np.random.default_rng(index)
    made = persons.sample_person(
        name, model=model, albedo=load_albedo(), texture_size=TEXELS, rng=rng
    )
    return store_person(made, model)


def render_rows(
    kept: StoredPerson, model: MorphableModel, visibility: Visibility, count: int = VIEWS
) -> list[ViewRow]:
    return synthesis.render_views(
        kept, model=model, seed=0, views=count, size=SIZE, visibility=visibility
    )


def written(rows: list[ViewRow], folder: Path) -> int:
    """Write a shard; returns its bytes."""
    data = rows_to_parquet(rows, {})
    (folder / "shard.parquet").write_bytes(data)
    return len(data)


def fastest(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Milliseconds of CPU time of the fastest of some rounds."""
    best = np.inf
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, (time.process_time() - start) * 1e3)
    return float(best)


def copy_bandwidth() -> float:
    """Bytes read and written per millisecond of copying memory outside the caches."""
    source = np.ones(1 << 25)
    target = np.zeros_like(source)
    return 2 * source.nbytes / fastest(lambda: np.copyto(target, source), 5)


def parts(
    kept: list[StoredPerson], model: MorphableModel, rounds: int
) -> dict[str, tuple[float, float]]:
    """Milliseconds of each part of a view, and the bytes of its inputs and results."""
    todo = [(each.person, view) for each in kept for view in range(VIEWS)]
    seeds = [derive_seed(0, make_sample_id(person.id, view)) for person, view in todo]
    everything = range(len(todo))
    shape = (SIZE, SIZE)

    def draw(n: int) -> Scene:
        person, view = todo[n]
        return draw_scene(person, view, model=model, rng=np.random.default_rng(seeds[n]), size=SIZE)

    scenes = [draw(n) for n in everything]

    def geometry(n: int) -> tuple[Mesh, shading.VertexColours]:
        return views.build_scene_mesh(todo[n][0], scenes[n], model)

    meshes, trims = zip(*(geometry(n) for n in everything), strict=True)
    ids = [meshes[n].seen(shape) for n in everything]

    def wall(n: int) -> Floats:
        background = scenes[n].background
        assert background is not None
        return backgrounds.draw_background(background, shape)

    walls = [wall(n) for n in everything]

    def paint(n: int) -> shading.ShadedImage:
        texture = views.get_texture(todo[n][0], model)
        return shading.shading_pass(meshes[n], ids[n], texture, scenes[n].light, walls[n], trims[n])

    pictures = [paint(n) for n in everything]
    touched = float(np.mean([shading.find_outlines(p).sum() for p in pictures]))
    lights = [p.image.copy() for p in pictures]
    images = [sensor.apply_sensor(lights[n], scenes[n].sensor) for n in everything]
    head = len(model.template)

    def landmarks(n: int) -> object:
        return views.project_landmarks(
            meshes[n].vertices[:head], pictures[n], scenes[n].camera, model
        )

    rows = [row for each in kept for row in render_rows(each, model, zbuffer.visibility)]
    corners = float(np.mean([len(m.vertices) for m in meshes]))
    triangles = float(np.mean([len(m.faces) for m in meshes]))
    covered = float(np.mean([(i >= 0).sum() for i in ids]))
    area = float(SIZE * SIZE)
    active = float(np.mean([(s.expression != 0).sum() for s in scenes]))
    stored_ids = read_columns(rows_to_parquet(rows, {}), ["triangle_ids"])["triangle_ids"]
    jpeg, packed = (
        float(np.mean([len(e) for e in each])) for each in ([row.image for row in rows], stored_ids)
    )
    work: dict[str, tuple[Callable[[int], object], float]] = {
        "draw the scene": (draw, 0.0),
        "geometry": (
            geometry,
            active * head * 12 + corners * (24 + 24 + 8 + 8 + 16) + triangles * 24,
        ),
        "visibility": (
            lambda n: meshes[n].seen(shape),
            triangles * 12 + corners * (16 + 8) + area * (8 + 8 + 4),
        ),
        "resolve, texture, light": (
            paint,
            triangles * 12 + corners * 64 + covered * (4 + 24 + 16 + 5 + 12),
        ),
        "background": (wall, area * 12),
        "composite: outlines": (
            lambda n: shading.antialias(pictures[n], meshes[n]),
            triangles * 12 + corners * 24 + area * 5 + touched * (8 * 20 + 24),
        ),
        "sensor": (
            lambda n: sensor.apply_sensor(lights[n], scenes[n].sensor),
            area * (12 + 12 + 12 + 3),
        ),
        "landmarks": (landmarks, corners * 16),
        "encode: JPEG": (
            lambda n: sensor.encode_jpeg(images[n], scenes[n].sensor.quality),
            area * 3 + jpeg,
        ),
    }
    found: dict[str, tuple[float, float]] = {}
    for name, (do, size) in work.items():
        spent = [
            fastest(lambda do=do, first=first: [do(n) for n in range(first, first + VIEWS)], rounds)  # type: ignore[misc]
            for first in range(0, len(todo), VIEWS)
        ]
        found[name] = sum(spent) / len(todo), size
    with TemporaryDirectory() as folder:
        each = fastest(lambda: written(rows, Path(folder)), rounds)
        found["write: ids, Parquet, file"] = each / len(todo), area * 4 + 2 * (jpeg + packed)
    return found


def rate(renderer: str, count: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Views per second of CPU time of one process, for existing persons and with new ones."""
    model, visibility = load_model(), backends.backend(renderer)
    with threadpool_limits(1), TemporaryDirectory() as folder:
        kept = [sampled(index, model) for index in range(count)]
        rows: list[ViewRow] = []
        spent = 0.0
        for each in kept:  # the first time compiles, and makes what a person keeps
            rows += render_rows(each, model, visibility)
            spent += fastest(partial(render_rows, each, model, visibility), rounds)
        size = written(rows, Path(folder))
        spent += fastest(lambda: written(rows, Path(folder)), rounds)
        anew = [fastest(partial(sampled, i, model), 2) for i in range(count)]

        def first_view(index: int) -> None:
            render_rows(sampled(index, model), model, visibility, 1)

        begun = [fastest(partial(first_view, i), 2) for i in range(count)]
    views_made = count * VIEWS
    return {
        "views": 1e3 * views_made / spent,
        "views with persons": 1e3 / (spent / views_made + float(np.mean(begun)) / PERSON_VIEWS),
        "person": float(np.mean(anew)),
        "first view": float(np.mean(begun)) - float(np.mean(anew)),
        "bytes": size / views_made,
    }


def _rate_beside_others(ready: Barrier, renderer: str, count: int) -> tuple[float, float]:
    rate(renderer, 1, 1)
    ready.wait()
    start, cpu = time.perf_counter(), time.process_time()
    found = rate(renderer, count)["views"]
    return found, (time.process_time() - cpu) / (time.perf_counter() - start)


def run_processes(renderer: str, processes: int, count: int = 4) -> tuple[float, float]:
    """Views per second of CPU time of concurrent processes, and each one's share of a core.

    Raises BrokenProcessPool when one of them dies, BrokenBarrierError when one does not get ready.
    """
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        ready = manager.Barrier(processes, timeout=READY_SECONDS)
        found = list(
            pool.map(
                _rate_beside_others, *zip(*[(ready, renderer, count)] * processes, strict=True)
            )
        )
    return sum(each for each, _ in found), float(np.mean([share for _, share in found]))


def fit_milliseconds(kept: StoredPerson, model: MorphableModel) -> float:
    """CPU time of the inverse rendering of one photo: a view of a sampled person."""
    rest = np.zeros(len(model.expression), dtype=np.float32)
    scene = make_plain_scene(
        kept.person, rest, np.diag([1.0, -1.0, -1.0]), model=model, size=2 * SIZE
    )
    row = views.make_row(kept.person, 0, scene, model=model, seed=0, size=2 * SIZE)
    photo = Photo("view", row.pixels(), row.landmarks_2d, "2d", "")
    albedo = load_albedo()
    rng = np.random.default_rng(0)

    def explained() -> None:
        recovery = invert(photo, model=model, albedo=albedo, size=SIZE)
        persons.recover_person(
            recovery,
            "photo",
            model=model,
            albedo=albedo,
            texture_size=TEXELS,
            licence="CC0-1.0",
            rng=rng,
        )

    explained()  # compiles
    return fastest(explained, 3)


def soak(count: int, every: int) -> Iterator[tuple[int, float]]:
    """Views so far and resident memory in MB, at intervals, of a worker that writes shards."""
    model = load_model()
    page = os.sysconf("SC_PAGE_SIZE")
    with threadpool_limits(1), TemporaryDirectory() as folder:
        rows: list[ViewRow] = []
        for person in range(-(-count // VIEWS)):
            rows += render_rows(sampled(person, model), model, zbuffer.visibility)
            if len(rows) >= SHARD_ROWS:
                written(rows, Path(folder))
                rows = []
            made = (person + 1) * VIEWS
            if made % every < VIEWS:
                yield made, int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6


def show_soak(console: Console, count: int) -> None:
    start, curve = time.process_time(), []
    for made, size in soak(count, max(count // 40, VIEWS)):
        curve.append((made, size))
        console.print(f"{made:7d} views {size:7.0f} MB")
    late = np.array([c for c in curve if c[0] > count // 4])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1e3 if len(late) > 1 else 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    console.print(
        f"peak {peak:.0f} MB (target <= 1500); after the first quarter {slope:+.2f} kB a view "
        "(target flat)"
    )
    spent = (time.process_time() - start) / curve[-1][0] * 1e3
    console.print(f"{spent:.1f} ms of CPU a view, persons and writing included")


def main(
    soak: int = 0,
    people: int = PERSONS,
    rounds: int = ROUNDS,
    pyrender: bool = True,
    two: bool = True,
) -> None:
    console = Console()
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load:.1f} at the start")
    if soak:
        show_soak(console, soak)
        return
    model = load_model()
    with threadpool_limits(1):
        kept = [sampled(index, model) for index in range(people)]
        bandwidth = copy_bandwidth()
        split = parts(kept, model, rounds)
        fit = fit_milliseconds(kept[0], model)
    one = rate("zbuffer", people, rounds)
    whole = 1e3 / one["views"]
    # Parts and whole are timed one after another: on a busy machine the difference may fall below
    # zero.
    split["the whole less these: recipe, row, calls, noise"] = (
        whole - sum(spent for spent, _ in split.values()),
        0.0,
    )
    table = Table(
        "part",
        "ms per view",
        "floor ms",
        "times the floor",
        title=f"one view at {SIZE} px, written",
    )
    for name, (spent, size) in split.items():
        floor = size / bandwidth
        table.add_row(
            name,
            f"{spent:.2f}",
            f"{floor:.3f}" if size else "",
            f"{spent / floor:.0f}" if size else "",
        )
    floor = sum(size for _, size in split.values()) / bandwidth
    table.add_section()
    table.add_row("a view", f"{whole:.2f}", f"{floor:.3f}", f"{whole / floor:.0f}")
    console.print(table)
    console.print(f"copying memory: {bandwidth / 1e6:.1f} GB/s, read and written")
    console.print(
        f"once for each person of {PERSON_VIEWS} views: {one['person']:.0f} ms sampled and stored, "
        f"{one['first view']:.0f} ms meshes and first view; fit and texture of a photo instead: "
        f"{fit:.0f} ms"
    )
    rates = {"zbuffer": one}
    if pyrender:
        try:
            rates["pyrender"] = rate("pyrender", max(people // 2, 1), rounds)
        except NoRenderer as error:
            console.print(f"pyrender: {error}")
    table = Table(
        "renderer",
        "views per second and core",
        "target",
        "with persons made",
        "bytes per view",
        "target",
    )
    for name, found in rates.items():
        table.add_row(
            name, f"{found['views']:.0f}", f">= {TARGETS[name]}",
            f"{found['views with persons']:.0f}", f"{found['bytes']:.0f}", "<= 45000",
        )  # fmt: skip
    console.print(table)
    if two:
        alone, share = run_processes("zbuffer", 1)
        both, shares = run_processes("zbuffer", 2)
        console.print(
            f"two processes make {both / alone:.2f} x the views of one for each second of CPU "
            f"(target >= 1.8); alone it had {share:.0%} of a core, two {shares:.0%} each; "
            f"load now {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    typer.run(main)
