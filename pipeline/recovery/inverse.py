"""Inverse rendering: from a photo with 68 landmarks to pose, shape, albedo and light.

1. Landmarks: robust Gauss-Newton on the 68 points (``dff.pipeline.recovery.landmark_fit``).
2. Colours: albedo and light by alternating robust least squares at points of the skin.
3. All together: Levenberg-Marquardt on the pixels, the landmarks and the priors, from a blurred
   photo to a sharp one (``dff.pipeline.recovery.joint_fit``).

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

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Integer, UInt8
from dff.face.errors import BadFit
from dff.face.extras import require_extra
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.interpolation import bilinear_with_gradient
from dff.face.geometry.transform import Rigid, angles_from_rotation
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import INNER
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render, sample_texture, shaded, visible
from dff.face.solve import gauss_newton as fit, photometric
from dff.face.solve.photometric import (
    FaceAppearance,
    Normals,
    SkinSamples,
    skin_samples,
)
from dff.face.texture.crop import CROP, Crop, CropConfig, square_crop
from dff.face.texture.fitted_head import mask_skin
from dff.face.texture.occluders import (
    OCCLUSION_MASK,
    OcclusionMaskConfig,
    blur_within,
    find_unexplained,
)
from dff.pipeline.recovery.joint_fit import JOINT_FIT, JointFitConfig, JointFitProblem, improve
from dff.pipeline.recovery.landmark_fit import (
    LANDMARK_FIT,
    LandmarkFitConfig,
    LandmarkFitModel,
    fit_landmarks,
    robust_size,
)
from dff.pipeline.recovery.photos import Photo, Scheme
from dff.pipeline.recovery.quality import measure_features, score_fit

with require_extra("synthesis"):
    from threadpoolctl import threadpool_limits

HEAD_AT = Rigid(np.eye(3), np.array([0.0, 0.0, 1.0]))
"""The head stands one metre away: weak perspective does not see it, but depths are positive."""


@dataclass(frozen=True)
class Level:
    """One level from coarse to fine."""

    blur: float  # standard deviation, as a share of the crop's side
    tau: float  # colour difference where outliers begin
    steps: int


@dataclass(frozen=True)
class ColourConfig:
    """How albedo and light are solved for a known shape."""

    independent_colours: float  # as in ``JointFitConfig``
    taus: tuple[float, ...]  # colour difference where outliers begin, for each step


@dataclass(frozen=True)
class SelfOcclusionConfig:
    """Which points of the skin are compared with the photo."""

    tolerance: float = 0.002  # metres: hides the far side and the lids' inside, not own triangles
    # Pixels of a 256 px crop next to the skin's silhouettes, eyes and mouth: colours are mixed.
    margin: float = 2.0
    crease: float = 0.012  # metres of depth from pixel to pixel that make a silhouette
    grazing: float = 0.25  # cosine towards the camera below which skin is seen too flat
    least_samples: int = 200  # points below which a photo is refused


@dataclass(frozen=True)
class InverseConfig:
    """How a photo is explained."""

    identities: int = 90  # modes of identity that pixels determine
    landmark_identities: int = 60  # that landmarks determine by themselves
    samples: int = 4000  # points on the skin; about half of them are visible
    crop: CropConfig = CROP
    landmarks: LandmarkFitConfig = LANDMARK_FIT
    joint: JointFitConfig = JOINT_FIT
    levels: tuple[Level, ...] = (
        Level(0.016, 0.15, 3),
        Level(0.008, 0.1, 3),
        Level(0.003, 0.06, 4),
    )
    damping: float = 1e-3  # at the first step of each level
    first_colours: ColourConfig = ColourConfig(400.0, (0.2, 0.2, 0.2, 0.2, 0.15, 0.15))
    # With the shape known each colour counts more, for none can bend the shape.
    last_colours: ColourConfig = ColourConfig(1000.0, (0.15,) * 6)
    visibility: SelfOcclusionConfig = SelfOcclusionConfig()
    occlusion: OcclusionMaskConfig = OCCLUSION_MASK
    structure_blur: float = 0.06  # share of the crop's side; see ``measure_structure``
    wrong_point: float = 0.08  # of the face's size: a landmark further off was not meant


INVERSE = InverseConfig()


@dataclass(frozen=True)
class FitLimits:
    """Limits beyond which a fit is refused, by the names of ``Recovery.quality``.

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
REFUSALS = {
    "face_size": "the face is too small",
    "structure": "the photo does not look like the face of its landmarks",
    "landmark_error_typical": "no face of the model has such landmarks",
    "wrong_points": "many landmarks are not where a face has them",
    "colour_error": "the colours are not those of skin in any light",
    "occluded": "too much of the face is covered",
    "identity": "no likely face has such landmarks",
    "outside": "too much of the face is outside of the photo",
    "score": "photo and fitted face agree too little",
}
"""What it means to be beyond a limit."""
NO_LIMITS = FitLimits(
    **{field.name: -np.inf if field.name in AT_LEAST else np.inf for field in fields(FitLimits)}
)
"""Refuse only what gives no fit at all: for measuring."""


