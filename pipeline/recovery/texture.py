"""The albedo texture of a recovered face: what the photo shows, completed where it shows nothing.

Colours are blended in two bands. The *low* band lives on the mesh's vertices, so it knows no
islands of the uv layout and can't show their seams: a Poisson problem keeps the photo's colours
where they were seen and continues them with the differences of the mirrored side, or of the
statistical albedo, where they were not (Perez, Gangnet and Blake, "Poisson Image Editing", 2003).
The *detail* band, what a texture shows beyond its vertices' colours, is mixed per texel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numba
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, unique_edges, vertex_normals
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, Frame, render, sample_texture, visible
from dff.pipeline.accessories.neckline import find_neckline
from dff.pipeline.recovery.inverse import Recovery, skin_mask
from dff.pipeline.recovery.matting import person_matte
from dff.pipeline.recovery.occluders import covered

FACING = (0.12, 0.50)
"""Cosines between the surface and the view from which a colour begins to count and counts fully."""

EDGE = (1.0, 7.0)
"""Pixels of a 256 px crop from a silhouette between which a colour begins to count and counts
fully: the fitted outline is some pixels off, and beyond it lies the background."""

CREASE = 0.012  # metres of depth from one pixel to the next that make an inner silhouette
INNER_EDGE = (0.5, 3.0)  # the same for silhouettes inside the face: the nose before the cheek
SHADE_RANGE = (0.55, 1.60)
"""Shading of the seen skin over its mean: a light that leaves this is mixed with an even one until
it stays inside. What the photo shows darker than that is shadow or hair, which diffuse light does
not explain."""

TINT_RANGE = (0.62, 1.6)  # of a light's colours over their geometric mean
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
SKIN_LUMA = 0.52  # of albedo: the middle skin
EXPOSURE = 0.28
"""Share of a face's brightness (log, over the middle skin's) that is put down to the light, the
rest to the skin. A photo alone can't tell these; people differ by 0.35 about the middle, the
exposure of their faces by 0.22."""
MONOCHROME = 1.8 / 255.0  # spread of colours of one brightness below which a photo has none
HAIR_REACH = 0.05  # metres from the head within which the person's outline above the chin is hair
SATURATED = 0.3
"""Of the share that a channel has in skin: a photo that shows less has lost it, and dividing by the
light's would only enlarge noise."""
FEW_HAIRS = 150  # pixels of a 256 px crop below which nothing is known of hair
DARKER = 0.75  # brightness of hair over that of skin, of all but the fair
LIKE_SKIN = (
    0.85,
    1.15,
)  # brightness of what is rather skin; then the brows say better what colour hair has
STREAKS = 1.5  # at most: how much stronger than in the statistical albedo its detail becomes
UNFOLDED = (0.15, 0.40)
"""Area of the skin in the photo over the largest that an expression gives it, between which its
colours begin to count and count fully: a lid folded away shows no lid."""
HUES = (
    0.3  # how far (log) a channel of skin may leave the statistical albedo's colour, and no further
)
USUAL = (0.06, 0.15)  # differences (log) between photo and model that skin usually shows
EVENED = 0.95  # share of the difference between both sides of a face that is taken for light
EVEN_OVER = 0.008  # metres over which that is smoothed
BRIGHT = 0.90  # that 98 % of the face's albedo stays below, so that new light leaves it some room
OPEN_EYE = 0.16  # height over width of an eye whose colours are taken from the photo
PINNED = ("teeth", "tongue", "mouth")  # regions that always keep the statistical albedo
LIP, GLOOM, DARKEST = 0.004, 0.045, 0.3
"""Metres from the inner lips to the front teeth, metres behind these over which the mouth's inside
turns dark, and how dark."""
SEEN = 0.05  # confidence above which a vertex has a colour of its own


@dataclass(frozen=True)
class PhotoTexture:
    """What a photo says about the albedo of a face. Raises ValueError when the shapes disagree."""

    albedo: Floats  # (S, S, 3) float32 0..1, in the model's uv, islands padded outwards
    light: Floats  # (9, 3), cam: with the albedo it gives back the photo
    seen: Floats  # (S, S) float32 0..1, how much of each texel is the photo itself
    mirrored: Floats  # (S, S) float32 0..1, how much is the detail of the mirrored side
    lit: Floats  # (S / 2, S / 2, 3) float32 0..1, the albedo as the photo's light shows it
    # (C, C) float32 0..1 in the photo's crop: falls towards silhouettes and the photo's border
    trust: Floats
    person: Floats  # (C, C) float32 0..1 how far the crop shows the person, with hair and clothes

    def __post_init__(self) -> None:
        if self.albedo.shape != (*self.seen.shape, 3) or self.mirrored.shape != self.seen.shape:
            raise ValueError("PhotoTexture fields disagree about the size")


