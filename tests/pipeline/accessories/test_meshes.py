"""Accessories hide exactly what is behind them, fit every face, and follow from a seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dff.face.arrays import Floats
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import OCCLUDER, render
from dff.infra.datasets.shards import ViewRow, parquet_to_rows, resolve_frame, rows_to_parquet
from dff.infra.datasets.view_file import open_view_file, read_views, write_view_file
from dff.pipeline.accessories import hands
from dff.pipeline.accessories.build import AccessoryBuilder, select_accessories
from dff.pipeline.accessories.garments import FaceCover
from dff.pipeline.accessories.glasses import FIT, build_glasses, sample_glasses
from dff.pipeline.accessories.hair import Hair
from dff.pipeline.accessories.head_map import direction_from_angles, find_direction_map
from dff.pipeline.accessories.meshes import (
    EMPTY_MESH,
    AccessoryMesh,
    build_strand_pattern,
    mark_occluders,
    merge_meshes,
)
from dff.pipeline.accessories.primitives import ball, tubes
from dff.pipeline.accessories.sampling import (
    PRIOR,
    Accessories,
    PhotoHair,
    sample_accessories,
    sample_hair,
)
from dff.pipeline.scene import views
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.subjects.build import sample_coefficients, sample_person
from dff.pipeline.subjects.subject import Person
from dff.trainer.data.crops import build_training_surface

SIZE = 160
MOUTH = slice(48, 68)


@pytest.fixture(scope="module")
def people(open_head: MorphableModel) -> list[Person]:
    albedo = load_albedo()
    return [
        sample_person(
            f"sampled-{i:06d}",
            model=open_head,
            albedo=albedo,
            texture_size=128,
            rng=np.random.default_rng(i),
        )
        for i in range(8)
    ]


def _row(
    person: Person, model: MorphableModel, shown: tuple[str, ...], yaw: float = 0.0, **units: float
) -> ViewRow:
    expression = np.zeros(len(model.expression), dtype=np.float32)
    for unit, level in units.items():
        expression[model.expression_names.index(unit)] = level
    rotation = rotation_from_angles(yaw, 0.0, 0.0)
    scene = replace(
        make_plain_scene(person, expression, rotation, model=model, size=SIZE), accessories=shown
    )
    return views.make_row(person, 0, scene, model=model, seed=1, size=SIZE)


def _sample_many(count: int) -> list[Accessories]:
    drawn = []
    for i in range(count):
        drawn.append(
            sample_accessories(np.array([0.2, 0.15, 0.1]), rng=np.random.default_rng([7, i]))
        )
    return drawn


@pytest.mark.parametrize("yaw", [0.0, 40.0, -110.0])
def test_occlusion_by_accessories_equals_ray_casting(toy_model: MorphableModel, yaw: float) -> None:
    head = toy_model.template.astype(np.float64)
    bar = np.array([[[-0.2, 0.05, 0.1], [0, 0.06, 0.13], [0.2, 0.03, 0]]])
    prop = merge_meshes(
        [
            ball(np.array([0.03, -0.02, 0.12]), np.array([0.04, 0.03, 0.02]), (0.5, 0.5, 0.5)),
            tubes(bar, np.full((1, 3), 0.012), (0, 1, 0)),
        ]
    )  # fmt: skip
    size = 96
    pose = Rigid(rotation_from_angles(yaw, 10.0, 5.0), np.array([0.0, 0.0, 0.6]))
    vertices = pose.apply(np.concatenate([head, prop.vertices]))
    faces = np.concatenate([toy_model.faces, prop.faces + len(head)])
    camera = Pinhole(150.0, np.array([48.0, 50.0]))
    plain = mark_occluders(
        render(vertices, faces, camera, (size, size)).triangle, len(toy_model.faces)
    )

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    y, x = np.mgrid[:size, :size] + 0.5
    ways = np.stack([(x - 48.0) / 150.0, (y - 50.0) / 150.0, np.ones_like(x)], axis=-1).reshape(
        -1, 3
    )
    hit = mesh.ray.intersects_first(np.zeros_like(ways), ways).reshape(size, size)
    oracle = np.where(hit >= len(toy_model.faces), OCCLUDER, hit)
    # Vertices are snapped to 1/256 px, so a centre on an edge may fall to either side.
    different = plain != oracle
    assert different.sum() <= 3
    assert (oracle == OCCLUDER).sum() > 200
    assert (oracle >= 0).sum() > 300


def test_a_row_shows_the_head_where_no_accessory_is_in_front(
    people: list[Person], open_head: MorphableModel
) -> None:
    for person in people[:4]:
        for shown in (("body", "hand 0"), ("body", "object 0"), ("cover",)):
            plain, row = _row(person, open_head, (), 25.0), _row(person, open_head, shown, 25.0)
            seen = row.triangle_ids >= 0
            assert (row.triangle_ids[seen] == plain.triangle_ids[seen]).all()
            hidden = row.triangle_ids == OCCLUDER
            assert (row.triangle_ids[~hidden & ~seen] == -1).all()
            assert (plain.triangle_ids[~hidden] == row.triangle_ids[~hidden]).all()
            assert hidden.sum() > 200
            assert (row.landmarks_3d == plain.landmarks_3d).all()
            assert not (row.visible_3d & ~plain.visible_3d).any()


def test_a_hidden_landmark_has_an_accessory_in_front_of_it(
    people: list[Person], open_head: MorphableModel
) -> None:
    person = people[0]
    shown = ("body", "hair") if person.accessories.style is not None else ("body",)
    for names in ((*shown, "hand 0"), (*shown, "object 0"), (*shown, "cover")):
        plain, row = _row(person, open_head, ()), _row(person, open_head, names)
        x, y = np.floor(row.landmarks_3d).astype(int).T
        for i in np.flatnonzero(plain.visible_3d):
            around = row.triangle_ids[y[i] - 1 : y[i] + 2, x[i] - 1 : x[i] + 2]
            if not row.visible_3d[i]:
                assert (around == OCCLUDER).any()
            elif (around == OCCLUDER).all():
                pytest.fail(f"landmark {i} is behind something, yet counts as seen")


def test_occluders_survive_the_shard_and_are_background_to_training(
    people: list[Person], open_head: MorphableModel, tmp_path: Path
) -> None:
    row = _row(people[1], open_head, ("body", "hand 1", "cover"))
    back = parquet_to_rows(rows_to_parquet([row], {}))[0]
    assert (back.triangle_ids == row.triangle_ids).all()
    frame = resolve_frame(back, open_head)
    hidden = row.triangle_ids == OCCLUDER
    assert hidden.any()
    assert not frame.mask[hidden].any()
    assert (frame.depth[hidden] == 0).all()
    plain = resolve_frame(_row(people[1], open_head, ()), open_head)
    assert (frame.barycentric[frame.mask] == plain.barycentric[frame.mask]).all()
    assert (frame.normal[frame.mask] == plain.normal[frame.mask]).all()
    path = tmp_path / "row.views"
    with path.open("wb") as file:
        write_view_file(
            rows_to_parquet([row], {}),
            file,
            "row",
            model=open_head.name,
            build_shape=lambda stored: np.zeros_like(open_head.template),
        )
    (stored,) = read_views(open_view_file(path), [0])
    surface = build_training_surface(open_head)
    ids = np.minimum(stored.triangle.astype(np.int64), len(open_head.faces))
    assert (ids[hidden] == len(open_head.faces)).all()
    assert not surface.skin[ids][hidden].any()
    assert not surface.anchored[ids][hidden].any()


def test_more_triangles_than_sixteen_bits_hold_leave_room_for_occluders(
    people: list[Person], open_head: MorphableModel
) -> None:
    row = _row(people[1], open_head, ("body", "cover"))
    for largest in (0xFFFD, 0xFFFE, 0xFFFF, 70_000):
        ids = row.triangle_ids.copy()
        ids[0, 0] = largest
        back = parquet_to_rows(rows_to_parquet([replace(row, triangle_ids=ids)], {}))[0]
        assert (back.triangle_ids == ids).all()


def test_masks_hide_mouth_and_nostrils_in_every_expression(
    people: list[Person], open_head: MorphableModel
) -> None:
    lips = open_head.region == open_head.region_names.index("lips")
    moves: tuple[dict[str, float], ...] = (
        {},
        {"jawOpen": 0.6},
        {"mouthPucker": 0.9},
        {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9},
        {"mouthFunnel": 0.6},
    )
    mask = FaceCover(colour=(0.6, 0.7, 0.8), top=0.7, around=1.1, low=0.12, loops=True, seed=1)
    for person in people[:4]:
        wearing = replace(person, accessories=replace(person.accessories, cover=mask))
        for units in moves:
            row = _row(wearing, open_head, ("cover",), 0.0, **units)
            shown = row.triangle_ids[row.triangle_ids >= 0]
            assert lips[shown].sum() <= 4, units
            assert row.visible_3d[MOUTH].sum() <= 1
            assert row.visible_3d[36:48].sum() >= 11


def test_glasses_clear_the_eyes_of_every_face(open_head: MorphableModel) -> None:
    """The rims stay in front of eyes and lids of all expressions; temples reach both ears."""
    rng = np.random.default_rng(3)
    eyes = np.unique(open_head.faces[open_head.find_triangles("eyes")])
    lids = open_head.landmarks.vertex[36:48]
    units = [
        i
        for i, n in enumerate(open_head.expression_names)
        if n.startswith(("eye", "brow", "cheekSquint"))
    ]
    for i in range(12):
        identity = sample_coefficients(len(open_head.identity), rng=rng, limit=2.2)
        neutral = open_head.vertices(Coefficients(identity, np.zeros(len(open_head.expression))))
        prop = build_glasses(
            sample_glasses(prior=PRIOR.glasses, rng=rng, dark=i % 2 == 0), open_head, neutral
        )
        across = np.abs(prop.vertices[:, 0])
        eye_level = np.abs(prop.vertices[:, 1] - neutral[lids, 1].mean()) < 0.03
        width = float(np.abs(neutral[lids, 0]).max())
        front = (
            eye_level & (across < width) & (prop.vertices[:, 2] > neutral[lids, 2].min() - 0.005)
        )
        nearest = (prop.vertices[front, 2] + FIT.wrap * prop.vertices[front, 0] ** 2).min()
        for unit in units:
            moved = neutral + open_head.expression[unit]
            inside = moved[np.concatenate([eyes, lids])]
            assert (inside[:, 2] + FIT.wrap * inside[:, 0] ** 2).max() < nearest - 0.0005
        ears = neutral[np.unique(open_head.faces[open_head.find_triangles("ears")])]
        for side in (-1.0, 1.0):
            ear = ears[side * ears[:, 0] > 0]
            assert np.linalg.norm(prop.vertices[:, None] - ear[None, ::5], axis=2).min() < 0.012


def test_hair_leaves_the_face_free(people: list[Person], open_head: MorphableModel) -> None:
    """From the front, hair hides no eye, nose or mouth; a fringe at most the brows."""
    rng = np.random.default_rng(8)
    for i, person in enumerate(people):
        hair = sample_hair((0.2, 0.1, 0.1), rng=rng, long=i % 2 == 0)
        if hair is None:
            continue
        estimate_hair = replace(
            person,
            accessories=replace(
                person.accessories, style=replace(hair, fringe=min(hair.fringe, 1.0))
            ),
        )
        row = _row(estimate_hair, open_head, ("hair",))
        assert row.visible_3d[27:].sum() >= 40, hair
        shaven = _row(estimate_hair, open_head, ())
        hidden = (row.triangle_ids == OCCLUDER) & (shaven.triangle_ids >= 0)
        scalp = open_head.region[shaven.triangle_ids[hidden]] == open_head.region_names.index(
            "scalp"
        )
        assert scalp.sum() > 100


def test_hands_touch_faces_and_do_not_reach_into_them(
    people: list[Person], open_head: MorphableModel
) -> None:
    for person in people[:4]:
        head_map = find_direction_map(open_head).fit(open_head, person.neutral)
        for pose in hands.EMPTY:
            held = replace(person.accessories.hands[0], pose=pose, lean=0.0)
            prop = hands.build_hand(held, head_map, open_head, person.neutral)
            inside = head_map.depth_inside(prop.vertices)
            assert np.quantile(inside, 0.9) < 0.004, pose
            assert inside.max() > -0.012, pose
            assert (
                np.linalg.norm(
                    prop.vertices - person.neutral[open_head.landmarks.vertex[8]], axis=1
                ).min()
                < 0.15
            )


def test_the_head_map_is_the_surface_of_the_head(open_head: MorphableModel) -> None:
    head_map = find_direction_map(open_head).fit(open_head, open_head.template.astype(np.float64))
    rows = np.unique(open_head.faces[open_head.find_triangles("scalp")])
    assert np.abs(head_map.depth_inside(open_head.template[rows].astype(np.float64))).max() < 0.007
    azimuth = np.linspace(-3.0, 3.0, 13)
    polar = np.full(13, 1.2)
    again = head_map.towards(direction_from_angles(azimuth, polar))
    assert np.allclose(again, head_map.at(azimuth, polar), atol=1e-12)
    assert np.allclose(
        head_map.at(azimuth, polar)[:, 0], -head_map.at(-azimuth, polar)[:, 0], atol=2e-3
    )
    assert (
        head_map.hairline(np.array(0.0))
        < head_map.hairline(np.array(1.5))
        < head_map.hairline(np.array(3.1))
    )


def test_meshes_are_small_valid_and_determined_by_the_seed(open_head: MorphableModel) -> None:
    neutral = open_head.template.astype(np.float64)
    most = {"hair": 2500, "pressed hair": 2500, "glasses": 800, "hand": 1200, "object": 1200}
    most |= {"hat": 1000, "body": 700, "cover": 500}
    for drawn in _sample_many(25):
        one, other = (AccessoryBuilder(drawn, open_head, neutral) for _ in range(2))
        names = ["body", "hand 0", "hand 1", "object 0", "cover"]
        names += ["hair", "pressed hair"] * (drawn.style is not None)
        names += ["glasses"] * (drawn.glasses is not None) + ["hat"] * (drawn.hat is not None)
        for name in names:
            prop = one.build(name)
            assert 50 < len(prop.faces) <= most[name.rstrip(" 01")], name
            assert np.isfinite(prop.vertices).all()
            assert 0.0 <= prop.colour.min() <= prop.colour.max() <= 1.0
            assert (prop.vertices == other.build(name).vertices).all()
        whole = one.merge(tuple(names))
        assert len(whole.faces) == sum(len(one.build(n).faces) for n in names)
        assert set(one.describe(names)) == set(names)


def test_accessories_have_the_configured_frequencies() -> None:
    rng = np.random.default_rng(5)
    seen: Counter[str] = Counter()
    samples = _sample_many(1500)
    for drawn in samples:
        for _ in range(4):
            seen.update(name.partition(" ")[0] for name in select_accessories(drawn, rng=rng))
    views_made = 4 * len(samples)
    expected = {
        "body": 1.0,
        "glasses": 0.29,
        "hat": 0.10,
        "hand": 0.10,
        "object": 0.08,
        "cover": 0.04,
    }
    for name, share in expected.items():
        assert abs(seen[name] / views_made - share) < 0.25 * share + 0.004, name
    assert 0.80 < np.mean([drawn.style is not None for drawn in samples]) < 0.90
    dark = np.mean(
        [drawn.glasses is not None and drawn.glasses.lens is not None for drawn in samples]
    )
    assert 0.03 < dark < 0.07
    assert {o.hat.kind for o in samples if o.hat} == {"beanie", "cap", "brim", "headscarf", "hood"}


def test_a_photo_keeps_its_own_hair() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        style = sample_hair((0.3, 0.2, 0.1), rng=rng, long=True)
        drawn = sample_accessories(np.array([0.3, 0.2, 0.1]), rng=rng, photo_hair=PhotoHair(style))
        assert drawn.style == style
        assert drawn.glasses is None or drawn.glasses.lens is not None


def test_accessories_are_determined_by_their_seed() -> None:
    assert [asdict(o) for o in _sample_many(3)] == [asdict(o) for o in _sample_many(3)]


def test_accessories_follow_the_face(people: list[Person], open_head: MorphableModel) -> None:
    builder = views.get_accessories(people[2], open_head)
    neutral = people[2].neutral
    unit = open_head.expression_names.index("jawOpen")
    open_mouth = neutral + open_head.expression[unit]
    for name, part in (("cover", builder.build("cover")), ("body", builder.build("body"))):
        assert (part.moved(neutral, neutral) == part.vertices).all()
        dropped = (part.moved(open_mouth, neutral) - part.vertices)[:, 1].min()
        assert dropped < -0.005 if name == "cover" else dropped == 0.0


def test_the_pattern_of_hair_runs_along_the_strands() -> None:
    pattern = build_strand_pattern()
    assert abs(pattern.mean()) < 1e-3
    assert np.abs(np.diff(pattern, axis=0)).mean() < 0.3 * np.abs(np.diff(pattern, axis=1)).mean()
    assert np.abs(pattern[0] - pattern[-1]).mean() < 0.3 * np.abs(np.diff(pattern, axis=1)).mean()


def test_invalid_accessories_are_refused() -> None:
    good = ball(np.zeros(3), np.ones(3), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="names no vertex"):
        replace(good, faces=good.faces + len(good.vertices))
    with pytest.raises(ValueError, match="colour wants"):
        replace(good, colour=good.colour[1:])
    with pytest.raises(ValueError, match="tied"):
        Hair((0.1,) * 3, (0.1,) * 3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0, "knot", 1)
    with pytest.raises(ValueError, match="pose"):
        hands.Hand("wave", 1.0, (0.5,) * 3, (0.5,) * 3, (0.5,) * 3, 0.0, 1.0, 1)
    assert len(merge_meshes([]).faces) == 0


def test_a_model_without_hair_or_neck_has_the_accessories_it_can(toy_model: MorphableModel) -> None:
    """On the egg-shaped toy model, without ears and eyes, all meshes have finite numbers."""
    drawn = next(o for o in _sample_many(200) if o.style and o.glasses and o.hat)
    names = ("body", "hair", "pressed hair", "glasses", "hat", "hand 0", "object 0", "cover")
    builder = AccessoryBuilder(drawn, toy_model, toy_model.template.astype(np.float64))
    whole = builder.merge(names)
    assert np.isfinite(whole.vertices).all()
    with pytest.raises(KeyError, match="hand 9"):
        builder.build("hand 9")
    bald = replace(
        toy_model,
        region_names=tuple(n if n != "scalp" else "crown" for n in toy_model.region_names),
    )
    assert (
        AccessoryBuilder(drawn, bald, toy_model.template.astype(np.float64)).build("hair")
        is EMPTY_MESH
    )


def test_balls_and_tubes_are_oriented_outwards() -> None:
    def volume(prop: AccessoryMesh) -> float:
        a, b, c = (prop.vertices[prop.faces[:, i]] for i in range(3))
        return float(np.einsum("nk,nk->n", a, np.cross(b, c)).sum() / 6.0)

    assert volume(
        ball(np.array([1.0, 2, 3]), np.full(3, 0.5), (0, 0, 0), rows=40, columns=60)
    ) == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.01)
    path: Floats = np.array([[[0.0, 0, 0], [0, 0, 1], [0, 0, 2]]])
    assert volume(tubes(path, np.full((1, 3), 0.5), (0, 0, 0), sides=60)) == pytest.approx(
        np.pi * 0.5, rel=0.01
    )
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)[None]
    torus = volume(tubes(ring, np.full((1, 60), 0.1), (0, 0, 0), sides=40, loop=True))
    assert torus == pytest.approx(2 * np.pi**2 * 0.01, rel=0.02)
