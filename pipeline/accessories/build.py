"""Builds the meshes of a person's accessories, each when a view first shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.model.landmarks import BROWS
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.garments import build_body, build_cover, build_hat
from dff.pipeline.accessories.glasses import build_glasses
from dff.pipeline.accessories.hair import Hair, build_hair
from dff.pipeline.accessories.hands import build_hand
from dff.pipeline.accessories.head_map import (
    HeadMap,
    angles_from_direction,
    find_direction_map,
)
from dff.pipeline.accessories.meshes import EMPTY_MESH, AccessoryMesh, merge_meshes
from dff.pipeline.accessories.neckline import find_ear_vertices, find_neckline
from dff.pipeline.accessories.sampling import Accessories

UNDER_HAT_VOLUME = 0.0045  # metres from the scalp, of hair under a hat
UNDER_HAT_CURL = 0.3  # of its curl without the hat


def select_accessories(accessories: Accessories, *, rng: np.random.Generator) -> tuple[str, ...]:
    """The accessories that a view shows, by the names of ``AccessoryBuilder.build``."""
    glasses, hat, before, which = rng.random(4)
    names = ["body"]
    has_hat = accessories.hat is not None and hat < accessories.shares["hat"]
    if has_hat:
        names.append("hat")
    if accessories.style is not None:
        if not has_hat:
            names.append("hair")
        elif accessories.hat is not None and accessories.hat.kind != "headscarf":
            names.append("pressed hair")
    if accessories.glasses is not None and glasses < accessories.shares["glasses"]:
        names.append("glasses")
    hand, thing, cover = np.cumsum(
        [accessories.shares[name] for name in ("hand", "object", "cover")]
    )
    if before < hand and accessories.hands:
        names.append(f"hand {int(which * len(accessories.hands))}")
    elif hand <= before < thing and accessories.things:
        names.append(f"object {int(which * len(accessories.things))}")
    elif thing <= before < cover and accessories.cover is not None:
        names.append("cover")
    return tuple(names)


@dataclass(frozen=True, eq=False)
class AccessoryBuilder:
    """Builds and keeps the meshes of one person's accessories.

    An accessory that the model has no place for, such as hair without a scalp, is EMPTY_MESH.
    """

    accessories: Accessories
    model: MorphableModel
    neutral: Float[Array, "V 3"]  # metres, head: the face at rest
    _parts: dict[str, AccessoryMesh] = field(default_factory=dict)
    _merged: dict[tuple[str, ...], AccessoryMesh] = field(default_factory=dict)

    def merge(self, names: Sequence[str]) -> AccessoryMesh:
        """One mesh of the named accessories. Raises KeyError for an unknown name."""
        key = tuple(names)
        if key not in self._merged:
            self._merged[key] = merge_meshes([self.build(name) for name in key])
        return self._merged[key]

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """The parameters of the named accessories, as values of JSON."""
        a = self.accessories
        parts: dict[str, Any] = {
            "hair": a.style,
            "pressed hair": a.style,
            "glasses": a.glasses,
            "hat": a.hat,
        }
        parts |= {"cover": a.cover, **{f"hand {i}": hand for i, hand in enumerate(a.hands)}}
        parts |= {f"object {i}": hand for i, hand in enumerate(a.things)}
        body = {"clothes": a.clothes, "second": a.second, "cut": a.cut, "breadth": a.breadth}
        return {name: body if name == "body" else asdict(parts[name]) for name in names}

    def build(self, name: str) -> AccessoryMesh:
        """The mesh of an accessory, built once. Raises KeyError for an unknown name.

        The names are "body", "hair", "pressed hair" (under a hat), "glasses", "hat", "cover",
        "hand 0", "hand 1" and "object 0".
        """
        if name not in self._parts:
            self._parts[name] = self._build(name)
        return self._parts[name]

    def _build(self, name: str) -> AccessoryMesh:
        a, kind = self.accessories, name.partition(" ")[0]
        if name == "body":
            return self._build_body()
        if name == "hair" and a.style is not None:
            return self._build_hair(a.style)
        if name == "pressed hair" and a.style is not None:
            return self._build_hair(_press(a.style))
        if name == "glasses" and a.glasses is not None:
            return build_glasses(a.glasses, self.model, self.neutral)
        if name == "hat" and a.hat is not None:
            return build_hat(a.hat, self._head_map, self._brows, self._ears)
        if name == "cover" and a.cover is not None:
            return build_cover(a.cover, self._head_map, self.model, self.neutral)
        hands = {"hand": a.hands, "object": a.things}.get(kind, ())
        number = name.partition(" ")[2]
        if not number.isdigit() or int(number) >= len(hands):
            raise KeyError(f"these accessories have no {name!r}")
        return build_hand(hands[int(number)], self._head_map, self.model, self.neutral)

    def _build_hair(self, hair: Hair) -> AccessoryMesh:
        if "scalp" not in self.model.region_names:
            return EMPTY_MESH
        return build_hair(hair, self._head_map, self._ears, self._brows)

    def _build_body(self) -> AccessoryMesh:
        neckline = find_neckline(self.model)
        if len(neckline.rim) == 0:
            return EMPTY_MESH
        a = self.accessories
        collar = neckline.collar(self.model.template, self.neutral)
        rim = np.asarray(self.neutral[neckline.rim])
        return build_body(
            rim, collar, colour=a.clothes, second=a.second, cut=a.cut, breadth=a.breadth
        )

    @cached_property
    def _head_map(self) -> HeadMap:
        return find_direction_map(self.model).fit(self.model, self.neutral)

    @property
    def _ears(self) -> Floats:
        """(N, 3) metres, head."""
        return np.asarray(self.neutral[find_ear_vertices(self.model)])

    @cached_property
    def _brows(self) -> float:
        """The polar angle of the brows, in radians from the top."""
        brows = self.neutral[self.model.landmarks.vertex[BROWS]] - self._head_map.middle
        return float(angles_from_direction(brows)[1].min())


def _press(hair: Hair) -> Hair:
    """Hair as it lies under a hat."""
    pressed = replace(hair, volume=UNDER_HAT_VOLUME, fringe=0.0, curl=UNDER_HAT_CURL * hair.curl)
    return replace(pressed, tie="tail") if pressed.tie == "bun" else pressed