@dataclass(frozen=True, eq=False)
class Atlas:
    """A model's uv layout at a size, and its mesh as a graph: everything that no photo changes."""

    model: MorphableModel
    size: int
    texel: Ints  # (N,) flat index of each covered texel
    points: SurfacePoints  # (N,) of the covered texels
    mirrored: SurfacePoints  # (N,) the points across the face; a texel without one repeats its own
    nearest: Ints  # (S * S,) row of the covered texel nearest to each texel
    uv_of_vertex: Floats  # (V, 2) one of the vertex's places
    edges: Ints  # (M, 2) pairs of neighbouring vertices
    region: dict[str, Bools]  # (V,) vertices of each region
    neighbours: sparse.csr_matrix  # (V, V) 1 between neighbours
    smoother: SuperLU  # solves for (V, C) values smoothed over EVEN_OVER
    largest: Floats  # (F,) square metres that a triangle reaches in some expression
    dressed: Floats  # (N,) 0..1 how much of each covered texel the clothes cover
    # (N, 1) float32 0..1 how much light reaches each covered texel: less, deep in the mouth
    daylight: Floats

    def padded(self, values: Floats) -> Floats:
        """(S, S, C) float32 of (N, C) values at the covered texels; the rest repeats the nearest
        covered texel.
        """
        return np.asarray(values[self.nearest].reshape(self.size, self.size, -1), dtype=np.float32)

    def vertices_of(self, name: str) -> Bools:
        """(V,) vertices of a region; none when the model does not have it."""
        return self.region.get(name, np.zeros(len(self.model.template), dtype=bool))

    def hair_of(self, texture: Floats) -> Floats:
        """(3,) the middle colour of the scalp in an (S, T, C) texture; grey-brown when the model
        has no scalp.
        """
        scalp = self.vertices_of("scalp") & ~self.vertices_of("face")
        return (
            np.median(self.at_vertices(texture)[scalp], axis=0)
            if scalp.any()
            else np.array([0.25, 0.2, 0.17])
        )

    def at_vertices(self, texture: Floats) -> Floats:
        """(V, C) bilinear samples of an (S, T, C) texture in the model's uv."""
        return bilinear(texture, self.uv_of_vertex * np.array(texture.shape[1::-1]))


@lru_cache(maxsize=4)
def atlas_of(model: MorphableModel, size: int) -> Atlas:
    """The atlas of a model at ``size`` texels; the last few are kept."""
    flat = np.concatenate([model.uv, np.zeros((len(model.uv), 1))], axis=1)
    layout = render(flat, model.uv_faces, WeakPerspective(float(size), np.zeros(2)), (size, size))
    covered = np.flatnonzero(layout.mask.ravel())
    points = layout.points()
    row = np.full(size * size, -1, dtype=np.int32)
    row[covered] = np.arange(len(covered))
    _, labels = cv2.distanceTransformWithLabels(
        (~layout.mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    row_of_label = np.zeros(labels.max() + 1, dtype=np.int32)
    row_of_label[labels.ravel()[covered]] = row[covered]
    uv_of_vertex = np.zeros((len(model.template), 2))
    uv_of_vertex[model.faces.ravel()] = model.uv[model.uv_faces.ravel()]
    edges = unique_edges(model.faces)
    region = {}
    for name in model.region_names:
        member = np.zeros(len(model.template), dtype=bool)
        member[model.faces[model.triangles_of(name)].ravel()] = True
        region[name] = member
    places = points.of(model.template.astype(np.float64), model.faces)
    return Atlas(
        model,
        size,
        covered,
        points,
        across(model, points),
        row_of_label[labels.ravel()],
        uv_of_vertex,
        edges,
        region,
        sparse.csr_matrix((np.ones(2 * len(edges)), np.concatenate([edges, edges[:, ::-1]]).T)),
        _smoother(model.template, edges),
        _largest(model),
        find_neckline(model).coverage(places),
        _daylight(model, region, points, places),
    )


def _daylight(
    model: MorphableModel, region: dict[str, Bools], points: SurfacePoints, places: Floats
) -> Floats:
    """(N, 1) how much light reaches (N, 3) places of the template: lips and cheeks keep it from the
    back teeth.
    """
    inside = np.zeros(len(model.template), dtype=bool)
    for name in PINNED:
        inside |= region.get(name, False)
    inside &= ~(region.get("face", False) | region.get("lips", False))
    front = float(np.median(model.template[model.landmarks.vertex[60:68], 2])) - LIP
    lit = np.clip(1.0 - (front - places[:, 2]) / GLOOM, DARKEST, 1.0)
    return np.where(_all_of(inside, model.faces)[points.triangle], lit, 1.0)[:, None].astype(
        np.float32
    )


def _smoother(places: Floats, edges: Ints) -> SuperLU:
    """Of 1 + the Laplacian that smooths over EVEN_OVER, whatever the density of the vertices."""
    i, j = edges.T
    count = len(places)
    pull = (EVEN_OVER / np.maximum(np.linalg.norm(places[i] - places[j], axis=1), 1e-4)) ** 2
    diagonal = 1.0 + np.bincount(i, pull, count) + np.bincount(j, pull, count)
    rows, columns = (
        np.concatenate([np.arange(count), i, j]),
        np.concatenate([np.arange(count), j, i]),
    )
    matrix = sparse.csc_matrix((np.concatenate([diagonal, -pull, -pull]), (rows, columns)))
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})


