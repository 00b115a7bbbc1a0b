"""Build face/data/open_albedo.npz, a statistical albedo of CC0 skin textures of MakeHuman.

    python scripts/build_albedo.py --skins FOLDER [--out face/data/open_albedo.npz]

FOLDER holds skins as PNG in the uv layout of the MakeHuman base mesh (the MakeHuman system assets
and their skin packs, CC0 1.0). They are resampled into the open head's texture, together with their
mirror images; what such skins lack (eyes, teeth, tongue, brows) is painted here. Few skins make an
uneven set of tones, so their colours are spread over a continuum of human skin tones before the
principal components are taken. The same skins give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from threadpoolctl import threadpool_limits

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.interpolation import smoothstep
from dff.face.io import assets
from dff.face.model.landmarks import JAW
from dff.face.model.morphable import MorphableModel

SIZE = 256
FINE = 3  # samples per texel side
SOURCE_SIZE = 1024


@dataclass(frozen=True)
class Texels:
    """The surface point of the head at every sample of the texture."""

    triangle: Ints  # (S, S), -1 where the texture is empty
    barycentric: Floats  # (S, S, 3)

    def values(self, per_corner: Floats) -> Floats:
        """(S, S, C) of (F, 3, C) values at the triangles' corners; empty samples get zero."""
        out = np.einsum("yxk,yxkc->yxc", self.barycentric, per_corner[np.maximum(self.triangle, 0)])
        return np.asarray(np.where((self.triangle >= 0)[..., None], out, 0.0))


