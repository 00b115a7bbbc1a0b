"""Views of a person: render a scene with exact correspondence, and describe it as a row.

A view is made in two halves. ``draw_scene`` takes every random decision; ``make_row`` only
computes. A row stores its whole scene, so ``restore_scene`` and ``make_row`` make any row again,
byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.model.morphable import MorphableModel
from dff.face.render import zbuffer
from dff.face.render.frame import HIDDEN_DEPTH, Frame, Image, Mesh, resolve, visible
from dff.face.render.shading import ShadedImage, Texture, VertexColours, antialias, shading_pass
from dff.face.render.visibility import Visibility
from dff.infra.datasets.shards import ViewRow, make_sample_id
from dff.pipeline.accessories.build import AccessoryBuilder
from dff.pipeline.accessories.meshes import build_strand_pattern, mark_occluders
from dff.pipeline.scene import photo_warping
from dff.pipeline.scene.backgrounds import Background, draw_background
from dff.pipeline.scene.camera_sensor import Sensor, apply_sensor, encode_jpeg
from dff.pipeline.scene.photo_warping import ImageMesh
from dff.pipeline.scene.poses import pose_angles
from dff.pipeline.scene.sampling import SCENE, SceneConfig, draw_scene
from dff.pipeline.scene.scene import PROFILE, Landmarks, Scene, Shot
from dff.pipeline.subjects.subject import Person

RECIPE_VERSION = 3

_closets: WeakKeyDictionary[Person, AccessoryBuilder] = WeakKeyDictionary()


def get_accessories(person: Person, model: MorphableModel) -> AccessoryBuilder:
    """The meshes of a person's accessories; they live as long as the person."""
    found = _closets.get(person)
    if found is None or found.model is not model:
        found = _closets[person] = AccessoryBuilder(person.accessories, model, person.neutral)
    return found


_textures: WeakKeyDictionary[Person, tuple[MorphableModel, Texture]] = WeakKeyDictionary()


def get_texture(person: Person, model: MorphableModel) -> Texture:
    """A person's texture, in 8 bits as it is stored; it lives as long as the person."""
    found = _textures.get(person)
    if found is None or found[0] is not model:
        texture = Texture.of(person.texture, model.uv, model.uv_faces, _number_parts(model))
        found = _textures[person] = (model, texture)
    return found[1]


def _number_parts(model: MorphableModel) -> Ints:
    """(F,) 2: eyes, 3: inside of the mouth, 1: the rest. Edges between parts are antialiased."""
    out = np.ones(len(model.faces), dtype=np.int64)
    for part, names in ((2, ("eyes",)), (3, ("teeth", "tongue", "mouth"))):
        regions = [i for i, name in enumerate(model.region_names) if name in names]
        out[np.isin(model.region, regions)] = part
    return out


@lru_cache(maxsize=1)  # the views of a person are rendered one after the other
def _get_image_mesh(person: Person, model: MorphableModel) -> ImageMesh:
    photo = person.photo_scene
    if photo is None:
        raise ValueError(f"{person.id} has no photo to be rotated")
    head = person.vertices(photo.expression, model)
    return photo_warping.build_image_mesh(photo, head, model)


def project_landmarks(
    vertices_cam: Floats,
    frame: Frame | ShadedImage,
    camera: Pinhole | WeakPerspective,
    model: MorphableModel,
) -> Landmarks:
    """Where the landmarks of (V, 3) ``vertices_cam`` fall in a frame, and which are visible."""
    table = model.landmarks
    px = camera.px_from_cam(vertices_cam)
    contour = table.contour_vertices(px, model.template)
    both = np.concatenate([contour, table.vertex])
    seen = visible(frame, vertices_cam[both], camera, HIDDEN_DEPTH)
    seen &= ~_behind_accessories(frame.triangle, px[both], len(model.faces))
    count = len(contour)
    return Landmarks(px[contour], px[table.vertex], seen[:count], seen[count:])


def _behind_accessories(ids: NDArray[np.int32], px: Floats, faces: int) -> Bools:
    """(N,) whether all four pixels around each of (N, 2) show accessories.

    The depth alone does not tell: a finger may touch the nose.
    """
    height, width = ids.shape
    column, row = np.floor(np.nan_to_num(px) - 0.5).astype(np.int64).T
    column, row = np.clip(column, 0, width - 2), np.clip(row, 0, height - 2)
    around = np.stack(
        [ids[row, column], ids[row, column + 1], ids[row + 1, column], ids[row + 1, column + 1]]
    )
    return np.asarray((around >= faces).all(axis=0))


def build_scene_mesh(
    person: Person, scene: Scene, model: MorphableModel
) -> tuple[Mesh, VertexColours]:
    """Head and accessories before the scene's camera as one mesh, and the accessories' colours."""
    head = person.vertices(scene.expression, model)
    worn = get_accessories(person, model).merge(scene.accessories)
    vertices = scene.cam_from_head.apply(np.concatenate([head, worn.moved(head, person.neutral)]))
    faces = np.concatenate([model.faces, worn.faces + np.int32(len(head))])
    return Mesh.of(vertices, faces, scene.camera), VertexColours(
        len(head), worn.vertex_attributes, build_strand_pattern()
    )