def _areas(vertices: Floats, faces: Ints) -> Floats:
    return np.asarray(np.linalg.norm(triangle_normals(vertices, faces), axis=1)) / 2.0


def _largest(model: MorphableModel) -> Floats:
    """(F,) over the template with each expression unit fully active."""
    template = model.template.astype(np.float64)
    out = _areas(template, model.faces)
    for unit in model.expression:
        out = np.maximum(out, _areas(template + unit, model.faces))
    return out


def across(model: MorphableModel, points: SurfacePoints) -> SurfacePoints:
    """The mirrored surface points; a point whose triangle has no mirrored twin stays where it
    is.
    """
    twins = np.sort(model.mirror[model.faces], axis=1)
    own = np.sort(model.faces, axis=1)
    number = {tuple(corners): f for f, corners in enumerate(own.tolist())}
    twin = np.array([number.get(tuple(corners), -1) for corners in twins.tolist()])
    target = np.where(twin >= 0, twin, np.arange(len(twin)))
    # Which corner of the twin each mirrored corner is.
    wanted = np.where((twin >= 0)[:, None], model.mirror[model.faces], model.faces)
    place = (model.faces[target][:, :, None] == wanted[:, None, :]).argmax(2)
    weights = np.take_along_axis(points.barycentric, place[points.triangle], axis=1)
    return SurfacePoints(target[points.triangle], weights)


def bilinear(image: Floats, px: Floats) -> Floats:
    """(N, C) samples of an (H, W, C) image at (N, 2) pixels, the border repeated."""
    height, width = image.shape[:2]
    x = np.clip(px[:, 0] - 0.5, 0.0, width - 1.0)
    y = np.clip(px[:, 1] - 0.5, 0.0, height - 1.0)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


def _smoothstep(values: Floats, low: float, high: float) -> Floats:
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


@dataclass(frozen=True, eq=False)
class _Observation:
    """The photo as seen from the surface: where it can be trusted and what albedo it shows
    there.
    """

    crop: Floats  # (S, S, 3) float32 0..1
    smooth: Floats  # (S, S, 3) the crop without its finest detail, for the colours of vertices
    camera: Pinhole | WeakPerspective
    light: Floats  # (9, 3)
    floor: Floats  # (3,) least shading that is divided out
    frame: Frame
    trust: Floats  # (S, S) 0..1: falls towards silhouettes, the photo's border and the background
    person: Floats  # (S, S) 0..1
    level: Floats  # (3,) middle shading of the skin
    tones: Floats | None  # (16, 3) the photo's colours by brightness, when it has no others
    clear: Floats  # (S, S) float32 0..1: where nothing lies before the skin
    lenses: tuple[bool, bool]  # whether a dark lens is before the eye of landmark 36, and of 42

    def confidence(self, points: Floats, normals: Floats) -> Floats:
        """(N,) 0..1 trust in the photo at (N, 3) points in cam with unit (N, 3) normals."""
        if isinstance(self.camera, Pinhole):
            view = points / np.linalg.norm(points, axis=1, keepdims=True)
        else:
            view = np.array([[0.0, 0.0, 1.0]])
        facing = _smoothstep(-(normals * view).sum(1), *FACING)
        px = self.camera.px_from_cam(points)
        inside = (px > 0).all(1) & (px < np.array(self.trust.shape[::-1])).all(1)
        seen = visible(self.frame, points, self.camera, HIDDEN_DEPTH)
        return np.where(seen & inside, facing * bilinear(self.trust[..., None], px)[:, 0], 0.0)

    def albedo(self, points: Floats, normals: Floats, image: Floats) -> Floats:
        """(N, 3) colours of ``image`` at the points, with the recovered light divided out."""
        shading = np.maximum(lighting.shade(normals, self.light), self.floor)
        return bilinear(image, self.camera.px_from_cam(points)) / shading


