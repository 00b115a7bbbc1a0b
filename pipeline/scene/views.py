"""One face, many views: draw a scene, render it with exact correspondence, photograph it, write
down everything.

A view is made in two halves. ``draw_scene`` takes every random decision; ``make_row`` only
computes. What a row stores is a whole scene, so ``scene_of`` and ``make_row`` make any row again,
byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import zbuffer
from dff.face.render.frame import HIDDEN_DEPTH, Frame, Image, Mesh, resolve, visible
from dff.face.render.shading import ShadedImage, Texture, VertexColours, antialias, shading_pass
from dff.face.render.visibility import Visibility
from dff.infra.shards import ViewRow, make_sample_id
from dff.infra.split import Split
from dff.pipeline.accessories.build import Closet, draw_worn
from dff.pipeline.accessories.meshes import hidden_by_props, strands
from dff.pipeline.accessories.sampling import Outfit
from dff.pipeline.scene import backgrounds, sampling
from dff.pipeline.scene import photo_warping as profile
from dff.pipeline.scene.backgrounds import Background
from dff.pipeline.scene.camera_sensor import exposed, jpeg
from dff.pipeline.scene.photo_warping import PhotoScene
from dff.pipeline.scene.sampling import Framing, Sensor

MODE = "rerender"
RECIPE_VERSION = 3
OWN_LIGHT = 0.2  # share of a photo's views that keep the photo's light
PROFILE_SHARE = 0.35  # of a photo's views that are the photo itself, turned
OWN_EXPRESSION = 0.3  # share that keep the photo's expression
EYE_CONTACT = 0.6  # share that look into the camera where they can


@dataclass(frozen=True, eq=False)
class Person:
    """A face that can be rendered: of a photo, or sampled. Raises ValueError when shapes
    disagree.
    """

    id: str
    photo_id: str  # "" when sampled
    photo_sha256: str
    split: Split
    licence: str
    fit_error: float
    identity: Floats  # (K,) standard deviations
    neutral: Floats  # (V, 3) metres in head, the face at rest
    texture: Floats  # (S, S, 4) float32 in the model's uv: albedo, and how much clothes cover it
    texture_recipe: dict[str, Any]  # how the texture was made, for the rows
    outfit: Outfit
    own: PhotoScene | None
    # (M,) standard deviations of the model's ``deformations``; none for most faces
    deformation: Floats = field(default_factory=lambda: np.empty(0))
    split_group: str = ""  # that decided the split; "" when it is the photo's or identity's own

    def __post_init__(self) -> None:
        if self.neutral.ndim != 2 or self.neutral.shape[1] != 3 or self.texture.shape[2:] != (4,):
            raise ValueError(
                f"Person wants (V, 3) and (S, S, 4), got {self.neutral.shape} and {self.texture.shape}"
            )

    def coefficients(self, expression: Floats) -> Coefficients:
        """Of the face with (E,) activations."""
        return Coefficients(self.identity, expression, self.deformation)


_closets: WeakKeyDictionary[Person, Closet] = WeakKeyDictionary()


def closet_of(person: Person, model: MorphableModel) -> Closet:
    """The meshes of a person's outfit; they live as long as the person."""
    found = _closets.get(person)
    if found is None or found.model is not model:
        found = _closets[person] = Closet(person.outfit, model, person.neutral)
    return found


_textures: WeakKeyDictionary[Person, tuple[MorphableModel, Texture]] = WeakKeyDictionary()


def texture_of(person: Person, model: MorphableModel) -> Texture:
    """The picture on a person's surface, in 8 bits as it is stored; it lives as long as the
    person.
    """
    found = _textures.get(person)
    if found is None or found[0] is not model:
        found = _textures[person] = (
            model,
            Texture.of(person.texture, model.uv, model.uv_faces, _parts(model)),
        )
    return found[1]


