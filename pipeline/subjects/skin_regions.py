"""Where beards, brows, blush, freckles and irises lie, for each covered texel of a uv atlas.

The regions are computed from a model's landmarks and not read from images in uv: they hold for any
model and texture size, at the float32 precision that the stored textures were made with. The
numbers are in ``data/skin_regions.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Shaped
from dff.face.geometry.interpolation import smoothstep
from dff.face.model.landmarks import (
    BROWS,
    CHIN,
    EYES,
    INDEX,
    LEFT_BROW,
    LOWER_LIP,
    NOSE_BASE,
    NOSE_TIP,
    RIGHT_BROW,
    UPPER_LIP,
)
from dff.face.texture.uv_atlas import UvAtlas
from dff.pipeline.accessories.config import Range, read_config

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class BeardRegion:
    corner: float
    rise: float
    ear_rise: float
    bend: float
    edge: Range
    throat: float
    throat_edge: Range
    ear_edge: Range


@dataclass(frozen=True)
class MoustacheRegion:
    nose: float
    droop: float
    upper_edge: Range
    lower_edge: Range
    breadth: float
    side_edge: Range
    front_edge: Range


@dataclass(frozen=True)
class GoateeRegion:
    breadth: float
    side_edge: Range
    lip: float
    upper_edge: Range
    strip: float
    strip_breadth: float
    strip_edge: Range
    strip_height: float
    strip_upper_edge: Range
    strip_share: float


@dataclass(frozen=True)
class BlushRegion:
    across: float
    rise: float
    size: tuple[float, float]
    nose_size: float
    nose_share: float
    depth: float


@dataclass(frozen=True)
class FreckleRegion:
    rise: float
    height: float
    depth: float
    eye_depth: float


@dataclass(frozen=True)
class CheekRegion:
    across: Range
    below_eye: float


@dataclass(frozen=True)
class ForeheadRegion:
    above_brows: float


@dataclass(frozen=True)
class BrowRegion:
    rise: float
    above: float


@dataclass(frozen=True)
class HairlineRegion:
    edge: Range
    crown: Range


@dataclass(frozen=True)
class RegionConfig:
    """The regions of ``data/skin_regions.toml``, where each number is described."""

    beard: BeardRegion
    moustache: MoustacheRegion
    goatee: GoateeRegion
    blush: BlushRegion
    freckles: FreckleRegion
    cheeks: CheekRegion
    forehead: ForeheadRegion
    brows: BrowRegion
    hairline: HairlineRegion


REGIONS = read_config(RegionConfig, str(DATA / "skin_regions.toml"), "regions")

FIELDS = (
    "skin",
    "jaw",
    "lip",
    "chin",
    "lips",
    "scalp",
    "crown",
    "blush",
    "freckled",
    "brow",
    "outer",
    "iris",
)
"""Region weights of a texel: weights in 0..1 (jaw: beard of cheeks, jaw and throat; lip: moustache;
chin: goatee; crown: how thick cropped hair stands on the scalp, thinner towards its edge); metres
from the middle line of the nearer brow (far away: 1), and 0..1 along it from inside out; metres
from an iris's centre (1: not the front of an eye)."""


@dataclass(frozen=True, eq=False)
class SkinRegions:
    """Where things grow, for each of the (N,) covered texels of an atlas."""

    places: Float[Array, "N 3"]  # float32 metres, template
    cheeks: Integer[Array, " cheeks"]  # texels of skin that shows neither hair, beard nor red
    forehead: Integer[Array, " forehead"]  # texels of skin below the hairline
    bearded: Integer[Array, " bearded"]  # texels where a beard is thick
    hairy: Integer[Array, " hairy"]  # some texels of the scalp
    table: Float[Array, "N fields"]  # float32, by the names of FIELDS


@dataclass(frozen=True, eq=False)
class _Texels:
    """Covered texels on the template."""

    atlas: UvAtlas
    config: RegionConfig
    marks: Float[Array, "68 3"]  # metres: the landmarks
    region: Shaped[Array, " N"]  # names

    @property
    def places(self) -> Floats:
        """(N, 3) metres."""
        return self.atlas.places

    @property
    def side(self) -> Floats:
        """(N,) metres from the middle of the face."""
        return np.abs(self.places[:, 0])

    @property
    def breadth(self) -> float:
        """Half the width of the mouth, in metres."""
        return float(self.mark("mouth_left")[0])

    def mark(self, name: str) -> Floats:
        """(3,) a landmark."""
        return self.marks[INDEX[name]]

    @property
    def ear(self) -> Floats:
        """(3,) the landmark before the ear."""
        return self.mark("jaw_left_7")

    @property
    def eye(self) -> Floats:
        """(3,) the outer corner of the left eye."""
        return self.mark("eye_left_outer")

    def among(self, *names: str) -> Bools:
        """(N,) texels of regions."""
        return np.isin(self.region, names)

    def membership(self, *names: str) -> Floats:
        """(N,) interpolated from vertices, 1 of these regions."""
        member = np.zeros(len(self.atlas.model.template))
        for name in names:
            member[self.atlas.mask_region(name)] = 1.0
        return self.atlas.points.of(member[:, None], self.atlas.model.faces)[:, 0]