def _observe(
    recovery: Recovery, vertices: Floats, model: MorphableModel, base: Floats, tones: Floats | None
) -> _Observation:
    size = recovery.crop.shape[0]
    unit = size / 256.0
    frame = render(vertices, model.faces, recovery.camera, (size, size))
    box = np.ones((3, 3), dtype=np.uint8)
    # Beyond the silhouette the surface counts as flat: that edge is judged by its own, wider
    # margin.
    far = cv2.dilate(np.where(frame.mask, frame.depth, 0.0).astype(np.float32), box)
    near = cv2.erode(np.where(frame.mask, frame.depth, np.float32(1e9)), box)
    flat = ~frame.mask | (far - near < CREASE)
    outer = (
        cv2.distanceTransform((frame.mask & recovery.valid).astype(np.uint8), cv2.DIST_L2, 5) / unit
    )
    inner = cv2.distanceTransform(flat.astype(np.uint8), cv2.DIST_L2, 5) / unit
    person = person_matte(
        recovery.crop,
        recovery.valid,
        frame,
        skin_mask(frame, model),
        recovery.landmarks,
        1.0 / recovery.camera.scale,
    )
    cover, lenses = covered(
        recovery,
        frame,
        skin_mask(frame, model),
        sample_texture(frame, base, model.uv, model.uv_faces),
    )
    clear = np.float32(1.0) - cover
    trust = (
        _smoothstep(outer, *EDGE)
        * _smoothstep(inner, *INNER_EDGE)
        * _smoothstep(person, 0.3, 0.9)
        * clear
    )
    crop = recovery.crop.astype(np.float32) / np.float32(255.0)
    skin = skin_mask(frame, model) & (frame.normal[..., 2] < -0.3)
    seen_skin = skin & (trust > 0.5)
    luma = float(np.median(crop[seen_skin] @ LUMA)) if seen_skin.any() else SKIN_LUMA
    light = recovery.light
    if tones is not None:
        crop = (crop @ LUMA)[..., None] * _hues(frame, model, base)
        share = LUMA * base.reshape(-1, 3).mean(0)
        light = np.repeat((light @ share)[:, None] / share.sum(), 3, axis=1)
    else:
        crop = np.maximum(crop, SATURATED * (crop @ LUMA)[..., None] * _hues(frame, model, base))
    exposure = float(np.exp(EXPOSURE * np.log(max(luma, 0.02) / SKIN_LUMA)))
    light, level = _softened(light, frame.normal[skin].astype(np.float64), exposure)
    smooth = cv2.GaussianBlur(crop, (0, 0), 1.2 * unit)
    floor = level * SHADE_RANGE[0] * 0.8
    return _Observation(
        crop,
        smooth,
        recovery.camera,
        light,
        floor,
        frame,
        trust,
        person,
        level,
        tones,
        clear,
        lenses,
    )


