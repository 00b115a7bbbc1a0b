"""The face detector: the descriptor network runs over the whole photo at several sizes.

On each level of an image pyramid the pixels that may show a face are matched to the surface points
that they look like. From windows over them weak-perspective poses of the mean face are fitted, each
pass weighing only the pixels that agree with the last: the pixels of a true face agree on one pose,
whatever its turn, while other things that look like skin agree on nothing. The score of a pose is
how fully and how purely its pixels agree with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numba
import numpy as np

from dff.aligner.area_shrinking import resize_in_steps, shrink_in_steps
from dff.aligner.config import DetectorConfig
from dff.aligner.detection import (
    OVERLAP,
    Detection,
    Search,
    distinct,
    overlap,
    same_face,
    search_to_end,
)
from dff.aligner.fitting.correspondence import match_pixels, soft_correspondence
from dff.aligner.fitting.fit_model import FitModel
from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Ints
from dff.face.descriptor import STRIDE, Anchors, Network
from dff.face.fused_network import describe_in_steps
from dff.face.geometry.camera import Box
from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import FaceState, pose_of_moments, project
from dff.face.solve.robust import geman_mcclure


@dataclass(frozen=True)
class FacePixels:
    """The pixels that may show a face, of a level or of the photo."""

    px: Float[Array, "pixels 2"]  # pixels
    area: float  # square pixels that each of them stands for

    def in_photo(self, scale: Floats) -> FacePixels:
        """The same in pixels of the photo: (2,) ``scale`` of them for one."""
        return FacePixels(self.px * scale, self.area * float(scale.prod()))


@dataclass(frozen=True)
class LevelMatches:
    """The pixels of a level that may show a face, each with the surface point that it is like."""

    seen: FacePixels
    point: Float[Array, "pixels 3"]  # metres on the template
    weight: Float[Array, " pixels"]  # probability that the pixel shows that point
    mask: Float[Array, " pixels"]  # probability that the pixel shows a face
    grid: tuple[int, int]  # rows and columns of the network's grid

    @property
    def cell(self) -> Ints:
        """(N, 2) column and row of each pixel on the network's grid."""
        return (self.seen.px / STRIDE).astype(np.intp)


