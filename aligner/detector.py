"""Where the faces of a photo are: the descriptor network looks at the whole photo at several sizes.

On each level of an image pyramid the pixels that may show a face name the surface points that they
look like. From windows over them weak-perspective poses of the mean face are fitted, each pass
believing only the pixels that agree with the last: true faces draw whole faces of pixels together,
whatever their turn, while other things that look like skin agree on nothing. The score of a pose is
how fully and how purely it is agreed with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numba
import numpy as np
import torch

from dff.aligner.fitting.correspondence import match, vote
from dff.aligner.fitting.loop import FitModel
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, Network, image_batch
from dff.face.geometry.camera import Box
from dff.face.solve.gauss_newton import FaceState, pose_from_moments, project

OVERLAP = 0.3  # intersection over union from which two boxes are one face
INSIDE = 0.7  # share of the smaller box within the larger from which they are one face
MIN_PIXELS = 24  # fewer pixels of a face on a level propose nothing
NOISES = (
    0.3,
    0.2,
    0.12,
    0.08,
    0.08,
)  # fractions of a face's size: how far pixels may disagree, pass by pass
# fraction of a face's size: a pixel this far from where its point should be agrees to 60 %
AGREES = 0.06
UNITS = (14.0, 400.0)  # pixels of a level: sizes of faces that it can show
# pixels of a level: smaller faces are blurred and score lower, with the square of their size
CLEAR = 48.0
# side of a found face's square over the longer side of its box: ears, neck and hair belong to it
BESIDE = 1.7
# square pixels that look like a face and belong to none before they are worth another look
LEFT = 60.0
MARGIN = 16  # pixels of the photo round what is looked at again
TURNED_AWAY = 0.35  # how far behind the screen's plane a face may look: 20 degrees past profile


@dataclass(frozen=True)
class Detection:
    """A face that may be there."""

    box: Box  # of its 68 landmarks, upright and tight, pixels
    score: float = 1.0  # 0 to 1
    pose: FaceState | None = (
        None  # of one mean face; None where the finder knows no more than the box
    )


class FaceDetector(Protocol):
    """Finds faces."""

    def find(self, image: Bytes) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image, the surest first; none when no face is seen."""
        ...


@dataclass(frozen=True)
class Seen:
    """The pixels that may show a face, of a level or of the photo."""

    px: Floats  # (N, 2) pixels
    area: float  # square pixels that each of them stands for

    def photographed(self, scale: Floats) -> Seen:
        """The same in pixels of the photo: (2,) ``scale`` of them for one."""
        return Seen(self.px * scale, self.area * float(scale.prod()))


@dataclass(frozen=True)
class Search:
    """What is looked for and how hard. Raises ValueError for what makes no sense."""

    longest: int = 1024  # pixels that a photo's longer side is shrunk to before the search
    enlarged: int = 192  # pixels: a smaller photo's longer side is enlarged to this, at most twice
    again: int = (
        640  # pixels: the same for one more look, for small faces, at what no found face explains
    )
    ratio: float = 2.0  # between the sizes of neighbouring levels
    coarsest: int = 100  # pixels: levels with a shorter longer side are not looked at
    pixels: int = 2500  # of each level that are matched
    keep: int = 6  # anchors that a pixel may mean
    doubt: float = 0.25  # cosine at which a pixel is as likely to match nothing
    windows: tuple[float, ...] = (
        8.0,
        16.0,
    )  # pixels of a level: radii of the windows that poses start from
    most: int = 12  # windows of each radius on a level
    filled: float = 0.08  # share of a window that must show a face
    least: float = 0.12  # score of a face that is not small

    def __post_init__(self) -> None:
        counts = (
            self.longest,
            self.enlarged,
            self.again,
            self.coarsest,
            self.pixels,
            self.keep,
            self.most,
        )
        if min(counts) < 1 or self.ratio <= 1.0:
            raise ValueError(f"Search wants positive sizes and a ratio above one: {self}")


