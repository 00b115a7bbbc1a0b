"""Statistics of a dataset's views: poses, lights, expressions, skin tones and accessories.

``DatasetStatistics.add`` takes columns of a shard; nothing here reads storage. The counts of a
figure add up to the number of views, since they include those without a value.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.geometry import lighting
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.shards import ViewRow, resolve_frame
from dff.pipeline.scene.camera_sensor import Sensor, linearize

COLUMNS = (
    "identity_id", "photo_id", "view", "mode", "yaw", "pitch", "roll", "camera", "translation",
    "light", "licence", "fit_error", "recipe",
)  # fmt: skip
"""The columns that ``DatasetStatistics.add`` reads."""

LEAST_SKIN = 50  # px from which a skin tone is measured
_FACING = lighting.basis(
    lighting.facing_normals(
        np.deg2rad([-60, -30, 0, 30, 60]).tolist(), np.deg2rad([-40, -20, 0, 20, 40]).tolist()
    )
)  # of normals that a frontal camera sees


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the outermost bins include the values beyond them."""

    name: str
    unit: str
    edges: Float[Array, " E"]  # N + 1
    counts: list[int]  # N
    unknown: int = 0  # views without such a value

    def spans(self) -> list[tuple[str, int]]:
        """Each bin's range as text, and its count."""
        pairs = zip(self.edges[:-1], self.edges[1:], self.counts, strict=True)
        return [(f"{a:g}..{b:g}", count) for a, b, count in pairs]


@dataclass(frozen=True)
class NameCounts:
    """Counts by name, the most frequent first."""

    name: str
    counts: dict[str, int]

    def top(self, count: int = 12) -> list[tuple[str, int]]:
        """The most frequent names, and the sum of the others."""
        items = list(self.counts.items())
        rest = sum(n for _, n in items[count - 1 :])
        return (
            items
            if len(items) <= count
            else [*items[: count - 1], (f"{len(items) - count + 1} others", rest)]
        )

    def bars(self) -> list[tuple[str, int, float]]:
        """``top``, each with its share of the largest count."""
        top = self.top()
        most = max((number for _, number in top), default=1)
        return [(name, number, number / most) for name, number in top]


SCALES: Mapping[str, tuple[str, Floats]] = {
    "yaw": ("degrees", np.arange(-100.0, 101.0, 10.0)),
    "pitch": ("degrees", np.arange(-60.0, 61.0, 10.0)),
    "roll": ("degrees", np.arange(-60.0, 61.0, 10.0)),
    "distance": ("metres", np.array([0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6])),
    "light from the side": (
        "degrees, positive from the picture's right",
        np.arange(-180.0, 181.0, 30.0),
    ),
    "light from above": ("degrees", np.arange(-90.0, 91.0, 15.0)),
    "light's contrast": (
        "brightest to darkest of what faces the camera, over its mean",
        np.arange(0.0, 2.01, 0.2),
    ),
    "light's level": ("mean shading", np.arange(0.0, 1.61, 0.1)),
    "skin tone": ("ITA, degrees; dark skin is left", np.arange(-70.0, 81.0, 10.0)),
}
"""Unit and edges of each histogram."""


