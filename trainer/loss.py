"""What the descriptor learns: every pixel of a face to name its place on the surface.

Each pixel is classified among the anchors by ``softmax(scale * cosine)`` against class vectors,
towards soft targets that fall off with distance on the surface. The class vectors are learned
(``anchors``), or the normalised means of the descriptors over the views of one identity (``views``,
as in arXiv 1708.02721). Or pixels of two views are contrasted (``pairs``, ``hard_pairs``: what
classification is compared with). All terms are means over images of terms of an image or of one
identity's images, so that splitting a batch between workers changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dff.face.descriptor import DescriptorNet, image_batch
from dff.trainer.config import LossWeights
from dff.trainer.data.batches import Batch

MIN_MEMBERSHIP = 0.25
"""Total soft membership from which a class mean over a group of views counts as a class."""

POSITIVE_DISTANCE, NEGATIVE_DISTANCE = 0.004, 0.012
"""Metres in surface coordinates up to which two pixels are a pair, and from which they are a
negative one.
"""
MARGIN = 1.0
"""Distance of two descriptors from which a negative pair costs nothing; at right angles they are
1.41 apart.
"""


def soft_targets(coordinate: Tensor, anchor_coordinate: Tensor, sigma: float) -> Tensor:
    """(..., M) probabilities proportional to exp(-d^2 / (2 sigma^2)) of (..., 6) places to (M, 6)
    anchors, metres.
    """
    a, b = coordinate / sigma, anchor_coordinate / sigma
    score = a @ b.T - 0.5 * (b * b).sum(
        -1
    )  # minus half the squared distance, up to a constant of the pixel
    return _softmax_(score)[0]


def _softmax_(score: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax, logsumexp) over the last axis, in place of (..., M) ``score``.

    Nothing is let below exp(-40): numbers too small for their format would slow the exponential
    thirty times.
    """
    top = score.amax(-1, keepdim=True)
    score.sub_(top).clamp_(min=-40.0).exp_()
    total = score.sum(-1, keepdim=True)
    return score.div_(total), (top + total.log())[..., 0]


