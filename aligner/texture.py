"""The texture of an aligned face: the skin that the photo shows, completed where it shows none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats, UInt8
from dff.face.geometry.camera import Box, NearPerspective, Pinhole, WeakPerspective
from dff.face.geometry.interpolation import bilinear
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid
from dff.face.io.assets import load_albedo
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, render, sample_texture, shaded, visible
from dff.face.solve.photometric import SkinSamples, explain_colours, skin_samples
from dff.face.texture.albedo_completion import COMPLETION, CompletionConfig, recover_texture
from dff.face.texture.crop import square_crop
from dff.face.texture.fitted_head import build_fitted_head, mask_skin
from dff.face.texture.occluders import find_unexplained


@dataclass(frozen=True)
class TextureConfig:
    """How the texture of an aligned face is made."""

    size: int = 1024  # texels of a side
    crop: int = 512  # pixels of the side of the photo's crop
    large: float = 200.0  # pixels of a face's box below which both sides are halved
    samples: int = 2000  # points of the skin that tell albedo and light
    grazing: float = 0.25  # cosine towards the camera below which skin is seen too flat
    least_samples: int = 50  # visible points below which a face has no texture
    # As of the last colours of inverse rendering (``InverseConfig.last_colours``)
    strength: float = 1000.0 / 0.05**2
    taus: tuple[float, ...] = (0.2, 0.2, 0.2, 0.15, 0.15, 0.15)
    far: float = 0.05  # 1 / metres: an inverse depth below this counts as weak perspective
    completion: CompletionConfig = field(default=replace(COMPLETION, lit_scale=1.0))


TEXTURE = TextureConfig()


@dataclass(frozen=True)
class FaceTexture:
    """The texture of a face, complete in the model's uv with v down; sRGB."""

    lit: UInt8[Array, "S S 3"]  # as the light of the photo shows the skin
    albedo: UInt8[Array, "S S 3"]  # the skin without that light
    seen: Float[Array, "S S"]  # 0..1, how much of each texel is the photo itself


@dataclass(frozen=True)
class AlignedPhoto:
    """The crop of a photo and what explains it; an ``ExplainedPhoto``. Pixels of the crop."""

    crop: UInt8[Array, "S S 3"]  # RGB
    valid: Bool[Array, "S S"]  # False where the photo ended
    occluded: Bool[Array, "S S"]  # skin that the albedo model cannot explain
    camera: WeakPerspective | Pinhole
    cam_from_head: Rigid
    coefficients: Coefficients
    albedo: Float[Array, " A"]  # standard deviations
    light: Float[Array, "9 3"]  # cam
    landmarks: Float[Array, "68 2"]


