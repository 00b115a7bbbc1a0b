"""Loss: known values, and the fast implementation against the simple one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dff.face.descriptor import DescriptorNet, NetConfig
from dff.trainer.config import CONTRAST, LossWeights, TrainConfig
from dff.trainer.data.batches import Batch
from dff.trainer.loss import (
    AnchorDivergence,
    Learner,
    average_known,
    divergence,
    pair_contrast,
    soft_targets,
    sum_terms,
    view_divergence,
)

SIGMA, SCALE = 0.0045, 16.0


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def coordinates(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def anchor_divergence(*arguments: object) -> Tensor:
    out: Tensor = AnchorDivergence.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def divergence_of_views(descriptor: Tensor, target: Tensor, known: Tensor, views: int) -> Tensor:
    return view_divergence(
        descriptor, target, known, SCALE, views, min_membership=TrainConfig().min_membership
    )


def test_soft_targets_decrease_with_distance() -> None:
    anchors = torch.zeros(2, 6, dtype=torch.float64)
    anchors[1, 0] = SIGMA
    at_first, halfway = soft_targets(torch.stack([anchors[0], anchors.mean(0)]), anchors, SIGMA)
    assert float(at_first[1] / at_first[0]) == pytest.approx(math.exp(-0.5))
    torch.testing.assert_close(halfway, torch.full((2,), 0.5, dtype=torch.float64))


def test_divergence_of_perfect_descriptors_is_that_of_the_scale() -> None:
    """Pixels on distant anchors whose class vectors are their descriptors."""
    anchors = torch.eye(6, dtype=torch.float64)
    vectors = torch.eye(6, dtype=torch.float64)
    loss = anchor_divergence(vectors[None], vectors, anchors[None], anchors, SIGMA, SCALE)
    expected = math.log(1.0 + 5.0 * math.exp(-SCALE))
    torch.testing.assert_close(loss, torch.full((1, 6), expected, dtype=torch.float64))
    assert float(loss.max()) < 1e-5


def test_divergence_of_orthogonal_descriptors_is_the_logarithm_of_the_classes() -> None:
    anchors = torch.eye(6, dtype=torch.float64)
    vectors = torch.eye(7, dtype=torch.float64)[:6]
    orthogonal = torch.zeros(1, 6, 7, dtype=torch.float64)
    orthogonal[..., 6] = 1.0  # orthogonal to every class
    loss = anchor_divergence(orthogonal, vectors, anchors[None], anchors, SIGMA, SCALE)
    torch.testing.assert_close(loss, torch.full((1, 6), math.log(6.0), dtype=torch.float64))


def test_divergence_of_permuted_descriptors_is_the_scale() -> None:
    anchors = torch.eye(6, dtype=torch.float64)
    loss = anchor_divergence(
        anchors.roll(1, 0)[None], anchors, anchors[None], anchors, SIGMA, SCALE
    )
    assert float(loss.mean()) == pytest.approx(SCALE, abs=1e-5)


def test_fast_divergence_and_its_gradient_equal_the_simple_implementation() -> None:
    f, v = unit(3, 50, 16, seed=0).requires_grad_(), unit(40, 16, seed=1).requires_grad_()
    at, anchors = coordinates(3, 50, 6, seed=2), coordinates(40, 6, seed=3)
    weight = torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    fast = anchor_divergence(f, v, at, anchors, SIGMA, SCALE)
    slow = divergence(soft_targets(at, anchors, SIGMA), f @ v.T, SCALE)
    torch.testing.assert_close(fast, slow)
    assert float(slow.detach().min()) > 0
    by_fast = torch.autograd.grad((fast * weight).sum(), (f, v))
    by_simple = torch.autograd.grad((slow * weight).sum(), (f, v))
    torch.testing.assert_close(by_fast, by_simple)


def test_means_ignore_unknown_pixels() -> None:
    values = torch.tensor([[1.0, 100.0], [3.0, 5.0], [7.0, 7.0]])
    known = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert float(average_known(values, known)) == pytest.approx((1.0 + 4.0 + 0.0) / 3)


def test_view_divergence_is_zero_for_views_that_agree_and_large_otherwise() -> None:
    """Four classes seen in two views: the same vectors in both, or the second's permuted."""
    target = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    known = torch.ones(2, 4, dtype=torch.float64)
    vectors = torch.eye(4, dtype=torch.float64)
    agree = divergence_of_views(torch.stack([vectors, vectors]), target, known, 2)
    assert float(agree.max()) < 1e-5
    differ = divergence_of_views(torch.stack([vectors, vectors.roll(1, 0)]), target, known, 2)
    assert float(differ.mean()) > 0.5
    apart = divergence_of_views(torch.stack([vectors, vectors.roll(1, 0)]), target, known, 1)
    assert float(apart.max()) < 1e-5, "groups are independent"