class AnchorDivergence(torch.autograd.Function):
    """(B, K) ``divergence(soft_targets(...), descriptor @ vectors.T, scale)``, 3 x as fast as in
    those words.

    The (K, M) tables of one image fit the processor's cache, so each is used up before the next is
    made, gradient included; the targets' entropy comes from their distances instead of a logarithm
    for each class.
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
        """(B, K, D) and (M, D) unit vectors; (B, K, 6) and (M, 6) places in metres, which get no
        gradient.
        """
        out = descriptor.new_empty(descriptor.shape[:2])
        ahead = torch.empty_like(descriptor)  # d out / d descriptor
        excess = descriptor.new_empty(
            *descriptor.shape[:2], len(vectors)
        )  # d out / d (scale * cosine)
        anchors = anchor_coordinate / sigma
        offset = -0.5 * (anchors * anchors).sum(-1)
        for i, (f, at) in enumerate(zip(descriptor, coordinate / sigma, strict=True)):
            score = torch.addmm(
                offset, at, anchors.T
            )  # minus half the squared distance, up to a constant of the pixel
            target, log_sum = _softmax_(score)
            mean_score = (at * (target @ anchors)).sum(-1) + target @ offset
            probability, log_total = _softmax_((scale * f) @ vectors.T)
            out[i] = log_total - scale * (f * (target @ vectors)).sum(-1) - (log_sum - mean_score)
            torch.sub(probability, target, out=excess[i])
            ahead[i] = scale * (excess[i] @ vectors)
        ctx.save_for_backward(ahead, excess, descriptor)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ahead, excess, descriptor = ctx.saved_tensors
        weighted = (ctx.scale * gradient)[..., None] * descriptor
        vectors = excess.flatten(0, 1).T @ weighted.flatten(0, 1)
        return gradient[..., None] * ahead, vectors, None, None, None, None


def divergence(target: Tensor, cosine: Tensor, scale: float) -> Tensor:
    """(...,) Kullback-Leibler divergence from ``softmax(scale * cosine)`` to (..., M) ``target``:
    zero when equal.
    """
    logit = scale * cosine
    entropy = -torch.special.xlogy(target, target).sum(-1)
    return torch.logsumexp(logit, -1) - (target * logit).sum(-1) - entropy


def average_known(values: Tensor, known: Tensor) -> Tensor:
    """Mean over images of the mean over an image's known pixels of (B, K) values; an image without
    any counts zero.
    """
    return ((values * known).sum(1) / known.sum(1).clamp(min=1.0)).mean()


def view_divergence(
    descriptor: Tensor, target: Tensor, known: Tensor, scale: float, views: int
) -> Tensor:
    """(B, K) divergence against class means over each group of ``views`` neighbouring images.

    (B, K, D) unit descriptors, (B, K, M) targets, (B, K) known. A class of too little membership in
    its group takes no part; where a pixel's whole target falls on such classes its divergence is
    zero.
    """
    groups = len(descriptor) // views
    f = descriptor.reshape(groups, -1, descriptor.shape[-1])
    q = (target * known[..., None]).reshape(groups, -1, target.shape[-1])
    total = q.transpose(1, 2) @ f
    present = q.sum(1) > MIN_MEMBERSHIP  # (groups, M)
    centre = functional.normalize(total, dim=-1)
    cosine = (f @ centre.transpose(1, 2)).masked_fill(
        ~present[:, None], -1.0 - 40.0 / scale
    )  # exp(-40) below all
    kept = q * present[:, None]
    mass = kept.sum(-1, keepdim=True)
    out = divergence(kept / mass.clamp(min=1e-6), cosine, scale)
    return torch.where(mass[..., 0] > 1e-3, out, 0.0).reshape(known.shape)


def pair_contrast(
    descriptor: Tensor, coordinate: Tensor, known: Tensor, views: int, *, hardest: bool
) -> Tensor:
    """(B, K) contrastive loss of each pixel against the next view of its identity, in groups of
    ``views`` images.

    (B, K, D) unit descriptors, (B, K, 6) places in metres, (B, K) known. The squared distance to
    the pixel there that shows the nearest place, if it is within ``POSITIVE_DISTANCE``; plus the
    squared shortfall of the distance from ``MARGIN``, as the mean over pixels that lie beyond
    ``NEGATIVE_DISTANCE``, or of the ``hardest`` of them alone.

    Sources: Hadsell, Chopra, LeCun, "Dimensionality reduction by learning an invariant mapping"
    (2006); Choy et al., "Universal correspondence network" (2016), for the hard negatives.
    """
    groups = len(descriptor) // views

    def next_view(x: Tensor) -> Tensor:
        return x.reshape(groups, views, *x.shape[1:]).roll(-1, dims=1).reshape(x.shape)

    there = next_view(known)[:, None] > 0
    apart = torch.cdist(coordinate, next_view(coordinate)).masked_fill(~there, torch.inf)
    squared = (2.0 - 2.0 * descriptor @ next_view(descriptor).transpose(1, 2)).clamp(min=1e-6)
    near, index = apart.min(-1)
    pull = torch.where(near < POSITIVE_DISTANCE, squared.gather(-1, index[..., None])[..., 0], 0.0)
    negative = (apart > NEGATIVE_DISTANCE) & there
    shortfall = torch.where(negative, (MARGIN - squared.sqrt()).clamp(min=0.0) ** 2, 0.0)
    push = shortfall.amax(-1) if hardest else shortfall.sum(-1) / negative.sum(-1).clamp(min=1)
    return pull + push


class Learner(nn.Module):
    """Network and class vectors: what the optimiser moves. ``forward`` gives the terms of the
    loss.
    """

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
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.vectors = nn.Parameter(
            functional.normalize(torch.randn(len(anchor_coordinate), net.config.dims), dim=1)
        )
        self.register_buffer(
            "anchor_coordinate", anchor_coordinate, persistent=False
        )  # (M, 6) surface coordinates
        self.sigma, self.scale, self.views, self.weights = sigma, scale, views, weights
        self.mixed = mixed

    def class_vectors(self) -> Tensor:
        """(M, D) unit vectors."""
        return functional.normalize(self.vectors, dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms of the loss, each a scalar; those of weight zero are left out."""
        # Places in units of sigma need more digits than bfloat16 has: only the network is computed
        # in it.
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.mixed):
            trunk = self.net.trunk(image_batch(batch.image))
        trunk = trunk.float()
        terms = {}
        if self.weights.face:
            terms["face"] = functional.binary_cross_entropy_with_logits(
                self.net.face_logit(trunk), batch.face
            )
        if any(
            (self.weights.anchors, self.weights.views, self.weights.pairs, self.weights.hard_pairs)
        ):
            rows = trunk.flatten(2).transpose(1, 2)
            chosen = rows.gather(1, batch.pixel[..., None].expand(-1, -1, rows.shape[-1]))
            descriptor = self.net.descriptor_at(chosen)
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
                each = view_divergence(descriptor, target, batch.known, self.scale, self.views)
                terms["views"] = average_known(each, batch.known)
            for name, hardest in (("pairs", False), ("hard_pairs", True)):
                if getattr(self.weights, name):
                    each = pair_contrast(
                        descriptor, batch.coordinate, batch.known, self.views, hardest=hardest
                    )
                    terms[name] = average_known(each, batch.known)
        return terms


def sum_terms(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The one place where weights meet terms."""
    return sum(
        (getattr(weights, name) * term for name, term in terms.items()), start=torch.zeros(())
    )
