"""The albedo texture of a recovered head: what the photo shows, completed where it shows nothing.

Colours are blended in two bands. The *low* band lives on the mesh's vertices, so it knows no
islands of the uv layout and can't show their seams: a Poisson problem keeps the photo's colours
where they were seen and continues them with the differences of the mirrored side, or of the
statistical albedo, where they were not (Perez, Gangnet and Blake, "Poisson Image Editing", 2003).
The *detail* band, what a texture shows beyond its vertices' colours, is mixed per texel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numba
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.interpolation import bilinear, smoothstep
from dff.face.geometry.lighting import C0, C1, C2, C3, C4
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import BROWS, INNER, LEFT_EYE, RIGHT_EYE
from dff.face.numba_cache import CACHE
from dff.face.texture.fitted_head import FittedHead
from dff.face.texture.unwrapping import (
    LUMA,
    UNWRAP,
    TexelObservation,
    UnwrapConfig,
    observe,
    place_tones,
)
from dff.face.texture.uv_atlas import (
    ATLAS,
    MOUTH_INSIDE,
    AtlasConfig,
    UvAtlas,
    build_uv_atlas,
    factor_laplacian,
    measure_areas,
)


@dataclass(frozen=True)
class CompletionConfig:
    """How a texture is completed. Pixels are those of a 256 px crop.

    Pairs are the ends of a smooth step, unless they are called a range. Differences of colours are
    those of their logarithms.
    """

    seen: float = 0.05  # trust above which a vertex has a colour of its own
    detail_trust: float = 0.5  # at which the photo's detail counts fully
    # Area of the skin in the photo over the largest that an expression gives it: a lid folded away
    # shows no lid.
    unfolded: tuple[float, float] = (0.15, 0.40)
    open_eye: float = 0.16  # height over width of an eye whose colours are taken from the photo
    # Hair
    hair_reach: float = 0.05  # metres from the silhouette within which the person's matte is hair
    hair_height: float = 0.3  # of the face, from which: 0 the chin, 1 the eyes
    few_hairs: int = 150  # px below which nothing is known of hair
    darker: float = 0.75  # brightness of hair over that of skin, of all but the fair
    darker_share: float = 0.15  # of the pixels, from which only those count
    # Range of brightness of what is rather skin: then the brows say better what colour hair has.
    like_skin: tuple[float, float] = (0.85, 1.15)
    hairline: tuple[float, float] = (0.2, 0.7)  # statistical albedo from hair (0) to skin (1)
    gains: tuple[float, float] = (0.2, 5.0)  # range of the photo's colours over the statistical
    streaks: float = 1.5  # at most: gain of the statistical albedo's detail
    # Light that is not diffuse
    evened: float = 0.95  # share of the difference between both sides of a face put down to light
    hues: float = 0.3  # how far a channel of skin may leave the statistical albedo's hue
    # Share of the fitted light's hue that lights teeth and tongue: the rest is the hue of this
    # skin, which the photo does not tell apart (slope of log(blue / red) of the teeth on that of
    # the light in 109 photos of open mouths).
    hue_of_light: float = 0.4
    # Neck, ears and sides of the face
    usual: tuple[float, float] = (0.06, 0.15)  # range of what skin differs from the fit
    unlike: tuple[float, float] = (1.5, 3.0)  # times that: skin, something else
    crowded: tuple[float, float] = (0.3, 0.8)  # share of the neighbours that are skin
    occluded: tuple[float, float] = (0.1, 0.5)
    # Poisson problem
    hold: float = 30.0  # strength of the photo's colours, and of the mouth's statistical ones
    anchor: float = 2e-3  # of the statistical albedo elsewhere
    eye_anchor: float = 0.3
    stiffness: float = 0.02  # of edges between hair, skin, eyes and mouth: neither bleeds
    # Brightness that 98 % of the face's albedo stays below, which leaves new light some room
    bright: float = 0.90
    lit_scale: float = 0.5  # sides of the lit texture over those of the albedo
    unwrap: UnwrapConfig = UNWRAP
    atlas: AtlasConfig = ATLAS


COMPLETION = CompletionConfig()


@dataclass(frozen=True)
class PhotoTexture:
    """Albedo of a head as observed in a photo. Raises ValueError when shapes disagree."""

    albedo: Float[Array, "S S 3"]  # float32 0..1, in the model's uv, islands padded outwards
    light: Float[Array, "9 3"]  # cam: with the albedo it gives back the photo
    seen: Float[Array, "S S"]  # float32 0..1, how much of each texel is the photo itself
    mirrored: Float[Array, "S S"]  # float32 0..1, how much is the detail of the mirrored side
    lit: Float[Array, "L L 3"]  # float32 0..1, the albedo as the photo's light shows it
    # In the photo's crop, float32 0..1
    trust: Float[Array, "C C"]  # falls towards silhouettes and the photo's border
    matte: Float[Array, "C C"]  # of the person, with hair and clothes

    def __post_init__(self) -> None:
        if self.albedo.shape != (*self.seen.shape, 3) or self.mirrored.shape != self.seen.shape:
            raise ValueError("PhotoTexture fields disagree about the size")


@dataclass(frozen=True, eq=False)
class _Surface:
    """Colours of the mesh's vertices in one observation."""

    atlas: UvAtlas
    seen: TexelObservation
    config: CompletionConfig
    photo: Float[Array, "V 3"]  # albedo that the photo shows
    base: Float[Array, "V 3"]  # statistical albedo
    trust: Float[Array, " V"]  # 0..1 in the photo

    @property
    def sure(self) -> Bools:
        """(V,) vertices that the photo shows well."""
        return np.asarray(self.trust > 0.5)

    def mask(self, name: str) -> Bools:
        """(V,) vertices of a region."""
        return self.atlas.mask_region(name)