def test_view_divergence_ignores_unknown_pixels_and_absent_classes() -> None:
    target = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    vectors = torch.eye(4, dtype=torch.float64)
    wrong_second = torch.stack([vectors, vectors.roll(1, 0)])
    known = torch.tensor([[1.0] * 4, [0.0] * 4], dtype=torch.float64)
    assert float(divergence_of_views(wrong_second, target, known, 2).max()) < 1e-5


def test_pair_contrast_is_zero_for_views_that_agree_and_their_distance_otherwise() -> None:
    """Two views of the same four places, 5 cm apart: the same vectors in both, or the second's
    permuted.
    """
    coordinate = (0.05 * torch.eye(6, dtype=torch.float64)[:4]).expand(2, 4, 6)
    known = torch.ones(2, 4, dtype=torch.float64)
    vectors = torch.eye(4, dtype=torch.float64)
    for hardest in (False, True):
        agree = pair_contrast(
            torch.stack([vectors, vectors]), coordinate, known, 2, CONTRAST, hardest=hardest
        )
        assert float(agree.max()) < 1e-5, "orthogonal descriptors are beyond the margin"
    differ = torch.stack([vectors, vectors.roll(1, 0)])
    # The positive is sqrt(2) away; of the three negatives one coincides: a shortfall of the margin.
    hard = pair_contrast(differ, coordinate, known, 2, CONTRAST, hardest=True)
    torch.testing.assert_close(
        hard, torch.full((2, 4), 2.0 + CONTRAST.margin**2, dtype=torch.float64), atol=3e-3, rtol=0
    )
    mean = pair_contrast(differ, coordinate, known, 2, CONTRAST, hardest=False)
    torch.testing.assert_close(
        mean,
        torch.full((2, 4), 2.0 + CONTRAST.margin**2 / 3, dtype=torch.float64),
        atol=3e-3,
        rtol=0,
    )
    assert (
        float(pair_contrast(differ, coordinate, known, 1, CONTRAST, hardest=True).max()) < 1e-5
    ), "groups are independent"


def test_pair_contrast_ignores_unknown_pixels_and_intermediate_distances() -> None:
    """Unknown pixels form no pairs; a pair that is neither near nor far is not in the loss."""
    coordinate = torch.zeros(2, 1, 6, dtype=torch.float64)
    vectors = torch.eye(2, dtype=torch.float64)[:, None]  # (2, 1, 2), orthogonal
    assert float(
        pair_contrast(vectors, coordinate, torch.ones(2, 1), 2, CONTRAST, hardest=True)[0]
    ) == pytest.approx(2.0)
    known = torch.tensor([[1.0], [0.0]])
    assert float(pair_contrast(vectors, coordinate, known, 2, CONTRAST, hardest=True)[0]) == 0.0
    between = coordinate.clone()
    between[1, 0, 0] = (CONTRAST.positive_distance + CONTRAST.negative_distance) / 2
    for same in (vectors, vectors[:1].expand(2, 1, 2)):
        assert (
            float(pair_contrast(same, between, torch.ones(2, 1), 2, CONTRAST, hardest=True).max())
            == 0.0
        )


@pytest.mark.parametrize("term", ["anchors", "views", "pairs", "hard_pairs", "face"])
def test_each_term_has_gradients_for_its_parameters_alone(term: str) -> None:
    torch.manual_seed(0)
    weights = LossWeights(**{"anchors": 0.0, "views": 0.0, "face": 0.0, term: 1.0})
    net = DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1)))
    learner = Learner(
        net, coordinates(20, 6, seed=0).float(), sigma=SIGMA, scale=SCALE, views=2, weights=weights
    )
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        image=torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator),
        pixel=torch.randint(0, 256, (4, 30), generator=generator),
        coordinate=coordinates(4, 30, 6, seed=1).float(),
        known=torch.ones(4, 30),
        face=(torch.rand(4, 16, 16, generator=generator) > 0.5).float(),
    )
    terms = learner(batch)
    assert set(terms) == {term}
    sum_terms(terms, weights).backward()  # type: ignore[no-untyped-call]
    moved = {
        name
        for name, p in learner.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    everything = {name for name, _ in learner.named_parameters()}
    idle = {
        "anchors": {"net.to_face.weight", "net.to_face.bias"},
        "views": {"net.to_face.weight", "net.to_face.bias", "vectors"},
        "pairs": {"net.to_face.weight", "net.to_face.bias", "vectors"},
        "hard_pairs": {"net.to_face.weight", "net.to_face.bias", "vectors"},
        "face": {"net.to_descriptor.weight", "net.to_descriptor.bias", "vectors"},
    }[term]
    assert everything - moved == idle


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    terms = {"anchors": torch.tensor(2.0), "face": torch.tensor(3.0)}
    assert float(sum_terms(terms, LossWeights(anchors=10.0, face=0.5))) == pytest.approx(21.5)