@dataclass(frozen=True)
class Recovery:
    """A photo explained by a face model. Pixels are those of the ``crop``."""

    photo_id: str
    photo_sha256: str
    crop: UInt8[Array, "S S 3"]  # RGB
    valid: Bool[Array, "S S"]  # False where the photo ended and its border was repeated
    occluded: Bool[Array, "S S"]  # skin that is occluded, or that the model cannot explain
    corner: Float[Array, " 2"]  # crop_px = (photo_px - corner) * scale
    scale: float
    camera: WeakPerspective
    cam_from_head: Rigid
    coefficients: Coefficients
    albedo: Float[Array, " A"]  # standard deviations
    light: Float[Array, "9 3"]  # cam
    landmarks: Float[Array, "68 2"]  # of the fitted face, in the photo's scheme
    given: Float[Array, "68 2"]  # that the photo came with
    quality: dict[str, float]
    """How good the fit is:

    landmark_error, landmark_error_inner: ``nme_box`` of all points and of the inner 51 against the
    given ones; landmark_error_typical: the median of the inner ones over the robust face size;
    wrong_points: share far off; colour_error: mean absolute error (0 to 1) over the skin that is
    not occluded; colour_error_with_occluders: over all the skin; structure: how far the rendering's
    detail goes with the photo's (see ``measure_structure``); occluded, outside: share of the skin
    that is occluded, and that the photo cuts off; identity, albedo: root mean square standard
    deviations; expression_low, expression_high: extreme activations; face_size: pixels of the
    photo; yaw, pitch, roll; score: 0 to 1, how far all this speaks for a good fit
    (``dff.pipeline.recovery.quality``).
    """


@dataclass(frozen=True, eq=False)
class InverseTables:
    """All that inverse rendering needs of a model and an albedo, computed once."""

    model: MorphableModel
    albedo: AlbedoModel
    config: InverseConfig
    start: LandmarkFitModel  # for the landmarks alone
    fit_model: LandmarkFitModel
    samples: SkinSamples

    def coefficients(self, face: fit.FaceState) -> Coefficients:
        """The coefficients of a face (a batch of one)."""
        identity, expression = np.split(face.coefficients[0], [self.fit_model.identities])
        return Coefficients(identity, expression)

    def render(self, face: fit.FaceState, size: int) -> Frame:
        """The face before the camera of a crop of ``size`` px."""
        vertices = self.model.vertices(self.coefficients(face))
        points = (HEAD_AT @ face.cam_from_head(0)).apply(vertices)
        return render(points, self.model.faces, face.camera(0), (size, size))


@lru_cache(maxsize=4)
def build_tables(
    model: MorphableModel, albedo: AlbedoModel, config: InverseConfig = INVERSE
) -> InverseTables:
    """The tables of a model and an albedo; the last few are kept."""
    identities = min(config.identities, len(model.identity))
    expressions = len(model.expression)
    few = min(config.landmark_identities, identities)
    samples = skin_samples(
        model, albedo, identities=identities, expressions=expressions, count=config.samples
    )
    return InverseTables(
        model,
        albedo,
        config,
        LandmarkFitModel.build(model, few, expressions),
        LandmarkFitModel.build(model, identities, expressions),
        samples,
    )


Watch = Callable[[str, FaceAppearance, float], None]
"""Called after each stage or step with its name, the scene and the energy."""


