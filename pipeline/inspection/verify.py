"""Verification of a dataset: views are rendered again from their rows and persons, and compared.

Neither photos nor random draws are used. A view is reproduced when all fields of its row are: every
byte of its image, every pixel's triangle, and every landmark with its visibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby

import numpy as np

from dff.face.arrays import Bools, Floats
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.io.assets import digest, load_model
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import backends, zbuffer
from dff.face.render.frame import HIDDEN_DEPTH, visible
from dff.face.render.visibility import Visibility
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shards import ViewRow, collect_persons, resolve_frame
from dff.pipeline.job.plan import KEY, Plan, parse_plan
from dff.pipeline.job.versions import code_version
from dff.pipeline.scene import views
from dff.pipeline.subjects.subject import Person
from dff.pipeline.subjects.subject_file import decode_person

with require_extra("synthesis"):
    from threadpoolctl import threadpool_limits

SAMPLE = 100  # views that are rendered again by default
TOLERANCE = 0.1  # px, for a correspondence between two views
SHOWN = 5  # differences that an error lists


@dataclass
class Checks:
    """The result of ``check_dataset``; the dataset is verified when there are no differences."""

    rows: int = 0  # views rendered again
    same: int = 0  # views reproduced
    pairs: int = 0  # pairs of views whose correspondences were compared
    points: int = 0  # correspondences compared
    worst: float = 0.0  # px: the largest error of a correspondence
    differences: list[str] = field(default_factory=list)


def check_dataset(dataset: Dataset, sample: int = SAMPLE) -> Checks:
    """Render ``sample`` views again, drawn uniformly from all rows; 0 stands for all.

    The result lists the differences. Raises BadDataset when this installation can't reproduce the
    pixels, having another file of the model or another renderer.
    """
    plan = parse_plan(dataset.storage.read(KEY), f"{dataset.storage.uri.rstrip('/')}/{KEY}")
    _check_installation(plan, dataset)
    visibility = backends.backend(plan.renderer.split()[0])
    checks = Checks()
    starts = np.cumsum([0, *(shard.rows for shard in dataset.shards)])
    chosen = np.arange(starts[-1])
    if 0 < sample < len(chosen):
        chosen = np.sort(np.random.default_rng(0).choice(len(chosen), sample, replace=False))
    # One thread, as when the views were made: the order of sums, and with it the last bit, depends
    # on their number.
    with threadpool_limits(1):
        for index in np.unique(np.searchsorted(starts, chosen, "right") - 1):
            here = chosen[(chosen >= starts[index]) & (chosen < starts[index + 1])] - starts[index]
            _check_shard(dataset, int(index), set(here.tolist()), visibility, checks)
    return checks


def _check_installation(plan: Plan, dataset: Dataset) -> None:
    name = f"{dataset.storage.uri.rstrip('/')}/{KEY}"
    model = str(plan.options["model"])
    if plan.assets[model] != digest(model):
        raise BadDataset(
            f"{name}: made with another file of {model}; its geometry can't be checked here"
        )
    here = backends.identity(plan.renderer.split()[0])
    if here != plan.renderer:
        raise BadDataset(
            f"{name}: rendered by {plan.renderer}; here is {here}, whose pixels may differ"
        )


def _check_shard(
    dataset: Dataset, index: int, chosen: set[int], visibility: Visibility, checks: Checks
) -> None:
    key = dataset.shards[index].key
    numbered = enumerate(dataset.read_shard(index))
    for identity, group in groupby(numbered, key=lambda item: item[1].identity_id):
        numbers, rows = zip(*group, strict=True)
        wanted = [i for i, number in enumerate(numbers) if number in chosen]
        if not wanted:
            continue
        model = load_model(rows[0].model)
        checks.rows += len(wanted)
        try:
            person = decode_stored_person(rows, model)
        except BadDataset as error:
            checks.differences.append(f"{key}: {identity}: {error}")
            continue
        for i in wanted:
            found = find_differences(rows[i], person, model=model, visibility=visibility)
            checks.same += not found
            checks.differences += [
                f"{key}: {rows[i].sample_id}: {difference}" for difference in found
            ]
            if len(rows) > 1:
                _check_pair(rows[i], rows[(i + 1) % len(rows)], model, key, checks)


def _check_pair(a: ViewRow, b: ViewRow, model: MorphableModel, key: str, checks: Checks) -> None:
    away = measure_correspondence_errors(a, b, model)
    worst = float(away.max(initial=0.0))
    checks.pairs += 1
    checks.points += len(away)
    checks.worst = max(checks.worst, worst)
    if worst > TOLERANCE:
        checks.differences.append(
            f"{key}: {a.sample_id}: a point of it is {worst:.2f} px off in {b.sample_id}"
        )


def raise_for_differences(checks: Checks, dataset: Dataset) -> None:
    """Raise BadDataset when there are differences; the message lists the first few."""
    if not checks.differences:
        return
    plan = parse_plan(dataset.storage.read(KEY), KEY)
    hint = (
        ""
        if plan.code == code_version()
        else f" (it was made by code {plan.code}, here is {code_version()})"
    )
    more = len(checks.differences) - SHOWN
    raise BadDataset(
        f"{dataset.storage.uri}: {checks.rows - checks.same} of {checks.rows} views are not "
        f"reproduced as they are stored{hint}: "
        + "; ".join(checks.differences[:SHOWN])
        + (f"; and {more} more" if more > 0 else "")
    )


def decode_stored_person(rows: Sequence[ViewRow], model: MorphableModel) -> Person:
    """The person of an identity's rows, in the shard's order.

    Raises BadDataset when it is absent or damaged.
    """
    identity = rows[0].identity_id
    return decode_person(collect_persons(rows)[identity], model, name=identity)


def find_differences(
    row: ViewRow,
    person: Person,
    *,
    model: MorphableModel,
    visibility: Visibility = zbuffer.visibility,
) -> list[str]:
    """The fields that differ when the view is rendered again from its row and person."""
    try:
        scene = views.restore_scene(row)
        again = views.make_row(
            person,
            row.view,
            scene,
            model=model,
            seed=row.seed,
            size=row.width,
            visibility=visibility,
        )
    except (ValueError, KeyError, TypeError) as error:
        return [f"can't be rendered again: {type(error).__name__}: {error}"]
    out = []
    for name in (f.name for f in fields(ViewRow) if f.name != "person"):
        stored, made = getattr(row, name), getattr(again, name)
        if not _are_equal(stored, made):
            out.append(f"{name}: {_describe_difference(name, row, again)}")
    return out


def _are_equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, Pinhole | WeakPerspective | Rigid | Coefficients) and type(a) is type(b):
        return all(_are_equal(value, vars(b)[name]) for name, value in vars(a).items())
    return type(a) is type(b) and a == b


def _describe_difference(name: str, row: ViewRow, again: ViewRow) -> str:
    """How a field of two rows differs, as text."""
    if name == "image":
        try:
            apart = np.abs(row.pixels().astype(int) - again.pixels()).max(2)
        except BadDataset:
            return "is not an image of the row's size"
        return f"{int((apart > 0).sum())} pixels differ, by at most {apart.max()} / 255"
    if name == "triangle_ids":
        return f"{int((row.triangle_ids != again.triangle_ids).sum())} pixels show another triangle"
    if name.startswith("landmarks"):
        away = np.linalg.norm(getattr(row, name) - getattr(again, name), axis=1)
        return f"{NAMES[int(away.argmax())]} is {away.max():.2f} px off"
    if name.startswith("visible"):
        wrong: Bools = getattr(row, name) != getattr(again, name)
        seen = getattr(row, name)[wrong]
        said = ["seen" if s else "hidden" for s in seen[:3]]
        return ", ".join(
            f"{NAMES[i]} is not {s}" for i, s in zip(np.flatnonzero(wrong)[:3], said, strict=True)
        )
    return "differs"


def measure_correspondence_errors(a: ViewRow, b: ViewRow, model: MorphableModel) -> Floats:
    """(N,) pixels by which points of ``a`` miss their places in ``b``.

    A surface point that a pixel of ``a`` shows is projected into ``b``. Where ``b`` shows it, the
    pixels round that place show surface points; the one that they interpolate to at the place must
    be projected to the pixel of ``a``. Compared where the four pixels show the same triangle as the
    point, so that interpolation is exact: inside a triangle, what is linear on the surface is
    linear on the screen after weighting (``Camera.screen_weight``).
    """
    frame_a, frame_b = resolve_frame(a, model), resolve_frame(b, model)
    vertices_a, vertices_b = (
        row.cam_from_head.apply(model.vertices(row.coefficients(model))) for row in (a, b)
    )
    points = frame_a.points()
    rows, columns = np.nonzero(frame_a.mask)
    here = np.stack([columns, rows], axis=1) + 0.5
    cam_b = points.of(vertices_b, model.faces)
    there = b.camera.px_from_cam(cam_b)
    seen = visible(frame_b, cam_b, b.camera, HIDDEN_DEPTH)
    shown = frame_b.points()
    weight = b.camera.screen_weight(shown.of(vertices_b, model.faces))[:, None]
    surface = np.full(
        (b.height, b.width, 4), np.nan
    )  # weighted points in the frame of a's camera, and the weights
    surface[frame_b.mask] = weight * np.insert(shown.of(vertices_a, model.faces), 3, 1.0, axis=1)
    corner = np.floor(there - 0.5).astype(int)
    inside = (corner >= 0).all(1) & (corner + 1 < np.array([b.width, b.height])).all(1)
    corner[~inside] = 0
    x, y = corner.T
    around = np.stack([frame_b.triangle[y + j, x + i] for j in (0, 1) for i in (0, 1)], axis=1)
    same = inside & seen & (around == points.triangle[:, None]).all(1)
    fx, fy = (there - 0.5 - corner).T[:, :, None]
    found = (surface[y, x] * (1 - fx) + surface[y, x + 1] * fx) * (1 - fy)
    found += (surface[y + 1, x] * (1 - fx) + surface[y + 1, x + 1] * fx) * fy
    back = a.camera.px_from_cam(found[same, :3] / found[same, 3:])
    return np.asarray(np.linalg.norm(back - here[same], axis=1))