@dataclass(frozen=True, eq=False)
class _Matched:
    """A surface whose colours agree about light and person."""

    surface: _Surface  # its base is that of the person
    base: Float[Array, "V 3"]  # statistical albedo
    gain: Float[Array, "V 3"]  # of the person's base over that
    unevenness: Float[Array, "V 3"]  # light that is not diffuse
    fixed: Bools  # (V,) vertices that take nothing from the photo


def recover_texture(
    head: FittedHead,
    *,
    albedo: AlbedoModel,
    size: int = 512,
    config: CompletionConfig = COMPLETION,
) -> PhotoTexture:
    """The texture of a fitted head with the light divided out, complete in the model's uv.

    ``size`` is in texels.
    """
    atlas = build_uv_atlas(head.model, size, config.atlas)
    seen = observe(head, albedo, config.unwrap)
    matched = _match_colours(atlas, seen, config)
    low = _solve_poisson(matched.surface)
    texels, shading, share, mirrored = _mix_bands(matched, low)
    face = texels[atlas.mask_triangles(atlas.mask_region("face"))[atlas.points.triangle]]
    brightest = float(np.percentile(face.max(1), 98))
    dim = min(1.0, config.bright / max(brightest, 1e-3))
    return PhotoTexture(
        albedo=atlas.pad(np.clip(texels * dim, 0.0, 1.0)),
        light=seen.light / dim,
        seen=atlas.pad(share[:, None])[..., 0],
        mirrored=atlas.pad(mirrored[:, None])[..., 0],
        lit=_render_lit(atlas, texels * shading, seen.tones, config.lit_scale),
        trust=np.asarray(seen.trust, dtype=np.float32),
        matte=seen.matte,
    )