def _parts(model: MorphableModel) -> Ints:
    """(F,) what an outline parts from the skin round it: eyes, and the inside of the mouth."""
    out = np.ones(len(model.faces), dtype=np.int64)
    for part, names in ((2, ("eyes",)), (3, ("teeth", "tongue", "mouth"))):
        out[
            np.isin(model.region, [i for i, name in enumerate(model.region_names) if name in names])
        ] = part
    return out


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything about a view that is not the person."""

    expression: Floats  # (E,)
    cam_from_head: Rigid
    camera: Pinhole | WeakPerspective
    light: Floats  # (9, 3) float32, cam
    background: Background | None  # None: the photo itself
    sensor: Sensor
    worn: tuple[
        str, ...
    ]  # parts of the person's outfit that this view shows, as ``closet`` names them
    notes: dict[str, Any]  # what was drawn, for people: movement, framing
    mode: str = MODE  # "rerender", or "profile": the photo itself, turned


def draw_scene(
    person: Person,
    index: int,
    *,
    model: MorphableModel,
    rng: np.random.Generator,
    size: int,
    profile_share: float = PROFILE_SHARE,
) -> Scene:
    """View ``index`` of a person in a square image of ``size`` px.

    View 0 of a photo is the photo's own scene; of its other views ``profile_share`` are the photo
    itself, turned.
    """
    own = person.own
    if own is not None and index == 0:
        mode = profile.MODE if profile_share > 0.0 else MODE
        return _of_photo(
            own, own.cam_from_head, profile.own_camera(own, size), sampling.CLEAN, mode
        )
    if own is not None and rng.random() < profile_share:
        pose, camera = profile.draw_pose(own, rng=rng), profile.draw_camera(own, size, rng=rng)
        return _of_photo(own, pose, camera, sampling.sample_sensor(rng=rng), profile.MODE)
    expression, movement = sampling.sample_expression(model.expression_names, rng=rng)
    if own is not None and rng.random() < OWN_EXPRESSION:
        expression, movement = own.expression, "photo"
    rotation = sampling.sample_rotation(rng=rng)
    if rng.random() < EYE_CONTACT:
        expression = sampling.looking_at_camera(expression, model.expression_names, rotation)
    framing = sampling.sample_framing(rng=rng)
    light = sampling.sample_light(rng=rng)
    if own is not None and rng.random() < OWN_LIGHT:
        light = own.light.astype(np.float32)
    cam_from_head, camera = sampling.frame_face(
        _landmarks(person, expression, model), rotation, framing, size
    )
    return Scene(
        expression,
        cam_from_head,
        camera,
        light,
        backgrounds.sample_background(rng=rng, surroundings=own is not None),
        sampling.sample_sensor(rng=rng),
        draw_worn(person.outfit, rng=rng),
        {"movement": movement, "framing": asdict(framing)},
    )


def _of_photo(
    own: PhotoScene, pose: Rigid, camera: Pinhole | WeakPerspective, sensor: Sensor, mode: str
) -> Scene:
    light = own.light.astype(np.float32)
    return Scene(own.expression, pose, camera, light, None, sensor, (), {"movement": "photo"}, mode)


def vertices_of(person: Person, expression: Floats, model: MorphableModel) -> Floats:
    """(V, 3) head vertices, bit for bit those of ``model.vertices``, without its product with the
    identity basis.
    """
    return np.asarray(person.neutral + model.motion(expression))


def _landmarks(person: Person, expression: Floats, model: MorphableModel) -> Floats:
    """(68, 3) landmarks of the 3D scheme in head, for framing."""
    vertices = model.landmarks.vertex
    used = np.flatnonzero(expression)
    return person.neutral[vertices] + np.tensordot(
        expression[used], model.expression[np.ix_(used, vertices)], axes=1
    )


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The 68 landmarks of a view in both schemes."""

    contour: Floats  # (68, 2) px, 2D scheme
    fixed: Floats  # (68, 2) px, 3D scheme
    contour_seen: Bools  # (68,)
    fixed_seen: Bools  # (68,)


def project_landmarks(
    vertices_cam: Floats,
    frame: Frame | ShadedImage,
    camera: Pinhole | WeakPerspective,
    model: MorphableModel,
) -> Landmarks:
    """Where the landmarks of (V, 3) ``vertices_cam`` fall in a frame, and which of them it
    shows.
    """
    table = model.landmarks
    px = camera.px_from_cam(vertices_cam)
    contour = table.contour_vertices(px, model.template)
    both = np.concatenate([contour, table.vertex])
    seen = visible(frame, vertices_cam[both], camera, HIDDEN_DEPTH)
    seen &= ~_behind_props(frame.triangle, px[both], len(model.faces))
    count = len(contour)
    return Landmarks(px[contour], px[table.vertex], seen[:count], seen[count:])


