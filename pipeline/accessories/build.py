"""From an outfit's numbers to meshes that fit a face, made when a view first shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.garments import body_of, cover_of, hat_of
from dff.pipeline.accessories.glasses import glasses_of
from dff.pipeline.accessories.hair import hair_of
from dff.pipeline.accessories.hands import hand_of
from dff.pipeline.accessories.head_map import Skull, angles_of, chart_of
from dff.pipeline.accessories.meshes import NOTHING, Prop, together
from dff.pipeline.accessories.sampling import Outfit, wardrobe_of

PRESSED = 0.0045  # metres that hair keeps under a hat


def draw_worn(outfit: Outfit, *, rng: np.random.Generator) -> tuple[str, ...]:
    """Which parts of an outfit a view shows, by the names that ``Closet.part`` knows."""
    glasses, hat, before, which = rng.random(4)
    worn = ["body"]
    has_hat = outfit.hat is not None and hat < outfit.shares["hat"]
    if has_hat:
        worn.append("hat")
    if outfit.style is not None:
        if not has_hat:
            worn.append("hair")
        elif outfit.hat is not None and outfit.hat.kind != "headscarf":
            worn.append("pressed hair")
    if outfit.glasses is not None and glasses < outfit.shares["glasses"]:
        worn.append("glasses")
    hand, thing, cover = np.cumsum([outfit.shares[name] for name in ("hand", "object", "cover")])
    if before < hand and outfit.hands:
        worn.append(f"hand {int(which * len(outfit.hands))}")
    elif hand <= before < thing and outfit.things:
        worn.append(f"object {int(which * len(outfit.things))}")
    elif thing <= before < cover and outfit.cover is not None:
        worn.append("cover")
    return tuple(worn)


@dataclass(frozen=True, eq=False)
class Closet:
    """The meshes of one person's outfit. Parts that a model has no place for are NOTHING."""

    outfit: Outfit
    model: MorphableModel
    neutral: Floats  # (V, 3) the face at rest
    _made: dict[str, Prop] = field(default_factory=dict)
    _sets: dict[tuple[str, ...], Prop] = field(default_factory=dict)

    def worn(self, names: Sequence[str]) -> Prop:
        """One mesh of the named parts. Raises KeyError for a name that is no part of this
        outfit.
        """
        key = tuple(names)
        if key not in self._sets:
            self._sets[key] = together([self.part(name) for name in key])
        return self._sets[key]

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """The numbers of the named parts, as JSON can hold them."""
        o = self.outfit
        parts: dict[str, Any] = {
            "hair": o.style,
            "pressed hair": o.style,
            "glasses": o.glasses,
            "hat": o.hat,
        }
        parts |= {"cover": o.cover, **{f"hand {i}": held for i, held in enumerate(o.hands)}}
        parts |= {f"object {i}": held for i, held in enumerate(o.things)}
        body = {"clothes": o.clothes, "second": o.second, "cut": o.cut, "breadth": o.breadth}
        return {name: body if name == "body" else asdict(parts[name]) for name in names}

    def part(self, name: str) -> Prop:
        """The mesh of a part, made once. Raises KeyError for a name that is no part of this
        outfit.
        """
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Prop:
        o, kind = self.outfit, name.partition(" ")[0]
        if name == "body":
            return self._body()
        if name in ("hair", "pressed hair") and o.style is not None:
            if "scalp" not in self.model.region_names:
                return NOTHING
            pressed = replace(o.style, volume=PRESSED, fringe=0.0, curl=0.3 * o.style.curl)
            if pressed.tie == "bun":
                pressed = replace(pressed, tie="tail")
            return hair_of(
                o.style if name == "hair" else pressed, self._skull, self._ears, self._brows
            )
        if name == "glasses" and o.glasses is not None:
            return glasses_of(o.glasses, self.model, self.neutral)
        if name == "hat" and o.hat is not None:
            return hat_of(o.hat, self._skull, self._brows, self._ears)
        if name == "cover" and o.cover is not None:
            return cover_of(o.cover, self._skull, self.model, self.neutral)
        held = {"hand": o.hands, "object": o.things}.get(kind, ())
        number = name.partition(" ")[2]
        if not number.isdigit() or int(number) >= len(held):
            raise KeyError(f"this outfit has no {name!r}")
        return hand_of(held[int(number)], self._skull, self.model, self.neutral)

    def _body(self) -> Prop:
        wardrobe = wardrobe_of(self.model)
        if len(wardrobe.rim) == 0:
            return NOTHING
        o = self.outfit
        collar = wardrobe.collar(self.model.template, self.neutral)
        rim = np.asarray(self.neutral[wardrobe.rim])
        return body_of(rim, collar, colour=o.clothes, second=o.second, cut=o.cut, breadth=o.breadth)

    @cached_property
    def _skull(self) -> Skull:
        return chart_of(self.model).on(self.model, self.neutral)

    @property
    def _ears(self) -> Floats:
        return np.asarray(self.neutral[wardrobe_of(self.model).ears])

    @cached_property
    def _brows(self) -> float:
        brows = self.neutral[self.model.landmarks.vertex[17:27]] - self._skull.middle
        return float(angles_of(brows)[1].min())