class DescriptorDetector:
    """Detects faces of every yaw and of in-plane turns to 60 degrees.

    Frozen once made: threads may share it.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        fit_model: FitModel,
        *,
        multiple: int = 32,
        config: DetectorConfig | None = None,
    ) -> None:
        """``multiple``: sides of images that the network takes are multiples of this."""
        self.net = net
        self.fit_model = fit_model
        # Every second anchor is dense enough for a pose.
        self.descriptor = anchors.descriptor[::2]
        self.place = fit_model.anchor_mean[::2]
        self.scale = anchors.scale
        self.multiple = multiple
        self.config = config or DetectorConfig()

    def without_tiles(self) -> DescriptorDetector:
        """The same detector, which searches large photos shrunk as a whole only."""
        whole = copy(self)
        whole.config = replace(self.config, untiled=sys.maxsize)
        return whole

    def find(self, image: Bytes) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image by falling score; none when no face is seen.

        Photos up to ``DetectorConfig.untiled`` pixels wide and high are searched as a whole. Larger
        ones also in overlapping tiles at their own resolution and at each halving of it, so that
        faces of 32 pixels of the photo are searched for in any photo (10 of 12 such faces were
        found in a photo of 24 million pixels). That takes 0.6 to 0.9 s of a CPU core for each
        million pixels, and memory for one tile at a time.
        """
        return search_to_end(self.find_in_steps(image))

    def find_in_steps(self, image: Bytes) -> Search[list[Detection]]:
        """``find`` in steps: each shrinks the photo to a level, or searches a level or a tile.

        For large photos, levels and tiles that takes several of them.
        """
        found, seen = yield from self._search_whole(image)
        if max(image.shape[:2]) <= self.config.untiled:
            return found
        more = yield from self._search_tiles(image, found, seen)
        return distinct([*found, *(one for one in more if not _known(one, found))])

    def find_on_level(self, level: Bytes, pixels: int) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image at its own resolution alone, each once.

        ``pixels``: of it that are matched, at most.
        """
        return distinct(search_to_end(self._search_level(level, pixels))[0])

    def _search_whole(self, image: Bytes) -> Search[tuple[list[Detection], FacePixels]]:
        """Faces of the photo shrunk to ``longest`` and below, and the last level's face pixels.

        Without ``all_levels`` the finest level, which costs most, is left out where sharp and
        likely faces explain all face pixels of the level before.
        """
        config = self.config
        pyramid = yield from build_levels(image, config, self.multiple)
        coarse, seen = yield from self._search_levels(pyramid[1:])
        if seen and coarse and not config.all_levels:
            found, sharp = distinct(coarse), config.sharp * pyramid[1][1].max()
            if all(one.box.size >= sharp and one.score >= config.likely for one in found) and (
                unexplained(seen, found, image.shape, config) is None
            ):
                return found, seen
        more, finest = yield from self._search_levels(pyramid[:1])
        assert finest is not None
        found = distinct([*more, *coarse])
        if max(image.shape[:2]) >= config.second_search:
            return found, finest
        part = unexplained(finest, found, image.shape, config) if found else (slice(None),) * 2
        if part is None:
            return found, finest
        yield
        larger = replace(config, enlarged=config.second_search)
        size, *_ = level_sizes(image[part].shape, larger, self.multiple)
        enlarged, scale = yield from build_level(image[part], size)
        corner = np.array([part[1].start or 0, part[0].start or 0])
        again, _ = yield from self._search_level(enlarged)
        more = [one.in_photo(scale, corner) for one in again]
        found += [one for one in more if beside(one.box.centre[None], found, config).all()]
        return distinct(found), finest

    def _search_levels(
        self, pyramid: Sequence[tuple[Bytes, Floats]]
    ) -> Search[tuple[list[Detection], FacePixels | None]]:
        """Detections on some ``levels``, and the face pixels of the first of them."""
        found: list[Detection] = []
        first: FacePixels | None = None
        for level, scale in pyramid:
            yield
            some, seen = yield from self._search_level(level)
            found += [one.in_photo(scale) for one in some]
            first = first or seen.in_photo(scale)
        return found, first

    def _search_tiles(
        self, image: Bytes, found: Sequence[Detection], seen: FacePixels
    ) -> Search[list[Detection]]:
        """Faces of at most a tile overlap, in the tiles of every level above ``untiled``.

        The finest level costs most. It is searched only where the level before, on which the
        smallest faces are 16 pixels large, shows face pixels of no known face. ``found`` and
        ``seen``: the faces and face pixels of the photo as a whole.
        """
        more: list[Detection] = []
        pixels = seen.px
        sides = _tiled_sides(image.shape, self.config)
        for side in sides:
            scale = np.full(2, max(image.shape[:2]) / side)
            level = image
            if scale[0] != 1.0:
                size = np.maximum(np.rint(np.array(image.shape[1::-1]) / scale), 1).astype(int)
                level = yield from shrink_in_steps(image, (int(size[0]), int(size[1])))
                scale = image.shape[1::-1] / size
            parts = tiles(level.shape, self.config)
            if side == sides[-1]:
                unknown = pixels[beside(pixels, [*found, *more], self.config)] / scale
                parts = [part for part in parts if _inside(unknown, part).any()]
            coarser = []
            for part in parts:
                yield
                some, face = yield from self._search_tile(level, part)
                more += [one.in_photo(scale) for one in some]
                coarser.append(face.px * scale)
            pixels = np.concatenate([*coarser, np.zeros((0, 2))])
        return distinct(more)

    def _search_tile(
        self, level: Bytes, part: tuple[slice, slice]
    ) -> Search[tuple[list[Detection], FacePixels]]:
        """Faces that lie whole in a tile, and its face pixels, in pixels of the level."""
        config, corner = self.config, np.array([part[1].start, part[0].start])
        some, seen = yield from self._search_level(np.ascontiguousarray(level[part]))
        return [
            one.in_photo(np.ones(2), corner)
            for one in some
            if one.box.size >= config.tile_smallest
            and _whole(one.box.centre + corner, part, level.shape, config)
        ], FacePixels(seen.px + corner, seen.area)

    def _search_level(
        self, level: Bytes, pixels: int | None = None
    ) -> Search[tuple[list[Detection], FacePixels]]:
        """Detections in pixels of the level, several of each face, and the pixels behind them.

        ``pixels`` that are matched, at most; by default ``DetectorConfig.pixels``.
        """
        matched = yield from self._match_level(level, pixels or self.config.pixels)
        if len(matched.point) < self.config.fewest:
            return [], matched.seen
        yield
        pose = self._propose(matched)
        scored = [
            (pose[i : i + 1], *self._score(matched, pose[i : i + 1]))
            for i in range(len(pose.scale))
        ]
        sizes, config = self.fit_model.face_size(pose), self.config
        return [
            Detection(box, score, one)
            for (one, box, score), size in zip(scored, sizes, strict=True)
            if score >= config.least * min(1.0, size / config.sharp) ** 2
        ], matched.seen

    def _match_level(self, level: Bytes, pixels: int) -> Search[LevelMatches]:
        config = self.config
        height, width = level.shape[:2]
        padded = pad_to_multiple(level, self.multiple)
        descriptor, face_logit = yield from describe_in_steps(self.net, padded)
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        matches = match_pixels(
            descriptor[None, :rows, :columns].transpose(0, 3, 1, 2),
            face_logit[None, :rows, :columns],
            self.descriptor,
            stride=STRIDE,
            pixels=pixels,
            candidates=config.candidates,
            sharpness=self.scale,
            no_match_cosine=config.no_match_cosine,
        )
        used = int((matches.mask[0] > 0).sum())
        count = len(self.place)
        points, _, weights = soft_correspondence(
            matches,
            matches.grid,
            np.zeros((1, count, 2)),
            np.full(1, np.inf),
            np.ones((1, count)),
            self.place,
            self.fit_model.rigid_basis[::2],
        )
        seen = FacePixels(matches.grid[0, :used], float(matches.pitch[0]) ** 2)
        return LevelMatches(
            seen, points[0, :used], weights[0, :used], matches.mask[0, :used], (rows, columns)
        )

    def _propose(self, matched: LevelMatches) -> FaceState:
        """Poses of the mean face that grew from windows full of face pixels, each once."""
        config, seen, cell = self.config, matched.seen, matched.cell
        shown = np.zeros(matched.grid, np.float32)
        shown[cell[:, 1], cell[:, 0]] = matched.weight * seen.area / STRIDE**2
        starts = [_find_peaks(shown, radius, config) for radius in config.windows]
        radius = np.repeat(config.windows, [len(some) for some in starts])
        pose = _grow(matched, np.concatenate(starts), radius, self.fit_model.size, config)
        size = self.fit_model.face_size(pose)
        possible = (size > config.smallest) & (size < config.largest)
        possible &= pose.rotation[:, 2, 2] < config.turned_away
        possible &= np.isfinite(pose.centre).all(1)
        pose, size = pose[possible], size[possible]
        return pose[np.array(_different(pose, size), dtype=np.intp)]

    def _score(self, matched: LevelMatches, pose: FaceState) -> tuple[Box, float]:
        """The landmark box of one pose, and how fully and purely the pixels in it agree."""
        mean, seen, cell = self.fit_model.landmark_mean[None], matched.seen, matched.cell
        landmarks = project(pose, mean)[0]
        hull = cv2.convexHull(landmarks.astype(np.float32))
        inside = np.zeros(matched.grid, np.uint8)
        cv2.fillConvexPoly(inside, np.rint(hull * (8 / STRIDE) - 4).astype(np.int32), 1, shift=3)
        within = inside[cell[:, 1], cell[:, 0]] > 0
        turned = matched.point[within] @ pose.rotation[0, :2].T
        away = seen.px[within] - (pose.scale[0] * turned + pose.centre[0])
        reach = self.config.agreement * self.fit_model.face_size(pose)[0]
        agreement = np.exp(-0.5 * (away**2).sum(1) / reach**2)
        agreed = float((matched.weight[within] * agreement).sum())
        full = agreed * seen.area / max(float(cv2.contourArea(hull)), 1.0)
        pure = agreed / max(float(matched.mask[within].sum()), 1.0)
        return Box.around(landmarks), min(full, 1.0) * pure


def pad_to_multiple(image: Bytes, multiple: int) -> Bytes:
    """An (H, W, 3) image with black rows and columns behind it, so that sides are multiples."""
    height, width = image.shape[:2]
    down, across = -height % multiple, -width % multiple
    if not down and not across:
        return image
    padded = np.zeros((height + down, width + across, 3), np.uint8)
    padded[:height, :width] = image
    return padded


def level_sizes(
    shape: tuple[int, ...], config: DetectorConfig, multiple: int
) -> list[tuple[int, int]]:
    """Falling widths and heights of the levels of an image of this ``shape``.

    The longer side is a whole ``multiple``, so that little has to be padded. Small photos, which
    cost little, begin enlarged.
    """
    height, width = shape[:2]
    longest = max(height, width)
    wanted = float(min(max(longest, min(2 * longest, config.enlarged)), config.longest))
    sizes = list[tuple[int, int]]()
    while not sizes or wanted >= config.coarsest:
        scale = max(int(wanted / multiple + 0.5), 1) * multiple / longest
        sizes.append((max(1, round(width * scale)), max(1, round(height * scale))))
        wanted /= config.ratio
    return sizes


def build_level(image: Bytes, size: tuple[int, int]) -> Search[tuple[Bytes, Floats]]:
    """The (H, W, 3) image at this width and height, with (2,) its pixels (x, y) for one of it."""
    level = yield from resize_in_steps(image, size)
    return level, np.array([image.shape[1] / size[0], image.shape[0] / size[1]])


def build_levels(
    image: Bytes, config: DetectorConfig, multiple: int
) -> Search[list[tuple[Bytes, Floats]]]:
    """``build_level`` of each of the ``level_sizes``; yields after each."""
    found = []
    for size in level_sizes(image.shape, config, multiple):
        level = yield from build_level(image, size)
        found.append(level)
        yield
    return found


def tiles(shape: tuple[int, ...], config: DetectorConfig) -> list[tuple[slice, slice]]:
    """Rows and columns of tiles that cover an image of this ``shape``.

    Neighbours share at least ``tile_overlap`` pixels.
    """

    def along(length: int) -> list[slice]:
        step = config.tile - config.tile_overlap
        count = max(-(-(length - config.tile_overlap) // step), 1)
        side = min(length, config.tile)
        starts = np.linspace(0, length - side, count).astype(int).tolist()
        return [slice(start, start + side) for start in starts]

    return list(product(along(shape[0]), along(shape[1])))


def _tiled_sides(shape: tuple[int, ...], config: DetectorConfig) -> list[float]:
    """The longer sides, by rising size, at which a photo of this ``shape`` is cut into tiles."""
    side, sides = float(min(max(shape[:2]), config.tiled_longest)), list[float]()
    while side > config.untiled:
        sides.insert(0, side)
        side /= 2
    return sides


def _inside(px: Floats, part: tuple[slice, slice]) -> Bools:
    """(N,) which of (N, 2) pixels lie in these rows and columns."""
    low, high = [part[1].start, part[0].start], [part[1].stop, part[0].stop]
    return np.asarray(((px >= low) & (px < high)).all(1))


def _whole(
    centre: Floats, part: tuple[slice, slice], shape: tuple[int, ...], config: DetectorConfig
) -> bool:
    """Whether a face about (2,) ``centre`` is far from the inner edges of a tile of an image.

    The faces that a tile cuts lie whole in its neighbour.
    """
    edge = config.tile_overlap / 2
    return all(
        (along.start == 0 or at >= along.start + edge)
        and (along.stop == length or at <= along.stop - edge)
        for at, along, length in zip(centre[::-1], part, shape[:2], strict=True)
    )


def _known(one: Detection, found: Sequence[Detection]) -> bool:
    """Whether a detection shows a face that is ``found``.

    A large and unlikely one does not hide a small one within it.
    """
    return any(
        same_face(one.box, other.box)
        and (other.score >= one.score or overlap(one.box.corners, other.box.corners) >= OVERLAP)
        for other in found
    )


def beside(px: Floats, found: Sequence[Detection], config: DetectorConfig) -> Bools:
    """(N,) which of (N, 2) pixels belong to none of the faces ``found``."""
    alone = np.ones(len(px), bool)
    for one in found:
        near = one.box.square(config.surroundings)
        alone &= (px <= [near.x0, near.y0]).any(1) | (px >= [near.x1, near.y1]).any(1)
    return alone


def unexplained(
    seen: FacePixels, found: Sequence[Detection], shape: tuple[int, ...], config: DetectorConfig
) -> tuple[slice, slice] | None:
    """Rows and columns of an image of this ``shape`` that hold face pixels of none of ``found``.

    None where these are fewer than those of a face could be.
    """
    px = seen.px[beside(seen.px, found, config)]
    if len(px) * seen.area < config.unexplained:
        return None
    low = np.maximum(px.min(0) - config.margin, 0).astype(int)
    high = np.minimum(px.max(0) + config.margin, [shape[1], shape[0]]).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _find_peaks(shown: Floats, radius: float, config: DetectorConfig) -> Floats:
    """(S, 2) pixels of a level round which most of a face shows on the grid, the fullest first."""
    sigma = radius / STRIDE
    blurred = cv2.GaussianBlur(shown, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    side = 2 * int(0.75 * sigma) + 1
    row, column = np.nonzero(
        (blurred == cv2.dilate(blurred, np.ones((side, side)))) & (blurred > config.filled)
    )
    order = np.argsort(-blurred[row, column], kind="stable")[: config.most]
    return np.stack([column[order], row[order]], axis=1) * float(STRIDE) + STRIDE / 2


def _grow(
    matched: LevelMatches, start: Floats, radius: Floats, size: float, config: DetectorConfig
) -> FaceState:
    """Poses that grow from windows of (S,) ``radius`` pixels round (S, 2) ``start``.

    They come to rest on all pixels that agree; ``size`` of a face in metres.
    """
    windows, least, most = len(start), config.smallest, config.largest
    scale, rotation, centre = np.empty(windows), np.empty((windows, 3, 3)), start.copy()
    pixels, noise = (matched.seen.px, matched.point, matched.weight), np.array(config.noise)
    _grow_windows(*pixels, radius, noise, size, least, most, scale, rotation, centre)
    return FaceState(scale, rotation, centre, np.zeros((windows, 0)))


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _grow_windows(  # type: ignore[no-untyped-def]
    px, point, weight, radius, noises, size, least, most, scale, rotation, centre
):
    """Fill the poses of ``_grow``, of faces of ``least`` to ``most`` pixels.

    (S, 2) ``centre`` holds the middles of the windows before.
    """
    moments, targets, rows = np.empty((4, 4)), np.empty((4, 2)), np.empty((2, 3))
    for s in range(len(centre)):
        rows[:], reach = 0.0, radius[s] * np.sqrt(2.0)
        for number in range(len(noises)):
            _gather(px, point, weight, rows, centre[s], reach, number == 0, moments, targets)
            for a in range(4):
                moments[a, a] += 1e-9
            scale[s], turned, centre[s] = pose_of_moments(moments, targets)
            rotation[s] = turned
            rows[:] = scale[s] * turned[:2]
            reach = noises[number] * min(max(scale[s] * size, least), most)


@numba.njit(cache=CACHE, nogil=True, fastmath=True)
def _gather(px, point, weight, rows, centre, reach, first, moments, targets):  # type: ignore[no-untyped-def]
    """Fill what ``pose_of_moments`` takes, for one window.

    Weights fall off with a pixel's distance from where its point is projected: Gaussian round the
    window's centre at first, then Geman-McClure's with the noise ``reach``.
    """
    moments[:], targets[:] = 0.0, 0.0
    p, slope = np.ones(4), 1.0 / reach**2
    for i in range(len(px)):
        dx, dy = px[i, 0] - centre[0], px[i, 1] - centre[1]
        for c in range(3):
            p[c] = point[i, c]
            dx -= rows[0, c] * p[c]
            dy -= rows[1, c] * p[c]
        square = (dx * dx + dy * dy) * slope
        if square > 16.0:
            continue
        w = weight[i] * (np.exp(-square) if first else geman_mcclure(square))
        for a in range(4):
            for b in range(a + 1):
                moments[a, b] += w * p[a] * p[b]
            targets[a, 0] += w * p[a] * px[i, 0]
            targets[a, 1] += w * p[a] * px[i, 1]
    for a in range(4):
        for b in range(a):
            moments[b, a] = moments[a, b]


def _different(pose: FaceState, size: Floats) -> list[int]:
    """The first of every group of poses that came out the same."""
    kept: list[int] = []
    for i in range(len(size)):
        for j in kept:
            close = float(np.linalg.norm(pose.centre[i] - pose.centre[j])) < 0.05 * size[j]
            if close and abs(size[i] / size[j] - 1.0) < 0.05:
                break
        else:
            kept.append(i)
    return kept
