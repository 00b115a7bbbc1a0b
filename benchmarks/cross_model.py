"""Inverse rendering of faces of ICT-FaceKit, whose parameters are known, with the open head.

python -m benchmarks.cross_model ../shared/models/ict-facekit-light/ict_facekit_light.npz [--count
60]

Each face has known shape, expression, pose, light and albedo, and is rendered by a pinhole camera
1.2 m away in front of a cluttered wall. Its 68 landmarks are given exactly, and once more with the
errors of annotators (normal noise of 1.5 % of the landmark box in each point). The joint fit is
compared with the landmark fit of the same run (its first stage, with albedo and light solved on
that shape):

* 3D: mean distance (mm) of the true face's vertices (face, lips, brows) from the fitted surface,
  after scaling the fit by the distance of the outer eye corners and a rigid alignment by closest
  points, as in the NoW benchmark; "corresponding": the same, but of the points that correspond by
  the registration of the two templates.
* pose: angle of the rotation from the fitted face's corresponding points, in ``cam``, to the true
  ones. It does not depend on the frames of the two models, which differ by some degrees of pitch.
* light, albedo: mean absolute difference of shading and albedo over the face's pixels, as a share
  of the mean, after removing the scale between light and albedo, which no photo determines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.lighting import ambient, shade
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, vertex_normals
from dff.face.geometry.transform import Rigid, geodesic_degrees, rotation_from_angles
from dff.face.io.assets import load_albedo, load_correspondence, load_model
from dff.face.io.registration import Nearest, Similarity, Surface, part, similarity
from dff.face.io.transfer import KINDS, counterparts, triangles
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import NAMES, OUTER_EYE_CORNERS
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render, sample_texture, shaded, supersampled, visible
from dff.face.solve.photometric import SKIN, FaceAppearance
from dff.pipeline.recovery.inverse import (
    HEAD_AT,
    INVERSE,
    NO_LIMITS,
    Recovery,
    invert,
)
from dff.pipeline.recovery.landmark_fit import LandmarkFitConfig, LandmarkFitModel, fit_landmarks
from dff.pipeline.recovery.photos import Photo

SIZE = 400  # px, of the photos
YAWS = (0.0, 15.0, -30.0, 45.0, -60.0, 75.0)
DISTANCE_METRES = 1.2
ANNOTATION_NOISE = 0.015  # of the landmark box
TARGET = 0.25  # the joint fit's 3D error must be smaller by this share
ALIGNING_STEPS = 20
POINTS = 2500  # of the true face are measured
REACH = 0.085  # metres from the nose tip: the face without ears, throat and hairline


@dataclass(frozen=True)
class Known:
    """A rendered photo and its parameters."""

    photo: Photo
    vertices: Floats  # (V, 3) metres, head
    cam_from_head: Rigid
    camera: Pinhole
    light: Floats  # (9, 3)
    texture: Floats  # (S, S, 3) albedo


def made(
    model: MorphableModel,
    albedo: AlbedoModel,
    yaw: float,
    *,
    noise: float,
    rng: np.random.Generator,
) -> Known:
    """Render a face of the model.

    ``noise``: of its landmarks (3D scheme), as a share of their box.
    """
    identity = rng.normal(size=len(model.identity)) * 0.9
    expression = np.zeros(len(model.expression))
    expression[rng.choice(len(expression), 5, replace=False)] = rng.uniform(0.1, 0.6, 5)
    vertices = model.vertices(Coefficients(identity, expression))
    rotation = rotation_from_angles(yaw, rng.uniform(-12, 12), rng.uniform(-12, 12))
    middle = vertices[model.landmarks.vertex].mean(0)
    pose = Rigid(rotation, np.array([0.0, 0.0, DISTANCE_METRES]) - rotation @ middle)
    cam = pose.apply(vertices)
    span = np.ptp(cam[model.landmarks.vertex], axis=0)[:2].max()
    camera = Pinhole(0.5 * SIZE / span * DISTANCE_METRES, np.full(2, SIZE / 2))

    # A room: the lit side of the face is up to three times as bright as the other.
    light = ambient(rng.uniform(0.7, 0.9)) * rng.uniform(0.92, 1.08, 3)
    towards = np.array([rng.uniform(-1.0, 1.0), rng.uniform(-0.9, 0.3), -1.0])
    light[[3, 1, 2]] += (rng.uniform(0.3, 0.9) * towards / np.linalg.norm(towards))[:, None]
    light[4:] += rng.normal(size=(5, 1)) * 0.08
    texture = albedo.texture(rng.normal(size=len(albedo.components)) * 0.7)
    texture = np.clip(texture * (1.0 + blotches(len(texture), rng=rng)), 0.02, 1.0).astype(
        np.float32
    )

    frame = render(cam, model.faces, camera, (SIZE, SIZE))
    colour, coverage = supersampled(
        frame,
        cam,
        model.faces,
        camera,
        lambda seen: shaded(seen, sample_texture(seen, texture, model.uv, model.uv_faces), light),
    )
    wall = cv2.resize(rng.uniform(0.1, 0.9, (9, 9, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    pixels = colour + (1.0 - coverage[..., None]) * wall
    pixels = np.clip(pixels + 0.01 * rng.normal(size=pixels.shape), 0, 1)
    landmarks = camera.px_from_cam(cam)[model.landmarks.vertex]
    box = np.sqrt(np.prod(np.ptp(landmarks, axis=0)))
    # The mean length of two normal coordinates is sqrt(pi / 2) standard deviations.
    landmarks = landmarks + rng.normal(size=(68, 2)) * noise * box / np.sqrt(np.pi / 2)
    photo = Photo(f"known-{yaw:.0f}", (pixels * 255).astype(np.uint8), landmarks, "3d", "")
    return Known(photo, vertices, pose, camera, light, texture)


def blotches(size: int, *, rng: np.random.Generator) -> Floats:
    """(S, S, 1) spots and grain of a few per cent, outside the statistical albedo."""
    coarse = cv2.resize(
        rng.normal(size=(size // 12, size // 12)), (size, size), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(0.02 * coarse + 0.02 * rng.normal(size=(size, size)))[..., None]


@dataclass(frozen=True)
class Ruler:
    """Compares fits with the truth, by fixed tables of the two models."""

    truth: MorphableModel
    fitted: MorphableModel
    skin: Ints  # (N,) true vertices
    counterpart: SurfacePoints  # (N,) of the fitted model

    @staticmethod
    def of(truth: MorphableModel, fitted: MorphableModel) -> Ruler:
        found = load_correspondence(truth)
        skin_faces = truth.find_triangles(*(name for name in SKIN if name in truth.region_names))
        skin, first = np.unique(truth.faces[skin_faces], return_index=True)
        tip = truth.template[truth.landmarks.vertex[NAMES.index("nose_tip")]]
        near = (np.linalg.norm(truth.template[skin] - tip, axis=1) < REACH) & seen_from_outside(
            truth
        )[skin]
        # Evenly over the area: meshes are densest at nostrils, lids and lips.
        area = np.linalg.norm(triangle_normals(truth.template, truth.faces[skin_faces]), axis=1)
        share = (
            np.bincount(truth.faces[skin_faces].ravel(), np.repeat(area, 3), len(truth.template))[
                skin
            ]
            * near
        )
        edges = np.cumsum(share) / share.sum()
        chosen = np.searchsorted(edges, (np.arange(POINTS) + 0.5) / POINTS)
        skin, first = skin[chosen], first[chosen]
        corner = SurfacePoints(
            np.repeat(skin_faces, 3)[first], np.tile(np.eye(3), (len(skin_faces), 1))[first]
        )
        counterpart = counterparts(corner, truth, fitted, found)
        return Ruler(truth, fitted, skin, counterpart)

    def surface_mm(self, true: Floats, vertices: Floats) -> tuple[float, float]:
        """3D errors of (V, 3) vertices in metres: to the surface, and of corresponding points."""
        points, scaled, start = self._laid_on(true, vertices)
        surface, _ = part(scaled, self.fitted.faces, triangles(self.fitted, KINDS[0]))
        return 1e3 * aligned_distance(start.apply(points), surface), self.corresponding_mm(
            true, vertices
        )

    def corresponding_mm(self, true: Floats, vertices: Floats) -> float:
        """The second error of ``surface_mm``, which is quick."""
        points, scaled, start = self._laid_on(true, vertices)
        paired = self.counterpart.of(scaled, self.fitted.faces)
        return 1e3 * float(np.linalg.norm(start.apply(points) - paired, axis=1).mean())

    def _laid_on(self, true: Floats, vertices: Floats) -> tuple[Floats, Floats, Similarity]:
        """True points, scaled ``vertices``, and the rigid motion of the points onto their pairs."""
        corners = np.array(OUTER_EYE_CORNERS)
        a = true[self.truth.landmarks.vertex[corners]]
        b = vertices[self.fitted.landmarks.vertex[corners]]
        scaled = vertices * (np.linalg.norm(a[1] - a[0]) / np.linalg.norm(b[1] - b[0]))
        points = true[self.skin]
        paired = self.counterpart.of(scaled, self.fitted.faces)
        return points, scaled, similarity(points, paired, scaled=False)

    def degrees(self, known: Known, vertices: Floats, rotation: Floats) -> float:
        """Angle between fitted (V, 3) vertices, rotated by cam_from_head, and the true face."""
        found = self.counterpart.of(vertices, self.fitted.faces) @ rotation.T
        true = known.cam_from_head.apply(known.vertices[self.skin])
        return float(geodesic_degrees(similarity(found, true).rotation, np.eye(3)))


def seen_from_outside(model: MorphableModel) -> Bools:
    """(V,) vertices visible in most views that they face: not those inside nostrils and lips."""
    shown, faced = np.zeros((2, len(model.template)))
    camera = WeakPerspective(SIZE / 0.4, np.full(2, SIZE / 2))
    normals = vertex_normals(model.template, model.faces)
    for yaw in (-60, -30, 0, 30, 60):
        for pitch in (-30, 0, 30):
            pose = Rigid(rotation_from_angles(yaw, pitch, 0), np.array([0.0, 0.0, 1.0]))
            points = pose.apply(model.template.astype(np.float64))
            facing = (normals @ pose.rotation[2]) < -0.2
            shown += facing & visible(
                render(points, model.faces, camera, (SIZE, SIZE)), points, camera, 0.0005
            )
            faced += facing
    return np.asarray(shown > 0.5 * faced)


def aligned_distance(points: Floats, surface: Surface) -> float:
    """Mean distance (metres) of (N, 3) points from a surface, after rigid alignment."""
    nearest = Nearest(surface)
    for _ in range(ALIGNING_STEPS):
        at, _ = nearest(points)
        points = similarity(points, at.of(surface.vertices, surface.faces), scaled=False).apply(
            points
        )
    return float(nearest(points)[1].mean())


def appearance(
    known: Known, ruler: Ruler, albedo: AlbedoModel, recovery: Recovery, scene: FaceAppearance
) -> tuple[float, float]:
    """Errors of shading and albedo over the pixels where truth and fit both show facial skin."""
    truth, fitted = ruler.truth, ruler.fitted
    size = len(recovery.crop)
    camera = known.camera.cropped(recovery.corner, recovery.scale)
    true = render(known.cam_from_head.apply(known.vertices), truth.faces, camera, (size, size))
    vertices = fitted.vertices(coefficients_of(scene, fitted))
    pose = HEAD_AT @ scene.face.cam_from_head(0)
    found = render(pose.apply(vertices), fitted.faces, scene.face.camera(0), (size, size))
    both = _skin(true, truth) & _skin(found, fitted)
    errors = []
    for a, b in (
        (shade(true.normal[both], known.light), shade(found.normal[both], scene.light)),
        (
            sample_texture(true, known.texture, truth.uv, truth.uv_faces)[both],
            sample_texture(found, albedo.texture(scene.albedo), fitted.uv, fitted.uv_faces)[both],
        ),
    ):
        errors.append(float(np.abs(b * (a.mean() / b.mean()) - a).mean() / a.mean()))
    return errors[0], errors[1]


def _skin(frame: Frame, model: MorphableModel) -> Bools:
    chosen = np.zeros(len(model.faces) + 1, dtype=bool)
    chosen[model.find_triangles(*(name for name in SKIN if name in model.region_names))] = True
    return np.asarray(chosen[frame.triangle])


def coefficients_of(scene: FaceAppearance, model: MorphableModel) -> Coefficients:
    row = scene.face.coefficients[0]
    identities = len(row) - len(model.expression)
    return Coefficients(row[:identities], row[identities:])


HELD = 0.025
"""Standard deviation of landmarks, in face sizes, of least 3D error of a fit without pixels."""


def held_mm(known: Known, ruler: Ruler, fit_model: LandmarkFitModel) -> float:
    """3D error of the best landmark fit, with stronger priors than the start of the joint fit."""
    face = fit_landmarks(
        known.photo.landmarks, fit_model, "3d", config=LandmarkFitConfig(landmark_sd=HELD)
    )
    row = face.coefficients[0]
    vertices = ruler.fitted.vertices(
        Coefficients(row[: fit_model.identities], row[fit_model.identities :])
    )
    return ruler.surface_mm(known.vertices, vertices)[0]


FIGURES = ("3D error, mm", "corresponding, mm", "pose, degrees", "light", "albedo")


def measure_errors(
    known: Known, ruler: Ruler, albedo: AlbedoModel
) -> tuple[list[float], list[float]]:
    """FIGURES of the landmarks alone and of the joint fit."""
    scenes: list[FaceAppearance] = []
    recovery = invert(
        known.photo,
        model=ruler.fitted,
        albedo=albedo,
        limits=NO_LIMITS,
        watch=lambda name, scene, energy: scenes.append(scene),
    )
    out = []
    for scene in (scenes[0], scenes[-1]):
        vertices = ruler.fitted.vertices(coefficients_of(scene, ruler.fitted))
        surface, corresponding = ruler.surface_mm(known.vertices, vertices)
        pose = ruler.degrees(known, vertices, scene.face.rotation[0])
        out.append(
            [surface, corresponding, pose, *appearance(known, ruler, albedo, recovery, scene)]
        )
    return out[0], out[1]


def main(asset: Path, count: int = 60, seed: int = 0) -> None:
    console = Console()
    if not asset.is_file():
        console.print(f"cross model: skipped, no file {asset}")
        return
    truth, fitted = load_model(str(asset)), load_model()
    own, albedo = load_albedo(model=truth), load_albedo()
    ruler = Ruler.of(truth, fitted)
    fit_model = LandmarkFitModel.build(fitted, INVERSE.landmark_identities, len(fitted.expression))
    for title, noise in (
        ("exact landmarks", 0.0),
        (f"landmarks off by {ANNOTATION_NOISE:.1%} of their box", ANNOTATION_NOISE),
    ):
        found: dict[float, list[tuple[list[float], list[float]]]] = {}
        held = []
        for number in track(range(count), title, console=console, transient=True):
            yaw = YAWS[number % len(YAWS)]
            known = made(truth, own, yaw, noise=noise, rng=np.random.default_rng([seed, number]))
            found.setdefault(abs(yaw), []).append(measure_errors(known, ruler, albedo))
            held.append(held_mm(known, ruler, fit_model))
        show(
            console,
            f"{count} faces of {truth.name} by {fitted.name}, {title}: landmarks alone -> joint",
            found,
        )
        console.print(
            f"landmarks alone, held harder by the priors (sd {HELD}): {np.mean(held):.3f} mm"
        )


def show(
    console: Console, title: str, found: dict[float, list[tuple[list[float], list[float]]]]
) -> None:
    table = Table("yaw", *FIGURES, "3D error less", title=title)
    every = [pair for pairs in found.values() for pair in pairs]
    for name, pairs in [*((f"{yaw:.0f}", found[yaw]) for yaw in sorted(found)), ("all", every)]:
        before, after = np.array(pairs).mean(0)
        cells = [f"{a:.3f} -> {b:.3f}" for a, b in zip(before, after, strict=True)]
        table.add_row(name, *cells, f"{1 - after[0] / before[0]:.1%}")
    console.print(table)
    before, after = np.array(every).mean(0)
    gain, better = 1 - after[0] / before[0], np.mean([b[0] < a[0] for a, b in every])
    console.print(
        f"3D error less by {gain:.1%} (wanted: {TARGET:.0%}); smaller on {better:.0%} of the faces"
    )


if __name__ == "__main__":
    typer.run(main)
