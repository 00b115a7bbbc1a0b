"""How the person of a photo wears its hair: what the photo shows above the brows, before the ears
and beside the neck.

A photo shows one side of a head of hair; what is made of it is a cut of the same colour, thickness
and length, which other poses can show from behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats
from dff.face.model.landmarks import JAW
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame
from dff.pipeline.accessories.hair import Hair
from dff.pipeline.recovery.inverse import Recovery, skin_mask

REACH = 0.06  # metres from the head's outline within which hair is looked for
BESIDE = (0.002, 0.045)  # metres beside jaw and neck within which it hangs
FEW = 150  # pixels of a 256 px crop below which nothing is known
MIDDLE = 130.0  # of 255: brightness to which skin is brought before colours are compared
DIMMED = 0.75  # weight of brightness: light changes it more than colours
APART = 16.0  # of Lab so weighted: what differs more from skin is no skin
ALIKE = 26.0  # of the same: what differs less from the hair is hair
TOLD = 15.0  # of the same: hair that is as far from what lies behind it is told from that
BALD = 0.45  # share of the scalp that shows hair, below which there is none to comb
CROPPED = 0.0025  # metres of thickness below which hair is no more than the colour of the scalp
THICKNESS = (0.006, 0.045)  # metres
SHARE = 0.45  # of the pixels beside the neck that show hair, at a height down to which it hangs
STEP = 0.008  # metres between these heights


@dataclass(frozen=True)
class Combed:
    """What a photo shows of hair. All lengths in metres, shares 0..1."""

    share: float  # of the scalp that is seen, how much shows hair
    thickness: float  # from the head's outline to that of the hair, above the ears
    length: float  # that it falls below the ears
    fringe: float  # of the forehead: how much it covers
    cover: float  # of the ears

    @property
    def mesh(self) -> bool:
        """Whether there is more of it than the scalp's colour."""
        return self.share > BALD and (self.thickness > CROPPED or self.length > 0.0)


