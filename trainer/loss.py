"""The loss of training: each pixel of a face is classified by its position on the surface.

Pixels are classified among the anchors by ``softmax(scale * cosine)`` against class vectors,
towards soft targets that fall with distance on the surface. The class vectors are learned
(``anchors``), or are the normalised means of the descriptors over the views of one identity
(``views``, as in arXiv 1708.02721). The contrastive terms (``pairs``, ``hard_pairs``) are there for
comparison. Every term is a mean over images, or over groups of images of one identity, so that
splitting a batch between workers does not change it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dff.face.descriptor import DescriptorNet, image_batch
from dff.trainer.config import CONTRAST, ContrastConfig, LossWeights
from dff.trainer.data.batches import Batch


def soft_targets(coordinate: Tensor, anchor_coordinate: Tensor, sigma: float) -> Tensor:
    """(..., M) probabilities of the anchors, proportional to exp(-d^2 / (2 sigma^2)).

    d is the distance between (..., 6) and (M, 6) surface coordinates in metres.
    """
    a, b = coordinate / sigma, anchor_coordinate / sigma
    # Minus half the squared distance, up to a constant of the pixel.
    score = a @ b.T - 0.5 * (b * b).sum(-1)
    return _softmax_(score)[0]


def _softmax_(score: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax, logsumexp) over the last axis, in place of (..., M) ``score``.

    Values are clamped at exp(-40): denormal numbers would slow the exponential thirty times.
    """
    top = score.amax(-1, keepdim=True)
    score.sub_(top).clamp_(min=-40.0).exp_()
    total = score.sum(-1, keepdim=True)
    return score.div_(total), (top + total.log())[..., 0]


class AnchorDivergence(torch.autograd.Function):
    """(B, K) ``divergence(soft_targets(...), descriptor @ vectors.T, scale)``, 3 times as fast.

    It loops over images, value and gradient together, since the (K, M) tables of one image fit the
    processor's cache. The entropy of the targets is computed from the distances, without a
    logarithm for each class.
    """

    @staticmethod
    def forward(
        ctx: Any,
        descriptor: Tensor,
        vectors: Tensor,
        coordinate: Tensor,
        anchor_coordinate: Tensor,
        sigma: float,
        scale: float,
    ) -> Tensor:
        """(B, K) divergences.

        ``descriptor`` (B, K, D) and ``vectors`` (M, D) are unit vectors. ``coordinate`` (B, K, 6)
        and ``anchor_coordinate`` (M, 6) are in metres and get no gradient.
        """
        out = descriptor.new_empty(descriptor.shape[:2])
        by_descriptor = torch.empty_like(descriptor)  # d out / d descriptor
        # d out / d (scale * cosine)
        by_logit = descriptor.new_empty(*descriptor.shape[:2], len(vectors))
        anchors = anchor_coordinate / sigma
        offset = -0.5 * (anchors * anchors).sum(-1)
        for i, (f, at) in enumerate(zip(descriptor, coordinate / sigma, strict=True)):
            # Minus half the squared distance, up to a constant of the pixel.
            score = torch.addmm(offset, at, anchors.T)
            target, log_sum = _softmax_(score)
            mean_score = (at * (target @ anchors)).sum(-1) + target @ offset
            probability, log_total = _softmax_((scale * f) @ vectors.T)
            out[i] = log_total - scale * (f * (target @ vectors)).sum(-1) - (log_sum - mean_score)
            torch.sub(probability, target, out=by_logit[i])
            by_descriptor[i] = scale * (by_logit[i] @ vectors)
        ctx.save_for_backward(by_descriptor, by_logit, descriptor)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        by_descriptor, by_logit, descriptor = ctx.saved_tensors
        weighted = (ctx.scale * gradient)[..., None] * descriptor
        vectors = by_logit.flatten(0, 1).T @ weighted.flatten(0, 1)
        return gradient[..., None] * by_descriptor, vectors, None, None, None, None


def divergence(target: Tensor, cosine: Tensor, scale: float) -> Tensor:
    """(...,) Kullback-Leibler divergence of ``target`` from ``softmax(scale * cosine)``.

    Both are (..., M); zero when they are equal.
    """
    logit = scale * cosine
    entropy = -torch.special.xlogy(target, target).sum(-1)
    return torch.logsumexp(logit, -1) - (target * logit).sum(-1) - entropy


def average_known(values: Tensor, known: Tensor) -> Tensor:
    """Mean over images of the mean of (B, K) values over an image's known pixels.

    An image without known pixels counts as zero.
    """
    return ((values * known).sum(1) / known.sum(1).clamp(min=1.0)).mean()


def view_divergence(
    descriptor: Tensor,
    target: Tensor,
    known: Tensor,
    scale: float,
    views: int,
    *,
    min_membership: float,
) -> Tensor:
    """(B, K) divergence against class means over each group of ``views`` consecutive images.

    ``descriptor`` (B, K, D) are unit vectors, ``target`` (B, K, M), ``known`` (B, K). A class whose
    total membership in a group is at most ``min_membership`` is ignored there; a pixel whose whole
    target falls on ignored classes has zero divergence.
    """
    groups = len(descriptor) // views
    f = descriptor.reshape(groups, -1, descriptor.shape[-1])
    q = (target * known[..., None]).reshape(groups, -1, target.shape[-1])
    total = q.transpose(1, 2) @ f
    present = q.sum(1) > min_membership  # (groups, M)
    centre = functional.normalize(total, dim=-1)
    # An ignored class gets exp(-40) of the least probability of any other.
    cosine = (f @ centre.transpose(1, 2)).masked_fill(~present[:, None], -1.0 - 40.0 / scale)
    kept = q * present[:, None]
    mass = kept.sum(-1, keepdim=True)
    out = divergence(kept / mass.clamp(min=1e-6), cosine, scale)
    return torch.where(mass[..., 0] > 1e-3, out, 0.0).reshape(known.shape)