def invert(
    photo: Photo,
    *,
    model: MorphableModel,
    albedo: AlbedoModel,
    size: int = 256,
    limits: FitLimits | None = None,
    config: InverseConfig = INVERSE,
    watch: Watch | None = None,
) -> Recovery:
    """Explain a photo in a crop of ``size`` px.

    The same bytes give the same recovery: nothing is random, and linear algebra runs in one thread,
    since the order of its sums would otherwise depend on how many cores a worker has. Raises BadFit
    with the reason when the outcome does not keep the ``limits``.
    """
    limits = limits or FitLimits()
    with threadpool_limits(1):
        tables = build_tables(model, albedo, config)
        task = _start(photo, tables, size, limits)
        scene = _fit(task, watch or (lambda *_: None))
        return _recover(task, scene, limits)


@dataclass(frozen=True, eq=False)
class _Task:
    """A photo to be explained, and the face that its landmarks give."""

    photo: Photo
    tables: InverseTables
    crop: Crop
    targets: Float[Array, "68 2"]  # pixels of the crop
    face_size: float  # pixels of the crop
    face: fit.FaceState  # pixels of the crop

    @property
    def image(self) -> Floats:
        """(S, S, 3) float32 in 0 to 1."""
        return self.crop.pixels.astype(np.float32) / 255.0


def _start(photo: Photo, tables: InverseTables, size: int, limits: FitLimits) -> _Task:
    """Fit the landmarks and cut the crop. Raises BadFit when they are small or form no face."""
    config = tables.config
    face_size = robust_size(photo.landmarks)
    if face_size < limits.face_size:
        raise BadFit(
            f"{photo.id}: the face is too small ({face_size:.0f} px, {limits.face_size:.0f} wanted)"
        )
    face = fit_landmarks(photo.landmarks, tables.start, photo.scheme, config=config.landmarks)
    found = tables.start.project(face, photo.scheme)
    check_pose(photo, found, face_size, config.wrong_point)
    crop = square_crop(photo.pixels, found, size, config.crop)
    few, all_of_them = tables.start.identities, tables.fit_model.identities
    face = replace(
        face,
        scale=face.scale * crop.scale,
        centre=(face.centre - crop.corner) * crop.scale,
        coefficients=np.insert(face.coefficients, [few] * (all_of_them - few), 0.0, axis=1),
    )
    targets = (photo.landmarks - crop.corner) * crop.scale
    return _Task(photo, tables, crop, targets, face_size * crop.scale, face)


def _fit(task: _Task, watch: Watch) -> FaceAppearance:
    """Fit colours, then all together from coarse to fine, then colours again."""
    config, image = task.tables.config, task.image
    visible_skin = find_visible_skin(task.tables, task.face, task.crop, task.photo.scheme)
    if len(visible_skin.samples.mean) < config.visibility.least_samples:
        raise BadFit(f"{task.photo.id}: too little skin is seen")
    smooth = blur(image, config.levels[0].blur)
    scene = _explain_colours(visible_skin, task.face, smooth, config.first_colours, config)
    watch("colours", scene, np.nan)
    for level in config.levels:
        scene = _fit_level(task, scene, level, watch)
    visible_skin = find_visible_skin(task.tables, scene.face, task.crop, task.photo.scheme)
    smooth = blur(image, config.levels[-1].blur)
    start = (scene.albedo, scene.light)
    scene = _explain_colours(
        visible_skin, scene.face, smooth, config.last_colours, config, start=start
    )
    watch("refined colours", scene, np.nan)
    return scene


def _fit_level(task: _Task, scene: FaceAppearance, level: Level, watch: Watch) -> FaceAppearance:
    config, scheme = task.tables.config, task.photo.scheme
    smooth, damping = blur(task.image, level.blur), config.damping
    for _ in range(level.steps):
        visible_skin = find_visible_skin(task.tables, scene.face, task.crop, scheme)
        problem = JointFitProblem(
            task.tables.fit_model,
            visible_skin.rows,
            scheme,
            task.targets,
            task.face_size,
            visible_skin.samples,
            visible_skin.normals,
            smooth,
            level.tau,
            config.joint,
        )
        scene, damping, energy = improve(problem, scene, damping)
        watch("joint", scene, energy)
    return scene


def check_pose(photo: Photo, found: Floats, face_size: float, wrong_point: float) -> None:
    """Raise BadFit when the (68, 2) landmarks of the first fit are unlike those annotated.

    ``wrong_point`` is a share of ``face_size``.
    """
    error = float(np.median(np.linalg.norm(found - photo.landmarks, axis=1)[INNER]) / face_size)
    if not 0.5 * face_size < robust_size(found) < 2.0 * face_size or error > wrong_point:
        raise BadFit(
            f"{photo.id}: the landmarks do not form a face (median error {error:.2f} of its size)"
        )