@lru_cache(maxsize=4)
def find_skin_regions(atlas: UvAtlas, config: RegionConfig = REGIONS) -> SkinRegions:
    """The regions of an atlas; the last few are kept."""
    model = atlas.model
    marks = model.template[model.landmarks.vertex].astype(np.float64)
    region = np.array(model.region_names)[model.region][atlas.points.triangle]
    texels = _Texels(atlas, config, marks, region)
    face = region == "face"
    lips = np.where(texels.among("lips"), texels.membership("lips"), 0.0)
    bare = np.clip(1.0 - lips, 0.0, 1.0)
    jaw, lip = _weigh_beard(texels), _weigh_moustache(texels)
    hairline = _smooth_hairline(atlas)  # 0.5 at the edge of the scalp
    around = smoothstep(hairline, *config.hairline.edge) * texels.among("face", "ears")
    scalp = np.where(region == "scalp", texels.membership("scalp"), around)
    brow, outer = _measure_brows(texels)
    fields = {
        "skin": texels.among("face", "neck", "scalp", "ears", "brows", "lips"),
        "jaw": jaw * bare,
        "lip": lip * bare,
        "chin": _weigh_goatee(texels, jaw) * bare,
        "lips": lips,
        "scalp": scalp,
        "crown": smoothstep(hairline, *config.hairline.crown) * (region == "scalp"),
        "blush": _weigh_blush(texels),
        "freckled": _weigh_freckles(texels) * face,
        "brow": brow,
        "outer": outer,
        "iris": _measure_irises(atlas.places, region == "eyes"),
    }
    table = np.stack([fields[name] for name in FIELDS], axis=1)
    return SkinRegions(
        places=atlas.places.astype(np.float32),
        cheeks=np.flatnonzero(_find_cheeks(texels))[::3],
        forehead=np.flatnonzero(_find_forehead(texels))[::3],
        bearded=np.flatnonzero(np.maximum(jaw, lip) * bare > 0.5)[::7],
        hairy=np.flatnonzero(scalp > 0.9)[::11],
        table=np.ascontiguousarray(table, dtype=np.float32),
    )


def _weigh_beard(texels: _Texels) -> Floats:
    """(N,) beard of cheeks, jaw and throat.

    Its upper line runs from the corner of the mouth to the front of the ear.
    """
    c, corner, ear = texels.config.beard, texels.mark("mouth_left"), texels.ear
    _, y, z = texels.places.T
    start = c.corner * texels.breadth
    along = np.clip((texels.side - start) / (ear[0] - start), 0.0, 1.0)
    line = corner[1] + c.rise + (ear[1] + c.ear_rise - corner[1]) * along**c.bend
    low = texels.marks[CHIN, 1] - c.throat
    throat = smoothstep(y, low + c.throat_edge[0], low + c.throat_edge[1])
    before_ear = smoothstep(z, ear[2] + c.ear_edge[0], ear[2] + c.ear_edge[1])
    weight = smoothstep(line - y, *c.edge) * throat
    return np.asarray(weight * before_ear * texels.among("face", "neck"))


def _weigh_moustache(texels: _Texels) -> Floats:
    c, corner, nose = texels.config.moustache, texels.mark("mouth_left"), texels.marks[NOSE_BASE]
    _, y, z = texels.places.T
    line = nose[1] - c.nose - c.droop * (texels.side / texels.breadth) ** 2
    return np.asarray(
        smoothstep(line - y, *c.upper_edge)
        * smoothstep(y - corner[1], *c.lower_edge)
        * smoothstep(c.breadth * texels.breadth - texels.side, *c.side_edge)
        * smoothstep(z, corner[2] + c.front_edge[0], corner[2] + c.front_edge[1])
        * (texels.region == "face")
    )


def _weigh_goatee(texels: _Texels, jaw: Floats) -> Floats:
    """(N,) the chin's part of a beard, and strips beside the mouth up to the moustache."""
    c, side, breadth = texels.config.goatee, texels.side, texels.breadth
    y = texels.places[:, 1]
    below_lip = smoothstep(texels.marks[LOWER_LIP, 1] + c.lip - y, *c.upper_edge)
    chin = jaw * smoothstep(c.breadth * breadth - side, *c.side_edge) * below_lip
    strip = smoothstep(c.strip_breadth - np.abs(side - breadth * c.strip), *c.strip_edge)
    upper = texels.marks[UPPER_LIP, 1]
    beside = strip * smoothstep(upper + c.strip_height - y, *c.strip_upper_edge)
    return np.maximum(chin, c.strip_share * jaw * beside)