def pair_contrast(
    descriptor: Tensor,
    coordinate: Tensor,
    known: Tensor,
    views: int,
    config: ContrastConfig,
    *,
    hardest: bool,
) -> Tensor:
    """(B, K) contrastive loss of each pixel against the next view of its identity.

    ``descriptor`` (B, K, D) are unit vectors, ``coordinate`` (B, K, 6) metres, ``known`` (B, K), in
    groups of ``views`` images. The positive is the pixel of the next view with the nearest surface
    coordinates, if within ``config.positive_distance``: its squared descriptor distance is added.
    Negatives are beyond ``config.negative_distance``: the squared shortfall of their descriptor
    distance from ``config.margin`` is added, as the mean over all or that of the ``hardest`` alone.

    Sources: Hadsell, Chopra, LeCun, "Dimensionality reduction by learning an invariant mapping"
    (2006); Choy et al., "Universal correspondence network" (2016), for the hard negatives.
    """
    groups = len(descriptor) // views

    def next_view(x: Tensor) -> Tensor:
        return x.reshape(groups, views, *x.shape[1:]).roll(-1, dims=1).reshape(x.shape)

    other_known = next_view(known)[:, None] > 0
    distance = torch.cdist(coordinate, next_view(coordinate)).masked_fill(~other_known, torch.inf)
    squared = (2.0 - 2.0 * descriptor @ next_view(descriptor).transpose(1, 2)).clamp(min=1e-6)
    nearest, index = distance.min(-1)
    positive = nearest < config.positive_distance
    pull = torch.where(positive, squared.gather(-1, index[..., None])[..., 0], 0.0)
    negative = (distance > config.negative_distance) & other_known
    shortfall = torch.where(negative, (config.margin - squared.sqrt()).clamp(min=0.0) ** 2, 0.0)
    push = shortfall.amax(-1) if hardest else shortfall.sum(-1) / negative.sum(-1).clamp(min=1)
    return pull + push


class Learner(nn.Module):
    """The network and the class vectors, all that is optimised. ``forward`` computes the loss."""

    anchor_coordinate: Tensor

    def __init__(
        self,
        net: DescriptorNet,
        anchor_coordinate: Tensor,
        *,
        sigma: float,
        scale: float,
        views: int,
        weights: LossWeights,
        contrast: ContrastConfig = CONTRAST,
        min_membership: float = 0.25,
        mixed: bool = False,
    ) -> None:
        """``anchor_coordinate``: (M, 6) metres; the rest as in ``TrainConfig``."""
        super().__init__()
        self.net = net
        self.vectors = nn.Parameter(
            functional.normalize(torch.randn(len(anchor_coordinate), net.config.dims), dim=1)
        )
        self.register_buffer("anchor_coordinate", anchor_coordinate, persistent=False)
        self.sigma, self.scale, self.views, self.weights = sigma, scale, views, weights
        self.contrast, self.min_membership, self.mixed = contrast, min_membership, mixed

    def class_vectors(self) -> Tensor:
        """(M, D) unit vectors."""
        return functional.normalize(self.vectors, dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms of the loss, each a scalar; those of weight zero are left out."""
        # Only the network runs in bfloat16: coordinates in units of sigma need more digits.
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.mixed):
            trunk = self.net.trunk(image_batch(batch.image))
        trunk = trunk.float()
        w = self.weights
        terms = {}
        if w.face:
            terms["face"] = functional.binary_cross_entropy_with_logits(
                self.net.face_logit(trunk), batch.face
            )
        if any((w.anchors, w.views, w.pairs, w.hard_pairs)):
            rows = trunk.flatten(2).transpose(1, 2)
            chosen = rows.gather(1, batch.pixel[..., None].expand(-1, -1, rows.shape[-1]))
            terms |= self._descriptor_terms(self.net.descriptor_at(chosen), batch)
        return terms

    def _descriptor_terms(self, descriptor: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms that depend on (B, K, D) descriptors."""
        terms = {}
        if self.weights.anchors:
            each = AnchorDivergence.apply(  # type: ignore[no-untyped-call]
                descriptor,
                self.class_vectors(),
                batch.coordinate,
                self.anchor_coordinate,
                self.sigma,
                self.scale,
            )
            terms["anchors"] = average_known(each, batch.known)
        if self.weights.views:
            target = soft_targets(batch.coordinate, self.anchor_coordinate, self.sigma)
            each = view_divergence(
                descriptor,
                target,
                batch.known,
                self.scale,
                self.views,
                min_membership=self.min_membership,
            )
            terms["views"] = average_known(each, batch.known)
        for name, hardest in (("pairs", False), ("hard_pairs", True)):
            if getattr(self.weights, name):
                each = pair_contrast(
                    descriptor,
                    batch.coordinate,
                    batch.known,
                    self.views,
                    self.contrast,
                    hardest=hardest,
                )
                terms[name] = average_known(each, batch.known)
        return terms


def sum_terms(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The loss: the weighted sum of its terms."""
    return sum(
        (getattr(weights, name) * term for name, term in terms.items()), start=torch.zeros(())
    )