def tones_of(colours: Floats) -> Floats | None:
    """(16, 3) mean colours by brightness of a photo's (N, 3) colours in 0..1, if it has no others:
    grey, or toned.

    None for a photo in colour.
    """
    if len(colours) == 0:
        return None
    some = colours[:: max(len(colours) // 4096, 1)].astype(np.float64)
    bins = np.clip((some @ LUMA * 16.0).astype(np.int64), 0, 15)
    count = np.bincount(bins, minlength=16)
    mean = (
        np.stack([np.bincount(bins, some[:, c], 16) for c in range(3)], axis=1)
        / np.maximum(count, 1)[:, None]
    )
    # Within a bin brightness still varies: what is left of a colour beyond it is what counts.
    rest = some - mean[bins]
    rest -= (rest @ LUMA)[:, None]
    if float(np.abs(rest).mean()) > MONOCHROME:
        return None
    known = count > 0
    at = (np.arange(16) + 0.5) / 16.0
    return np.stack([np.interp(at, at[known], mean[known, c]) for c in range(3)], axis=1)


def _hues(frame: Frame, model: MorphableModel, base: Floats) -> Floats:
    """(S, S, 3) float32 colours of the statistical albedo ``base`` over their brightness, where the
    head is; else 1.
    """
    albedo = sample_texture(frame, base, model.uv, model.uv_faces)
    luma = np.maximum(albedo @ LUMA, np.float32(0.02))
    return np.where(frame.mask[..., None], albedo / luma[..., None], np.float32(1.0))


def _softened(light: Floats, normals: Floats, exposure: float) -> tuple[Floats, Floats]:
    """(9, 3) ``light`` made fit to be divided out at (N, 3) ``normals``, and the (3,) mean shading
    of that.

    It is mixed with the even light of its mean until the shading keeps SHADE_RANGE, and brought to
    an ``exposure``. A colour cast stronger than TINT_RANGE stays in the albedo: dividing a nearly
    empty channel by its light would only enlarge its noise.
    """
    if len(normals) == 0:
        return light, np.full(3, exposure)
    shading = lighting.basis(normals) @ light
    mean = np.maximum(shading.mean(0), 1e-3)
    low, high = np.percentile(shading, (3, 97), axis=0) / mean
    share = np.minimum((1.0 - SHADE_RANGE[0]) / np.maximum(1.0 - low, 1e-6), 1.0)
    share = np.minimum(share, (SHADE_RANGE[1] - 1.0) / np.maximum(high - 1.0, 1e-6))
    mix = float(share.min())
    level = np.clip(mean / float(np.exp(np.log(mean).mean())), *TINT_RANGE)
    level *= exposure / float(level @ LUMA)
    return (mix * light + (1.0 - mix) * lighting.ambient(1.0) * mean) * (level / mean), level


def unwrap(
    recovery: Recovery, *, model: MorphableModel, albedo: AlbedoModel, size: int = 512
) -> PhotoTexture:
    """The de-lit texture of a recovered face, complete in the model's uv at ``size`` texels.

    Raises ValueError when the recovery is of another model.
    """
    atlas = atlas_of(model, size)
    vertices = recovery.cam_from_head.apply(model.vertices(recovery.coefficients))
    normals = vertex_normals(vertices, model.faces)
    base = np.clip(albedo.texture(recovery.albedo), 0.0, 1.0)
    tones = tones_of(recovery.crop[recovery.valid] / np.float32(255.0))
    if (
        tones is not None
    ):  # what was fitted to it is only as bright as the photo; its colours are those of most people
        base = (
            (base @ LUMA)[..., None] * albedo.mean / np.maximum(albedo.mean @ LUMA, 0.02)[..., None]
        )
    seen = _observe(recovery, vertices, model, base, tones)
    base_v = atlas.at_vertices(base)
    photo_v = seen.albedo(vertices, normals, seen.smooth)
    pinned = _pinned(atlas, recovery, seen.lenses)
    trust_v = seen.confidence(vertices, normals) * _unfolded(atlas, vertices)
    trust_v[pinned] = 0.0
    gain_v = _gains(atlas, recovery, seen, photo_v, base_v, trust_v)
    uneven_v = _unevenness(atlas, photo_v, base_v * gain_v, trust_v)
    trust_v = trust_v * _likeness(atlas, recovery, vertices, photo_v, base_v * gain_v, trust_v)
    photo_v = photo_v / uneven_v
    low_v = _completed(atlas, photo_v, base_v * gain_v, trust_v)

    own_v = np.where((trust_v > SEEN)[:, None], photo_v, low_v)
    detail, share = _detail(
        atlas.points, own_v, uneven_v, trust_v, seen, vertices, normals, model.faces
    )
    other, other_share = _detail(
        atlas.mirrored, own_v, uneven_v, trust_v, seen, vertices, normals, model.faces
    )
    other_share *= (1.0 - share) * ~_all_of(pinned, model.faces)[atlas.points.triangle]
    shading_v = np.maximum(lighting.shade(normals, seen.light), seen.floor) * uneven_v
    streaks_v = np.minimum(gain_v, STREAKS)
    table = np.concatenate([low_v, streaks_v, base_v, shading_v], axis=1).astype(np.float32)
    out = cv2.resize(base, (size, size), interpolation=cv2.INTER_LINEAR).reshape(-1, 3)[atlas.texel]
    shading = np.empty_like(out)
    _mixed(
        atlas.points.triangle,
        atlas.points.barycentric,
        model.faces,
        table,
        detail,
        share,
        other,
        other_share,
        atlas.daylight,
        out,
        shading,
    )
    face = out[_all_of(atlas.vertices_of("face"), model.faces)[atlas.points.triangle]]
    dim = min(1.0, BRIGHT / max(float(np.percentile(face.max(1), 98)), 1e-3))
    lit = atlas.padded(np.clip(out * shading, 0.0, 1.0))
    lit = cv2.resize(lit, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if seen.tones is not None:
        at = (np.arange(len(seen.tones)) + 0.5) / len(seen.tones)
        lit = np.stack([np.interp(lit @ LUMA, at, seen.tones[:, c]) for c in range(3)], axis=2)
    return PhotoTexture(
        atlas.padded(np.clip(out * dim, 0.0, 1.0)),
        seen.light / dim,
        atlas.padded(share[:, None])[..., 0],
        atlas.padded(other_share[:, None])[..., 0],
        lit.astype(np.float32),
        np.asarray(seen.trust, dtype=np.float32),
        seen.person,
    )


@numba.njit(cache=True, nogil=True)
def _mixed(  # type: ignore[no-untyped-def]
    triangle, barycentric, faces, table, detail, share, other, other_share, daylight, out, shading
):
    """Both bands of (N,) texels together: ``out`` holds the statistical albedo and takes the mixed
    one.

    ``table`` (V, 12) has the low band, how strong the statistical detail becomes, its own low band,
    and the shading.
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


def _unfolded(atlas: Atlas, vertices: Floats) -> Floats:
    """(V,) 0..1: how far the skin about each of the (V, 3) vertices is spread out."""
    faces = atlas.model.faces
    ratio = _areas(vertices, faces) / np.maximum(atlas.largest, 1e-12)
    ratio /= max(float(np.median(ratio)), 1e-9)
    count = np.bincount(faces.ravel(), minlength=len(vertices))
    mean = np.bincount(faces.ravel(), np.repeat(ratio, 3), len(vertices)) / np.maximum(count, 1)
    return _smoothstep(mean, *UNFOLDED)


def _unevenness(atlas: Atlas, photo: Floats, base: Floats, trust: Floats) -> Floats:
    """(V, 3) by which light that is not diffuse makes the photo's colours brighter or darker than
    skin is.

    Diffuse light explains no cast shadows, but faces are alike left and right, except for small
    things: of two sides that differ over a centimetre, the one that differs from the statistical
    albedo is taken to be lit otherwise.
    """
    mirror = atlas.model.mirror
    skin = atlas.vertices_of("face")  # on ears and necks hair and clothes differ, not light
    if not skin.any():
        return np.ones_like(photo)
    excess = np.log((np.maximum(photo, 0.0) + 0.02) / (base + 0.02))
    weight = np.where(skin, np.minimum(trust, trust[mirror]), 0.0)[:, None]
    smooth = atlas.smoother.solve(np.concatenate([weight * excess, weight], axis=1))
    # Far from any pair that was seen nothing is known.
    sure = smooth[:, 3:] / (smooth[:, 3:] + 0.05)
    mean = smooth[:, :3] / np.maximum(smooth[:, 3:], 1e-6)
    own, other = ((mean**2).mean(1, keepdims=True), (mean[mirror] ** 2).mean(1, keepdims=True))
    out = EVENED * sure * (mean - mean[mirror]) * own / (own + other + 0.004)
    # Shadows under coloured lamps and burnt highlights have hues that no skin has.
    hue = excess - out
    hue -= hue.mean(1, keepdims=True)
    out += np.where(skin, trust, 0.0)[:, None] * (hue - HUES * np.tanh(hue / HUES))
    return np.asarray(np.exp(out))


def _all_of(member: Bools, faces: Ints) -> Bools:
    """(F,) triangles of which all corners are among the (V,) members."""
    return np.asarray(member[faces].all(axis=1), dtype=np.bool_)


def _pinned(atlas: Atlas, recovery: Recovery, lenses: tuple[bool, bool]) -> Bools:
    """(V,) vertices that take nothing from the photo: inside the mouth, and eyes that are shut or
    behind a lens.
    """
    out = np.zeros(len(atlas.model.template), dtype=bool)
    for name in PINNED:
        out |= atlas.vertices_of(name)
    out &= ~(atlas.vertices_of("face") | atlas.vertices_of("lips"))
    eyes = atlas.vertices_of("eyes")
    left = eyes & (atlas.model.template[:, 0] > 0)
    for start, side, hidden in ((36, eyes & ~left, lenses[0]), (42, left, lenses[1])):
        p = recovery.landmarks[start : start + 6]
        opening = float(np.linalg.norm(p[1] - p[5]) + np.linalg.norm(p[2] - p[4]))
        if hidden or opening / max(2.0 * float(np.linalg.norm(p[0] - p[3])), 1e-6) < OPEN_EYE:
            out |= side
    return out


def _gains(
    atlas: Atlas, recovery: Recovery, seen: _Observation, photo: Floats, base: Floats, trust: Floats
) -> Floats:
    """(V, 3) by which the statistical albedo is multiplied to match the photo: one colour for skin,
    one for hair.
    """
    out = np.ones((len(base), 3))
    skin = atlas.vertices_of("face") & (trust > 0.5)
    if skin.sum() >= 20:
        out[:] = _ratio(photo[skin], base[skin])
    hair = atlas.vertices_of("scalp") & ~atlas.vertices_of("face")
    shown = _hair(atlas, recovery, seen)
    brows = atlas.vertices_of("brows") & (trust > 0.5)
    if len(shown) == 0 and brows.any():
        luma = photo[brows] @ LUMA
        shown = photo[brows][luma <= np.percentile(luma, 20.0)]
    if len(shown) and hair.any():
        dark, fair = np.median(base[hair].sum(1)), np.median(base[atlas.vertices_of("face")].sum(1))
        # At the hairline the statistical albedo itself goes from hair to skin.
        bright = (base.sum(1) - dark) / max(fair - dark, 1e-3)
        for _ in range(4):  # thin hair is hair
            bright = atlas.smoother.solve(bright)
        share = 1.0 - _smoothstep(bright[hair], 0.2, 0.7)
        out[hair] += share[:, None] * (_ratio(shown, base[hair]) - out[hair])
    for name in (*PINNED, "eyes"):
        inside = atlas.vertices_of(name) & ~atlas.vertices_of("face") & ~atlas.vertices_of("lips")
        out[inside] = float(np.clip(out[atlas.vertices_of("face")].mean(), 0.6, 1.2))
    return out


def _hair(atlas: Atlas, recovery: Recovery, seen: _Observation) -> Floats:
    """(N, 3) albedo of what the photo shows of hair: on the scalp, and about the head above the
    chin. Often nothing.

    Hair's light is not that of skin, so only the mean brightness of the light is divided out.
    """
    model, frame, size = atlas.model, seen.frame, recovery.crop.shape[0]
    scalp = np.zeros(len(model.faces) + 1, dtype=bool)
    if "scalp" in model.region_names:
        scalp[model.triangles_of("scalp")] = True
    chin = recovery.landmarks[8]
    up = recovery.landmarks[36:48].mean(0) - chin
    rows, columns = np.mgrid[:size, :size] + 0.5
    above = (columns - chin[0]) * up[0] + (rows - chin[1]) * up[1] > 0.3 * float(up @ up)
    away = (
        cv2.distanceTransform((~frame.mask).astype(np.uint8), cv2.DIST_L2, 5)
        / recovery.camera.scale
    )
    about = ~frame.mask & above & (away < HAIR_REACH)
    shown = (
        (seen.person > 0.9)
        & recovery.valid
        & (about | (scalp[frame.triangle] & (seen.trust > 0.1)))
    )
    found = seen.smooth[shown] / seen.level
    skin = seen.smooth[skin_mask(frame, model) & (seen.trust > 0.9)] / seen.level
    if len(found) < FEW_HAIRS * (size / 256.0) ** 2 or len(skin) == 0:
        return np.asarray(found[:0])
    # The forehead reaches into the scalp. Hair is darker, where there is enough that is.
    brightness = found @ LUMA / max(float(np.median(skin @ LUMA)), 0.02)
    darker = brightness < DARKER
    if darker.mean() > 0.15:
        return np.asarray(found[darker])
    like_skin = LIKE_SKIN[0] < float(np.median(brightness)) < LIKE_SKIN[1]
    return np.asarray(found[:0] if like_skin else found)


def _ratio(shown: Floats, expected: Floats) -> Floats:
    return np.clip(
        np.median(shown, axis=0) / np.maximum(np.median(expected, axis=0), 0.02), 0.2, 5.0
    )


def _likeness(
    atlas: Atlas, recovery: Recovery, vertices: Floats, photo: Floats, base: Floats, trust: Floats
) -> Floats:
    """(V,) 0..1: how much the photo's colour may be that of this part of a head.

    Neck and ears are often covered by clothes, hair or, where the fit is off, by the background:
    there a colour counts by its likeness to the skin of the face. The sides of the face are taken
    where the fit explains them.
    """
    model = atlas.model
    out = np.ones(len(trust))
    face = atlas.vertices_of("face")
    sure = face & (trust > 0.5)
    if sure.sum() < 20:
        return out
    residual = np.abs(np.log((np.maximum(photo, 0.0) + 0.04) / (base + 0.04))).mean(1)
    usual = float(np.clip(np.median(residual[sure]), *USUAL))
    outer = (atlas.vertices_of("neck") | atlas.vertices_of("ears")) & ~face
    out[outer] = 1.0 - _smoothstep(residual[outer], 1.5 * usual, 3.0 * usual)
    # Where most of what surrounds a vertex is something else, its likeness is chance.
    count = np.maximum(np.asarray(atlas.neighbours.sum(1)).ravel(), 1.0)
    for _ in range(3):
        around = atlas.neighbours @ (out * (trust > SEEN)) / count
        out[outer] *= _smoothstep(around, 0.3, 0.8)[outer]
    size = recovery.crop.shape[0]
    inner = np.zeros((size, size), dtype=np.uint8)
    hull = cv2.convexHull(np.round(recovery.landmarks[17:]).astype(np.int32))
    cv2.fillConvexPoly(inner, hull, 1)
    inner = cv2.dilate(inner, np.ones((size // 12, size // 12), np.uint8))
    covered = cv2.GaussianBlur(
        (recovery.occluded & (inner == 0)).astype(np.float32), (0, 0), size / 128.0
    )
    below = model.template[:, 1] < model.template[model.landmarks.vertex[17:27], 1].max()
    px = recovery.camera.px_from_cam(vertices)
    out[face & below] *= (
        1.0 - _smoothstep(bilinear(covered[..., None], px)[:, 0], 0.1, 0.5)[face & below]
    )
    return out


def _completed(atlas: Atlas, photo: Floats, base: Floats, trust: Floats) -> Floats:
    """(V, 3) colours: the photo's where trusted, continued over the rest of the mesh by solving a
    Poisson problem.
    """
    model = atlas.model
    mirror = model.mirror
    i, j = atlas.edges.T
    sure = trust > 4.0 * SEEN
    both = sure[i] & sure[j]
    across = ~both & sure[mirror[i]] & sure[mirror[j]]
    step = base[i] - base[j]
    step[across] = (photo[mirror][i] - photo[mirror][j])[across]
    step[both] = (photo[i] - photo[j])[both]
    # Hair does not bleed into skin, nor skin into the mouth or the eyes.
    stiffness = np.ones(len(i))
    for name in ("scalp", "eyes", *PINNED):
        inside = atlas.vertices_of(name)
        stiffness[inside[i] != inside[j]] = 0.02
    count = len(trust)
    hold = 30.0 * trust**2
    anchor = np.full(count, 2e-3)
    skin = atlas.vertices_of("face") | atlas.vertices_of("lips")
    for name in PINNED:
        anchor[atlas.vertices_of(name) & ~skin] = 30.0
    anchor[atlas.vertices_of("eyes")] = 0.3
    pull = stiffness[:, None] * step
    right = hold[:, None] * photo + anchor[:, None] * base
    for c in range(3):
        right[:, c] += np.bincount(i, pull[:, c], count) - np.bincount(j, pull[:, c], count)
    diagonal = hold + anchor + np.bincount(i, stiffness, count) + np.bincount(j, stiffness, count)
    rows = np.concatenate([np.arange(count), i, j])
    columns = np.concatenate([np.arange(count), j, i])
    matrix = sparse.csc_matrix(
        (np.concatenate([diagonal, -stiffness, -stiffness]), (rows, columns))
    )
    solved = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(right)
    return np.asarray(np.clip(solved, 0.0, 1.2))


def _detail(
    points: SurfacePoints,
    low: Floats,
    uneven: Floats,
    trust: Floats,
    seen: _Observation,
    vertices: Floats,
    normals: Floats,
    faces: Ints,
) -> tuple[Floats, Floats]:
    """What the photo shows at (N,) surface points beyond the (V, 3) ``low`` band, and (N,) how far
    to believe it.
    """
    count = len(points.triangle)
    detail, share = np.zeros((count, 3), dtype=np.float32), np.zeros(count, dtype=np.float32)
    perspective = isinstance(seen.camera, Pinhole)
    _detail_loop(
        points.triangle,
        points.barycentric,
        faces,
        np.concatenate([vertices, normals, low, trust[:, None], uneven], axis=1),
        seen.camera.focal if isinstance(seen.camera, Pinhole) else seen.camera.scale,
        seen.camera.centre,
        perspective,
        seen.crop,
        seen.frame.depth,
        seen.clear,
        seen.light,
        seen.floor,
        detail,
        share,
    )
    return detail, _smoothstep(share, SEEN, 0.5)


@numba.njit(cache=True, nogil=True)
def _detail_loop(  # type: ignore[no-untyped-def]
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
    detail,
    share,
):
    height, width = depth.shape
    at = np.empty(13)
    for n in range(len(triangle)):
        i, j, k = faces[triangle[n], 0], faces[triangle[n], 1], faces[triangle[n], 2]
        if min(table[i, 9], table[j, 9], table[k, 9]) <= SEEN:
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
                if depth[r, c] == 0 or depth[r, c] >= at[2] - HIDDEN_DEPTH:
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
            # The harmonics of dff.face.geometry.lighting.
            shading = 0.282095 * light[0, c] + 0.488603 * (
                ny * light[1, c] + nz * light[2, c] + nx * light[3, c]
            )
            shading += 1.092548 * (
                nx * ny * light[4, c] + ny * nz * light[5, c] + nx * nz * light[7, c]
            )
            shading += 0.315392 * (3.0 * nz * nz - 1.0) * light[6, c]
            shading += 0.546274 * (nx * nx - ny * ny) * light[8, c]
            shading = max(shading, floor[c]) * at[10 + c]
            detail[n, c] = (upper * (1 - fy) + lower * fy) / shading - at[6 + c]
        # A vertex may be some pixels away from what covers the skin here.
        bare = min(
            clear[top, left], clear[top, left + 1], clear[top + 1, left], clear[top + 1, left + 1]
        )
        share[n] = at[9] * bare