def texture_face(
    face: Alignment, model: MorphableModel, image: Bytes, config: TextureConfig = TEXTURE
) -> FaceTexture | None:
    """The texture of a face of an (H, W, 3) uint8 RGB ``image``.

    None for a failed face, and for one of which the image shows hardly any skin.
    """
    if face.failed:
        return None
    if Box.around(face.landmarks_3d[:, :2]).size < config.large:
        config = replace(config, size=config.size // 2, crop=config.crop // 2, large=0.0)
    albedo = _load_albedo(model)
    photo = _explain_photo(face, model, albedo, image, config)
    if photo is None:
        return None
    head = build_fitted_head(photo, model, vertices=face.vertices)
    found = recover_texture(head, albedo=albedo, size=config.size, config=config.completion)
    return FaceTexture(_to_bytes(found.lit), _to_bytes(found.albedo), found.seen)


def texture_person(
    person: PersonAlignment,
    model: MorphableModel,
    images: Sequence[Bytes],
    config: TextureConfig = TEXTURE,
) -> FaceTexture | None:
    """The texture of the photo that shows the person best; None where none shows the skin.

    ``images``: one (H, W, 3) uint8 RGB for each of ``person.faces``.
    """
    faces = [(face, image) for face, image in zip(person.faces, images, strict=True) if face]
    faces.sort(key=lambda pair: -rate_for_texture(pair[0]))
    found = (texture_face(face, model, image, config) for face, image in faces)
    return next((texture for texture in found if texture is not None), None)


def rate_for_texture(face: Alignment, config: TextureConfig = TEXTURE) -> float:
    """How much skin a photo of a face shows, 0 to 1: large, frontal and sure is best; 0: failed."""
    if face.failed:
        return 0.0
    size = min(Box.around(face.landmarks_3d[:, :2]).size / config.crop, 1.0)
    return face.face_confidence * size * max(-float(face.cam_from_head.rotation[2, 2]), 0.0)


@lru_cache(maxsize=2)
def _load_albedo(model: MorphableModel) -> AlbedoModel:
    return load_albedo(model=model)


@lru_cache(maxsize=2)
def _sample_skin(model: MorphableModel, count: int) -> SkinSamples:
    return skin_samples(model, _load_albedo(model), identities=0, expressions=0, count=count)


def _explain_photo(
    face: Alignment,
    model: MorphableModel,
    albedo: AlbedoModel,
    image: Bytes,
    config: TextureConfig,
) -> AlignedPhoto | None:
    """The face's crop with the albedo and the light that explain its skin best."""
    marks = face.landmarks_3d[:, :2]
    crop = square_crop(image, marks, config.crop)
    camera, cam_from_head = to_pinhole(face.camera, face.cam_from_head, config.far)
    camera = camera.cropped(crop.corner, crop.scale)
    cam = cam_from_head.apply(face.vertices)
    frame = render(cam, model.faces, camera, crop.valid.shape)
    samples = _sample_skin(model, config.samples)
    points = samples.points.of(cam, model.faces)
    normals = samples.points.of(vertex_normals(cam, model.faces), model.faces)
    px = camera.px_from_cam(points)
    shown = visible(frame, points, camera, HIDDEN_DEPTH) & _inside(px, crop.valid)
    shown &= -normals[:, 2] > config.grazing
    if shown.sum() < config.least_samples:
        return None
    colours = crop.pixels.astype(np.float32) / np.float32(255.0)
    coefficients, light = explain_colours(
        samples.chosen(shown),
        bilinear(colours, px[shown]),
        normals[shown],
        strength=config.strength,
        taus=config.taus,
    )
    texture = albedo.texture(coefficients)
    rendered = shaded(frame, sample_texture(frame, texture, model.uv, model.uv_faces), light)
    error = np.abs(colours - np.clip(rendered, 0.0, 1.0)).mean(axis=2)
    seen = mask_skin(frame, model) & crop.valid
    return AlignedPhoto(
        crop=crop.pixels,
        valid=crop.valid,
        occluded=find_unexplained(frame, model, error, seen),
        camera=camera,
        cam_from_head=cam_from_head,
        coefficients=face.coefficients,
        albedo=coefficients,
        light=light,
        landmarks=(marks - crop.corner) * crop.scale,
    )


def to_pinhole(
    camera: NearPerspective, cam_from_head: Rigid, far: float
) -> tuple[WeakPerspective | Pinhole, Rigid]:
    """The same projection by a camera at the origin of ``cam``, and the head before it.

    Below an inverse depth of ``far`` it is weak perspective, with the head one metre away.
    """
    near = camera.inverse_depth > far
    away = np.array([0.0, 0.0, 1.0 / camera.inverse_depth if near else 1.0])
    moved = Rigid(cam_from_head.rotation, cam_from_head.translation + away)
    if near:
        return Pinhole(camera.scale / camera.inverse_depth, camera.centre), moved
    return WeakPerspective(camera.scale, camera.centre), moved


def _inside(px: Floats, valid: Bools) -> Bools:
    size = len(valid)
    column, row = np.clip(np.floor(px).astype(np.int64), 0, size - 1).T
    return np.asarray((px > 0).all(1) & (px < size).all(1) & valid[row, column])


def _to_bytes(values: Floats) -> Bytes:
    return np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
