"""Textures of aligned faces: the photo where it shows the skin, plausible where it shows none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.texture import TextureConfig, rate_for_texture, texture_face
from dff.face.arrays import Bytes, Floats
from dff.face.geometry import lighting
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render, sample_texture, shaded
from tests.aligner.known_aligner import known_alignment

SMALL = TextureConfig(size=256, crop=256, large=0.0)


@pytest.fixture(scope="module")
def texture() -> Floats:
    """The mean skin with another hue, so that the photo differs from the albedo model."""
    return np.clip(load_albedo().mean * np.array([0.9, 1.0, 1.1]), 0.0, 1.0).astype(np.float32)


def photograph(model: MorphableModel, texture: Floats, yaw: float) -> tuple[Alignment, Bytes]:
    """A near photo of the neutral face before a blue wall, and the alignment that is right."""
    face = known_alignment(model, Box(90, 90, 210, 230))
    pose = Rigid(rotation_from_angles(yaw, 3.0, 2.0), np.zeros(3))
    camera = NearPerspective(face.camera.scale, face.camera.centre, 1.0)
    cam = pose.apply(face.vertices)
    marks = camera.px_from_cam(cam[model.landmarks.vertex])
    frame = render(cam, model.faces, camera, (300, 300))
    albedo = sample_texture(frame, texture, model.uv, model.uv_faces)
    colour = shaded(frame, albedo, lighting.ambient(0.8))
    image = np.where(frame.mask[..., None], colour, np.array([0.1, 0.1, 0.9]))
    deep = np.concatenate([marks, np.zeros((68, 1))], axis=1)
    face = replace(face, camera=camera, cam_from_head=pose, landmarks_2d=marks, landmarks_3d=deep)
    return face, np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("yaw", [0.0, 50.0])
def test_the_textured_face_looks_like_its_photo(
    open_head: MorphableModel, texture: Floats, yaw: float
) -> None:
    face, image = photograph(open_head, texture, yaw)
    found = texture_face(face, open_head, image, SMALL)
    assert found is not None
    cam = face.cam_from_head.apply(face.vertices)
    frame = render(cam, open_head.faces, face.camera, image.shape[:2])
    again = sample_texture(frame, found.lit.astype(np.float32), open_head.uv, open_head.uv_faces)
    skin = np.zeros(len(open_head.faces) + 1, bool)
    skin[open_head.find_triangles("face", "lips", "brows")] = True
    error = np.abs(again - image)[skin[frame.triangle]].mean()
    assert error < 6  # of 255 levels


def test_unseen_skin_has_the_colour_of_seen_skin(
    open_head: MorphableModel, texture: Floats
) -> None:
    face, image = photograph(open_head, texture, 60.0)
    found = texture_face(face, open_head, image, SMALL)
    assert found is not None
    truth = texture * 0.8 * 255
    layout = found.seen < 0.01
    height, width = np.array(found.seen.shape) * 7 // 16
    middle = np.s_[height // 2 : height, width // 2 :]  # face and cheeks of the uv layout
    unseen = layout[middle]
    assert unseen.mean() > 0.1
    assert np.abs(found.lit[middle].astype(float) - truth[middle])[unseen].mean() < 25


def test_failed_and_outside_faces_have_no_texture(open_head: MorphableModel) -> None:
    face = known_alignment(open_head, Box(40, 40, 140, 140))
    grey = np.full((180, 180, 3), 90, np.uint8)
    assert texture_face(replace(face, failed=True), open_head, grey, SMALL) is None
    outside = known_alignment(open_head, Box(500, 500, 600, 600))
    assert texture_face(outside, open_head, grey, SMALL) is None
    assert rate_for_texture(replace(face, failed=True)) == 0.0
    assert rate_for_texture(face) > rate_for_texture(replace(face, face_confidence=0.4))
