"""The persons to be rendered: recovered from a photo, or sampled from the models' priors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats
from dff.face.geometry import lighting
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.texture.albedo_completion import PhotoTexture, recover_texture
from dff.face.texture.fitted_head import FittedHead, build_fitted_head
from dff.face.texture.uv_atlas import UvAtlas, build_uv_atlas
from dff.infra.datasets.split import assign_split, default_group
from dff.pipeline.accessories.neckline import find_neckline
from dff.pipeline.accessories.sampling import (
    Accessories,
    PhotoHair,
    sample_accessories,
    sample_hair_colour,
)
from dff.pipeline.recovery.inpainting import inpaint
from dff.pipeline.recovery.inverse import Recovery
from dff.pipeline.subjects.appearance import correct_hue, sample_appearance
from dff.pipeline.subjects.hair_estimation import estimate_hair, sample_hair_like
from dff.pipeline.subjects.skin import paint
from dff.pipeline.subjects.skin_regions import measure_skin
from dff.pipeline.subjects.subject import Person, PhotoScene


@dataclass(frozen=True)
class SubjectConfig:
    """How persons are sampled, and what completes those of photos."""

    # In standard deviations, beyond which coefficients are drawn again: faces would turn odd.
    identity_limit: float = 2.2
    albedo_limit: float = 2.0
    # Range by which the coefficients of a residual deformation are multiplied
    deformation_strength: tuple[float, float] = (0.3, 1.8)
    feminine_share: float = 0.5
    neck_shade: float = 0.8  # brightness of clothes on the neck, over that of clothes beside it
    clothes_height: float = 0.12  # of the crop: how far below the neck clothes are measured
    least_clothes: int = 50  # px below which nothing is known of clothes


SUBJECT = SubjectConfig()


def recover_person(
    recovery: Recovery,
    identity_id: str,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    texture_size: int,
    licence: str,
    rng: np.random.Generator,
    split_group: str = "",
    config: SubjectConfig = SUBJECT,
) -> Person:
    """The person of a photo, with the photo's own texture and scene.

    ``texture_size`` is in texels, ``licence`` that of the rows made from the person;
    ``split_group``: see ``PhotoRef``. What the photo does not show is drawn.
    """
    head = build_fitted_head(recovery, model)
    texture = recover_texture(head, albedo=albedo, size=texture_size)
    atlas = build_uv_atlas(model, texture_size)
    accessories = _complete_accessories(head, texture, atlas, config, rng)
    covered = atlas.pad(cover_texels(atlas)[:, None])[..., 0]
    dressed = _dress(texture.albedo, covered, accessories, config)
    identity, expression = recovery.coefficients.identity, recovery.coefficients.expression
    return Person(
        id=identity_id,
        photo_id=recovery.photo_id,
        photo_sha256=recovery.photo_sha256,
        split=assign_split(split_group or default_group(recovery.photo_id)),
        licence=licence,
        fit_error=recovery.quality["landmark_error_inner"],
        identity=identity,
        neutral=model.vertices(Coefficients(identity, np.zeros_like(expression))),
        texture=np.dstack([dressed, np.zeros(covered.shape, dtype=np.float32)]),
        texture_recipe={
            "from": "photo",
            "size": texture_size,
            "albedo_model": albedo.name,
            "albedo": _listed(recovery.albedo),
            "seen": round(float(texture.seen.mean()), 4),
        },
        accessories=accessories,
        photo_scene=_build_photo_scene(head, texture, covered),
        split_group=split_group,
    )


def _complete_accessories(
    head: FittedHead,
    texture: PhotoTexture,
    atlas: UvAtlas,
    config: SubjectConfig,
    rng: np.random.Generator,
) -> Accessories:
    """Hair and clothes like those in the photo, and accessories that are drawn."""
    hair = atlas.measure_hair(texture.albedo)
    estimate = estimate_hair(head, texture.matte)
    clothes = _measure_clothes(head, texture.light, config)
    style = sample_hair_like(estimate, hair, rng=rng)
    texels = texture.albedo.reshape(-1, 3)[atlas.texel]
    return sample_accessories(
        hair,
        rng=rng,
        clothes=clothes,
        photo_hair=PhotoHair(style),
        skin=correct_hue(measure_skin(texels, atlas)),
    )


def _build_photo_scene(head: FittedHead, texture: PhotoTexture, covered: Floats) -> PhotoScene:
    """``covered`` (S, S): the share of the texture that clothes cover."""
    recovery = head.recovery
    crop = recovery.crop.astype(np.float32) / 255.0
    hole = head.frame.mask | ~recovery.valid
    shared = cv2.resize(covered, texture.lit.shape[1::-1], interpolation=cv2.INTER_AREA)
    return PhotoScene(
        expression=recovery.coefficients.expression,
        camera=recovery.camera,
        cam_from_head=recovery.cam_from_head,
        light=texture.light,
        crop=np.dstack([_extend(crop, recovery.valid), texture.trust]),
        surroundings=_separate_surroundings(crop, hole, texture.matte),
        lit_texture=np.dstack([texture.lit, shared]),
    )


@lru_cache(maxsize=4)
def cover_texels(atlas: UvAtlas) -> Floats:
    """(N,) 0..1: how much of each covered texel of an atlas the clothes cover."""
    return find_neckline(atlas.model).coverage(atlas.places)


def _dress(
    colours: Floats, covered: Floats, accessories: Accessories, config: SubjectConfig
) -> Floats:
    """(..., 3) colours, with those of the clothes as far as (...) ``covered``.

    The neck's ragged border lies below clothes.
    """
    cloth = np.float32(config.neck_shade) * np.array(accessories.clothes, np.float32)
    return np.asarray(colours + covered[..., None] * (cloth - colours), dtype=np.float32)


def _separate_surroundings(crop: Floats, hole: Bools, matte: Floats) -> Floats:
    """(S / 2, S / 2, 4) RGB of what is behind the person, and the person's matte."""
    around = inpaint(crop, hole | (matte > 0.1))
    small = cv2.resize(matte, around.shape[1::-1], interpolation=cv2.INTER_AREA)
    return np.dstack([around, small])


