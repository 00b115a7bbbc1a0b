"""The network's pixel conventions, and the anchors on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from dff.face.descriptor import (
    NORMAL_LENGTH,
    STRIDE,
    Anchors,
    DescriptorNet,
    NetConfig,
    choose_anchors,
    image_batch,
    outside_triangles,
    parameter_count,
    surface_coordinates,
)
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import MorphableModel

SMALL = NetConfig(dims=8, widths=(8, 16), depths=(1, 1))


@pytest.fixture(scope="module")
def net() -> DescriptorNet:
    torch.manual_seed(0)
    return DescriptorNet(SMALL).eval()


def test_features_have_their_shapes_and_unit_length(net: DescriptorNet) -> None:
    with torch.no_grad():
        features = net(torch.rand(2, 3, 64, 32))
    assert features.descriptor.shape == (2, 8, 64 // STRIDE, 32 // STRIDE)
    assert features.face_logit.shape == (2, 32, 16)
    torch.testing.assert_close(features.descriptor.norm(dim=1), torch.ones(2, 32, 16))


def test_the_default_network_is_small() -> None:
    assert 0.8e6 < parameter_count(DescriptorNet(NetConfig())) < 0.9e6


def test_features_do_not_depend_on_the_rest_of_the_batch(net: DescriptorNet) -> None:
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = net(images).descriptor[1:2], net(images[1:2]).descriptor
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_mirrored_kernels_see_the_mirrored_image(net: DescriptorNet) -> None:
    """Mirroring commutes only if every layer keeps pixel centres aligned."""
    mirrored = DescriptorNet(SMALL).eval()
    mirrored.load_state_dict(
        {k: v.flip(3) if v.ndim == 4 and v.shape[3] > 1 else v for k, v in net.state_dict().items()}
    )
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        there, back = net(image), mirrored(image.flip(3))
    torch.testing.assert_close(back.descriptor.flip(3), there.descriptor, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.face_logit.flip(2), there.face_logit, atol=1e-5, rtol=0)


def test_chosen_pixels_have_the_descriptors_of_the_map(net: DescriptorNet) -> None:
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        trunk = net.trunk(image)
        rows = net.descriptor_at(trunk[:, :, [3, 7], [5, 1]].transpose(1, 2))
        full = net(image).descriptor
    torch.testing.assert_close(rows[0].T, full[0, :, [3, 7], [5, 1]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_other_images_are_refused(net: DescriptorNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        net(torch.zeros(shape))


@pytest.mark.parametrize(
    "bad",
    [
        {"widths": (8, 12)},
        {"widths": (8,), "depths": (1, 1)},
        {"dims": 1},
        {"widths": (), "depths": ()},
    ],
)
def test_impossible_networks_are_refused(bad: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="NetConfig"):
        NetConfig(**bad)  # type: ignore[arg-type]


def test_image_batch_scales_and_moves_channels() -> None:
    batch = image_batch(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))
    torch.testing.assert_close(batch, torch.tensor([0.0, 0.2, 1.0]).reshape(1, 3, 1, 1))


def test_all_of_the_convex_toy_model_is_visible_from_outside(toy_model: MorphableModel) -> None:
    seen = outside_triangles(toy_model)
    facing = toy_model.template[toy_model.faces].mean(1)[:, 2] > 0
    assert seen[facing].all()


def test_inner_parts_of_the_open_head_are_not_outside(open_head: MorphableModel) -> None:
    seen = outside_triangles(open_head)
    inside = open_head.find_triangles("tongue", "teeth", "mouth")
    face = open_head.find_triangles("face")
    assert seen[inside].mean() < 0.05
    assert seen[face].mean() > 0.85


def test_anchors_cover_the_face(open_head: MorphableModel) -> None:
    """Each visible point of the face is within two widths of the soft targets of an anchor."""
    vertex = choose_anchors(open_head, 800)
    assert len(vertex) == len(set(vertex.tolist())) == 800
    place = surface_coordinates(open_head)
    shown = outside_triangles(open_head) & (
        open_head.region == open_head.region_names.index("face")
    )
    points = np.unique(open_head.faces[shown])
    nearest = np.array([np.linalg.norm(place[vertex] - place[p], axis=1).min() for p in points])
    assert nearest.max() < 0.009


def test_anchors_are_farthest_points(toy_model: MorphableModel) -> None:
    """Farthest-point sampling: points are nearer to anchors than anchors are to each other."""
    few = choose_anchors(toy_model, 8)
    place = surface_coordinates(toy_model).astype(np.float64)
    shown = outside_triangles(toy_model) & (
        toy_model.region == toy_model.region_names.index("face")
    )
    face = np.unique(toy_model.faces[shown])
    assert cdist(place[face], place[few]).min(1).max() <= pdist(place[few]).min()
    assert toy_model.landmarks.vertex[NAMES.index("nose_tip")] in few


def test_surface_coordinates_separate_the_lips(open_head: MorphableModel) -> None:
    """Touching lips are at the same place, but apart in surface coordinates."""
    upper = open_head.landmarks.vertex[NAMES.index("lip_upper_inner_middle")]
    lower = open_head.landmarks.vertex[NAMES.index("lip_lower_inner_middle")]
    place = surface_coordinates(open_head)
    straight = np.linalg.norm(place[upper, :3] - place[lower, :3])
    assert np.linalg.norm(place[upper] - place[lower]) > max(2 * straight, NORMAL_LENGTH)


def test_anchors_check_their_tables() -> None:
    one = np.array([[1.0, 0.0]], np.float32)
    with pytest.raises(ValueError, match="disagree"):
        Anchors(np.array([0]), np.zeros((2, 3), np.float32), one, 16.0)
    with pytest.raises(ValueError, match="unit vectors"):
        Anchors(np.array([0]), np.zeros((1, 3), np.float32), 2 * one, 16.0)
    with pytest.raises(ValueError, match="positive"):
        Anchors(np.array([0]), np.zeros((1, 3), np.float32), one, 0.0)
