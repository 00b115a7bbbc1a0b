"""Match points of one photo in another: "click a point here, find it there".

The faces of both photos are aligned and described by the network with test-time augmentation
(``dff.face.matching``). A point of the first face is searched among the pixels of the second by the
Bhattacharyya coefficient of the anchor probabilities. The two fitted meshes predict the match too:
the surface point that the first mesh shows there, on the second mesh. The prediction is a Gaussian
prior of the search, capped because a fit may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.face_request import Steps
from dff.aligner.fitting.crop import Crops, frame_faces
from dff.aligner.found_faces import describe_missing_face
from dff.aligner.image_checks import check_image
from dff.aligner.load import load_aligner
from dff.aligner.matching.calibration import CALIBRATION, MatchCalibration, match_features
from dff.aligner.matching.config import MatchConfig
from dff.aligner.matching.found_points import NO_POINTS
from dff.aligner.matching.result import PointMatches
from dff.aligner.matching.surface import FaceSurface, Projection
from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Int, Ints
from dff.face.descriptor import FRAMING, STRIDE
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box
from dff.face.geometry.interpolation import bilinear
from dff.face.matching import (
    PEAK_SHARPNESS,
    CropFeatures,
    augment_for_matching,
    describe_crop,
    find_peaks,
    pixel_centres,
    root_probabilities,
)
from dff.face.model.landmarks import INDEX


@dataclass(frozen=True, eq=False)
class DescribedFace:
    """An aligned face with the descriptors of its crop."""

    alignment: Alignment
    crop: Crops  # one, upright on the head
    features: CropFeatures
    surface: FaceSurface
    size: float  # of the face, pixels of the photo
    candidates: Int[Array, " candidates"]  # output pixels that show the face
    roots: Float[Array, "candidates roots"]  # of their anchor probabilities

    def grid_from_photo(self, px: Floats) -> Floats:
        """(N, 2) pixels of the photo to output px of the crop."""
        return self.crop.crop_from_photo(px[None])[0] / STRIDE

    def photo_from_grid(self, px: Floats) -> Floats:
        """(N, 2) output px of the crop to pixels of the photo."""
        return self.crop.photo_from_crop(px[None] * STRIDE)[0]

    @property
    def pitch(self) -> float:
        """Pixels of the photo for an output px."""
        return float(self.crop.side[0] / self.crop.size * STRIDE)

    def face_logit(self, px: Floats) -> Floats:
        """(N,) log odds that (N, 2) pixels of the photo show the face; very low outside."""
        grid = self.grid_from_photo(px)
        inside = ((grid >= 0) & (grid < self.features.side)).all(1)
        logit = bilinear(self.features.face_logit[..., None], grid)[:, 0]
        return np.where(inside, logit, -np.inf)


@dataclass(frozen=True, eq=False)
class PointSelection:
    """Which points of the first photo to match, and between which faces."""

    points: Floats | Sequence[Sequence[float]] = ()  # (N, 2) pixels of the first photo
    # names and vertices of the face model, on the first photo's face
    landmarks: Sequence[str] = ()
    vertices: Sequence[int] = ()
    box_a: Box | None = None  # of the first photo's face; None: the largest
    box_b: Box | None = None  # of the second photo's face; None: the largest


@dataclass(frozen=True, eq=False)
class Query:
    """N points to be found in another photo, of one face."""

    roots: Float[Array, "points roots"]  # of their anchor probabilities
    prediction: Projection  # in the second photo, by the fitted meshes

    def take(self, rows: Bools) -> Query:
        """The query of some of the points."""
        some = self.prediction
        projection = Projection(some.px[rows], some.facing[rows], some.behind[rows])
        return Query(self.roots[rows], projection)


@dataclass(frozen=True, eq=False)
class Found:
    """The matches of N points of one face."""

    px: Float[Array, "points 2"]  # pixels of the second photo
    features: Float[Array, "points features"]  # of their calibration
    cosine: Float[Array, "points candidates"]  # Bhattacharyya coefficients


class Matcher:
    """Matches points between photos with the network and the fits of an aligner.

    Frozen once made: threads may share it.
    """

    def __init__(
        self,
        aligner: Aligner,
        *,
        config: MatchConfig | None = None,
        calibration: MatchCalibration = CALIBRATION,
        on_choice: Callable[[str, Sequence[Alignment]], None] = lambda photo, faces: None,
    ) -> None:
        """``on_choice`` sees "the first photo" or "the second photo" and its faces, the largest
        first, when the largest of several faces is taken.
        """
        self.aligner, self.on_choice = aligner, on_choice
        self.config = config or MatchConfig()
        self.calibration = calibration
        self.net = augment_for_matching(aligner.net, multiple=aligner.multiple)

    def match(
        self,
        image_a: Bytes,
        points: Floats | Sequence[Sequence[float]],
        image_b: Bytes,
        *,
        landmarks: Sequence[str] = (),
        vertices: Sequence[int] = (),
        box_a: Box | None = None,
        box_b: Box | None = None,
    ) -> PointMatches:
        """Find points of the first photo in the second; faces may be of one person or two.

        Both images are (H, W, 3) uint8 RGB. ``points``: (N, 2) pixels of the first. They are
        followed by ``landmarks``, names of ``dff.face.model.landmarks``, and ``vertices`` of the
        face model, both on the largest face of the first photo. The second photo's face is its
        largest one. ``box_a`` and ``box_b`` say which face is meant instead.

        Raises BadPhoto as ``Aligner.align``; NoFace when a photo shows none; ValueError for points
        outside the first photo, unknown landmarks and vertices, or nothing to match.
        """
        selection = PointSelection(points, landmarks, vertices, box_a, box_b)
        faces = self.aligner.config.batch
        steps = self.match_in_steps(image_a, image_b, selection, faces=faces)
        return self.aligner.run_to_end(steps)

    def match_in_steps(
        self, image_a: Bytes, image_b: Bytes, selection: PointSelection, *, faces: int
    ) -> Steps[PointMatches]:
        """``match`` as a generator that returns its value and yields between steps.

        As ``Aligner.align_in_steps``. A further step describes one face.
        """
        landmarks, vertices = selection.landmarks, selection.vertices
        check_image(image_a)
        check_image(image_b)
        clicked = check_points(selection.points, image_a)
        wanted = check_vertices(landmarks, vertices, self.aligner)
        if not len(clicked) + len(wanted):
            raise ValueError(NO_POINTS)
        found = yield from self._find_faces(image_a, selection.box_a, "the first photo", faces)
        second = yield from self._find_faces(image_b, selection.box_b, "the second photo", faces)
        if len(wanted):
            self._tell_choice("the first photo", found)
        self._tell_choice("the second photo", second)
        described_second = self.describe(image_b, second[0])
        owner = assign_points(found, clicked)
        described = {}
        for i in sorted({*owner.tolist(), *([0] if len(wanted) else [])} - {-1}):
            yield None
            described[i] = self.describe(image_a, found[i])
        yield None
        names = [f"{x:g},{y:g}" for x, y in clicked]
        names += [*landmarks, *(f"vertex {v}" for v in vertices)]
        return self._collect(tuple(names), clicked, wanted, owner, described, described_second)

    def _find_faces(
        self, image: Bytes, box: Box | None, photo: str, faces: int
    ) -> Steps[list[Alignment]]:
        """The faces of a photo, by the size of their part within it, the largest first.

        In steps, as ``Aligner.align_in_steps``. Raises NoFace, which names the ``photo``.
        """
        boxes = None if box is None else [[box]]
        (found,) = yield from self.aligner.align_in_steps([image], boxes, faces=faces)
        good = [face for face in found if not face.failed]
        if not good:
            if found:
                raise NoFace(f"no face found in {photo} in its box: {found[0].reason}")
            raise NoFace(describe_missing_face(found, photo))
        seen = [np.clip(face.landmarks_3d[:, :2], 0, image.shape[1::-1]) for face in good]
        areas = np.array([np.ptp(points, axis=0).prod() for points in seen])
        return [good[i] for i in np.argsort(-areas, kind="stable")]

    def _tell_choice(self, photo: str, faces: Sequence[Alignment]) -> None:
        if len(faces) > 1:
            self.on_choice(photo, faces)

    def describe_largest_in_steps(
        self, image: Bytes, box: Box | None = None, *, faces: int
    ) -> Steps[DescribedFace]:
        """Describe the largest face of a photo, or that of a box, in steps as ``match_in_steps``.

        Raises BadPhoto and NoFace.
        """
        check_image(image)
        found = yield from self._find_faces(image, box, "the photo", faces)
        return self.describe(image, found[0])

    def describe(self, image: Bytes, alignment: Alignment) -> DescribedFace:
        """Describe an aligned face of an (H, W, 3) uint8 RGB image for matching."""
        fit_model = self.aligner.fit_model
        state = fit_model.state_of_alignments([alignment], alignment.camera.inverse_depth)
        crop = frame_faces(fit_model, state, FRAMING, self.config.crop)
        features = describe_crop(self.net, crop.cut(image, 0), mirrored=True)
        corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * float(self.config.crop)
        part = Box.around(crop.photo_from_crop(corners[None])[0])
        surface = FaceSurface.of(alignment, self.aligner.model.faces, part, self.config.surface)
        candidates = np.flatnonzero(features.face_logit > 0)
        if not len(candidates):
            raise NoFace("no pixel of the crop shows a face")
        centres = pixel_centres(candidates, features.side)
        roots = features.anchor_roots(self.aligner.anchors, centres)
        size = float(fit_model.face_size(state)[0])
        return DescribedFace(alignment, crop, features, surface, size, candidates, roots)

    def query_points(
        self, first: DescribedFace, px: Floats, second: DescribedFace
    ) -> tuple[Query, Bools]:
        """The query for (N, 2) pixels of the first face, and whether each shows the face."""
        points, on_mesh = first.surface.locate(px, self.config.reach * first.size)
        roots = first.features.anchor_roots(self.aligner.anchors, first.grid_from_photo(px))
        on_face = on_mesh & (first.face_logit(px) > 0)
        return Query(roots, second.surface.project(points)), on_face

    def query_vertices(
        self, first: DescribedFace, vertices: Ints, second: DescribedFace
    ) -> tuple[Query, Floats]:
        """The query for (N,) vertices of the model, and their (N, 2) pixels in the first photo.

        A vertex that the first photo hides is searched by the descriptor of its nearest anchor.
        """
        here = first.surface.project_vertices(vertices)
        roots = first.features.anchor_roots(self.aligner.anchors, first.grid_from_photo(here.px))
        hidden = (here.facing <= 0) | (here.behind > self.config.occlusion)
        hidden |= first.face_logit(here.px) <= 0
        roots[hidden] = self._vertex_roots(vertices[hidden])
        return Query(roots, second.surface.project_vertices(vertices)), here.px

    def _vertex_roots(self, vertices: Ints) -> Floats:
        """(N, 2 A) roots of the anchor probabilities expected at (N,) vertices, as those of crops:
        of the vertex, then of its counterpart on the other side of the face.
        """
        anchors, model = self.aligner.anchors, self.aligner.model
        parts = []
        for some in (vertices, model.mirror[vertices]):
            apart = model.template[some][:, None] - anchors.position[None]
            nearest = np.linalg.norm(apart, axis=2).argmin(1)
            parts.append(root_probabilities(anchors, anchors.descriptor[nearest]))
        return np.concatenate(parts, axis=1) / np.float32(np.sqrt(2.0))

    def search(self, query: Query, second: DescribedFace) -> Found:
        """Find the points of a query among the pixels of the second face."""
        side, config = second.features.side, self.config
        cosine = query.roots @ second.roots.T
        expected = second.grid_from_photo(query.prediction.px)
        offset = expected[:, None] - pixel_centres(second.candidates, side)
        square = (offset**2).sum(2) * (second.pitch / second.size / config.prior_sd) ** 2
        prior = np.minimum(square / 2, config.prior_cap) / PEAK_SHARPNESS
        score = (cosine - prior).astype(np.float32)
        px = second.photo_from_grid(find_peaks(score, second.candidates, side))
        similarity = np.take_along_axis(cosine, score.argmax(1)[:, None], axis=1)[:, 0]
        logit = second.face_logit(query.prediction.px)
        return Found(px, match_features(query.prediction, logit, similarity), cosine)

    def match_every_pixel(
        self, image_a: Bytes, image_b: Bytes, *, box_a: Box | None = None, box_b: Box | None = None
    ) -> Floats:
        """(H, W, 4) float32 dense map from the first photo's face: x, y, probability, visibility.

        x and y are pixels of the second photo, as ``match`` finds them; visibility is the
        probability that the second photo shows the point. Computed at each output pixel of the
        network and interpolated; NaN where the first photo shows no face. The faces are the largest
        ones, or those of the boxes. Raises as ``match``.
        """
        faces = self.aligner.config.batch
        steps = self.match_every_pixel_in_steps(image_a, image_b, (box_a, box_b), faces=faces)
        return self.aligner.run_to_end(steps)

    def match_every_pixel_in_steps(
        self,
        image_a: Bytes,
        image_b: Bytes,
        boxes: tuple[Box | None, Box | None] = (None, None),
        *,
        faces: int,
    ) -> Steps[Floats]:
        """``match_every_pixel`` in steps like those of ``match_in_steps``.

        Others match ``MatchConfig.dense_batch`` output pixels. ``boxes``: of both photos.
        """
        check_image(image_a)
        check_image(image_b)
        found_a = yield from self._find_faces(image_a, boxes[0], "the first photo", faces)
        first = self.describe(image_a, found_a[0])
        yield None
        found_b = yield from self._find_faces(image_b, boxes[1], "the second photo", faces)
        self._tell_choice("the first photo", found_a)
        self._tell_choice("the second photo", found_b)
        second = self.describe(image_b, found_b[0])
        side = first.features.side
        grid = np.full((side * side, 4), np.nan, dtype=np.float32)
        for begin in range(0, len(first.candidates), self.config.dense_batch):
            yield None
            pixels = first.candidates[begin : begin + self.config.dense_batch]
            px = first.photo_from_grid(pixel_centres(pixels, side))
            query, good = self.query_points(first, px, second)
            query = query.take(good)
            found = self.search(query, second)
            visible, right = self.calibration.probabilities(found.features)
            place = np.where((visible > 0.5)[:, None], found.px, query.prediction.px)
            grid[pixels[good]] = np.column_stack([place, right, visible])
        return _spread(grid.reshape(side, side, 4), first, image_a.shape[:2])

    def _collect(
        self,
        names: tuple[str, ...],
        clicked: Floats,
        vertices: Ints,
        owner: Ints,
        described: dict[int, DescribedFace],
        second: DescribedFace,
    ) -> PointMatches:
        """Search the clicked points, face by face, and the vertices, and put them in one answer."""
        n, total, sharpness = len(clicked), len(names), self.config.heat_sharpness
        source = np.concatenate([clicked, np.zeros((len(vertices), 2))])
        px, on_face = np.full((total, 2), np.nan), np.zeros(total, dtype=bool)
        probability, visibility = np.zeros(total), np.zeros(total)
        heat = np.zeros((total, second.features.side**2), dtype=np.float32)
        faces: list[Alignment | None] = [None] * total
        for i, first in described.items():
            rows = np.flatnonzero(owner == i)
            query, good = self.query_points(first, clicked[rows], second)
            jobs = [(rows[good], query.take(good))]
            if i == 0 and len(vertices):
                query, source[n:] = self.query_vertices(first, vertices, second)
                jobs.append((np.arange(n, total), query))
            for rows, query in jobs:
                found = self.search(query, second)
                visible, right = self.calibration.probabilities(found.features)
                shown = (visible > 0.5)[:, None]
                px[rows] = np.where(shown, found.px, query.prediction.px)
                visibility[rows], probability[rows], on_face[rows] = visible, right, True
                relative = found.cosine - found.cosine.max(1, keepdims=True, initial=-1.0)
                heat[rows[:, None], second.candidates] = np.exp(sharpness * relative)
                for row in rows:
                    faces[row] = first.alignment
        return PointMatches(
            names=names,
            source=source,
            px=px,
            probability=probability,
            visibility=visibility,
            on_face=on_face,
            heat=heat.reshape(total, second.features.side, second.features.side),
            crop=second.crop,
            faces=tuple(faces),
            found=second.alignment,
        )


def _spread(grid: Floats, first: DescribedFace, shape: tuple[int, int]) -> Floats:
    """(H, W, C) values of a photo's pixels, from those of the output pixels of a face's crop."""
    out = np.full((*shape, grid.shape[2]), np.nan, dtype=np.float32)
    size = float(first.crop.size)
    corners = first.crop.photo_from_crop(np.array([[[0, 0], [0, size], [size, 0], [size, size]]]))
    low = np.maximum(np.floor(corners[0].min(0)), 0).astype(int)
    high = np.minimum(np.ceil(corners[0].max(0)), shape[::-1]).astype(int)
    x = np.arange(low[0], high[0]) + 0.5
    for row in range(low[1], high[1]):  # by rows, as whole photos would take much memory
        places = first.grid_from_photo(np.stack([x, np.full(len(x), row + 0.5)], axis=1))
        inside = np.asarray(((places >= 0.5) & (places <= len(grid) - 0.5)).all(1))
        values = bilinear(grid, places)
        out[row, low[0] : high[0]] = np.where(inside[:, None], values, np.nan)
    return out


def match(
    image_a: Bytes,
    points: Floats | Sequence[Sequence[float]],
    image_b: Bytes,
    *,
    aligner: Aligner | None = None,
    landmarks: Sequence[str] = (),
    vertices: Sequence[int] = (),
    box_a: Box | None = None,
    box_b: Box | None = None,
) -> PointMatches:
    """Find points of one photo in another: ``Matcher.match`` once.

    ``aligner``: by default that of the shipped weights, which takes a second to load; give one for
    many calls.
    """
    return Matcher(aligner or load_aligner()).match(
        image_a,
        points,
        image_b,
        landmarks=landmarks,
        vertices=vertices,
        box_a=box_a,
        box_b=box_b,
    )


def check_points(points: Floats | Sequence[Sequence[float]], image: Bytes) -> Floats:
    """(N, 2) float64 points. Raises ValueError where one is no pixel of an (H, W, 3) image."""
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"points are (x, y) pixels of the first photo: {error}") from error
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise ValueError("points are a list of finite (x, y) pixels of the first photo")
    height, width = image.shape[:2]
    outside = ~((array >= 0) & (array <= [width, height])).all(1)
    if outside.any():
        x, y = array[outside.argmax()]
        raise ValueError(
            f"the point ({x:g}, {y:g}) lies outside the first photo of {width} x {height} pixels"
        )
    return array


def check_vertices(landmarks: Sequence[str], vertices: Sequence[int], aligner: Aligner) -> Ints:
    """(N,) vertices of landmarks, by name, then of vertices. Raises ValueError for unknown ones."""
    unknown = [name for name in landmarks if name not in INDEX]
    if unknown:
        raise ValueError(
            f"there is no landmark {unknown[0]!r}; names are like nose_tip, eye_left_outer, chin"
        )
    count = len(aligner.model.template)
    wrong = [v for v in vertices if not 0 <= v < count]
    if wrong:
        raise ValueError(f"the face model has no vertex {wrong[0]}: they are 0 to {count - 1}")
    named = [int(aligner.model.landmarks.vertex[INDEX[name]]) for name in landmarks]
    return np.array([*named, *vertices], dtype=np.int64)


def assign_points(faces: Sequence[Alignment], points: Floats) -> Ints:
    """(N,) number of the face in whose square each of (N, 2) pixels lies nearest its centre.

    -1: in none. The square is the one that faces are cropped to.
    """
    out, least = np.full(len(points), -1), np.full(len(points), np.inf)
    for i, face in enumerate(faces):
        square = Box.around(face.landmarks_3d[:, :2]).square(FRAMING)
        distance = np.abs(points - square.centre).max(1) / (square.width / 2)
        nearer = (distance < least) & (distance <= 1.0)
        out[nearer], least[nearer] = i, distance[nearer]
    return out
