"""Draw the scene of a view: every random decision about it that is not the person's.

Angles are degrees, lengths metres, frames as in ``dff.face.geometry.transform``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.build import select_accessories
from dff.pipeline.scene import photo_warping
from dff.pipeline.scene.backgrounds import (
    BACKGROUND,
    Background,
    BackgroundConfig,
    sample_background,
)
from dff.pipeline.scene.camera_sensor import (
    FRAMING,
    NEUTRAL_SENSOR,
    SENSOR,
    Framing,
    FramingConfig,
    Sensor,
    SensorConfig,
    frame_face,
    sample_framing,
    sample_sensor,
)
from dff.pipeline.scene.expressions import (
    EXPRESSION,
    ExpressionConfig,
    look_at_camera,
    sample_expression,
)
from dff.pipeline.scene.lights import LIGHT, LightConfig, sample_light
from dff.pipeline.scene.photo_warping import PROFILING, ProfilingConfig
from dff.pipeline.scene.poses import POSE, PoseConfig, sample_rotation
from dff.pipeline.scene.scene import PROFILE, RERENDER, Scene
from dff.pipeline.subjects.subject import Person, PhotoScene

PROFILE_SHARE = 0.35


@dataclass(frozen=True)
class SceneConfig:
    """The distribution of scenes. A share is the probability of a view."""

    # Of a photo's views:
    profile_share: float = PROFILE_SHARE  # 3D face profiling of the photo
    photo_light_share: float = 0.2  # keep the photo's light
    photo_expression_share: float = 0.3  # keep the photo's expression
    # Of all views:
    eye_contact_share: float = 0.6  # eyes meet the camera, where they can
    expression: ExpressionConfig = EXPRESSION
    pose: PoseConfig = POSE
    framing: FramingConfig = FRAMING
    light: LightConfig = LIGHT
    background: BackgroundConfig = BACKGROUND
    sensor: SensorConfig = SENSOR
    profiling: ProfilingConfig = PROFILING


SCENE = SceneConfig()


def draw_scene(
    person: Person,
    index: int,
    *,
    model: MorphableModel,
    rng: np.random.Generator,
    size: int,
    config: SceneConfig = SCENE,
) -> Scene:
    """Draw view ``index`` of a person, in a square image of ``size`` px.

    View 0 of a photo is the photo's own scene; of its other views ``config.profile_share`` rotate
    the photo itself.
    """
    photo = person.photo_scene
    if photo is not None and index == 0:
        mode = PROFILE if config.profile_share > 0.0 else RERENDER
        camera = photo_warping.scale_camera(photo, size)
        return _photo_scene(photo, photo.cam_from_head, camera, NEUTRAL_SENSOR, mode)
    if photo is not None and rng.random() < config.profile_share:
        return _draw_profile(photo, size, config, rng)
    expression, movement = sample_expression(
        model.expression_names, rng=rng, config=config.expression
    )
    if photo is not None and rng.random() < config.photo_expression_share:
        expression, movement = photo.expression, "photo"
    rotation = sample_rotation(rng=rng, config=config.pose)
    if rng.random() < config.eye_contact_share:
        expression = look_at_camera(expression, model.expression_names, rotation, config.expression)
    framing = sample_framing(rng=rng, config=config.framing)
    light = sample_light(rng=rng, config=config.light)
    if photo is not None and rng.random() < config.photo_light_share:
        light = photo.light.astype(np.float32)
    cam_from_head, camera = frame_face(person.landmarks(expression, model), rotation, framing, size)
    return Scene(
        expression,
        cam_from_head,
        camera,
        light,
        sample_background(rng=rng, surroundings=photo is not None, config=config.background),
        sample_sensor(rng=rng, config=config.sensor),
        select_accessories(person.accessories, rng=rng),
        {"movement": movement, "framing": asdict(framing)},
    )


def _draw_profile(
    photo: PhotoScene, size: int, config: SceneConfig, rng: np.random.Generator
) -> Scene:
    pose = photo_warping.draw_pose(photo, rng=rng, config=config.profiling)
    camera = photo_warping.draw_camera(photo, size, rng=rng, config=config.profiling)
    return _photo_scene(photo, pose, camera, sample_sensor(rng=rng, config=config.sensor), PROFILE)


def _photo_scene(
    photo: PhotoScene, pose: Rigid, camera: Pinhole | WeakPerspective, sensor: Sensor, mode: str
) -> Scene:
    light = photo.light.astype(np.float32)
    notes = {"movement": "photo"}
    return Scene(photo.expression, pose, camera, light, None, sensor, (), notes, mode)


def make_plain_scene(
    person: Person, expression: Floats, rotation: Floats, *, model: MorphableModel, size: int
) -> Scene:
    """A scene for illustrations: a telephoto camera, a plain background, even light.

    ``expression`` (E,) activations, ``rotation`` (3, 3) cam_from_head, ``size`` px.
    """
    framing = Framing(distance=2.0, off_axis=(0.0, 0.0), share=0.55, centre=(0.5, 0.56))
    cam_from_head, camera = frame_face(person.landmarks(expression, model), rotation, framing, size)
    return Scene(
        expression,
        cam_from_head,
        camera,
        lighting.ambient(0.7).astype(np.float32),
        Background("gradient", 0),
        NEUTRAL_SENSOR,
        ("body",),
        {},
    )