def _weigh_blush(texels: _Texels) -> Floats:
    """(N,) cheeks and the tip of the nose."""
    c, eye, nose = texels.config.blush, texels.eye, texels.marks[NOSE_BASE]
    _, y, z = texels.places.T
    across = ((texels.side - c.across * eye[0]) / c.size[0]) ** 2
    cheeks = np.exp(-across - ((y - nose[1] - c.rise) / c.size[1]) ** 2)
    away = ((texels.places - texels.marks[NOSE_TIP]) / c.nose_size) ** 2
    weight = (cheeks + c.nose_share * np.exp(-away.sum(1))) * (texels.region == "face")
    return np.asarray(weight * smoothstep(z, texels.ear[2] + c.depth, eye[2]))


def _weigh_freckles(texels: _Texels) -> Floats:
    c, eye, nose = texels.config.freckles, texels.eye, texels.marks[NOSE_BASE]
    _, y, z = texels.places.T
    band = np.exp(-(((y - nose[1] - c.rise) / c.height) ** 2))
    return np.asarray(band * smoothstep(z, texels.ear[2] + c.depth, eye[2] + c.eye_depth))


def _find_cheeks(texels: _Texels) -> Bools:
    c, eye, side = texels.config.cheeks, texels.eye, texels.side
    y = texels.places[:, 1]
    across = (side > c.across[0] * eye[0]) & (side < c.across[1] * eye[0])
    height = (y < eye[1] - c.below_eye) & (y > texels.marks[NOSE_BASE, 1])
    return np.asarray((texels.region == "face") & across & height)


def _find_forehead(texels: _Texels) -> Bools:
    low = texels.marks[BROWS, 1].max() + texels.config.forehead.above_brows
    middle = texels.side < texels.eye[0]
    return np.asarray((texels.region == "face") & middle & (texels.places[:, 1] > low))


def _smooth_hairline(atlas: UvAtlas) -> Floats:
    """(N,) smoothed membership of the scalp."""
    scalp = np.zeros(len(atlas.model.template))
    scalp[atlas.mask_region("scalp")] = 1.0
    for _ in range(2):
        scalp = atlas.smoother.solve(scalp)
    return atlas.points.of(scalp[:, None], atlas.model.faces)[:, 0]


def _measure_brows(texels: _Texels) -> tuple[Floats, Floats]:
    """(N,) metres from the brows' middle lines, and 0..1 along them from inside out."""
    p, marks, config = texels.places, texels.marks, texels.config.brows
    best, outer = np.full(len(p), 1.0), np.zeros(len(p))
    high = marks[BROWS, 1].max() + config.above
    near = texels.among("face", "brows") & (p[:, 1] > marks[EYES, 1].max()) & (p[:, 1] < high)
    rows = np.flatnonzero(near)
    for brow in (marks[RIGHT_BROW][::-1], marks[LEFT_BROW]):
        line = brow + np.array([0.0, config.rise, 0.0])
        for part, (a, b) in enumerate(pairwise(line)):
            way = b - a
            t = np.clip(((p[rows] - a) @ way) / (way @ way), 0.0, 1.0)
            away = np.linalg.norm(p[rows] - a - t[:, None] * way, axis=1)
            closer = away < best[rows]
            best[rows[closer]] = away[closer]
            outer[rows[closer]] = (part + t[closer]) / 4.0
    return best, outer


def _measure_irises(places: Floats, eyes: Bools) -> Floats:
    """(N,) metres from the centre of the nearer iris, on the front of an eye; else 1."""
    out = np.full(len(places), 1.0)
    for side in (places[:, 0] > 0, places[:, 0] <= 0):
        own = np.flatnonzero(eyes & side)
        if len(own) == 0:
            continue
        centre = (places[own].max(0) + places[own].min(0)) / 2.0
        front = own[places[own, 2] > centre[2]]
        out[front] = np.hypot(places[front, 0] - centre[0], places[front, 1] - centre[1])
    return out


def measure_skin(values: Floats, atlas: UvAtlas) -> Floats:
    """(3,) the median colour of the cheeks in (N, 3) colours of the covered texels."""
    cheeks = find_skin_regions(atlas).cheeks
    return np.asarray(
        np.median(values[cheeks] if len(cheeks) else values, axis=0), dtype=np.float64
    )