def _behind_props(ids: NDArray[np.int32], px: Floats, faces: int) -> Bools:
    """(N,) whether all four pixels round each of (N, 2) show what is worn or held: a finger may
    touch the nose.
    """
    height, width = ids.shape
    column, row = np.floor(np.nan_to_num(px) - 0.5).astype(np.int64).T
    column, row = np.clip(column, 0, width - 2), np.clip(row, 0, height - 2)
    around = np.stack(
        [ids[row, column], ids[row, column + 1], ids[row + 1, column], ids[row + 1, column + 1]]
    )
    return np.asarray((around >= faces).all(axis=0))


def placed(person: Person, scene: Scene, model: MorphableModel) -> tuple[Mesh, VertexColours]:
    """The head and what it wears before the scene's camera, as one mesh; how its triangles after
    the head's look.
    """
    head = vertices_of(person, scene.expression, model)
    worn = closet_of(person, model).worn(scene.worn)
    vertices = scene.cam_from_head.apply(np.concatenate([head, worn.moved(head, person.neutral)]))
    faces = np.concatenate([model.faces, worn.faces + np.int32(len(head))])
    return Mesh.of(vertices, faces, scene.camera), VertexColours(len(head), worn.look, strands())


@dataclass(frozen=True, eq=False)
class Shot:
    """What a camera gives of a scene, and what is known of it."""

    image: bytes  # JPEG
    triangle_ids: NDArray[np.int32]  # (H, W) as of ViewRow
    landmarks: Landmarks


def photographed(
    person: Person,
    scene: Scene,
    *,
    model: MorphableModel,
    size: int,
    visibility: Visibility = zbuffer.visibility,
) -> Shot:
    """Render a scene and take its picture. Raises ValueError when the scene is of another model."""
    mesh, vertex_colours = placed(person, scene, model)
    ids = mesh.seen((size, size), visibility)
    if scene.mode == profile.MODE:
        seen = _profiled(person, scene, mesh, ids, model)
    else:
        behind = _behind(person, scene, size)
        seen = shading_pass(
            mesh, ids, texture_of(person, model), scene.light, behind, vertex_colours
        )
    antialias(seen, mesh)
    marks = project_landmarks(mesh.vertices[: vertex_colours.first], seen, scene.camera, model)
    image = jpeg(exposed(seen.image, scene.sensor), scene.sensor.quality)
    return Shot(image, hidden_by_props(ids, len(model.faces)), marks)


def make_row(
    person: Person,
    index: int,
    scene: Scene,
    *,
    model: MorphableModel,
    seed: int,
    size: int,
    visibility: Visibility = zbuffer.visibility,
) -> ViewRow:
    """Photograph and describe a scene. Raises ValueError when the scene is of another model."""
    shot = photographed(person, scene, model=model, size=size, visibility=visibility)
    return described(person, index, scene, shot, model=model, seed=seed, size=size)


def described(
    person: Person,
    index: int,
    scene: Scene,
    shot: Shot,
    *,
    model: MorphableModel,
    seed: int,
    size: int,
) -> ViewRow:
    """The row of a scene and its shot."""
    recipe = {
        "version": RECIPE_VERSION,
        "texture": person.texture_recipe,
        "outfit": closet_of(person, model).described(scene.worn),
        "background": None if scene.background is None else asdict(scene.background),
        "sensor": asdict(scene.sensor),
        "worn": scene.worn,
        **({"split_group": person.split_group} if person.split_group else {}),
        **scene.notes,
    }
    marks = shot.landmarks
    return ViewRow(
        sample_id=make_sample_id(person.id, index),
        identity_id=person.id,
        photo_id=person.photo_id,
        photo_sha256=person.photo_sha256,
        view=index,
        split=person.split,
        mode=scene.mode,
        seed=seed,
        image=shot.image,
        width=size,
        height=size,
        triangle_ids=shot.triangle_ids,
        camera=scene.camera,
        cam_from_head=scene.cam_from_head,
        identity=model.pack_identity(person.coefficients(scene.expression)),
        expression=scene.expression,
        light=scene.light,
        landmarks_2d=marks.contour,
        landmarks_3d=marks.fixed,
        visible_2d=marks.contour_seen,
        visible_3d=marks.fixed_seen,
        pose=sampling.pose_angles(scene.cam_from_head.rotation),
        model=model.name,
        licence=person.licence,
        fit_error=person.fit_error,
        recipe=json.dumps(recipe, sort_keys=True),
    )


