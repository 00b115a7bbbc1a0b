"""Where faces to render come from: a photo that was explained, or coefficients that were drawn."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats
from dff.face.geometry import lighting
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import render
from dff.infra.split import assign_split, default_group
from dff.pipeline.accessories.neckline import find_neckline
from dff.pipeline.accessories.sampling import (
    Accessories,
    PhotoHair,
    sample_accessories,
    sample_hair_colour,
)
from dff.pipeline.recovery import texture
from dff.pipeline.recovery.inpainting import inpaint
from dff.pipeline.recovery.inverse import Recovery
from dff.pipeline.subjects import skin
from dff.pipeline.subjects.hair_estimation import combed, hair_of_photo
from dff.pipeline.subjects.subject import Person, PhotoScene

CLOTH = 0.8  # brightness of clothes on the neck, over that of clothes beside it
IDENTITY_LIMIT = 2.2  # standard deviations; beyond it the model's faces turn odd
STRENGTH = (
    0.3,
    1.8,
)  # times the deviation of ``MorphableModel.deformations`` by which a deformed face is


def recovered_person(
    recovery: Recovery,
    identity_id: str,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    texture_size: int,
    licence: str,
    rng: np.random.Generator,
    split_group: str = "",
) -> Person:
    """The person of a photo, with the photo's own texture and scene. ``licence``: of the rows made
    from it; ``split_group``: see ``PhotoRef``.
    """
    unwrapped = texture.unwrap(recovery, model=model, albedo=albedo, size=texture_size)
    identity, expression = recovery.coefficients.identity, recovery.coefficients.expression
    neutral = model.vertices(Coefficients(identity, np.zeros_like(expression)))
    face = recovery.cam_from_head.apply(model.vertices(recovery.coefficients))
    size = recovery.crop.shape[0]
    frame = render(face, model.faces, recovery.camera, (size, size))
    mask = frame.mask
    crop = recovery.crop.astype(np.float32) / 255.0
    atlas = texture.atlas_of(model, texture_size)
    hair = atlas.hair_of(unwrapped.albedo)
    shown = combed(recovery, unwrapped.person, frame, model)
    worn = sample_accessories(
        hair,
        rng=rng,
        clothes=_clothes(crop, recovery, face, mask, model, unwrapped.light),
        photo_hair=PhotoHair(None if shown is None else hair_of_photo(shown, hair, rng=rng)),
        skin=skin.natural(skin.skin_colour(unwrapped.albedo.reshape(-1, 3)[atlas.texel], atlas)),
    )
    covered = atlas.padded(atlas.dressed[:, None])[..., 0]
    own = PhotoScene(
        expression=expression,
        camera=recovery.camera,
        cam_from_head=recovery.cam_from_head,
        light=unwrapped.light,
        crop=np.dstack([_beyond_the_border(crop, recovery.valid), unwrapped.trust]),
        surroundings=_surroundings(crop, mask | ~recovery.valid, unwrapped.person),
        lit_texture=np.dstack(
            [
                unwrapped.lit,
                cv2.resize(covered, unwrapped.lit.shape[1::-1], interpolation=cv2.INTER_AREA),
            ]
        ),
    )
    return Person(
        id=identity_id,
        photo_id=recovery.photo_id,
        photo_sha256=recovery.photo_sha256,
        split=assign_split(split_group or default_group(recovery.photo_id)),
        licence=licence,
        fit_error=recovery.quality["landmark_error_inner"],
        identity=identity,
        neutral=neutral,
        texture=np.dstack(
            [_dressed(unwrapped.albedo, covered, worn), np.zeros(covered.shape, dtype=np.float32)]
        ),
        texture_recipe={
            "from": "photo",
            "size": texture_size,
            "albedo_model": albedo.name,
            "albedo": _listed(recovery.albedo),
            "seen": round(float(unwrapped.seen.mean()), 4),
        },
        accessories=worn,
        photo_scene=own,
        split_group=split_group,
    )


def _dressed(colours: Floats, covered: Floats, worn: Accessories) -> Floats:
    """The colours with those of the clothes where these cover the skin: the neck's ragged rim is
    below them.
    """
    cloth = np.float32(CLOTH) * np.array(worn.clothes, np.float32)
    return np.asarray(colours + covered[..., None] * (cloth - colours), dtype=np.float32)


def _surroundings(crop: Floats, covered: Bools, person: Floats) -> Floats:
    """(S / 2, S / 2, 4) what is behind the person, and how far it stands before that."""
    around = inpaint(crop, covered | (person > 0.1))
    return np.dstack(
        [around, cv2.resize(person, around.shape[1::-1], interpolation=cv2.INTER_AREA)]
    )


def _clothes(
    crop: Floats,
    recovery: Recovery,
    face: Floats,
    mask: Bools,
    model: MorphableModel,
    light: Floats,
) -> Floats | None:
    """(3,) albedo of what the photo shows right below the neck; None where it shows nothing
    there.
    """
    rim = face[find_neckline(model).rim]
    if len(rim) == 0:
        return None
    px = recovery.camera.px_from_cam(rim)
    low, high = px.min(0), px.max(0)
    size = len(crop)
    below = np.zeros((size, size), dtype=bool)
    top, bottom = (int(np.clip(v, 0, size)) for v in (high[1] - 2, high[1] + 0.12 * size))
    left, right = (int(np.clip(v, 0, size)) for v in (low[0], high[0]))
    below[top:bottom, left:right] = True
    shown = below & ~mask & recovery.valid
    if shown.sum() < 50:
        return None
    level = lighting.shade(np.array([[0.0, 0.0, -1.0]]), light)[0]
    return np.asarray(np.median(crop[shown], axis=0) / np.maximum(level, 0.1))


def _beyond_the_border(crop: Floats, valid: Bools) -> Floats:
    """The (S, S, 3) crop with what lies beyond the photo's border out of focus instead of
    striped.
    """
    if valid.all():
        return crop
    around = inpaint(crop, ~valid)
    filled = cv2.resize(around, crop.shape[1::-1])
    inside = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(
        np.float32
    )
    share = cv2.GaussianBlur(inside, (0, 0), 1.0)[..., None] * valid[..., None]
    return np.asarray(crop * share + filled * (1.0 - share), dtype=np.float32)


def sample_coefficients(count: int, *, rng: np.random.Generator, limit: float = 2.5) -> Floats:
    """(count,) float32 coefficients in standard deviations, normal but redrawn beyond ``limit``."""
    out = rng.standard_normal(count)
    while (far := np.abs(out) > limit).any():
        out[far] = rng.standard_normal(int(far.sum()))
    return out.astype(np.float32)


def sampled_person(
    identity_id: str,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    texture_size: int,
    rng: np.random.Generator,
    deformed: float = 0.0,
) -> Person:
    """A face that no one has: identity and albedo drawn from the models' priors.

    ``deformed``: the probability that it is also deformed smoothly, beyond what the model's
    identities form.
    """
    identity = sample_coefficients(len(model.identity), rng=rng, limit=IDENTITY_LIMIT)
    deformation: Floats = np.empty(0)
    if deformed and rng.random() < deformed:
        deformation = sample_coefficients(len(model.deformations), rng=rng, limit=IDENTITY_LIMIT)
        deformation *= np.float32(rng.uniform(*STRENGTH))
    colours = sample_coefficients(len(albedo.components), rng=rng, limit=2.0)
    drawn = albedo.texture(colours)
    atlas = texture.atlas_of(model, texture_size)
    enlarged = cv2.resize(drawn, (texture_size, texture_size), interpolation=cv2.INTER_CUBIC)
    base = np.clip(enlarged.reshape(-1, 3)[atlas.texel], 0.0, 1.0)
    flesh, feminine = skin.natural(skin.skin_colour(base, atlas)), bool(rng.random() < 0.5)
    hair = sample_hair_colour(flesh, rng=rng)
    worn = sample_accessories(hair, rng=rng, skin=flesh, feminine=feminine)
    look = skin.sample_look(flesh, hair, rng=rng, feminine=feminine, hairy=worn.style is not None)
    colours_on = _dressed(skin.painted(base, look, atlas) * atlas.daylight, atlas.dressed, worn)
    coefficients = Coefficients(identity, np.zeros(len(model.expression)), deformation)
    return Person(
        id=identity_id,
        photo_id="",
        photo_sha256="",
        split=assign_split(default_group(identity_id)),
        licence=_both(model.licence, albedo.licence),
        fit_error=0.0,
        identity=coefficients.identity,
        deformation=coefficients.deformation,
        neutral=model.vertices(coefficients),
        texture=np.dstack(
            [atlas.padded(colours_on), np.zeros((texture_size, texture_size), dtype=np.float32)]
        ),
        texture_recipe={
            "from": "albedo",
            "size": texture_size,
            "albedo_model": albedo.name,
            "albedo": _listed(colours),
            "look": asdict(look),
        },
        accessories=worn,
        photo_scene=None,
    )


def photo_licence(terms: str, model: MorphableModel, albedo: AlbedoModel) -> str:
    """The licence of rows that show a photo under ``terms``: those, and those of the models that
    completed it.
    """
    return " AND ".join(
        dict.fromkeys([terms, *_both(model.licence, albedo.licence).split(" AND ")])
    )


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} AND {b}"


def _listed(values: Floats) -> list[float]:
    return [float(v) for v in np.asarray(values, dtype=np.float32)]
