"""Settings of the training data: how crops are placed, warped, augmented and composed.

A range is a pair (low, high), from which values are drawn uniformly unless its comment says
otherwise; a range of counts includes both ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

Range = tuple[float, float]
Counts = tuple[int, int]


class Checked:
    """Base of the settings. Raises ValueError for a probability beyond 0..1 or an empty range."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            name = f"{type(self).__name__}.{item.name}"
            if item.name.endswith("probability") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be within 0..1, got {value}")
            if isinstance(value, tuple) and not (len(value) == 2 and value[0] <= value[1]):
                raise ValueError(f"{name} must be a range (low, high), got {value}")


@dataclass(frozen=True)
class PlacementConfig(Checked):
    """Random placement of a crop over a face, as loose detections and tilted heads cause it."""

    zoom: Range = (0.75, 1.4)  # side of the crop over that of the plain one; log-uniform
    shift: float = 0.12  # largest shift of the centre along x and y, in sides of the plain crop
    large_shift: float = 0.25  # the same for a share of the crops
    large_shift_probability: float = 0.3
    rotation: float = 20.0  # degrees, either way
    large_rotation: float = 60.0  # the same for a share of the crops
    large_rotation_probability: float = 0.35
    mirror_probability: float = 0.5


@dataclass(frozen=True)
class WarpConfig(Checked):
    """Smooth random warps of a crop, for faces of other proportions than the model's."""

    probability: float = 0.5
    stretch: float = 0.05  # standard deviation of the logarithm of the stretch
    max_stretch: float = 0.12  # largest absolute logarithm of the stretch
    knots: Counts = (4, 8)  # control points on each side of the crop
    amplitude: float = 0.09  # largest standard deviation of a shift, in knot spacings
    max_shift: float = 2.0  # largest shift of a control point, in standard deviations


@dataclass(frozen=True)
class FacelessConfig(Checked):
    """Views whose face is painted over: heads in which no face may be detected."""

    probability: float = 0.03  # of a crop
    skin_colour_probability: float = 0.6  # paint in the mean colour of the face; else in any
    noise: Range = (0.0, 8.0)  # standard deviation, levels of 0..255
    margin: int = 2  # px that the paint extends beyond the face


@dataclass(frozen=True)
class PhotometricConfig(Checked):
    """Random camera effects, in the order of a camera. Levels are 0..255, shares of them 0..1."""

    log_gamma: Range = (-0.4, 0.4)
    contrast: Range = (0.65, 1.25)
    brightness: Range = (-0.12, 0.12)  # added, share of the range
    channel_gain: Range = (0.88, 1.12)  # white balance
    saturation_probability: float = 0.4
    saturation: Range = (0.2, 1.5)
    grey_probability: float = 0.15
    blur_probability: float = 0.3
    blur: Range = (0.4, 1.6)  # standard deviation, px
    low_resolution_probability: float = 0.3
    low_resolution: Range = (0.35, 0.8)  # scale that the crop is reduced to, then enlarged
    noise_probability: float = 0.4
    noise: Range = (2.0, 14.0)  # standard deviation, levels
    jpeg_probability: float = 0.4
    jpeg_quality: Counts = (20, 84)


@dataclass(frozen=True)
class OcclusionConfig(Checked):
    """Random occluders in front of a crop. Lengths are in sides of the crop."""

    probability: float = 0.35
    count: Counts = (1, 2)
    ellipse: Range = (0.06, 0.28)  # semi-axes
    polygon: Range = (0.1, 0.32)  # half the side of the square that holds the corners
    polygon_corners: Counts = (4, 8)
    bar_length: Range = (0.2, 1.0)  # half the length
    bar_width: Range = (0.03, 0.14)
    copy_probability: float = 0.4  # textured by another part of the image; else a noisy colour
    texture: Range = (0.0, 40.0)  # standard deviation of the noise, levels of 0..255


@dataclass(frozen=True)
class MosaicConfig(Checked):
    """Mosaics: several small faces, parts of faces, or none, over a background.

    ``zoom`` is the side of a mosaic over that of the plain crop of a face in it; at 4.2 a face
    takes 20 of 128 pixels.
    """

    probability: float = 0.12  # of a training sample
    most_faces: int = 4
    zoom: Range = (1.2, 4.2)  # log-uniform
    centre: Range = (0.05, 0.95)  # of a landmark box, in sides of the mosaic
    mirror_probability: float = 0.5
    empty_probability: float = 0.15  # no face at all
    faceless_probability: float = 0.09  # of each face: painted over
    cutout_probability: float = 0.6  # of each face: without its own background
    cutout_margin: Range = (0.02, 0.25)  # background kept about a head, in sides of its box
    cutout_softness: Range = (0.1, 0.6)  # share of the margin over which a cutout fades
    joined_probability: float = 0.5  # a background of two parts
    join_offset: float = 0.4  # largest distance of the seam from the centre, in sides
    background_scale: Range = (0.5, 2.5)  # log-uniform
    min_background: int = 12  # px of background beside a head, below which it is not used
    plain_noise: Range = (5.0, 60.0)  # of a background without a photo, levels of 0..255
    transparent: float = 0.03  # opacity below which a layer leaves the targets as they are
    opaque: float = 0.97  # opacity above which a layer sets the targets


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """All random choices that make a training sample from a view."""

    placement: PlacementConfig = field(default_factory=PlacementConfig)
    warp: WarpConfig = field(default_factory=WarpConfig)
    faceless: FacelessConfig = field(default_factory=FacelessConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    occlusion: OcclusionConfig = field(default_factory=OcclusionConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    max_spread: float = 0.010
    """Metres: where four neighbouring pixels show points further apart, coordinates are unknown."""


AUGMENT = AugmentConfig()
"""The default settings."""