def _profiled(
    person: Person, scene: Scene, mesh: Mesh, ids: NDArray[np.int32], model: MorphableModel
) -> ShadedImage:
    """The photo turned with its face, which ``mesh`` begins with, before what lies around it."""
    if person.own is None:
        raise ValueError(f"{person.id} has no photo to be turned")
    stage = profile.stage_of(person.own, vertices_of(person, person.own.expression, model), model)
    frame = resolve(ids, mesh.vertices, mesh.faces, mesh.camera)
    colour = profile.face_colours(stage, frame, scene.cam_from_head, model)
    around = profile.behind(stage, scene.cam_from_head, scene.camera, len(ids))
    image = (colour[..., :3] + colour[..., 3:] * (around - colour[..., :3])).astype(np.float32)
    part = frame.mask.astype(np.uint8)
    return ShadedImage(ids, frame.depth, part, np.ones(len(mesh.faces), dtype=np.uint8), image)


def _behind(person: Person, scene: Scene, size: int) -> Image:
    """(size, size, 3) float32, the caller's own."""
    own = person.own
    if scene.background is None:
        if own is None:
            raise ValueError(f"{person.id} has no photo to stand before")
        photo = np.ascontiguousarray(own.photo[..., :3])
        return photo if len(photo) == size else cv2.resize(photo, (size, size))
    return backgrounds.draw(
        scene.background, (size, size), around=None if own is None else own.surroundings[..., :3]
    )


def make_view(
    person: Person,
    index: int,
    *,
    model: MorphableModel,
    seed: int,
    size: int = 256,
    profile_share: float = PROFILE_SHARE,
    visibility: Visibility = zbuffer.visibility,
) -> ViewRow:
    """View ``index`` of a person, from the sample's own ``seed`` alone."""
    (row,) = make_views(
        person,
        {index: seed},
        model=model,
        size=size,
        profile_share=profile_share,
        visibility=visibility,
    )
    return row


def make_views(
    person: Person,
    seeds: Mapping[int, int],
    *,
    model: MorphableModel,
    size: int = 256,
    profile_share: float = PROFILE_SHARE,
    visibility: Visibility = zbuffer.visibility,
) -> list[ViewRow]:
    """Some views of a person, by index, each from its own seed alone.

    First all are drawn, then photographed, then described: each step runs while the processor's
    caches hold it, and a view takes a tenth less time than alone.
    """
    scenes = {
        index: draw_scene(
            person,
            index,
            model=model,
            rng=np.random.default_rng(seed),
            size=size,
            profile_share=profile_share,
        )
        for index, seed in seeds.items()
    }
    shots = {
        index: photographed(person, scene, model=model, size=size, visibility=visibility)
        for index, scene in scenes.items()
    }
    return [
        described(person, index, scenes[index], shots[index], model=model, seed=seed, size=size)
        for index, seed in seeds.items()
    ]


def scene_of(row: ViewRow) -> Scene:
    """The scene that a row was made of. Raises ValueError when its recipe is of another version."""
    recipe = json.loads(row.recipe)
    if recipe.pop("version", None) != RECIPE_VERSION:
        raise ValueError(f"the recipe of {row.sample_id} is not of version {RECIPE_VERSION}")
    recipe.pop("texture")
    recipe.pop("outfit")
    background, sensor = recipe.pop("background"), recipe.pop("sensor")
    return Scene(
        row.expression,
        row.cam_from_head,
        row.camera,
        row.light,
        None if background is None else Background(**background),
        Sensor(**{**sensor, "gains": tuple(sensor["gains"])}),
        tuple(recipe.pop("worn")),
        recipe,
        row.mode,
    )


def framed(
    person: Person, expression: Floats, rotation: Floats, *, model: MorphableModel, size: int
) -> Scene:
    """A plain scene for pictures: a telephoto camera before a grey wall, even light."""
    framing = Framing(distance=2.0, off_axis=(0.0, 0.0), share=0.55, centre=(0.5, 0.56))
    cam_from_head, camera = sampling.frame_face(
        _landmarks(person, expression, model), rotation, framing, size
    )
    light = lighting.ambient(0.7).astype(np.float32)
    return Scene(
        expression,
        cam_from_head,
        camera,
        light,
        Background("gradient", 0),
        sampling.CLEAN,
        ("body",),
        {},
    )