def blur(image: Floats, sd: float) -> Floats:
    """A float32 image after a Gaussian whose standard deviation is ``sd`` of its side."""
    return np.asarray(
        cv2.GaussianBlur(image, (0, 0), sd * image.shape[1], borderType=cv2.BORDER_REPLICATE)
    )


@dataclass(frozen=True)
class VisibleSkin:
    """Values held fixed during one step: visible skin, its normals, the landmarks' vertices."""

    samples: SkinSamples  # (N,) that are visible
    normals: Normals  # (N,)
    rows: Integer[Array, " 68"]  # of the fit model

    def colours(self, face: fit.FaceState, image: Floats) -> Floats:
        """(N, 3) of the image where the samples project."""
        px = photometric.projected(photometric.turned(self.samples, face), face)
        return bilinear_with_gradient(image, px)[0]


def find_visible_skin(
    tables: InverseTables, face: fit.FaceState, crop: Crop, scheme: Scheme
) -> VisibleSkin:
    """The samples of the skin that a face shows in its crop."""
    samples, size, config = tables.samples, len(crop.pixels), tables.config.visibility
    points = photometric.turned(samples, face)
    normals = samples.normals(face.coefficients[0])
    frame = tables.render(face, size)
    seen = visible(frame, points + HEAD_AT.translation, face.camera(0), config.tolerance)
    seen &= -(normals @ face.rotation[0, 2]) > config.grazing
    px = np.floor(photometric.projected(points, face)).astype(np.int64)
    inside = ((px >= 0) & (px < size)).all(axis=1)
    column, row = np.clip(px, 0, size - 1).T
    usable = crop.valid & ~find_skin_border(frame, tables.model, config)
    seen &= inside & usable[row, column]
    chosen = samples.chosen(seen)
    exact = Normals(
        normals[seen].astype(np.float32), face.coefficients[0], chosen.normal_derivatives
    )
    return VisibleSkin(chosen, exact, tables.fit_model.rows(face, scheme))


def find_skin_border(frame: Frame, model: MorphableModel, config: SelfOcclusionConfig) -> Bools:
    """(H, W) pixels that show no skin, or are next to such.

    There a small error of the shape changes all colours.
    """
    depth = np.where(frame.mask, frame.depth, np.float32(9.0))
    box = np.ones((3, 3), np.uint8)
    flat = cv2.dilate(depth, box) - cv2.erode(depth, box) < config.crease
    width = max(round(config.margin * len(depth) / 256), 1)
    other = (~(mask_skin(frame, model) & flat)).astype(np.uint8)
    return np.asarray(cv2.dilate(other, np.ones((2 * width + 1, 2 * width + 1), np.uint8)) > 0)


def _explain_colours(
    skin: VisibleSkin,
    face: fit.FaceState,
    image: Floats,
    colours: ColourConfig,
    config: InverseConfig,
    start: tuple[Floats, Floats] | None = None,
) -> FaceAppearance:
    """The scene with albedo and light of a face whose shape is kept."""
    albedo, light = photometric.explain_colours(
        skin.samples,
        skin.colours(face, image),
        skin.normals.exact @ face.rotation[0].T,
        strength=colours.independent_colours / config.joint.colour_sd**2,
        taus=colours.taus,
        start=start,
    )
    return FaceAppearance(face, albedo, light)


def _recover(task: _Task, scene: FaceAppearance, limits: FitLimits) -> Recovery:
    """Measure the quality of the outcome, check it against the limits, and put it together."""
    photo, tables, crop, face = task.photo, task.tables, task.crop, scene.face
    rendered = _render_fit(task, scene)
    found = tables.fit_model.project(face, photo.scheme)
    quality = (
        _measure_landmarks(task, found)
        | _measure_pixels(rendered, tables.config)
        | _measure_face(task, scene)
    )
    quality["score"] = score_fit(measure_features(quality))
    check_quality(photo.id, quality, limits)
    return Recovery(
        photo_id=photo.id,
        photo_sha256=photo.sha256,
        crop=crop.pixels,
        valid=crop.valid,
        occluded=rendered.occluded,
        corner=crop.corner,
        scale=crop.scale,
        camera=face.camera(0),
        cam_from_head=HEAD_AT @ face.cam_from_head(0),
        coefficients=tables.coefficients(face),
        albedo=scene.albedo,
        light=scene.light,
        landmarks=found,
        given=task.targets,
        quality=quality,
    )