def rasterise_uv(uv: Floats, uv_faces: Ints, size: int) -> Texels:
    """Rasterise the uv triangles at ``size`` samples a side."""
    triangle = np.full((size, size), -1, np.int32)
    barycentric = np.zeros((size, size, 3), np.float32)
    for number, corners in enumerate(uv[uv_faces].astype(np.float64) * size):
        low = np.maximum(np.floor(corners.min(0) - 0.5), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(0) + 0.5), size).astype(int)
        a, b, c = corners
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-12 or (high <= low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        wb = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        wc = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        w = np.stack([1 - wb - wc, wb, wc], axis=-1)
        hit = w.min(-1) >= -1e-6
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        triangle[window][hit] = number
        barycentric[window][hit] = w[hit]
    return Texels(triangle, barycentric)


def mirrored_corners(model: MorphableModel, values: Floats) -> Floats:
    """(F, 3, C) corner values of each triangle's mirror image, of (T, C) values per uv row."""
    where = {frozenset(face): i for i, face in enumerate(model.faces.tolist())}
    out = np.empty((*model.faces.shape, values.shape[1]))
    for number, face in enumerate(model.faces):
        opposite = model.mirror[face]
        other = where[frozenset(opposite.tolist())]
        order = [int(np.flatnonzero(model.faces[other] == v)[0]) for v in opposite]
        out[number] = values[model.uv_faces[other][order]]
    return out


def sampled(image: Floats, uv: Floats) -> Floats:
    """Bilinear colours of ``image`` at (S, S, 2) uv with v up, as in the base mesh's layout."""
    height, width = image.shape[:2]
    x = (uv[..., 0] * width - 0.5).astype(np.float32)
    y = ((1 - uv[..., 1]) * height - 0.5).astype(np.float32)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def coarse(image: Floats, weight: Bools) -> Floats:
    """The texture at SIZE: means of the samples in ``weight``, or the nearest colour."""
    shape = (SIZE, FINE, SIZE, FINE)
    count = weight.reshape(shape).sum((1, 3))
    total = np.where(weight[..., None], image, 0.0).reshape(*shape, 3).sum((1, 3))
    out = total / np.maximum(count, 1)[..., None]
    row, column = distance_transform_edt(count == 0, return_distances=False, return_indices=True)
    return np.asarray(out[row, column])


def read_skin(path: Path) -> Floats:
    """(SOURCE_SIZE, SOURCE_SIZE, 3) RGB, 0 to 1."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not an image")
    how = cv2.INTER_AREA if len(image) > SOURCE_SIZE else cv2.INTER_LINEAR
    return np.asarray(
        cv2.resize(image, (SOURCE_SIZE, SOURCE_SIZE), interpolation=how)[..., ::-1]
        / np.float32(255)
    )


# Left out: clothes, head hair and make-up are painted on them.
UNFIT = ("special_suit",)
SKINS = 320  # sampled faces
SKIN_MODES = 8
# Skin tones from dark to light (sRGB), the middle of faces in even light; the Monk scale's range
# without its extremes.
TONES = np.array(
    [
        [0.24, 0.16, 0.13],
        [0.40, 0.27, 0.20],
        [0.60, 0.43, 0.33],
        [0.78, 0.59, 0.48],
        [0.90, 0.74, 0.65],
    ]
)
HAIR = np.array([0.20, 0.15, 0.12])
HAIR_SD = np.array([0.09, 0.07, 0.055])
BROW_DEPTH, BROW_SD = 0.40, 0.10  # how much a brow darkens the skin under it
IRIS = np.array([0.33, 0.25, 0.19])
IRIS_SD = np.array([[0.10, 0.12, 0.13], [0.07, -0.01, -0.08]])  # light or dark; brown or blue
SCLERA, PUPIL = np.array([0.86, 0.83, 0.81]), np.array([0.03, 0.03, 0.03])
TOOTH, TONGUE, GUM = (
    np.array([0.86, 0.82, 0.74]),
    np.array([0.66, 0.34, 0.33]),
    np.array([0.48, 0.20, 0.19]),
)
IRIS_MM, PUPIL_MM = 5.9, 2.1  # radii


def noise(shape: tuple[int, int], blur: tuple[float, float], *, rng: np.random.Generator) -> Floats:
    """Smooth noise of unit variance; ``blur`` in samples along x and y."""
    field = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), sigmaX=blur[0], sigmaY=blur[1])
    return np.asarray(field / field.std())


class Head:
    """Positions and soft masks of the open head at its texture's samples, (S, S) at SIZE * FINE."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model
        self.texels = rasterise_uv(model.uv, model.uv_faces, SIZE * FINE)
        self.filled = self.texels.triangle >= 0
        self.point = self.texels.values(model.template[model.faces]) * 1000  # millimetres
        self.region = np.where(self.filled, model.region[np.maximum(self.texels.triangle, 0)], -1)

    def is_in(self, *regions: str) -> Bools:
        return np.isin(self.region, [self.model.region_names.index(r) for r in regions])

    def landmark(self, rows: slice | list[int]) -> Floats:
        """(N, 3) millimetres in the 2D scheme, whose labels follow the features more closely."""
        table = self.model.landmarks
        return np.asarray(
            self.model.template[np.concatenate([table.vertex[JAW], table.inner])[rows]] * 1000
        )

    def soft(self, mask: Bools | Floats, samples: float) -> Floats:
        """The mask with its border softened, among the samples that are filled."""
        weight = cv2.GaussianBlur(self.filled.astype(np.float64), (0, 0), samples)
        return np.asarray(
            cv2.GaussianBlur(mask * self.filled.astype(np.float64), (0, 0), samples)
            / (weight + 1e-6)
        )

    def brows(self, *, rng: np.random.Generator) -> Floats:
        """0 to 1: how much of each sample is brow hair, seen frontally."""
        out = np.zeros(self.filled.shape)
        skin = self.is_in("face", "brows")
        points = self.point[skin][:, :2]
        hairs = np.clip(1 + 0.2 * noise(self.filled.shape, (1.2, 0.8), rng=rng), 0, 1.4)[skin]
        for rows in (slice(17, 22), list(range(26, 21, -1))):
            line = self.landmark(rows)[:, :2] - [
                0.0,
                2.0,
            ]  # the points run along the brow's upper edge
            a, d = line[:-1], np.diff(line, axis=0)
            t = np.clip(((points[:, None] - a) * d).sum(-1) / (d**2).sum(-1), 0, 1)
            distance = np.linalg.norm(points[:, None] - (a + t[..., None] * d), axis=-1)
            nearest = distance.argmin(1)
            along = (nearest + np.take_along_axis(t, nearest[:, None], 1)[:, 0]) / len(
                d
            )  # 0 outer end, 1 inner end
            half = 1.5 + 2.6 * smoothstep(along, 0.0, 0.45) * (
                1 - 0.25 * smoothstep(along, 0.7, 1.0)
            )
            thick = 1 - smoothstep(distance.min(1) / half, 0.35, 1.25)
            thick *= 1 - 0.5 * smoothstep(along, 0.85, 1.0)
            out[skin] = np.maximum(out[skin], thick * hairs)
        return out

    def lashes(self) -> Floats:
        """0 to 1: the dark line of the lashes along the rims of the eyelids."""
        out = np.zeros(self.filled.shape)
        skin = self.is_in("face")
        for rows, lower in (((36, 37, 38, 39), (41, 40)), ((42, 43, 44, 45), (47, 46))):
            for loop, depth in ((rows, 0.75), ((rows[0], *lower, rows[3]), 0.3)):
                line = self.landmark(list(loop))
                near = skin & (np.abs(self.point - line.mean(0)).max(-1) < 30)
                fine = np.concatenate(
                    [a + np.linspace(0, 1, 12)[:, None] * (b - a) for a, b in pairwise(line)]
                )
                distance = np.linalg.norm(self.point[near][:, None] - fine, axis=-1).min(1)
                out[near] = np.maximum(out[near], depth * (1 - smoothstep(distance, 0.5, 1.6)))
        return out

    def eyes(self) -> tuple[Floats, Floats]:
        """(S, S, 3) colours of the eyeballs, and (S, S) how much of each sample is iris."""
        eye = self.is_in("eyes")
        colour, iris = np.zeros((*eye.shape, 3)), np.zeros(eye.shape)
        for side in (-1, 1):
            here = eye & (np.sign(self.point[..., 0]) == side)
            vertices = np.unique(self.model.faces[self.model.find_triangles("eyes")])
            ball = self.model.template[vertices] * 1000
            ball = ball[np.sign(ball[:, 0]) == side]
            centre = (ball.max(0) + ball.min(0)) / 2
            offset = self.point[here] - centre
            off_axis = np.where(offset[:, 2] > 0, np.linalg.norm(offset[:, :2], axis=1), 99.0)
            in_iris = 1 - smoothstep(off_axis, IRIS_MM - 0.5, IRIS_MM + 0.3)
            in_pupil = 1 - smoothstep(off_axis, PUPIL_MM - 0.3, PUPIL_MM + 0.3)
            rim = 1 - 0.45 * smoothstep(
                off_axis, IRIS_MM - 1.8, IRIS_MM - 0.2
            )  # the darker limbal ring
            spokes = 1 + 0.12 * np.sin(np.arctan2(offset[:, 1], offset[:, 0]) * 23)
            tint = (rim * spokes)[:, None] * IRIS
            vein = 1 - 0.10 * smoothstep(off_axis, 7.0, 16.0)[:, None] * [0.3, 1.0, 1.0]
            mixed = SCLERA * vein * (1 - in_iris[:, None]) + tint * in_iris[:, None]
            colour[here] = mixed * (1 - in_pupil[:, None]) + PUPIL * in_pupil[:, None]
            iris[here] = in_iris * (1 - in_pupil)
        return colour, iris

    def mouth(self) -> Floats:
        """(S, S, 3) colours of teeth, tongue and the insides, darker where little light gets in."""
        colour = np.zeros((*self.filled.shape, 3))
        lips_depth = self.landmark(slice(60, 68))[:, 2].mean()
        inwards = np.clip((lips_depth - self.point[..., 2]) / 60.0, 0, 1)[..., None]
        for region, tint, dark in (
            ("teeth", TOOTH, 0.5),
            ("tongue", TONGUE, 0.7),
            ("mouth", GUM, 0.85),
        ):
            here = self.is_in(region)
            colour[here] = (tint * (1 - dark * np.sqrt(inwards)))[here]
        socket = self.is_in("mouth") & (
            self.point[..., 1] > self.landmark(slice(27, 31))[:, 1].mean()
        )
        colour[socket] = GUM * 1.25
        return colour


def log_skins(folder: Path, head: Head, source: Floats) -> tuple[Floats, Floats]:
    """(n, S, S, 3) logarithms of skins and mirror images over their (n, 3) tones, and these."""
    model = head.model
    paths = [p for p in sorted(folder.glob("*.png")) if not any(word in p.name for word in UNFIT)]
    if len(paths) < 3:
        raise ValueError(f"{folder} holds {len(paths)} usable skins; at least three are needed")
    straight = head.texels.values(source[model.uv_faces])
    turned = head.texels.values(mirrored_corners(model, source))
    painted = head.is_in("face", "neck", "scalp", "ears", "lips", "brows")
    cheek = (
        coarse(np.repeat(head.is_in("face")[..., None], 3, axis=2).astype(float), painted)[..., 0]
        > 0.99
    )
    out, tones = [], []
    for path in paths:
        image = read_skin(path)
        for uv in (straight, turned):
            logarithm = np.log(np.maximum(coarse(sampled(image, uv), painted), 0.02))
            tone = np.median(logarithm[cheek], axis=0)
            out.append(logarithm - tone)
            tones.append(tone)
    return np.array(out, np.float32), np.array(tones)


def sample_skins(head: Head, detail: Floats, tones: Floats, *, rng: np.random.Generator) -> Floats:
    """(SKINS, S, S, 3) faces: details of two skins of similar tone, on a tone of the continuum.

    Stubble and lips are added.
    """
    one = np.ones((1, 1, 3))
    lips = coarse(head.soft(head.is_in("lips"), 2.0)[..., None] * one, head.filled)
    chin, nose = head.landmark([8, 33])
    x, y, z = (head.point[..., i] for i in range(3))
    beard = 1 - smoothstep(
        y - 0.35 * np.abs(x), nose[1] - 22.0, nose[1] + 3.0
    )  # rises towards the sideburns
    beard *= smoothstep(z, chin[2] - 95.0, chin[2] - 25.0) * smoothstep(
        y, chin[1] - 30.0, chin[1] + 5.0
    )
    bristle = coarse(head.soft(beard * head.is_in("face"), 9.0)[..., None] * one, head.filled) * (
        1 - lips
    )
    grain = noise((SIZE, SIZE), (0.7, 0.7), rng=rng)[..., None]
    knots = np.linspace(0, 1, len(TONES))
    lightness = tones.mean(1)
    out = np.empty((SKINS, *detail.shape[1:]), np.float32)
    for row in out:
        t = rng.beta(1.3, 1.0)
        tone = np.log([np.interp(t, knots, TONES[:, c]) for c in range(3)])
        tone = (
            tone
            + rng.normal(0, 0.05) * np.array([-0.2, 0.0, 0.6])
            + rng.normal(0, 0.05) * np.array([1.0, -0.3, -0.3])
        )
        rank = rng.choice(
            np.argsort(np.abs(lightness - tone.mean()) + rng.normal(0, 0.25, len(tones)))[:12],
            2,
            False,
        )
        share = rng.random()
        mixed = share * detail[rank[0]] + (1 - share) * detail[rank[1]]
        mixed = mixed + lips * rng.normal(0, 1) * np.array([0.02, -0.10, -0.06])
        stubble = max(0.0, rng.normal(-0.1, 0.3))
        mixed = mixed + bristle * np.log1p(-min(0.6, stubble)) * (1 + 0.15 * grain) * [
            1.0,
            0.95,
            0.85,
        ]
        row[:] = np.exp(tone + mixed * rng.uniform(0.7, 1.1))
    return np.clip(out, 0.0, 1.0)


def build(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The arrays of the file, and figures to report."""
    rng = np.random.default_rng(20170814)
    model = assets.load_model()
    head = Head(model)
    detail, tones = log_skins(
        folder, head, assets.read_arrays(assets.SHIPPED["open-head"])["uv_source"]
    )
    one = np.ones((1, 1, 3))
    shaved = coarse(head.soft(head.is_in("scalp"), 6.0)[..., None] * one, head.filled)
    # The scalp's hair is a component of its own: take what each skin paints there out of the
    # details.
    detail *= 1 - shaved
    skins = sample_skins(head, detail, tones, rng=rng)
    skin = coarse(
        head.is_in("face", "neck", "scalp", "ears", "lips", "brows")[..., None] * one, head.filled
    )
    mean = skins.mean(0, dtype=np.float64)
    flat = ((skins - mean) * np.sqrt(skin)).reshape(len(skins), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(flat @ flat.T / len(flat))
    values, vectors = values[::-1], vectors[:, ::-1]
    scores = vectors[:, :SKIN_MODES] * np.sqrt(len(skins))
    modes = (scores.T @ (skins - mean).reshape(len(skins), -1) / len(skins)).reshape(
        SKIN_MODES, *mean.shape
    )
    sums = modes.reshape(SKIN_MODES, -1).sum(1)
    modes *= np.where(sums < 0, -1.0, 1.0)[
        :, None, None, None
    ]  # plus is lighter; an eigenvector's sign is arbitrary

    hair = (
        shaved * np.clip(1 + 0.12 * noise((SIZE, SIZE), (0.8, 2.5), rng=rng), 0.6, 1.4)[..., None]
    )
    brow = coarse(head.brows(rng=rng)[..., None] * one, head.filled)
    lash = coarse(head.lashes()[..., None] * one, head.filled)
    eye_colour, in_iris = head.eyes()
    eyeball, inside = (head.is_in(*names) for names in (("eyes",), ("teeth", "tongue", "mouth")))
    iris = coarse(in_iris[..., None] * one, eyeball | ~head.filled)
    darkening = mean * np.array([0.9, 1.0, 1.05])  # brow hair is browner than the skin's shadow
    painted = mean * (1 - shaved) + HAIR * hair
    painted = painted - BROW_DEPTH * brow * darkening
    painted = painted * (1 - lash)
    modes = modes * (1 - shaved) * (1 - BROW_DEPTH * brow) * (1 - lash)
    extra = [HAIR_SD * hair, -BROW_SD * brow * darkening, *(sd * iris for sd in IRIS_SD)]
    for mask, colour in ((eyeball, eye_colour), (inside, head.mouth())):
        share = np.repeat(mask[..., None], 3, axis=2)
        nearer = coarse(
            share.astype(float), head.filled
        )  # islands lie apart, so a gutter belongs to the nearest one
        painted = np.where(nearer > 0.5, coarse(colour, mask), painted)
        modes = np.where(nearer > 0.5, 0.0, modes)
        extra = [
            np.where(nearer > 0.5, e if mask is eyeball and i >= 2 else 0.0, e)
            for i, e in enumerate(extra)
        ]
    iris_share = coarse(eyeball[..., None] * one, head.filled) > 0.5
    extra = [np.where(iris_share, e, 0.0) if i >= 2 else e for i, e in enumerate(extra)]
    components = np.concatenate([modes, np.array(extra)])
    scale = np.abs(components).reshape(len(components), -1).max(1) / 127
    arrays: dict[str, np.ndarray] = {
        "format": np.array(assets.ALBEDO_FORMAT),
        "name": np.array("open-albedo"),
        "model": np.array(model.name),
        "licence": np.array("CC0-1.0"),
        "provenance": np.array(
            f"Made by scripts/build_albedo.py from {len(detail) // 2} skin textures of MakeHuman "
            f"(CC0 1.0) resampled into the texture of {model.name}, with their mirror images; "
            f"{SKINS} mixtures on a continuum of tones, principal components; eyes, teeth, tongue, "
            "brows, lashes and hair painted by the script. "
            f"Components: {SKIN_MODES} of skin, then hair, brows, and two of the iris. "
            f"numpy {np.__version__}."
        ),
        "mean": np.round(np.clip(painted, 0, 1) * 255).astype(np.uint8),
        "components": np.round(components / scale[:, None, None, None]).astype(np.int8),
        "components_scale": scale,
    }
    return arrays, {
        f"variance of {k} modes": float(values[:k].sum() / values.sum()) for k in (1, 4, SKIN_MODES)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--skins", type=Path, required=True, help="folder of skins in the MakeHuman uv layout"
    )
    parser.add_argument("--out", type=Path, default=assets.SHIPPED_ALBEDO["open-albedo"])
    args = parser.parse_args()
    with threadpool_limits(limits=1):  # sums of several threads round differently
        arrays, figures = build(args.skins)
    draft = args.out.with_suffix(".draft.npz")
    np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(args.out)  # whoever loads the file meanwhile sees the old one or the new one
    figures["MB"] = args.out.stat().st_size / 1e6
    sys.stdout.write("".join(f"{name}: {value:.5g}\n" for name, value in figures.items()))


if __name__ == "__main__":
    main()