class DescriptorDetector:
    """Faces of every yaw and of in-plane turns to 60 degrees, as the descriptor sees them. Safe to
    share by threads.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        fit_model: FitModel,
        *,
        multiple: int = 32,
        search: Search | None = None,
    ):
        self.net = net
        self.fit_model = fit_model
        # Every second anchor is dense enough for a pose.
        self.descriptor, self.place, self.scale = (
            anchors.descriptor[::2],
            fit_model.anchor_mean[::2],
            anchors.scale,
        )
        self.multiple = multiple  # sides that the network takes are multiples of this
        self.search = search or Search()

    def find(self, image: Bytes) -> list[Detection]:
        found: list[Detection] = []
        finest: Seen | None = None
        for level, scale in levels(image, self.search, self.multiple):
            some, seen = self._on_level(level)
            found += [_photographed(one, scale) for one in some]
            finest = finest or seen.photographed(scale)
        assert finest is not None
        if max(image.shape[:2]) >= self.search.again:
            return distinct(found)
        found = distinct(found)
        part = unexplained(finest, found, image.shape) if found else (slice(None), slice(None))
        if part is not None:
            level, scale = next(
                levels(image[part], replace(self.search, enlarged=self.search.again), self.multiple)
            )
            corner = np.array([part[1].start or 0, part[0].start or 0])
            more = [_photographed(one, scale, corner) for one in self._on_level(level)[0]]
            found += [one for one in more if beside(one.box.centre[None], found).all()]
        return distinct(found)

    def _on_level(self, level: Bytes) -> tuple[list[Detection], Seen]:
        """Sightings in pixels of the level, several of each face, and the pixels that they rest
        on.
        """
        search, fit_model = self.search, self.fit_model
        height, width = level.shape[:2]
        padding = ((0, -height % self.multiple), (0, -width % self.multiple), (0, 0))
        with torch.inference_mode():
            features = self.net(image_batch(torch.from_numpy(np.pad(level, padding)[None])))
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        matches = match(
            features.descriptor[:, :, :rows, :columns].float().numpy(),
            features.face_logit[:, :rows, :columns].float().numpy(),
            self.descriptor,
            stride=STRIDE,
            pixels=search.pixels,
            keep=search.keep,
            sharpness=self.scale,
            doubt=search.doubt,
        )
        used = int((matches.mask[0] > 0).sum())
        seen = Seen(matches.grid[0, :used], float(matches.pitch[0]) ** 2)
        if used < MIN_PIXELS:
            return [], seen
        count = len(self.place)
        points, _, weights = vote(
            matches,
            matches.grid,
            np.zeros((1, count, 2)),
            np.full(1, np.inf),
            np.ones((1, count)),
            self.place,
            fit_model.no_basis[::2],
        )
        px, point, weight, mask = (
            seen.px,
            points[0, :used],
            weights[0, :used],
            matches.mask[0, :used],
        )
        cell = (px / STRIDE).astype(np.intp)  # (N, 2) column, row
        shown = np.zeros((rows, columns), np.float32)
        shown[cell[:, 1], cell[:, 0]] = weight * seen.area / STRIDE**2
        starts = [_peaks(shown, radius, search) for radius in search.windows]
        radius = np.repeat(search.windows, [len(some) for some in starts])
        if not len(radius):
            return [], seen
        pose = _grown(px, point, weight, np.concatenate(starts), radius, fit_model.size)
        unit = fit_model.unit(pose)
        sane = (unit > UNITS[0]) & (unit < UNITS[1]) & (pose.rotation[:, 2, 2] < TURNED_AWAY)
        sane &= np.isfinite(pose.centre).all(1)
        pose, unit = pose[sane], unit[sane]
        landmarks = project(
            pose,
            np.broadcast_to(fit_model.landmark_mean, (len(unit), *fit_model.landmark_mean.shape)),
        )
        out = []
        for i in _different(pose, unit):
            hull = cv2.convexHull(landmarks[i].astype(np.float32))
            inside = np.zeros((rows, columns), np.uint8)
            cv2.fillConvexPoly(
                inside, np.rint(hull * (8 / STRIDE) - 4).astype(np.int32), 1, shift=3
            )
            within = inside[cell[:, 1], cell[:, 0]] > 0
            away = px[within] - (
                pose.scale[i] * (point[within] @ pose.rotation[i, :2].T) + pose.centre[i]
            )
            agreed = float(
                (weight[within] * np.exp(-0.5 * (away**2).sum(1) / (AGREES * unit[i]) ** 2)).sum()
            )
            full = agreed * seen.area / max(float(cv2.contourArea(hull)), 1.0)
            pure = agreed / max(float(mask[within].sum()), 1.0)
            score = min(full, 1.0) * pure
            if score >= search.least * min(1.0, unit[i] / CLEAR) ** 2:
                out.append(Detection(Box.around(landmarks[i]), score, pose[i : i + 1]))
        return out, seen


def levels(image: Bytes, search: Search, multiple: int) -> Iterator[tuple[Bytes, Floats]]:
    """The (H, W, 3) image at falling sizes, each with its (2,) photo pixels (x, y) for one of its
    own.

    The longer side is a whole ``multiple``, so that little has to be padded. Small photos, which
    cost little, begin enlarged.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    wanted = float(min(max(longest, min(2 * longest, search.enlarged)), search.longest))
    first = True
    while first or wanted >= search.coarsest:
        side = max(int(wanted / multiple + 0.5), 1) * multiple
        scale = side / longest
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shrinks = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
        level = image if size == (width, height) else cv2.resize(image, size, interpolation=shrinks)
        yield level, np.array([width / size[0], height / size[1]])
        first, wanted = False, wanted / search.ratio


def _photographed(found: Detection, scale: Floats, corner: Floats | float = 0.0) -> Detection:
    """What was found on a level, in pixels of the photo: (2,) ``scale`` of them for one, from
    ``corner`` on.
    """
    assert found.pose is not None
    box, pose, mean = found.box, found.pose, float(scale.mean())
    low, high = (
        np.array([box.x0, box.y0]) * scale + corner,
        np.array([box.x1, box.y1]) * scale + corner,
    )
    return Detection(
        Box(*low.tolist(), *high.tolist()),
        found.score,
        FaceState(
            pose.scale * mean, pose.rotation, pose.centre * scale + corner, pose.coefficients
        ),
    )