@dataclass(frozen=True, eq=False)
class _RenderedFit:
    """The fitted face rendered over its photo."""

    image: Float[Array, "S S 3"]  # the photo
    colour: Float[Array, "S S 3"]  # the rendering
    error: Float[Array, "S S"]  # mean absolute, of 1
    skin: Bool[Array, "S S"]
    seen: Bool[Array, "S S"]  # skin within the photo
    occluded: Bool[Array, "S S"]


def _render_fit(task: _Task, scene: FaceAppearance) -> _RenderedFit:
    """Raises BadFit when too little skin is visible."""
    tables, crop = task.tables, task.crop
    model, config, size = tables.model, tables.config.occlusion, len(crop.pixels)
    frame = tables.render(scene.face, size)
    texture = tables.albedo.texture(scene.albedo)
    albedo = sample_texture(frame, texture, model.uv, model.uv_faces)
    colour = shaded(frame, albedo, scene.light)
    skin = mask_skin(frame, model)
    seen = skin & crop.valid
    if seen.sum() < 100:
        raise BadFit(f"{task.photo.id}: too little skin is seen")
    image = task.image
    error = np.abs(image - np.clip(colour, 0.0, 1.0)).mean(axis=2)
    occluded = find_unexplained(frame, model, error, seen, config)
    return _RenderedFit(image, colour, error, skin, seen, occluded)


def _measure_landmarks(task: _Task, found: Floats) -> dict[str, float]:
    """The measures of ``Recovery.quality`` of (68, 2) fitted landmarks."""
    config = task.tables.config
    box = float(np.sqrt(np.prod(np.ptp(task.targets, axis=0))))
    away = np.linalg.norm(found - task.targets, axis=1) / box
    face_size = robust_size(task.targets)
    return {
        "landmark_error_inner": float(away[INNER].mean()),
        "landmark_error": float(away.mean()),
        "landmark_error_typical": float(np.median(away[INNER]) * box / face_size),
        "wrong_points": float((away * box > config.wrong_point * face_size).mean()),
        "face_size": face_size / task.crop.scale,
    }


def _measure_pixels(rendered: _RenderedFit, config: InverseConfig) -> dict[str, float]:
    error, seen, skin = rendered.error, rendered.seen, rendered.skin
    clear = seen & ~rendered.occluded
    sd = config.structure_blur * len(error)
    return {
        "colour_error": float(error[clear].mean()) if clear.any() else 1.0,
        "colour_error_with_occluders": float(error[seen].mean()),
        "structure": measure_structure(rendered.image, rendered.colour, seen, sd),
        "occluded": float(rendered.occluded.sum() / seen.sum()),
        "outside": float((skin & ~seen).sum() / skin.sum()),
    }


def _measure_face(task: _Task, scene: FaceAppearance) -> dict[str, float]:
    coefficients = task.tables.coefficients(scene.face)
    yaw, pitch, roll = angles_from_rotation(scene.face.rotation[0])
    return {
        "identity": float(np.sqrt(np.mean(coefficients.identity**2))),
        "expression_low": float(coefficients.expression.min()),
        "expression_high": float(coefficients.expression.max()),
        "albedo": float(np.sqrt(np.mean(scene.albedo**2))) if len(scene.albedo) else 0.0,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
    }


def measure_structure(image: Floats, rendering: Floats, mask: Bools, sd: float) -> float:
    """Correlation of the grey (H, W, 3) images inside ``mask`` without their local means.

    The means are over ``sd`` pixels. Light and skin can explain any smooth patch; brows, eyes, nose
    and mouth in their places are what a face has.
    """
    details = []
    for grey in (image.mean(axis=2), rendering.mean(axis=2)):
        details.append((grey - blur_within(grey, mask, sd))[mask].astype(np.float64))
    a, b = details
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-9))


def check_quality(photo_id: str, quality: dict[str, float], limits: FitLimits) -> None:
    """Raise BadFit naming the first limit that a fit's quality does not keep."""
    for field in fields(limits):
        value, limit = quality[field.name], getattr(limits, field.name)
        low = field.name in AT_LEAST
        if not (value >= limit if low else value <= limit):
            word = "below" if low else "above"
            figure = f"{field.name.replace('_', ' ')} {value:.3g} {word} {limit:.3g}"
            raise BadFit(f"{photo_id}: {REFUSALS[field.name]} ({figure})")