def render_scene(
    person: Person,
    scene: Scene,
    *,
    model: MorphableModel,
    size: int,
    visibility: Visibility = zbuffer.visibility,
) -> Shot:
    """Render a scene and record it by its sensor.

    ``size`` is the image's side in px. Raises ValueError when the scene is of another model.
    """
    mesh, vertex_colours = build_scene_mesh(person, scene, model)
    ids = mesh.seen((size, size), visibility)
    if scene.mode == PROFILE:
        rendered = _render_profile(person, scene, mesh, ids, model)
    else:
        background = _render_background(person, scene, size)
        texture = get_texture(person, model)
        rendered = shading_pass(mesh, ids, texture, scene.light, background, vertex_colours)
    antialias(rendered, mesh)
    landmarks = project_landmarks(
        mesh.vertices[: vertex_colours.first], rendered, scene.camera, model
    )
    image = encode_jpeg(apply_sensor(rendered.image, scene.sensor), scene.sensor.quality)
    return Shot(image, mark_occluders(ids, len(model.faces)), landmarks)


def _render_profile(
    person: Person, scene: Scene, mesh: Mesh, ids: NDArray[np.int32], model: MorphableModel
) -> ShadedImage:
    """The photo rotated with its head, whose triangles ``mesh`` begins with."""
    image_mesh = _get_image_mesh(person, model)
    frame = resolve(ids, mesh.vertices, mesh.faces, mesh.camera)
    colour = photo_warping.colour_face(image_mesh, frame, scene.cam_from_head, model)
    around = photo_warping.warp_surroundings(
        image_mesh, scene.cam_from_head, scene.camera, len(ids)
    )
    image = (colour[..., :3] + colour[..., 3:] * (around - colour[..., :3])).astype(np.float32)
    part = frame.mask.astype(np.uint8)
    return ShadedImage(ids, frame.depth, part, np.ones(len(mesh.faces), dtype=np.uint8), image)


def _render_background(person: Person, scene: Scene, size: int) -> Image:
    """(size, size, 3) float32, which the caller may change."""
    photo = person.photo_scene
    if scene.background is None:
        if photo is None:
            raise ValueError(f"{person.id} has no photo to stand before")
        crop = np.ascontiguousarray(photo.crop[..., :3])
        return crop if len(crop) == size else cv2.resize(crop, (size, size))
    surroundings = None if photo is None else photo.surroundings[..., :3]
    return draw_background(scene.background, (size, size), surroundings=surroundings)


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
    """Render and describe a scene. Raises ValueError when the scene is of another model."""
    shot = render_scene(person, scene, model=model, size=size, visibility=visibility)
    return describe_view(person, index, scene, shot, model=model, seed=seed, size=size)


def describe_view(
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
        "outfit": get_accessories(person, model).describe(scene.accessories),
        "background": None if scene.background is None else asdict(scene.background),
        "sensor": asdict(scene.sensor),
        "worn": scene.accessories,
        **({"split_group": person.split_group} if person.split_group else {}),
        **scene.notes,
    }
    landmarks = shot.landmarks
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
        landmarks_2d=landmarks.contour,
        landmarks_3d=landmarks.fixed,
        visible_2d=landmarks.contour_visible,
        visible_3d=landmarks.fixed_visible,
        pose=pose_angles(scene.cam_from_head.rotation),
        model=model.name,
        licence=person.licence,
        fit_error=person.fit_error,
        recipe=json.dumps(recipe, sort_keys=True),
    )


def restore_scene(row: ViewRow) -> Scene:
    """The scene that a row was made of. Raises ValueError when its recipe is of another version."""
    recipe = json.loads(row.recipe)
    if recipe.pop("version", None) != RECIPE_VERSION:
        raise ValueError(f"the recipe of {row.sample_id} is not of version {RECIPE_VERSION}")
    for name in ("texture", "outfit"):  # the person's
        recipe.pop(name)
    background, sensor = recipe.pop("background"), recipe.pop("sensor")
    accessories = tuple(recipe.pop("worn"))
    return Scene(
        row.expression,
        row.cam_from_head,
        row.camera,
        row.light,
        None if background is None else Background(**background),
        Sensor(**{**sensor, "gains": tuple(sensor["gains"])}),
        accessories,
        recipe,
        row.mode,
    )


def make_view(
    person: Person,
    index: int,
    *,
    model: MorphableModel,
    seed: int,
    size: int = 256,
    config: SceneConfig = SCENE,
    visibility: Visibility = zbuffer.visibility,
) -> ViewRow:
    """View ``index`` of a person, from the sample's own ``seed`` alone."""
    (row,) = make_views(
        person, {index: seed}, model=model, size=size, config=config, visibility=visibility
    )
    return row


def make_views(
    person: Person,
    seeds: Mapping[int, int],
    *,
    model: MorphableModel,
    size: int = 256,
    config: SceneConfig = SCENE,
    visibility: Visibility = zbuffer.visibility,
) -> list[ViewRow]:
    """Some views of a person, by index, each from its own seed alone.

    First all scenes are drawn, then rendered, then described: each step runs while the processor's
    caches hold it, and a view takes a tenth less time than alone.
    """
    scenes = {
        index: draw_scene(
            person, index, model=model, rng=np.random.default_rng(seed), size=size, config=config
        )
        for index, seed in seeds.items()
    }
    shots = {
        index: render_scene(person, scene, model=model, size=size, visibility=visibility)
        for index, scene in scenes.items()
    }
    return [
        describe_view(person, index, scenes[index], shots[index], model=model, seed=seed, size=size)
        for index, seed in seeds.items()
    ]