def beside(px: Floats, found: list[Detection]) -> Bools:
    """(N,) which of (N, 2) pixels belong to none of the faces ``found``."""
    alone = np.ones(len(px), bool)
    for one in found:
        near = one.box.square(BESIDE)
        alone &= (px <= [near.x0, near.y0]).any(1) | (px >= [near.x1, near.y1]).any(1)
    return alone


def unexplained(
    seen: Seen, found: list[Detection], shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    """Rows and columns of an image of this ``shape`` that hold what looks like faces and belongs to
    none ``found``.

    None where that is less than a face could be.
    """
    px = seen.px[beside(seen.px, found)]
    if len(px) * seen.area < LEFT:
        return None
    low = np.maximum(px.min(0) - MARGIN, 0).astype(int)
    high = np.minimum(px.max(0) + MARGIN, [shape[1], shape[0]]).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _peaks(shown: Floats, radius: float, search: Search) -> Floats:
    """(S, 2) pixels of a level round which most of a face shows on the grid, the fullest first."""
    sigma = radius / STRIDE
    blurred = cv2.GaussianBlur(shown, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    side = 2 * int(0.75 * sigma) + 1
    row, column = np.nonzero(
        (blurred == cv2.dilate(blurred, np.ones((side, side)))) & (blurred > search.filled)
    )
    order = np.argsort(-blurred[row, column], kind="stable")[: search.most]
    return np.stack([column[order], row[order]], axis=1) * float(STRIDE) + STRIDE / 2


def _grown(
    px: Floats, point: Floats, weight: Floats, start: Floats, radius: Floats, size: float
) -> FaceState:
    """Poses that grew from windows of (S,) ``radius`` pixels round (S, 2) ``start`` to all pixels
    that agree.

    (N, 2) pixels, (N, 3) the points that they seem to show, (N,) how surely; ``size`` of a face in
    metres.
    """
    windows = len(start)
    rows, centre, reach = np.zeros((windows, 2, 3)), start, radius * np.sqrt(2.0)
    pose = None
    for noise in NOISES:
        moments, targets = np.zeros((windows, 4, 4)), np.zeros((windows, 4, 2))
        _gather(px, point, weight, rows, centre, reach, pose is None, moments, targets)
        pose = pose_from_moments(moments + 1e-9 * np.eye(4), targets, 0)
        rows = pose.scale[:, None, None] * pose.rotation[:, :2]
        centre = pose.centre
        reach = noise * np.clip(pose.scale * size, *UNITS)
    assert pose is not None
    return pose


@numba.njit(cache=True, nogil=True, fastmath=True)
def _gather(px, point, weight, rows, centre, reach, first, moments, targets):  # type: ignore[no-untyped-def]
    """Sums for ``pose_from_moments`` with weights that fall off with each pixel's distance from
    where its point is projected: Gaussian round the window's centre at first, then Geman-McClure's
    with the noise ``reach``."""
    p = np.ones(4)
    for s in range(len(rows)):
        slope = 1.0 / reach[s] ** 2
        for i in range(len(px)):
            dx = px[i, 0] - centre[s, 0]
            dy = px[i, 1] - centre[s, 1]
            for c in range(3):
                p[c] = point[i, c]
                dx -= rows[s, 0, c] * p[c]
                dy -= rows[s, 1, c] * p[c]
            square = (dx * dx + dy * dy) * slope
            if square > 16.0:
                continue
            w = weight[i] * (np.exp(-square) if first else 1.0 / (1.0 + square) ** 2)
            for a in range(4):
                for b in range(a + 1):
                    moments[s, a, b] += w * p[a] * p[b]
                targets[s, a, 0] += w * p[a] * px[i, 0]
                targets[s, a, 1] += w * p[a] * px[i, 1]
        for a in range(4):
            for b in range(a):
                moments[s, b, a] = moments[s, a, b]


def _different(pose: FaceState, unit: Floats) -> list[int]:
    """The first of every group of poses that came out the same."""
    kept: list[int] = []
    for i in range(len(unit)):
        for j in kept:
            close = float(np.linalg.norm(pose.centre[i] - pose.centre[j])) < 0.05 * unit[j]
            if close and abs(unit[i] / unit[j] - 1.0) < 0.05:
                break
        else:
            kept.append(i)
    return kept


def distinct(found: list[Detection]) -> list[Detection]:
    """The sightings by falling score, without those that show the face of a better one."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda detection: -detection.score):
        if not any(same_face(one.box, other.box) for other in kept):
            kept.append(one)
    return kept


def same_face(a: Box, b: Box) -> bool:
    """Whether two boxes mean one face: they overlap, or one lies within the other."""
    one, other = np.array([a.x0, a.y0, a.x1, a.y1]), np.array([b.x0, b.y0, b.x1, b.y1])
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.clip(high - low, 0.0, None)))
    smaller = min(a.width * a.height, b.width * b.height)
    return overlap(one, other) >= OVERLAP or shared >= INSIDE * smaller


def overlap(a: Floats, b: Floats) -> float:
    """Intersection over union of two (4,) boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0.0, None)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union