def _render_lit(atlas: UvAtlas, colours: Floats, tones: Floats | None, scale: float) -> Floats:
    """(L, L, 3) float32 of (N, 3) colours at the covered texels, in the photo's tones."""
    lit = atlas.pad(np.clip(colours, 0.0, 1.0))
    if scale != 1.0:
        lit = cv2.resize(lit, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if tones is not None:
        at, luma = place_tones(len(tones)), lit @ LUMA
        lit = np.stack([np.interp(luma, at, tones[:, c]) for c in range(3)], axis=2)
    return np.asarray(lit, dtype=np.float32)


def _match_colours(atlas: UvAtlas, seen: TexelObservation, config: CompletionConfig) -> _Matched:
    head = seen.head
    fixed = _fix_vertices(atlas, seen, config)
    trust = seen.confidence(head.vertices, head.normals) * _measure_unfolding(atlas, head, config)
    trust[fixed] = 0.0
    base = atlas.sample_vertices(seen.base)
    photo = seen.albedo(head.vertices, head.normals)
    surface = _Surface(atlas, seen, config, photo, base, trust)
    gain = _measure_gain(surface)
    surface = replace(surface, base=base * gain)
    unevenness = _measure_unevenness(surface)
    trust = trust * _measure_likeness(surface)
    surface = replace(surface, trust=trust, photo=photo / unevenness)
    return _Matched(surface, base, gain, unevenness, fixed)


def _mix_bands(matched: _Matched, low: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Albedo (N, 3) and shading (N, 3) of the covered texels, and (N,) shares of the photo.

    The shares are those of the photo's detail at the texel, and at its mirrored point. ``low``
    (V, 3) is the low band.
    """
    surface = matched.surface
    atlas, seen, config, head = surface.atlas, surface.seen, surface.config, surface.seen.head
    faces, size = atlas.model.faces, atlas.size
    own = np.where((surface.trust > config.seen)[:, None], surface.photo, low)
    detail, share = _extract_detail(atlas.points, own, matched)
    other, mirrored = _extract_detail(atlas.mirrored, own, matched)
    mirrored *= (1.0 - share) * ~atlas.mask_triangles(matched.fixed)[atlas.points.triangle]
    shading = seen.shading(head.normals) * matched.unevenness
    mouth = _mask_mouth(atlas)
    luma = (shading[mouth] @ LUMA)[:, None]
    shading[mouth] = luma * (shading[mouth] / luma) ** config.hue_of_light
    streaks = np.minimum(matched.gain, config.streaks)
    table = np.concatenate([low, streaks, matched.base, shading], axis=1).astype(np.float32)
    texels = cv2.resize(seen.base, (size, size), interpolation=cv2.INTER_LINEAR)
    texels = texels.reshape(-1, 3)[atlas.texel]
    texel_shading = np.empty_like(texels)
    _mix(
        atlas.points.triangle,
        atlas.points.barycentric,
        faces,
        table,
        detail,
        share,
        other,
        mirrored,
        atlas.daylight,
        texels,
        texel_shading,
    )
    return texels, texel_shading, share, mirrored


@numba.njit(cache=CACHE, nogil=True)
def _mix(  # type: ignore[no-untyped-def]
    triangle, barycentric, faces, table, detail, share, other, other_share, daylight, out, shading
):
    """Add both bands of (N,) texels: ``out`` holds the statistical albedo and takes the mixed one.

    ``table`` (V, 12) has the low band, the gain of the statistical detail, its own low band, and
    the shading.
    """
    for n in range(len(triangle)):
        i, j, k = faces[triangle[n], 0], faces[triangle[n], 1], faces[triangle[n], 2]
        a, b, c = barycentric[n, 0], barycentric[n, 1], barycentric[n, 2]
        rest = 1.0 - share[n] - other_share[n]
        for m in range(3):
            low = a * table[i, m] + b * table[j, m] + c * table[k, m]
            streaks = a * table[i, m + 3] + b * table[j, m + 3] + c * table[k, m + 3]
            plain = out[n, m] - (a * table[i, m + 6] + b * table[j, m + 6] + c * table[k, m + 6])
            low += detail[n, m] * share[n] + other[n, m] * other_share[n] + plain * streaks * rest
            out[n, m] = low * daylight[n, 0]
            shading[n, m] = a * table[i, m + 9] + b * table[j, m + 9] + c * table[k, m + 9]


def _measure_unfolding(atlas: UvAtlas, head: FittedHead, config: CompletionConfig) -> Floats:
    """(V,) 0..1: how far the skin about each vertex is spread out."""
    faces, count = atlas.model.faces, len(head.vertices)
    ratio = measure_areas(head.vertices, faces) / np.maximum(atlas.largest, 1e-12)
    ratio /= max(float(np.median(ratio)), 1e-9)
    number = np.bincount(faces.ravel(), minlength=count)
    mean = np.bincount(faces.ravel(), np.repeat(ratio, 3), count) / np.maximum(number, 1)
    return smoothstep(mean, *config.unfolded)


def _measure_unevenness(surface: _Surface) -> Floats:
    """(V, 3) by which light that is not diffuse makes the photo's colours brighter or darker.

    Diffuse light explains no cast shadows, but faces are alike left and right, except for small
    things: of two sides that differ over a centimetre, the one that differs from the statistical
    albedo is taken to be lit otherwise.
    """
    config, trust = surface.config, surface.trust
    mirror = surface.atlas.model.mirror
    skin = surface.mask("face")  # on ears and necks hair and clothes differ, not light
    if not skin.any():
        return np.ones_like(surface.photo)
    excess = np.log((np.maximum(surface.photo, 0.0) + 0.02) / (surface.base + 0.02))
    weight = np.where(skin, np.minimum(trust, trust[mirror]), 0.0)[:, None]
    smooth = surface.atlas.smoother.solve(np.concatenate([weight * excess, weight], axis=1))
    sure = smooth[:, 3:] / (smooth[:, 3:] + 0.05)  # far from any visible pair nothing is known
    mean = smooth[:, :3] / np.maximum(smooth[:, 3:], 1e-6)
    own, other = ((mean**2).mean(1, keepdims=True), (mean[mirror] ** 2).mean(1, keepdims=True))
    out = config.evened * sure * (mean - mean[mirror]) * own / (own + other + 0.004)
    # Shadows under coloured lamps and burnt highlights have hues that no skin has.
    hue = excess - out
    hue -= hue.mean(1, keepdims=True)
    limited = config.hues * np.tanh(hue / config.hues)
    out += np.where(skin, trust, 0.0)[:, None] * (hue - limited)
    return np.asarray(np.exp(out))


def _fix_vertices(atlas: UvAtlas, seen: TexelObservation, config: CompletionConfig) -> Bools:
    """(V,) vertices that take nothing from the photo.

    They are those inside the mouth, and of eyes that are shut or behind a lens.
    """
    out = _mask_mouth(atlas)
    eyes = atlas.mask_region("eyes")
    left = eyes & (atlas.model.template[:, 0] > 0)
    occlusion, landmarks = seen.occlusion, seen.head.recovery.landmarks
    for lids, side, hidden in (
        (RIGHT_EYE, eyes & ~left, occlusion.right_lens),
        (LEFT_EYE, left, occlusion.left_lens),
    ):
        if hidden or _measure_opening(landmarks[lids]) < config.open_eye:
            out |= side
    return out


def _mask_mouth(atlas: UvAtlas) -> Bools:
    """(V,) vertices inside the mouth."""
    inside = np.logical_or.reduce([atlas.mask_region(name) for name in MOUTH_INSIDE])
    return np.asarray(inside & ~(atlas.mask_region("face") | atlas.mask_region("lips")))


def _measure_opening(lids: Floats) -> float:
    """Height over width of an eye with (6, 2) lids."""
    height = float(np.linalg.norm(lids[1] - lids[5]) + np.linalg.norm(lids[2] - lids[4]))
    return height / max(2.0 * float(np.linalg.norm(lids[0] - lids[3])), 1e-6)


def _measure_gain(surface: _Surface) -> Floats:
    """(V, 3) by which the statistical albedo is multiplied to match the photo.

    There is one colour for skin and one for hair.
    """
    config = surface.config
    photo, base, face = surface.photo, surface.base, surface.mask("face")
    out = np.ones((len(base), 3))
    skin = face & surface.sure
    if skin.sum() >= 20:
        out[:] = _divide_medians(photo[skin], base[skin], config)
    hair = surface.mask("scalp") & ~face
    shown = _find_hair(surface)
    brows = surface.mask("brows") & surface.sure
    if len(shown) == 0 and brows.any():
        luma = photo[brows] @ LUMA
        shown = photo[brows][luma <= np.percentile(luma, 20.0)]
    if len(shown) and hair.any():
        share = _measure_hairiness(surface, hair)
        ratio = _divide_medians(shown, base[hair], config)
        out[hair] += share[:, None] * (ratio - out[hair])
    for name in (*MOUTH_INSIDE, "eyes"):
        inside = surface.mask(name) & ~face & ~surface.mask("lips")
        out[inside] = float(np.clip(out[face].mean(), 0.6, 1.2))
    return out


def _measure_hairiness(surface: _Surface, hair: Bools) -> Floats:
    """(H,) 0..1 of the vertices ``hair``: at the hairline the statistical albedo becomes skin."""
    base = surface.base
    dark, fair = np.median(base[hair].sum(1)), np.median(base[surface.mask("face")].sum(1))
    bright = (base.sum(1) - dark) / max(fair - dark, 1e-3)
    for _ in range(4):  # thin hair is hair
        bright = surface.atlas.smoother.solve(bright)
    return np.asarray(1.0 - smoothstep(bright[hair], *surface.config.hairline))


def _find_hair(surface: _Surface) -> Floats:
    """(N, 3) albedo of the hair that the photo shows, on the scalp and around the head.

    There is often none. Hair's light is not that of skin, so only the mean brightness of the light
    is divided out.
    """
    seen, config, head = surface.seen, surface.config, surface.seen.head
    frame = head.frame
    around = ~frame.mask & (head.height > config.hair_height) & (head.outside < config.hair_reach)
    scalp = head.mask_region("scalp") & (seen.trust > 0.1)
    shown = (seen.matte > 0.9) & head.recovery.valid & (around | scalp)
    found = seen.smooth[shown] / seen.level
    skin = seen.smooth[head.skin & (seen.trust > 0.9)] / seen.level
    if len(found) < config.few_hairs * head.unit**2 or len(skin) == 0:
        return np.asarray(found[:0])
    # The forehead reaches into the scalp. Hair is darker, where there is enough that is.
    brightness = found @ LUMA / max(float(np.median(skin @ LUMA)), 0.02)
    darker = brightness < config.darker
    if darker.mean() > config.darker_share:
        return np.asarray(found[darker])
    low, high = config.like_skin
    return np.asarray(found[:0] if low < float(np.median(brightness)) < high else found)


def _divide_medians(shown: Floats, expected: Floats, config: CompletionConfig) -> Floats:
    """(3,) median of (N, 3) colours over that of (M, 3) others."""
    ratio = np.median(shown, axis=0) / np.maximum(np.median(expected, axis=0), 0.02)
    return np.clip(ratio, *config.gains)


def _measure_likeness(surface: _Surface) -> Floats:
    """(V,) 0..1: how much the photo's colour may be that of this part of a head.

    Neck and ears are often covered by clothes, hair or, where the fit is off, by the background:
    there a colour counts by its similarity to the skin of the face. The sides of the face are taken
    where the fit explains them.
    """
    atlas, config, head = surface.atlas, surface.config, surface.seen.head
    out = np.ones(len(surface.trust))
    face = surface.mask("face")
    sure = face & surface.sure
    if sure.sum() < 20:
        return out
    ratio = (np.maximum(surface.photo, 0.0) + 0.04) / (surface.base + 0.04)
    residual = np.abs(np.log(ratio)).mean(1)
    usual = float(np.clip(np.median(residual[sure]), *config.usual))
    outer = (surface.mask("neck") | surface.mask("ears")) & ~face
    same, other = config.unlike
    out[outer] = 1.0 - smoothstep(residual[outer], same * usual, other * usual)
    # Where most of what surrounds a vertex is something else, its similarity is chance.
    count = np.maximum(np.asarray(atlas.neighbours.sum(1)).ravel(), 1.0)
    for _ in range(3):
        around = atlas.neighbours @ (out * (surface.trust > config.seen)) / count
        out[outer] *= smoothstep(around, *config.crowded)[outer]
    brows = atlas.model.template[atlas.model.landmarks.vertex[BROWS], 1].max()
    below = face & (atlas.model.template[:, 1] < brows)
    px = head.recovery.camera.px_from_cam(head.vertices)
    occluded = bilinear(_blur_occluders(head)[..., None], px)[:, 0]
    out[below] *= 1.0 - smoothstep(occluded, *config.occluded)[below]
    return out


def _blur_occluders(head: FittedHead) -> Floats:
    """(S, S) float32 0..1: what the fit does not explain, beside eyes, nose and mouth."""
    width = head.size // 12
    inner = head.fill_hull(head.recovery.landmarks[INNER])
    inner = cv2.dilate(inner, np.ones((width, width), np.uint8))
    occluded = (head.recovery.occluded & (inner == 0)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(occluded, (0, 0), head.size / 128.0))


def _solve_poisson(surface: _Surface) -> Floats:
    """(V, 3) colours: the photo's where trusted, continued over the rest of the mesh."""
    atlas, config = surface.atlas, surface.config
    photo, base, trust = surface.photo, surface.base, surface.trust
    mirror = atlas.model.mirror
    i, j = atlas.edges.T
    sure = trust > 4.0 * config.seen
    both = sure[i] & sure[j]
    across = ~both & sure[mirror[i]] & sure[mirror[j]]
    step = base[i] - base[j]
    step[across] = (photo[mirror][i] - photo[mirror][j])[across]
    step[both] = (photo[i] - photo[j])[both]
    stiffness = np.ones(len(i))
    for name in ("scalp", "eyes", *MOUTH_INSIDE):
        inside = surface.mask(name)
        stiffness[inside[i] != inside[j]] = config.stiffness
    count = len(trust)
    hold, anchor = config.hold * trust**2, _anchor_vertices(surface)
    pull = stiffness[:, None] * step
    right = hold[:, None] * photo + anchor[:, None] * base
    for c in range(3):
        right[:, c] += np.bincount(i, pull[:, c], count) - np.bincount(j, pull[:, c], count)
    diagonal = hold + anchor + np.bincount(i, stiffness, count) + np.bincount(j, stiffness, count)
    solved = factor_laplacian(diagonal, atlas.edges, stiffness).solve(right)
    return np.asarray(np.clip(solved, 0.0, 1.2))


def _anchor_vertices(surface: _Surface) -> Floats:
    """(V,) strength of the statistical albedo."""
    config = surface.config
    out = np.full(len(surface.trust), config.anchor)
    skin = surface.mask("face") | surface.mask("lips")
    for name in MOUTH_INSIDE:
        out[surface.mask(name) & ~skin] = config.hold
    out[surface.mask("eyes")] = config.eye_anchor
    return out


def _extract_detail(points: SurfacePoints, low: Floats, matched: _Matched) -> tuple[Floats, Floats]:
    """(N, 3) what the photo shows at (N,) points beyond the (V, 3) ``low`` band; (N,) its share."""
    surface = matched.surface
    seen, config, head = surface.seen, surface.config, surface.seen.head
    camera = head.recovery.camera
    count = len(points.triangle)
    detail, share = np.zeros((count, 3), dtype=np.float32), np.zeros(count, dtype=np.float32)
    trust = surface.trust[:, None]
    _sample_detail(
        points.triangle,
        points.barycentric,
        head.model.faces,
        np.concatenate([head.vertices, head.normals, low, trust, matched.unevenness], axis=1),
        camera.focal if isinstance(camera, Pinhole) else camera.scale,
        camera.centre,
        isinstance(camera, Pinhole),
        seen.colours,
        head.frame.depth,
        np.float32(1.0) - seen.occlusion.mask,
        seen.light,
        seen.least_shading,
        config.seen,
        config.unwrap.hidden_depth,
        detail,
        share,
    )
    return detail, smoothstep(share, config.seen, config.detail_trust)


@numba.njit(cache=CACHE, nogil=True)
def _sample_detail(  # type: ignore[no-untyped-def]
    triangle,
    barycentric,
    faces,
    table,
    scale,
    centre,
    perspective,
    crop,
    depth,
    clear,
    light,
    floor,
    least,
    hidden_depth,
    detail,
    share,
):
    """Fill (N, 3) ``detail`` and (N,) ``share`` at (N,) surface points.

    ``table`` (V, 13) has vertices in cam, normals, low band, trust and unevenness. Vertices of
    trust ``least`` have no detail.
    """
    height, width = depth.shape
    at = np.empty(13)
    for n in range(len(triangle)):
        i, j, k = faces[triangle[n], 0], faces[triangle[n], 1], faces[triangle[n], 2]
        if min(table[i, 9], table[j, 9], table[k, 9]) <= least:
            continue
        for c in range(13):
            at[c] = (
                barycentric[n, 0] * table[i, c]
                + barycentric[n, 1] * table[j, c]
                + barycentric[n, 2] * table[k, c]
            )
        factor = scale / at[2] if perspective else scale
        x = at[0] * factor + centre[0] - 0.5
        y = at[1] * factor + centre[1] - 0.5
        if not (x >= 0 and y >= 0 and x < width - 1 and y < height - 1):
            continue
        left, top = int(x), int(y)
        shown = False
        for r in range(top, top + 2):
            for c in range(left, left + 2):
                if depth[r, c] == 0 or depth[r, c] >= at[2] - hidden_depth:
                    shown = True
        if not shown:
            continue
        length = np.sqrt(at[3] ** 2 + at[4] ** 2 + at[5] ** 2)
        if length < 1e-9:
            continue
        nx, ny, nz = at[3] / length, at[4] / length, at[5] / length
        fx, fy = x - left, y - top
        for c in range(3):
            upper = crop[top, left, c] * (1 - fx) + crop[top, left + 1, c] * fx
            lower = crop[top + 1, left, c] * (1 - fx) + crop[top + 1, left + 1, c] * fx
            shading = C0 * light[0, c] + C1 * (
                ny * light[1, c] + nz * light[2, c] + nx * light[3, c]
            )
            shading += C2 * (nx * ny * light[4, c] + ny * nz * light[5, c] + nx * nz * light[7, c])
            shading += C3 * (3.0 * nz * nz - 1.0) * light[6, c]
            shading += C4 * (nx * nx - ny * ny) * light[8, c]
            shading = max(shading, floor[c]) * at[10 + c]
            detail[n, c] = (upper * (1 - fy) + lower * fy) / shading - at[6 + c]
        # A vertex may be some pixels away from an occluder.
        unoccluded = min(
            clear[top, left], clear[top, left + 1], clear[top + 1, left], clear[top + 1, left + 1]
        )
        share[n] = at[9] * unoccluded
