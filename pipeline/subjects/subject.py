"""A person to be rendered: shape, albedo texture and accessories, and the photo that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.infra.datasets.split import Split
from dff.pipeline.accessories.sampling import Accessories


@dataclass(frozen=True, eq=False)
class PhotoScene:
    """The scene that a person's photo shows. Images are float32 in 0 to 1.

    Raises ValueError for images without four channels.
    """

    expression: Float[Array, " E"]  # activations
    camera: Pinhole | WeakPerspective  # of the crop
    cam_from_head: Rigid
    light: Float[Array, "9 3"]  # cam
    # RGB, filled in where the photo ended; confidence that a pixel shows the fitted surface
    crop: Float[Array, "S S 4"]
    surroundings: Float[Array, "R R 4"]  # RGB of the crop without the person; the person's matte
    # In the model's uv: RGB of the whole head under the photo's light; share covered by clothes
    lit_texture: Float[Array, "T T 4"]

    def __post_init__(self) -> None:
        shapes = [image.shape for image in (self.crop, self.surroundings, self.lit_texture)]
        if any(shape[2:] != (4,) for shape in shapes):
            raise ValueError(f"PhotoScene wants (S, S, 4), (R, R, 4) and (T, T, 4), got {shapes}")


@dataclass(frozen=True, eq=False)
class Person:
    """A person that can be rendered, of a photo or sampled from the model.

    Raises ValueError for other shapes of the arrays.
    """

    id: str
    photo_id: str  # "" when sampled
    photo_sha256: str
    split: Split
    licence: str
    fit_error: float
    identity: Float[Array, " K"]  # standard deviations
    neutral: Float[Array, "V 3"]  # metres, head: the face at rest
    # In the model's uv, float32 in 0 to 1: RGB albedo; share of it that clothes cover
    texture: Float[Array, "S S 4"]
    texture_recipe: dict[str, Any]  # how the texture was made, for the rows
    accessories: Accessories
    photo_scene: PhotoScene | None
    # standard deviations of the model's ``deformations``; none for most faces
    deformation: Float[Array, " deformations"] = field(default_factory=lambda: np.empty(0))
    split_group: str = ""  # that decided the split; "" when it is the photo's or identity's own

    def __post_init__(self) -> None:
        neutral, texture = self.neutral.shape, self.texture.shape
        if len(neutral) != 2 or neutral[1] != 3 or texture[2:] != (4,):
            raise ValueError(f"Person wants (V, 3) and (S, S, 4), got {neutral} and {texture}")

    def coefficients(self, expression: Floats) -> Coefficients:
        """The coefficients of the face with (E,) activations."""
        return Coefficients(self.identity, expression, self.deformation)

    def vertices(self, expression: Floats, model: MorphableModel) -> Floats:
        """(V, 3) metres in head, bit for bit those of ``model.vertices``.

        The product with the identity basis is not computed again.
        """
        return np.asarray(self.neutral + model.motion(expression))

    def landmarks(self, expression: Floats, model: MorphableModel) -> Floats:
        """(68, 3) metres in head: the landmarks of the 3D scheme."""
        vertices = model.landmarks.vertex
        used = np.flatnonzero(expression)
        return self.neutral[vertices] + np.tensordot(
            expression[used], model.expression[np.ix_(used, vertices)], axes=1
        )