def combed(
    recovery: Recovery, person: Floats, frame: Frame, model: MorphableModel
) -> Combed | None:
    """Of a photo whose fitted head is ``frame``, with ``person`` (S, S) 0..1; None where it shows
    too little.
    """
    size = len(recovery.crop)
    smooth = cv2.GaussianBlur(recovery.crop, (0, 0), 1.5 * size / 256.0)
    inner = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(inner, cv2.convexHull(np.round(recovery.landmarks[27:]).astype(np.int32)), 1)
    skin = skin_mask(frame, model) & (inner > 0)
    least = FEW * (size / 256.0) ** 2
    if skin.sum() < least:
        return None
    # Dark photos and dark skin are brightened first: colours would lie too close together.
    gain = np.clip(MIDDLE / max(float(np.median(smooth[skin].mean(1))), 1.0), 0.5, 5.0)
    lab = cv2.cvtColor(
        np.minimum(smooth * np.float32(gain / 255.0), np.float32(1.0)), cv2.COLOR_RGB2LAB
    )
    lab[..., 0] *= DIMMED
    whole = (person > 0.6) & recovery.valid
    chin, up = _upright(recovery)
    rows, columns = np.mgrid[:size, :size] + 0.5
    height = ((columns - chin[0]) * up[0] + (rows - chin[1]) * up[1]) / float(
        up @ up
    )  # 0 at the chin, 1 at the eyes
    pixel = 1.0 / recovery.camera.scale
    away = cv2.distanceTransform((~frame.mask).astype(np.uint8), cv2.DIST_L2, 5) * pixel
    scalp = _shows(frame, model, "scalp") & ~_shows(frame, model, "face")
    above = whole & (height > 1.25) & ((~frame.mask & (away < REACH)) | scalp)
    if above.sum() < least:
        return None
    flesh = np.median(lab[skin], axis=0)
    unlike = np.linalg.norm(lab - flesh, axis=2) > APART
    share = float(unlike[above].mean())
    if not (above & unlike).any():
        return Combed(share, 0.0, 0.0, 0.0, 0.0)
    hair = np.median(lab[above & unlike], axis=0)
    from_hair = np.linalg.norm(lab - hair, axis=2)
    like = unlike & (from_hair < ALIKE) & (from_hair < np.linalg.norm(lab - flesh, axis=2))

    behind = (person < 0.1) & recovery.valid & (away < 2.0 * REACH)
    told = not behind.any() or float(np.linalg.norm(np.median(lab[behind], axis=0) - hair)) > TOLD
    rim = (
        cv2.dilate(frame.mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        & ~frame.mask
    )
    outline = int((rim & (height > 1.25) & recovery.valid).sum())
    around = whole & ~frame.mask & (away < REACH) & (height > 1.25)
    thickness = float(around.sum()) / max(outline, 1) * pixel
    forehead = skin_mask(frame, model) & (height > 1.22) & (frame.normal[..., 2] < -0.3) & ~scalp
    ears = _shows(frame, model, "ears") & (frame.normal[..., 2] < -0.1)
    return Combed(
        share=share,
        thickness=thickness,
        length=_length(recovery, like & whole, frame.mask, up, pixel) if told else 0.0,
        fringe=float(like[forehead].mean()) if forehead.sum() > least else 0.0,
        cover=float(like[ears].mean()) if ears.sum() > 0.1 * least else 0.0,
    )


def hair_of_photo(seen: Combed, colour: Floats, *, rng: np.random.Generator) -> Hair | None:
    """A cut like the one that was seen, of (3,) albedo ``colour``; None: the scalp shows it well
    enough.
    """
    red, green, blue = (float(v) for v in np.clip(colour, 0.02, 0.95))
    part, whorl, sweep, curl = (
        rng.normal(0.0, 0.5),
        rng.uniform(-1, 1),
        rng.normal(0.0, 0.25),
        rng.beta(0.8, 1.6),
    )
    front, seed = rng.random(), int(rng.integers(2**31))
    if not seen.mesh:
        return None
    return Hair(
        colour=(red, green, blue),
        tips=(min(1.15 * red, 0.95), min(1.15 * green, 0.95), min(1.15 * blue, 0.95)),
        volume=float(np.clip(seen.thickness, *THICKNESS)),
        part=float(np.clip(part, -1.0, 1.0)),
        whorl=float(whorl),
        fringe=float(np.clip(1.2 * seen.fringe, 0.0, 0.9)) if seen.fringe > 0.3 else 0.0,
        sweep=float(sweep),
        cover=1.0 if seen.length > 0.03 else float(np.clip(1.3 * seen.cover - 0.3, 0.0, 0.8)),
        length=seen.length,
        front=float(front),
        curl=float(curl),
        tie="",
        seed=seed,
    )


def _upright(recovery: Recovery) -> tuple[Floats, Floats]:
    chin = recovery.landmarks[JAW][8]
    return chin, recovery.landmarks[36:48].mean(0) - chin


def _shows(frame: Frame, model: MorphableModel, name: str) -> Bools:
    """(S, S) where a region of the model is seen."""
    member = np.zeros(len(model.faces) + 1, dtype=bool)
    if name in model.region_names:
        member[model.triangles_of(name)] = True
    return np.asarray(member[frame.triangle] & frame.mask)


def _length(recovery: Recovery, like: Bools, mask: Bools, up: Floats, pixel: float) -> float:
    """Metres below the ears down to which there is hair on one side of the neck at least."""
    size = len(like)
    upward = up / float(np.linalg.norm(up))
    across = np.array([-upward[1], upward[0]])
    # Upright: rows go down the head, columns across it, from below the eyes at the middle of the
    # jaw.
    middle = recovery.landmarks[[0, 16]].mean(0)
    rows = int(0.22 / STEP)
    columns = np.arange(-0.13, 0.13, 0.004)
    down = np.arange(rows) * STEP
    at = middle + (-down[:, None, None] * upward + columns[None, :, None] * across) / pixel
    x, y = np.floor(at).astype(np.int64).transpose(2, 0, 1)
    inside = (x >= 0) & (y >= 0) & (x < size) & (y < size)
    x, y = np.clip(x, 0, size - 1), np.clip(y, 0, size - 1)
    head, hair = mask[y, x] & inside, like[y, x] & inside & recovery.valid[y, x]
    reach = 0.0
    for side in (columns < 0, columns > 0):
        last = 0
        for row in range(rows):
            own = head[row] & side
            edge = np.abs(columns[own]).max() if own.any() else 0.045
            beside = (
                side
                & inside[row]
                & (np.abs(columns) > edge + BESIDE[0])
                & (np.abs(columns) < edge + BESIDE[1])
            )
            if beside.sum() < 3 or hair[row][beside].mean() < SHARE:
                if row - last > 2:
                    break
                continue
            last = row
        reach = max(reach, last * STEP)
    # The ears end some three centimetres below the first row.
    return float(np.clip(reach - 0.035, 0.0, 0.20)) if reach > 0.055 else 0.0
