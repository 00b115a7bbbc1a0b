"""Inverse rendering: from a photo with 68 points to pose, identity, expression, albedo and light of
a face model.

1. Landmarks: robust Gauss-Newton on the 68 points (``dff.pipeline.recovery.landmark_fit``).
2. Colours: albedo and light by alternating robust least squares at points of the skin.
3. All together: Levenberg-Marquardt on the pixels, the landmarks and the priors, from a blurred photo to a sharp one.

A step is kept only when the energy falls. What the model cannot explain (hair, glasses, hands) is
down-weighted by Geman-McClure in colour and comes back as a mask. Sources: Blanz and Vetter 1999;
Romdhani and Vetter 2005; Schoenborn et al. 2017 for robust colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.errors import BadFit
from dff.face.extras import require_extra
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.interpolation import bilinear_with_gradient
from dff.face.geometry.transform import Rigid, angles_from_rotation
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import INNER
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render, sample_texture, shaded, visible
from dff.face.solve import gauss_newton as fit
from dff.face.solve import photometric
from dff.face.solve.photometric import Normals, Scene, SkinSamples, skin_samples, skin_triangles
from dff.pipeline.recovery.crop import Crop, square_crop
from dff.pipeline.recovery.joint_fit import COLOUR_SD, INDEPENDENT, Problem, improve
from dff.pipeline.recovery.landmark_fit import LandmarkFitModel, fit_landmarks, robust_size
from dff.pipeline.recovery.photos import Photo, Scheme
from dff.pipeline.recovery.quality import evidence_of, score_of

with require_extra("synthesis"):
    from threadpoolctl import threadpool_limits

IDENTITIES = 90  # directions of identity that pixels tell
IDENTITIES_OF_LANDMARKS = 60  # that landmarks tell by themselves
SAMPLES = 4000  # points on the skin; about half of them are seen
VISIBLE_TOLERANCE = (
    0.002  # metres: hides the far side and the lids' inside, not the sample's own triangle
)
# pixels of a 256 px crop next to the skin's outlines, eyes and mouth, whose colours are mixtures
RIM = 2
CREASE = 0.012  # metres of depth from one pixel to the next that make an outline
GRAZING = 0.25  # cosine below which skin is seen too flat to be compared
DISTANCE = Rigid(np.eye(3), np.array([0.0, 0.0, 1.0]))
"""The head stands one metre away: weak perspective does not see it, but depths are positive."""


@dataclass(frozen=True)
class Level:
    """One level of coarse to fine."""

    blur: float  # sd of the blur, as a share of the crop's side
    tau: float  # colour difference where outliers begin
    steps: int


LEVELS = (Level(0.016, 0.15, 3), Level(0.008, 0.1, 3), Level(0.003, 0.06, 4))
COLOUR_TAUS = (0.2, 0.2, 0.2, 0.2, 0.15, 0.15)
REFINING = 1000.0  # as ``joint.INDEPENDENT``, for albedo and light alone
REFINING_STEPS = 6
REFINING_TAU = 0.15
STRUCTURE_BLUR = 0.06
WRONG_POINT = 0.08  # of the face's size: a landmark further off than this was not meant
OCCLUDER_TAU = 0.13  # smoothed colour error from which skin counts as covered
OCCLUDER_TAU_PAINTED = (
    0.25  # the same for lips and brows, whose colours differ more than the albedo model says
)
PAINTED = ("lips", "brows")
OCCLUDER_BLUR = 0.012  # sd of the smoothing as a share of the crop's side


@dataclass(frozen=True)
class Limits:
    """What a fit must reach not to be refused: the names are those of ``Recovery.quality``.

    Of 200 photos of 300-W training sets a handful goes beyond one of these; of the same photos with
    landmarks that lie beside the face, on a plain wall or upside down, almost all do.
    """

    face_size: float = 24.0  # at least: pixels of the photo
    structure: float = 0.27  # at least
    landmark_error_typical: float = 0.03
    wrong_points: float = 0.25
    colour_error: float = 0.10
    occluded: float = 0.6
    identity: float = 2.0
    outside: float = 0.25
    score: float = 0.05  # at least: see ``dff.pipeline.recovery.quality``


AT_LEAST = ("face_size", "structure", "score")
ANYTHING = Limits(
    **{field.name: -np.inf if field.name in AT_LEAST else np.inf for field in fields(Limits)}
)
"""Refuse nothing but what gives no fit at all: for measuring."""


@dataclass(frozen=True)
class Recovery:
    """A photo explained: everything is in pixels of the ``crop``."""

    photo_id: str
    photo_sha256: str
    crop: Bytes  # (S, S, 3) RGB
    valid: Bools  # (S, S) False where the photo ended and its border was repeated
    occluded: Bools  # (S, S) skin that something covers, or that the model cannot explain
    corner: Floats  # (2,) crop_px = (photo_px - corner) * scale
    scale: float
    camera: WeakPerspective
    cam_from_head: Rigid
    coefficients: Coefficients
    albedo: Floats  # (A,) standard deviations
    light: Floats  # (9, 3)
    landmarks: Floats  # (68, 2) of the fitted face, in the photo's scheme
    given: Floats  # (68, 2) that the photo came with
    quality: dict[str, float]
    """How good the fit is:

    landmark_error, landmark_error_inner: ``nme_box`` of all points and of the inner 51 against the
    given ones; landmark_error_typical: the median of the inner ones over the robust face size;
    wrong_points: share far off; colour_error: mean absolute error (0 to 1) over the skin that
    nothing covers; colour_error_with_occluders: over all the skin; structure: how far the
    rendering's detail goes with the photo's (see ``structure``); occluded, outside: share of the
    skin that is covered, and that the photo cuts off; identity, albedo: root mean square standard
    deviations; expression_low, expression_high: extreme activations; face_size: pixels of the
    photo; yaw, pitch, roll; score: 0 to 1, how far all this speaks for a good fit
    (``dff.pipeline.recovery.quality``).
    """


@dataclass(frozen=True)
class Tables:
    """All that inverse rendering needs of a model and an albedo, computed once."""

    model: MorphableModel
    albedo: AlbedoModel
    start: LandmarkFitModel  # for the landmarks alone
    fit_model: LandmarkFitModel
    samples: SkinSamples

    @staticmethod
    def of(model: MorphableModel, albedo: AlbedoModel) -> Tables:
        identities, expressions = min(IDENTITIES, len(model.identity)), len(model.expression)
        return Tables(
            model,
            albedo,
            LandmarkFitModel.of(model, min(IDENTITIES_OF_LANDMARKS, identities), expressions),
            LandmarkFitModel.of(model, identities, expressions),
            skin_samples(
                model, albedo, identities=identities, expressions=expressions, count=SAMPLES
            ),
        )

    def coefficients(self, face: fit.FaceState) -> Coefficients:
        return Coefficients(
            face.coefficients[0, : self.fit_model.identities],
            face.coefficients[0, self.fit_model.identities :],
        )

    def frame(self, face: fit.FaceState, size: int) -> Frame:
        """The face as the camera of a crop of ``size`` sees it."""
        points = (DISTANCE @ face.cam_from_head(0)).apply(
            self.model.vertices(self.coefficients(face))
        )
        return render(points, self.model.faces, face.camera(0), (size, size))


@lru_cache(maxsize=4)
def tables_of(model: MorphableModel, albedo: AlbedoModel) -> Tables:
    """The tables of a model and an albedo, kept for the last few pairs."""
    return Tables.of(model, albedo)


Watch = Callable[[str, Scene, float], None]
"""Called after each stage or step with its name, the scene and the energy."""


def invert(
    photo: Photo,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    size: int = 256,
    limits: Limits | None = None,
    watch: Watch | None = None,
) -> Recovery:
    """Explain a photo. Raises BadFit with the reason when the outcome does not keep the ``limits``.

    The same bytes give the same recovery: nothing is random, and linear algebra runs in one thread,
    since the order of its sums would otherwise depend on how many cores a worker has.
    """
    with threadpool_limits(1):
        return _invert(
            photo, tables_of(model, albedo), size, limits or Limits(), watch or (lambda *_: None)
        )


def _invert(photo: Photo, tables: Tables, size: int, limits: Limits, watch: Watch) -> Recovery:
    face_size = robust_size(photo.landmarks)
    if face_size < limits.face_size:
        raise BadFit(
            f"{photo.id}: the face is too small ({face_size:.0f} px, {limits.face_size:.0f} wanted)"
        )
    face = fit_landmarks(photo.landmarks, tables.start, photo.scheme)
    found = tables.start.project(face, photo.scheme)
    check_pose(photo, found, face_size)
    crop = square_crop(photo.pixels, found, size)
    told, all_told = tables.start.identities, tables.fit_model.identities
    face = replace(
        face,
        scale=face.scale * crop.scale,
        centre=(face.centre - crop.corner) * crop.scale,
        coefficients=np.insert(face.coefficients, [told] * (all_told - told), 0.0, axis=1),
    )
    targets = (photo.landmarks - crop.corner) * crop.scale
    image = crop.pixels.astype(np.float32) / 255.0

    view = look(tables, face, crop, photo.scheme)
    if len(view.samples.mean) < 200:
        raise BadFit(f"{photo.id}: too little skin is seen")
    scene = explain_colours(view, face, blurred(image, LEVELS[0].blur))
    watch("colours", scene, np.nan)
    for level in LEVELS:
        smooth = blurred(image, level.blur)
        damping = 1e-3
        for _ in range(level.steps):
            view = look(tables, scene.face, crop, photo.scheme)
            problem = Problem(
                tables.fit_model,
                view.rows,
                photo.scheme,
                targets,
                face_size * crop.scale,
                view.samples,
                view.normals,
                smooth,
                level.tau,
            )
            scene, damping, energy = improve(problem, scene, damping)
            watch("joint", scene, energy)
    view = look(tables, scene.face, crop, photo.scheme)
    scene = refine_colours(view, scene, blurred(image, LEVELS[-1].blur))
    watch("refined colours", scene, np.nan)
    return _recovery(photo, tables, crop, targets, scene, limits)


def check_pose(photo: Photo, found: Floats, face_size: float) -> None:
    """Raise BadFit when the (68, 2) landmarks of the first fit are no face like the one that was
    annotated.
    """
    error = float(np.median(np.linalg.norm(found - photo.landmarks, axis=1)[INNER]) / face_size)
    if not 0.5 * face_size < robust_size(found) < 2.0 * face_size or error > WRONG_POINT:
        raise BadFit(
            f"{photo.id}: the landmarks do not form a face (median error {error:.2f} of its size)"
        )


def blurred(image: Floats, sd: float) -> Floats:
    """A float32 image after a Gaussian whose standard deviation is ``sd`` of its side."""
    return np.asarray(
        cv2.GaussianBlur(image, (0, 0), sd * image.shape[1], borderType=cv2.BORDER_REPLICATE)
    )


@dataclass(frozen=True)
class View:
    """What is held fixed during one step: which skin is seen, how it is turned, what the landmarks
    mean.
    """

    samples: SkinSamples  # (N,) that are seen
    normals: Normals  # (N,)
    rows: Ints  # (68,) of the landmark rig

    def colours(self, face: fit.FaceState, image: Floats) -> Floats:
        """(N, 3) of the image where the samples project."""
        px = photometric.projected(photometric.turned(self.samples, face), face)
        return bilinear_with_gradient(image, px)[0]


def look(tables: Tables, face: fit.FaceState, crop: Crop, scheme: Scheme) -> View:
    """See which samples of the skin a face shows in its crop."""
    samples, size = tables.samples, len(crop.pixels)
    points = photometric.turned(samples, face)
    normals = samples.normals(face.coefficients[0])
    frame = tables.frame(face, size)
    seen = visible(frame, points + DISTANCE.translation, face.camera(0), VISIBLE_TOLERANCE)
    seen &= -(normals @ face.rotation[0, 2]) > GRAZING
    px = np.floor(photometric.projected(points, face)).astype(np.int64)
    inside = ((px >= 0) & (px < size)).all(axis=1)
    column, row = np.clip(px, 0, size - 1).T
    seen &= inside & (crop.valid & ~rim(frame, tables.model))[row, column]
    chosen = samples.chosen(seen)
    exact = Normals(normals[seen].astype(np.float32), face.coefficients[0], chosen.turning)
    return View(chosen, exact, tables.fit_model.rows(face, scheme))


def rim(frame: Frame, model: MorphableModel) -> Bools:
    """(H, W) pixels that show no skin, or within RIM of such: there a small error of the shape
    changes all colours.
    """
    depth = np.where(frame.mask, frame.depth, np.float32(9.0))
    box = np.ones((3, 3), np.uint8)
    flat = cv2.dilate(depth, box) - cv2.erode(depth, box) < CREASE
    width = max(round(RIM * len(depth) / 256), 1)
    other = (~(skin_mask(frame, model) & flat)).astype(np.uint8)
    return np.asarray(cv2.dilate(other, np.ones((2 * width + 1, 2 * width + 1), np.uint8)) > 0)


def explain_colours(view: View, face: fit.FaceState, image: Floats) -> Scene:
    """Albedo and light of a face whose shape is known roughly."""
    albedo, light = photometric.explain_colours(
        view.samples,
        view.colours(face, image),
        view.normals.exact @ face.rotation[0].T,
        strength=INDEPENDENT / COLOUR_SD**2,
        taus=COLOUR_TAUS,
    )
    return Scene(face, albedo, light)


def refine_colours(view: View, scene: Scene, image: Floats) -> Scene:
    """Albedo and light once more when the shape is known: now each colour counts more, for none can
    bend the shape.
    """
    albedo, light = photometric.explain_colours(
        view.samples,
        view.colours(scene.face, image),
        view.normals.exact @ scene.face.rotation[0].T,
        strength=REFINING / COLOUR_SD**2,
        taus=(REFINING_TAU,) * REFINING_STEPS,
        start=(scene.albedo, scene.light),
    )
    return Scene(scene.face, albedo, light)


def _recovery(
    photo: Photo, tables: Tables, crop: Crop, targets: Floats, scene: Scene, limits: Limits
) -> Recovery:
    """Judge the outcome and put it together."""
    face, size = scene.face, len(crop.pixels)
    frame = tables.frame(face, size)
    image = crop.pixels.astype(np.float32) / 255.0
    texture = tables.albedo.texture(scene.albedo)
    colour = shaded(
        frame, sample_texture(frame, texture, tables.model.uv, tables.model.uv_faces), scene.light
    )
    skin = skin_mask(frame, tables.model)
    names = tables.model.region_names
    seen = skin & crop.valid
    if seen.sum() < 100:
        raise BadFit(f"{photo.id}: too little skin is seen")
    error = np.abs(image - np.clip(colour, 0.0, 1.0)).mean(axis=2)
    painted = np.isin(
        tables.model.region, [tables.model.region_names.index(n) for n in PAINTED if n in names]
    )
    limit = np.where(painted[frame.triangle], OCCLUDER_TAU_PAINTED, OCCLUDER_TAU)
    occluded = seen & (smoothed_within(error, seen, OCCLUDER_BLUR * size) > limit)
    clear = seen & ~occluded
    found = tables.fit_model.project(face, photo.scheme)
    box = float(np.sqrt(np.prod(np.ptp(targets, axis=0))))
    away = np.linalg.norm(found - targets, axis=1) / box
    coefficients = tables.coefficients(face)
    yaw, pitch, roll = angles_from_rotation(face.rotation[0])
    face_size = robust_size(targets)
    quality = {
        "landmark_error_inner": float(away[INNER].mean()),
        "landmark_error": float(away.mean()),
        "landmark_error_typical": float(np.median(away[INNER]) * box / face_size),
        "wrong_points": float((away * box > WRONG_POINT * face_size).mean()),
        "colour_error": float(error[clear].mean()) if clear.any() else 1.0,
        "colour_error_with_occluders": float(error[seen].mean()),
        "structure": structure(image, colour, seen, STRUCTURE_BLUR * size),
        "occluded": float(occluded.sum() / seen.sum()),
        "outside": float((skin & ~crop.valid).sum() / skin.sum()),
        "identity": float(np.sqrt(np.mean(coefficients.identity**2))),
        "expression_low": float(coefficients.expression.min()),
        "expression_high": float(coefficients.expression.max()),
        "albedo": float(np.sqrt(np.mean(scene.albedo**2))) if len(scene.albedo) else 0.0,
        "face_size": face_size / crop.scale,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
    }
    quality["score"] = score_of(evidence_of(quality))
    judge(photo.id, quality, limits)
    return Recovery(
        photo_id=photo.id,
        photo_sha256=photo.sha256,
        crop=crop.pixels,
        valid=crop.valid,
        occluded=occluded,
        corner=crop.corner,
        scale=crop.scale,
        camera=face.camera(0),
        cam_from_head=DISTANCE @ face.cam_from_head(0),
        coefficients=coefficients,
        albedo=scene.albedo,
        light=scene.light,
        landmarks=found,
        given=targets,
        quality=quality,
    )


def skin_mask(frame: Frame, model: MorphableModel) -> Bools:
    """(H, W) pixels of a frame that show skin: face, lips or brows."""
    skin = np.zeros(len(model.faces) + 1, dtype=bool)  # the last row is the background's -1
    skin[skin_triangles(model)] = True
    return np.asarray(skin[frame.triangle])


def smoothed_within(values: Floats, mask: Bools, sd: float) -> Floats:
    """(H, W) Gaussian average of the values inside ``mask`` only."""
    inside = mask.astype(np.float32)
    total = cv2.GaussianBlur(
        values.astype(np.float32) * inside, (0, 0), sd, borderType=cv2.BORDER_CONSTANT
    )
    weight = cv2.GaussianBlur(inside, (0, 0), sd, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(total / np.maximum(weight, 1e-6))


def structure(image: Floats, rendering: Floats, mask: Bools, sd: float) -> float:
    """Correlation of the grey (H, W, 3) images inside ``mask`` after local means of ``sd`` pixels
    are taken away.

    Light and skin can explain any smooth patch; brows, eyes, nose and mouth in their places are
    what a face has.
    """
    details = []
    for grey in (image.mean(axis=2), rendering.mean(axis=2)):
        details.append((grey - smoothed_within(grey, mask, sd))[mask].astype(np.float64))
    a, b = details
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-9))


def judge(photo_id: str, quality: dict[str, float], limits: Limits) -> None:
    """Raise BadFit naming the first limit that a fit's quality does not keep."""
    for field in fields(limits):
        value, limit = quality[field.name], getattr(limits, field.name)
        low = field.name in AT_LEAST
        if not (value >= limit if low else value <= limit):
            word = "below" if low else "above"
            raise BadFit(
                f"{photo_id}: {field.name.replace('_', ' ')} {value:.3g} {word} {limit:.3g}"
            )