def _measure_clothes(head: FittedHead, light: Floats, config: SubjectConfig) -> Floats | None:
    """(3,) albedo of what the photo shows right below the neck; None where it shows nothing."""
    rim = head.vertices[find_neckline(head.model).rim]
    if len(rim) == 0:
        return None
    recovery, size = head.recovery, head.size
    px = recovery.camera.px_from_cam(rim)
    low, high = px.min(0), px.max(0)
    top = int(np.clip(high[1] - 2, 0, size))
    bottom = int(np.clip(high[1] + config.clothes_height * size, 0, size))
    left, right = (int(np.clip(v, 0, size)) for v in (low[0], high[0]))
    below = np.zeros((size, size), dtype=bool)
    below[top:bottom, left:right] = True
    shown = below & ~head.frame.mask & recovery.valid
    if shown.sum() < config.least_clothes:
        return None
    crop = recovery.crop.astype(np.float32) / 255.0
    level = lighting.shade(np.array([[0.0, 0.0, -1.0]]), light)[0]
    return np.asarray(np.median(crop[shown], axis=0) / np.maximum(level, 0.1))


def _extend(crop: Floats, valid: Bools) -> Floats:
    """The (S, S, 3) crop, continued out of focus beyond the photo's border."""
    if valid.all():
        return crop
    filled = cv2.resize(inpaint(crop, ~valid), crop.shape[1::-1])
    inside = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0)
    share = soft[..., None] * valid[..., None]
    return np.asarray(crop * share + filled * (1.0 - share), dtype=np.float32)


def sample_coefficients(count: int, *, rng: np.random.Generator, limit: float = 2.5) -> Floats:
    """(count,) float32 coefficients in standard deviations, normal but redrawn beyond ``limit``."""
    out = rng.standard_normal(count)
    while (far := np.abs(out) > limit).any():
        out[far] = rng.standard_normal(int(far.sum()))
    return out.astype(np.float32)


def sample_person(
    identity_id: str,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    texture_size: int,
    rng: np.random.Generator,
    deformed: float = 0.0,
    config: SubjectConfig = SUBJECT,
) -> Person:
    """A person whose identity and albedo are drawn from the models' priors.

    ``texture_size`` is in texels; ``deformed`` is the probability of a residual deformation, beyond
    what the model's identities form.
    """
    coefficients = _sample_shape(model, deformed, config, rng)
    colours = sample_coefficients(len(albedo.components), rng=rng, limit=config.albedo_limit)
    atlas = build_uv_atlas(model, texture_size)
    size = (texture_size, texture_size)
    enlarged = cv2.resize(albedo.texture(colours), size, interpolation=cv2.INTER_CUBIC)
    base = np.clip(enlarged.reshape(-1, 3)[atlas.texel], 0.0, 1.0)
    flesh = correct_hue(measure_skin(base, atlas))
    feminine = bool(rng.random() < config.feminine_share)
    hair = sample_hair_colour(flesh, rng=rng)
    accessories = sample_accessories(hair, rng=rng, skin=flesh, feminine=feminine)
    appearance = sample_appearance(
        flesh, hair, rng=rng, feminine=feminine, hairy=accessories.style is not None
    )
    painted = paint(base, appearance, atlas) * atlas.daylight
    dressed = _dress(painted, cover_texels(atlas), accessories, config)
    return Person(
        id=identity_id,
        photo_id="",
        photo_sha256="",
        split=assign_split(default_group(identity_id)),
        licence=_join_licences(model.licence, albedo.licence),
        fit_error=0.0,
        identity=coefficients.identity,
        deformation=coefficients.deformation,
        neutral=model.vertices(coefficients),
        texture=np.dstack([atlas.pad(dressed), np.zeros(size, dtype=np.float32)]),
        texture_recipe={
            "from": "albedo",
            "size": texture_size,
            "albedo_model": albedo.name,
            "albedo": _listed(colours),
            "look": asdict(appearance),
        },
        accessories=accessories,
        photo_scene=None,
    )


def _sample_shape(
    model: MorphableModel, deformed: float, config: SubjectConfig, rng: np.random.Generator
) -> Coefficients:
    limit = config.identity_limit
    identity = sample_coefficients(len(model.identity), rng=rng, limit=limit)
    deformation: Floats = np.empty(0)
    if deformed and rng.random() < deformed:
        deformation = sample_coefficients(len(model.deformations), rng=rng, limit=limit)
        deformation *= np.float32(rng.uniform(*config.deformation_strength))
    return Coefficients(identity, np.zeros(len(model.expression)), deformation)


def join_photo_licence(terms: str, model: MorphableModel, albedo: AlbedoModel) -> str:
    """The licence of rows that show a photo under ``terms``.

    It joins those with the licences of the models that completed the photo.
    """
    parts = [terms, *_join_licences(model.licence, albedo.licence).split(" AND ")]
    return " AND ".join(dict.fromkeys(parts))


def _join_licences(a: str, b: str) -> str:
    return " AND ".join(dict.fromkeys([*a.split(" AND "), *b.split(" AND ")]))


def _listed(values: Floats) -> list[float]:
    return [float(v) for v in np.asarray(values, dtype=np.float32)]