@dataclass
class DatasetStatistics:
    """Counts by ``add`` and ``add_skin``; ``histograms`` and ``name_counts`` are the results."""

    views: int = 0
    identities: int = 0
    fit_errors: list[float] = field(default_factory=list)  # of the views of photos
    _bins: dict[str, Counter[int]] = field(default_factory=dict)
    _names: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Count the COLUMNS of one shard."""
        count = len(columns["identity_id"])
        self.views += count
        self.identities += len(set(columns["identity_id"]))
        photos = columns["photo_id"]
        self.fit_errors += [
            e for e, photo in zip(columns["fit_error"], photos, strict=True) if photo
        ]
        for name in ("yaw", "pitch", "roll"):
            self._count(name, np.asarray(columns[name], dtype=float))
        away = np.linalg.norm(
            np.asarray(columns["translation"], dtype=float).reshape(-1, 3), axis=1
        )
        # A head has no distance under weak perspective.
        self._count("distance", np.where(np.asarray(columns["camera"]) == "pinhole", away, np.nan))
        for name, values in describe_light(
            np.asarray(columns["light"], dtype=float).reshape(-1, 9, 3)
        ).items():
            self._count(name, values)
        for mode, photo, licence, recipe in zip(
            columns["mode"], photos, columns["licence"], columns["recipe"], strict=True
        ):
            source = "photo" if photo else "sampled"
            names = {"mode": mode, "source": source, "licence": licence}
            for name, key in {**names, **describe_recipe(json.loads(recipe))}.items():
                self._names.setdefault(name, Counter())[key] += 1

    def add_skin(self, tones: Sequence[float]) -> None:
        """Count the skin tones of identities, in degrees; NaN where too little skin is seen."""
        self._count("skin tone", np.asarray(tones, dtype=float))

    def _count(self, name: str, values: Floats) -> None:
        edges = SCALES[name][1]
        bins = np.clip(np.digitize(values, edges) - 1, 0, len(edges) - 2)
        self._bins.setdefault(name, Counter()).update(
            np.where(np.isfinite(values), bins, -1).tolist()
        )

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """The histogram of each quantity of ``SCALES``."""
        out = []
        for name, bins in self._bins.items():
            unit, edges = SCALES[name]
            out.append(
                Histogram(name, unit, edges, [bins[i] for i in range(len(edges) - 1)], bins[-1])
            )
        return tuple(out)

    @property
    def name_counts(self) -> tuple[NameCounts, ...]:
        """Counts of the names of each column, the most frequent first."""
        return tuple(
            NameCounts(name, dict(counts.most_common())) for name, counts in self._names.items()
        )


def describe_light(light: Floats) -> dict[str, Floats]:
    """Direction in degrees, contrast and level of (N, 9, 3) lights, each (N,)."""
    grey = light.mean(axis=2)
    y, z, x = grey[:, 1], grey[:, 2], grey[:, 3]
    length = np.sqrt(x**2 + y**2 + z**2)
    # Ambient light has no direction.
    uneven = length > 0.02 * np.maximum(np.abs(grey[:, 0]), 1e-9)
    shading = grey @ _FACING.T
    level = shading.mean(axis=1)
    contrast = (shading.max(axis=1) - shading.min(axis=1)) / np.maximum(level, 1e-6)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = np.rad2deg(np.arcsin(np.clip(-y / length, -1.0, 1.0)))
    return {
        "light from the side": np.where(uneven, np.rad2deg(np.arctan2(x, -z)), np.nan),
        "light from above": np.where(uneven, above, np.nan),
        "light's contrast": contrast,
        "light's level": level,
    }


def describe_recipe(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A row's recipe in words: movements of mouth, eyes and brows, accessories, background."""
    mouth, _, rest = str(recipe.get("movement", "unknown")).partition("+")
    eyes, _, brows = rest.partition("+")
    accessories = sorted(
        {str(name).rstrip("0123456789_- ") for name in recipe.get("worn", ())} - {"body"}
    )
    background = recipe.get("background")
    kind = background.get("kind", "drawn") if isinstance(background, dict) else "the photo's own"
    return {
        "mouth": mouth,
        "eyes": eyes or mouth,
        "brows": brows or mouth,
        "accessories": ", ".join(accessories) or "none",
        "background": str(kind),
        "colours": "grey" if recipe.get("sensor", {}).get("grey") else "colour",
    }


def measure_skin_tone(row: ViewRow, model: MorphableModel) -> float:
    """The individual typology angle (ITA) of a view's skin, in degrees, without light and sensor.

    Above 55 skin is called very light, below -30 dark (Chardon et al. 1991). NaN where too little
    skin is seen or the image is grey. Raises BadDataset when the row is of another model.
    """
    recipe = json.loads(row.recipe)
    sensor = Sensor(**{**recipe["sensor"], "gains": tuple(recipe["sensor"]["gains"])})
    frame = resolve_frame(row, model)
    skin = np.zeros(len(model.faces), dtype=np.bool_)
    skin[model.find_triangles("face")] = True
    seen = frame.mask & skin[np.maximum(frame.triangle, 0)] & (frame.normal[..., 2] < -0.3)
    if sensor.grey or seen.sum() < LEAST_SKIN:
        return float("nan")
    shading = lighting.shade(frame.normal[seen].astype(float), row.light.astype(float))
    lit = (shading > 0.25 * shading.mean()).all(axis=1)
    albedo = np.median(linearize(row.pixels()[seen][lit], sensor) / shading[lit], axis=0)
    patch = np.clip(albedo, 0.0, 1.0).astype(np.float32).reshape(1, 1, 3)
    lightness, _, yellow = cv2.cvtColor(patch, cv2.COLOR_RGB2Lab)[0, 0].tolist()
    return float(np.rad2deg(np.arctan2(lightness - 50.0, max(yellow, 1e-6))))
