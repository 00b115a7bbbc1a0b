"""Settings of the aligner's parts. All are frozen and passed in, so two aligners may differ.

Noise, gates, reaches and motions are fractions of the face size: the size in pixels at which the
model's frontal landmark box appears in the photo. Faces of every size and yaw are treated alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from sys import maxsize

from dff.aligner.preset import AlignPreset
from dff.face.descriptor import FRAMING


@dataclass(frozen=True)
class ObservationConfig:
    """How photos are observed and their pixels matched. Raises ValueError for wrong counts."""

    # crops in one call of the network: the maps of more leave the cache of a CPU's core
    network_batch: int = 4
    pixels: int = 300  # of each face that are matched; 500 are no more accurate
    candidates: int = 6  # anchors that a pixel may correspond to
    # metres on the template from a pixel's best anchor within which its other candidates lie
    candidate_radius: float = 0.012
    no_match_cosine: float = 0.4  # at which a pixel is as likely to match no anchor at all
    fewest: int = 24  # fewer matched pixels say nothing about a pose

    def __post_init__(self) -> None:
        if min(self.network_batch, self.pixels, self.candidates, self.fewest) < 1:
            raise ValueError(f"ObservationConfig wants positive counts: {self}")


@dataclass(frozen=True)
class FitModelConfig:
    """The part of the face model that is fitted to one photo."""

    modes: int = 60  # latent directions of shape
    contour_regions: tuple[str, ...] = ("face", "lips", "brows")
    """Whose occluding contours count. Ears and scalps differ in ways that no mode explains."""
    peripheral_regions: tuple[str, ...] = ("ears", "scalp", "neck")
    """No landmark lies there, and they differ between people in ways that no mode explains."""
    inner_regions: tuple[str, ...] = ("mouth", "teeth", "tongue")
    """They hide no part of the face from any camera."""
    peripheral_weight: float = 0.15  # of anchors in these regions, when a fit is refined
    # of anchors on the lips, when a fit is refined: a small part of the face that moves most, so
    # that fits of open and smiling mouths lag behind
    lip_weight: float = 2.0
    # activation of the jaw at which the two lips are apart, and metres from the landmarks of a
    # lip within which anchors belong to it
    open_jaw: float = 0.8
    lip_reach: float = 0.008


@dataclass(frozen=True)
class VisibilityConfig:
    """Which parts of a fitted mesh its camera sees."""

    buffer: int = 64  # pixels of the depth buffer's side
    occlusion: float = 0.012  # metres behind the visible surface at which a point is hidden
    contour_points: int = 256  # of the occluding contour, at most
    contour_occlusion: float = 0.006  # metres, as above, of points of the contour
    # motion of the landmarks, fraction of the face size, below which a refined face keeps the
    # visibility that it was refined with
    kept_motion: float = 0.0


@dataclass(frozen=True)
class SilhouetteConfig:
    """How the occluding contour is fitted to the edge of the network's face mask."""

    observations: float = 60.0  # independent observations that a whole contour counts as
    points: int = 64  # of the contour that are fitted
    reach: float = 0.04  # how far from a point of the contour the mask's edge is searched
    steps: int = 16  # of the search, to each side


@dataclass(frozen=True)
class CorrespondenceConfig:
    """One soft correspondence and the Gauss-Newton steps to it. Fractions of the face size."""

    gate: float  # how near to its prediction a match must fall
    noise: tuple[float, ...]  # of each step


@dataclass(frozen=True)
class SolverConfig:
    """Gauss-Newton steps of a fit to one photo."""

    # independent observations that all pixels of a face count as: weighs the data against the prior
    observations: float = 300.0
    # closed-form poses, each without what the one before took for outliers
    pose_noise: tuple[float, ...] = (0.3, 0.2, 0.12, 0.08)
    rigid_noise: tuple[float, ...] = (0.06, 0.05)  # steps of the pose alone
    shape_noise: tuple[float, ...] = (0.05, 0.035)  # steps of pose and shape
    # how near to its prediction a match must fall, in the first pass after the pose is known
    first_gate: float = 0.15
    later_gates: tuple[float, ...] = (0.08,)  # in later passes, which begin from a prediction
    # a face that was followed keeps its last pose where matches within this reach of it hold this
    # share of the weight; else it may have jumped
    still_reach: float = 0.08
    still: float = 0.6
    later_noise: float = 0.03
    later_steps: int = 2  # for each gate
    followed_steps: int = 2  # the same for a face that was followed, which takes one pass

    @property
    def first_correspondences(self) -> tuple[CorrespondenceConfig, ...]:
        """Those of the first pass, after the pose is known."""
        return (CorrespondenceConfig(self.first_gate, self.shape_noise),)

    @property
    def later_correspondences(self) -> tuple[CorrespondenceConfig, ...]:
        """Those of a pass that begins from a prediction."""
        noise = (self.later_noise,) * self.later_steps
        return tuple(CorrespondenceConfig(gate, noise) for gate in self.later_gates)


@dataclass(frozen=True)
class MouthConfig:
    """How a mouth is fitted that is open wider than the last fit has it.

    The values were chosen on 24 photos of 300-W with mouths wide open.
    """

    lag: float = 0.05  # fraction of the face size by which the lower lip is matched below its fit
    fewest: float = 1.0  # matched pixels of the lower lip; fewer tell nothing
    # z of the gaze in the camera frame, -1 towards the camera: no face is turned further
    turned: float = -0.5
    # Gauss-Newton: how near to its prediction a match must fall, and the noise, step by step
    gates: tuple[float, ...] = (0.5, 0.3, 0.15)
    noises: tuple[float, ...] = (0.25, 0.12, 0.06)
    steps: int = 3  # for each of them
    weight: float = 11.0  # of an anchor in the middle of the lower lip
    observations: float = 3.0  # over those of ``SolverConfig``: wide open mouths are rare

    @property
    def correspondences(self) -> tuple[CorrespondenceConfig, ...]:
        """Those that open the mouth, by gates that narrow step by step."""
        return tuple(
            CorrespondenceConfig(gate, (noise,) * self.steps)
            for gate, noise in zip(self.gates, self.noises, strict=True)
        )


@dataclass(frozen=True)
class MultiImageConfig:
    """The fit to several photos of one person. Raises ValueError without a size of crops."""

    passes: int = 3  # at most; each observes the photos again
    # of the crops that forward passes are averaged over
    scales: tuple[float, ...] = (0.8, 1.0, 1.2)
    identities: int = 100  # latent directions of identity
    expressions: int = 40  # and of expression
    # metres, standard deviation of the residual deformation of a coordinate; 0: none
    deformation_sd: float = 0.005
    coarse_range: float = 0.05  # metres over which coarse deformations change
    coarse_fields: int = 20  # along each axis
    fine_range: float = 0.02  # metres, of fine deformations, along the normals
    fine_fields: int = 150
    fine_share: float = 0.2  # standard deviation of the fine deformations over the coarse ones'
    inverse_depth: float = 1.0  # 1 / metres: mean of the prior of cameras
    inverse_depth_sd: float = 1.0
    nearest: float = 4.0  # 1 / metres: no camera is nearer than that
    matchings: int = 2  # soft correspondences in each pass
    steps: int = 2  # Gauss-Newton, after each of them
    whole_face: float = 0.8  # area of a face that is seen whole, over its squared size
    # agreement of a photo with n others below which it shows someone else:
    # stranger - few_photos / n
    stranger: float = 0.35
    few_photos: float = 0.2
    doubt: float = 0.27  # how far above that bound a photo is kept but called doubtful
    # how much further, once a photo was left out: what is left then agrees best of several
    doubt_of_rest: float = 0.2
    # weight of the texture's correlation, beside the cosine of the identities, in an agreement
    texture: float = 0.6
    texture_unknown: float = 0.2  # correlation assumed where two photos show different sides
    # how much nearer to the other photos' identities a face must be to be preferred to a larger one
    preference: float = 0.4

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or self.passes < 1:
            raise ValueError(f"MultiImageConfig wants positive scales and passes: {self}")


@dataclass(frozen=True)
class PhotometricFitConfig:
    """Photometric bundle adjustment of several photos of one person."""

    observations: float = 1000.0  # independent ones that a photo's whole skin counts as; 0: unused
    points: int = 1500  # of the skin whose brightness is compared
    radius: float = 0.1  # metres from the tip of the nose within which they lie
    noise: float = 0.04  # of brightness in 0 to 1 that light and albedo do not explain
    # residual whose weight is a quarter: a hand, a strand of hair, a highlight
    outlier: float = 0.05
    # of skin, in grey; the prior is wide, or shape would explain what albedo should
    albedo: float = 0.45
    albedo_sd: float = 3.0
    side: int = 256  # pixels of the crops that are compared
    blur: float = 0.008  # standard deviation of their blur, fraction of the face size
    buffer: int = 160  # pixels of the depth buffer's side
    clearance: int = 2  # buffer pixels: a point counts only where no nearer surface is so close
    occlusion: float = 0.012  # metres behind the visible surface at which a point is hidden
    grazing: float = 0.3  # cosine to the camera from which a point counts
    frontal: float = 0.6  # and from which it counts fully
    steps: int = 3  # Gauss-Newton
    first_alternations: int = 8  # of light and albedo, before the first step
    later_alternations: int = 2  # and before each of the others
    # standard deviations by which all soft correspondences of a photo may be off together
    slack_scale: float = 0.05
    slack_degrees: float = 4.0
    slack_shift: float = 0.03  # fraction of the face size


@dataclass(frozen=True)
class DetectorConfig:
    """How faces are detected. Raises ValueError for counts and ratios that make no sense."""

    longest: int = 1024  # pixels that a photo's longer side is shrunk to before the search
    enlarged: int = 192  # pixels: a smaller photo's longer side is enlarged to this, at most twice
    # pixels: the same in a second search for small faces, where no detection explains the pixels
    second_search: int = 640
    ratio: float = 2.0  # between the sizes of neighbouring levels
    # whether the finest level is searched even where sharp and likely faces explain all pixels of
    # the next one
    all_levels: bool = True
    likely: float = 0.2  # score of such a face
    coarsest: int = 100  # pixels: levels whose longer side is shorter are not searched
    pixels: int = 2500  # of each level that are matched
    candidates: int = 6  # anchors that a pixel may correspond to
    no_match_cosine: float = 0.25  # at which a pixel is as likely to match no anchor at all
    fewest: int = 24  # pixels of a face on a level, or it proposes nothing
    # pixels of a level: radii of windows that poses start from
    windows: tuple[float, ...] = (8.0, 16.0)
    most: int = 48  # windows of each radius on a level
    filled: float = 0.08  # share of a window that must show a face
    least: float = 0.12  # score of a face that is not small
    # fractions of the face size: how far pixels may disagree with a pose, pass by pass
    noise: tuple[float, ...] = (0.3, 0.2, 0.12, 0.08, 0.08)
    agreement: float = 0.06  # fraction of the face size at which a pixel agrees to 60 %
    smallest: float = 14.0  # pixels of a level: sizes of faces that it can show
    largest: float = 400.0
    # pixels of a level: smaller faces are blurred; scores fall with the square of their size
    sharp: float = 48.0
    # side of a detection's square over the longer side of its box: ears, neck and hair belong to it
    surroundings: float = 1.7
    unexplained: float = 60.0  # square pixels beside all detections that are worth a second search
    margin: int = 16  # pixels of the photo round what is searched again
    # pixels: photos whose longer side exceeds this are searched at their own resolution as well
    untiled: int = 1152
    tile: int = 1024  # pixels of the side of the tiles in which large photos are searched
    # pixels that neighbouring tiles share: larger faces are left to the next coarser level
    tile_overlap: int = 160
    tile_smallest: float = 22.0  # pixels: smaller faces are not looked for in tiles
    # pixels that a photo's longer side is shrunk to before it is cut into tiles: bounds the cost
    tiled_longest: int = 16384
    # z of the gaze in the camera frame: no face is turned further, 20 degrees past profile
    turned_away: float = 0.35

    def __post_init__(self) -> None:
        counts = (self.longest, self.enlarged, self.second_search, self.coarsest, self.pixels)
        if min(*counts, self.candidates, self.most) < 1 or self.ratio <= 1.0:
            raise ValueError(f"DetectorConfig wants positive sizes and a ratio above one: {self}")
        if not 0 <= self.tile_overlap < self.tile or self.untiled < self.longest:
            raise ValueError(f"DetectorConfig wants tiles larger than their overlap: {self}")


@dataclass(frozen=True)
class CentreDetectorConfig:
    """How the network of the quick search is used. Raises ValueError for impossible values."""

    longest: int = 1024  # pixels that a photo's longer side is shrunk to before the search
    enlarged: int = 192  # pixels: a smaller photo's longer side is enlarged to this, at most twice
    coarsest: int = 80  # pixels: halved photos whose longer side is shorter are not searched
    # whether the finest level is searched even where the others surely show a face, and none that
    # is too small to be sure of
    all_levels: bool = True
    # probability from which a cell is the centre of a face. This and the others: chosen on 675
    # photos of AFLW2000-3D and 300-W and 280 painted masks, see docs/experiments/detector.md
    sure: float = 0.45
    # and from which it may be one, so that the thorough detector needs less evidence there
    least: float = 0.3
    # the same for a face at least ``large`` times as large as the largest sure one: the subject of
    # a photo is seldom smaller than its other faces, and must not be missed for them
    least_large: float = 0.2
    large: float = 0.75
    # faces of either kind beside a sure one, at most, around which it searches; one more for each
    # further sure one: where there are many faces, more are unsure
    verified: int = 3
    verified_least: float = 0.35  # probability of them, unless they are as large as the sure ones
    # the same where no face is sure, before it searches the whole photo
    verified_alone: int = 0
    # faces of a probability of at least ``least_large``, at most and the largest first, that are
    # fitted where the photo shows no face otherwise: their fits tell
    unlikely: int = 4
    # overlap (intersection over union) with a sure face from which an unsure one is left out: it is
    # that face at another level, or the hair and neck about it
    overlapping: float = 0.1
    verified_size: float = 40.0  # pixels of such a face in that search
    verified_pixels: int = 300  # that are matched there, at most
    surroundings: float = 3.0  # side of the part that is searched, over the size of the face
    smallest: float = 10.0  # pixels of a level: longer sides of boxes that it can show
    largest: float = 150.0
    # pixels of a level: smaller faces are never sure, since other things look like them
    sharp: float = 24.0
    unsharp_score: float = 0.44  # their largest probability
    # score of a detection of the thorough search below which the quick one must see the face too:
    # of 241 photos with faces, none is detected by so low a score alone
    lowest_alone: float = 0.15
    # the same in tiles, where it has not searched: it must see the face there at each of these
    # sizes in pixels, with a probability from ``least_large`` on
    lowest_alone_in_tiles: float = 0.3
    seen_sizes: tuple[float, ...] = (30.0, 60.0)

    def __post_init__(self) -> None:
        if min(self.longest, self.enlarged, self.coarsest) < 1:
            raise ValueError(f"CentreDetectorConfig wants positive sizes: {self}")
        if not 0.0 < self.least_large <= self.least <= self.sure < 1.0:
            raise ValueError(f"CentreDetectorConfig wants rising probabilities: {self}")


@dataclass(frozen=True)
class FollowingConfig:
    """How a tracked face is followed between the frames in which it is aligned in full.

    Raises ValueError for settings that make no sense.
    """

    interval: float = 0.0  # seconds after which a face is aligned in full; 0: in every frame
    # side of the small crops, over ``AlignConfig.crop``, in whole multiples of 32 pixels
    crop: float = 0.6
    # their side over the longer side of the landmarks' box: tighter than that of full alignments,
    # since it is known where the face is, and fewer pixels show it as large
    margin: float = 1.05
    pixels: int = 200  # of them that are matched
    least_weight: float = 0.01  # of an anchor that they are matched to
    expressions: int = 24  # latent directions of expression
    correspondences: tuple[CorrespondenceConfig, ...] = (
        CorrespondenceConfig(0.08, (0.04,)),
        CorrespondenceConfig(0.08, (0.04,)),
    )
    first_fits: int = 2  # passes in the small crop of a keyframe, of all latent directions
    # seconds instead of the interval after the first full alignment of a face, and the confidence
    # below which that is repeated so soon
    first_interval: float = 0.2
    unsure: float = 0.8
    # mean activation of both lids from which eyes are closed: small crops show lids less surely
    closed_eyes: float = 0.3
    # seconds instead of the interval while it is at least this: a blink is short
    closed_interval: float = 0.2
    fully_closed: float = 0.3
    # sooner: where open lids have closed by this mean activation since the last full alignment
    # (never: full alignments of ``fast`` show a blink no better than small crops), or closed ones
    # have opened by this share of theirs; until then they stay closed
    closing: float = math.inf
    opening: float = 0.4
    # sooner than after the interval: where the head has turned by so many degrees or its size has
    # changed by this factor since the last full alignment, or where the share of pixels that agree
    # with the fit is less than this part of what it was, or was less than this part of what it is:
    # something covers the face, or no longer does
    turned: float = 12.0
    grown: float = 1.2
    least_agreement: float = 0.9

    def __post_init__(self) -> None:
        counts = (self.pixels, self.expressions, self.first_fits)
        if min(counts) < 1 or self.crop <= 0:
            raise ValueError(f"FollowingConfig wants positive counts: {self}")
        if len({len(one.noise) for one in self.correspondences}) != 1:
            raise ValueError(f"FollowingConfig wants as many steps to each correspondence: {self}")


@dataclass(frozen=True)
class TurnedStartsConfig:
    """How a face in a given box is sought that lies on its side or upside down.

    One pass from each start in a small crop tells from which starts it is fitted. Raises ValueError
    without a turn.
    """

    # degrees in the image plane by which the starts are turned; by the slight ones only where the
    # upright crop shows something of a face
    degrees: tuple[float, ...] = (90.0, -90.0, 180.0)
    slight: tuple[float, ...] = (45.0, -45.0)
    # side of the small crops over ``AlignConfig.crop``, in whole multiples of 32 pixels
    crop: float = 0.75
    # confidence after that pass from which a face is fitted whose upright fit failed, and share of
    # the surest start's
    least: float = 0.02
    least_share: float = 0.1
    # confidence below which an upright fit that did not fail may lie upside down on the face; it is
    # looked at once, half a turn away, and fitted from that where the look is as confident as this
    doubtful: float = 0.75
    least_instead: float = 0.3

    def __post_init__(self) -> None:
        if not self.degrees or self.crop <= 0:
            raise ValueError(f"TurnedStartsConfig wants a turn and a crop: {self}")


@dataclass(frozen=True)
class RefitConfig:
    """How a likely face is fitted again whose fit was rejected.

    Raises ValueError without a pass.
    """

    passes: int = 5
    # sides of the boxes in which the fit begins, over the detection's own, beside the detected pose
    boxes: tuple[float, ...] = (1.0, 0.6)
    # confidence of the rejected fit from which it is fitted again: where the quick search is sure
    # of the face, and where it is not and the photo shows no other face of ``others_size`` its size
    least_confidence: float = 0.05
    least_alone: float = 0.1
    others_size: float = 0.75
    # size over that of the largest other face of the photo: smaller ones are mostly no faces
    least_size: float = 0.6

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"RefitConfig wants a pass: {self}")


@dataclass(frozen=True)
class EyeEvidenceConfig:
    """How the eyes of a detected face speak for a fit that would be rejected.

    Where a mask hides half of a face, few pixels agree with its fit, but the eyes are seen where
    the fit has them. Raises ValueError for a weight that is not positive.
    """

    # log odds of the confidence for each unit by which the network's similarity to the eyes' own
    # descriptors exceeds ``least``; of the eye that is less like its own. Chosen on 420 painted
    # masks and 388 pictures without their face, see docs/experiments/detector.md
    weight: float = 6.0
    least: float = 0.45
    # confidence that the eyes lend at most, which is not sure: they are alike upside down, so the
    # photo is still searched in quarter turns
    most: float = 0.6
    # similarity without which the fit of an unlikely detection is none: ears are fitted, too
    least_unlikely: float = 0.6
    # cosine of the head's turn in the image plane from which it counts as upright: upside down,
    # the eyes of a fit may lie on those of the face
    upright: float = 0.5

    def __post_init__(self) -> None:
        if self.weight <= 0.0:
            raise ValueError(f"EyeEvidenceConfig wants a positive weight: {self}")


@dataclass(frozen=True)
class AlignConfig:
    """How faces are aligned. Raises ValueError for settings that make no sense."""

    crop: int = 128  # pixels of the side of the crops that the network sees
    # other sides of crops, over ``crop``, in whole multiples of 32 pixels, whose fits are averaged
    # with that of ``crop``
    averaged_crops: tuple[float, ...] = ()
    # side of the crops in which followed faces are aligned in full, over ``crop``, in whole
    # multiples of 32 pixels
    followed_crop: float = 1.0
    margin: float = FRAMING  # side of the first crop over the longer side of the landmark box
    # the same of later passes, which know better where the landmarks are and want them large
    later_margin: float = 1.3
    mirror: bool = True  # every second pass observes the mirrored photo; the next one uses both
    passes: int = 3  # at most; each observes the photo again
    # whether the first pass of a detected face refines its fit too, on the same observation
    refine_at_once: bool = False
    # mean motion of the landmarks in a pass below which a face needs no further pass
    early_stop: float = 0.01
    # the same for a face that was followed from the last frame, in its first pass
    followed_stop: float = 0.05
    # confidence after a pass below which a detected face takes no further one, where another face
    # of the photo is sure by then; 0: all faces take all passes
    doubtful_stop: float = 0.0
    # the same for the mean distance of the landmarks, fraction of the face size, from those of a
    # surer fit, which they repeat
    repeated_stop: float = 0.05
    batch: int = 32  # faces that are aligned at a time
    # whether the networks multiply in 16-bit integers where the CPU can: faster, and landmarks move
    # by less than a thousandth of the face size
    reduced_precision: bool = False
    # 1 / metres, of cameras to faces: one photo hardly tells, but few are taken from far away
    inverse_depth: float = 1.0
    # side of the box in which a failed face is aligned once more, over that of its own box
    second_attempt: float = 0.75
    turned_starts: TurnedStartsConfig | None = field(default_factory=TurnedStartsConfig)
    refit: RefitConfig | None = field(default_factory=RefitConfig)
    # overlap (intersection over union) of a refused fit with a confident detection of the quick
    # search from which that is a second opinion on it
    confirming_overlap: float = 0.6
    # evidence of the eyes for a refused fit of a detected face
    eye_evidence: EyeEvidenceConfig = field(default_factory=EyeEvidenceConfig)
    # whether a photo in which no face is surely found is searched in its three other quarter turns
    quarter_turns: bool = True
    # landmarks that must be more likely visible than not: an eye has six
    fewest_visible: int = 5
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    fit_model: FitModelConfig = field(default_factory=FitModelConfig)
    visibility: VisibilityConfig = field(default_factory=VisibilityConfig)
    silhouette: SilhouetteConfig = field(default_factory=SilhouetteConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    mouth: MouthConfig = field(default_factory=MouthConfig)
    following: FollowingConfig = field(default_factory=FollowingConfig)
    multi_image: MultiImageConfig = field(default_factory=MultiImageConfig)
    photometric: PhotometricFitConfig = field(default_factory=PhotometricFitConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    centre_detector: CentreDetectorConfig = field(default_factory=CentreDetectorConfig)

    def crop_side(self, share: float) -> int:
        """The pixels of the side of a crop that is ``share`` times ``crop``, a multiple of 32."""
        return max(round(share * self.crop / 32), 1) * 32

    def __post_init__(self) -> None:
        counts = (self.crop, self.passes, self.batch)
        if min(counts) < 1 or min(self.margin, self.later_margin, self.second_attempt) <= 0:
            raise ValueError(f"AlignConfig wants positive sizes: {self}")

    @staticmethod
    def of(preset: AlignPreset, *, crop: int) -> AlignConfig:
        """The settings of a preset for weights that were trained on crops of ``crop`` pixels."""
        if preset is AlignPreset.fast:
            whole = DetectorConfig(longest=320, second_search=1, untiled=maxsize, all_levels=False)
            quick = CentreDetectorConfig(all_levels=False, verified=0, verified_alone=3, unlikely=0)
            return AlignConfig(
                crop=crop,
                passes=1,
                refine_at_once=True,
                followed_crop=0.8,
                following=FollowingConfig(interval=2.0),
                reduced_precision=True,
                visibility=VisibilityConfig(kept_motion=0.02),
                quarter_turns=False,
                refit=None,
                detector=whole,
                centre_detector=quick,
                multi_image=MultiImageConfig(passes=2),
            )
        if preset is AlignPreset.best:
            more = ObservationConfig(pixels=500)
            return AlignConfig(
                crop=crop,
                passes=5,
                early_stop=0.004,
                followed_stop=0.01,
                reduced_precision=True,
                observation=more,
                multi_image=MultiImageConfig(passes=5),
            )
        return AlignConfig(
            crop=crop,
            passes=2,
            refine_at_once=True,
            following=FollowingConfig(
                interval=2.0, crop=0.8, margin=1.1, pixels=150, closed_eyes=0.15, closing=0.15
            ),
            observation=ObservationConfig(pixels=150, candidates=4),
            reduced_precision=True,
            visibility=VisibilityConfig(kept_motion=0.02),
            doubtful_stop=0.25,
            detector=DetectorConfig(all_levels=False),
            centre_detector=CentreDetectorConfig(all_levels=False),
        )


@dataclass(frozen=True)
class SmoothingConfig:
    """The One Euro filter of tracked faces. Raises ValueError for settings that make no sense."""

    rest: float = 0.6  # Hz: cutoff at rest
    gain: float = 200.0  # Hz for each face size a second
    quiet: float = 0.12  # face sizes a second: slower motion is taken for noise
    speed: float = 1.0  # Hz: cutoff of the speed itself

    def __post_init__(self) -> None:
        if min(self.rest, self.speed) <= 0 or min(self.gain, self.quiet) < 0:
            raise ValueError(f"SmoothingConfig wants positive cutoffs: {self}")


@dataclass(frozen=True)
class TrackingConfig:
    """How faces are tracked through a video. Raises ValueError for settings that make no sense."""

    smoothing: SmoothingConfig | None = None  # None leaves the faces as they are found
    search_interval: float = 1.0  # seconds between searches of the whole frame for new faces
    lost_interval: float = 0.25  # the same while a lost face is remembered
    memory: float = 10.0  # seconds for which a lost face is remembered
    reach: float = 3.0  # face sizes a second that a lost face may move
    restart: float = 0.5  # seconds after which a face that returns is smoothed anew
    # Seconds from its first frame in which a new track may yet prove to be one that was lost, whose
    # number it then gets. With 0 the numbers of a frame are final.
    settling: float = 0.0
    learning: float = 2.0  # seconds over which the appearance of a track is averaged
    thumbnail: tuple[int, int] = (32, 18)  # pixels across and down in which shots are compared
    # Mean differences of levels (0 to 255) between frames. Beyond ``cut`` a shot may be a new one,
    # and beyond ``least_cut`` if it is ``cut_ratio`` times the usual one.
    cut: float = 20.0
    least_cut: float = 7.0
    cut_ratio: float = 3.0
    picture: int = 16  # pixels of the side in which a face is compared with the frame before
    # Logarithm of grey levels by which a pixel of a face differs, and the share of differing ones
    # beyond which it may be another face: in made films at least 0.43 where faces are exchanged in
    # place, and at most 0.31 in 95 % of the other frames.
    differing: float = 0.15
    most_differ: float = 0.4
    # Mean visibility of the less visible of two faces over the other's, from which neither is
    # covered more: where their pixels differ, it is another face.
    as_visible: float = 0.9
    # Agreement of two appearances of one person: at least these. Of photos of 36 people, 0.3 % of
    # the pairs of two people agree so far, and 98 % of the pairs of one (turned, dimmed, blurred).
    same_texture: float = 0.85
    same_identity: float = 0.5
    # The same for a face that comes out from behind another in the same shot, which is expected: of
    # photos of 237 people, some 2 % of the pairs agree so far.
    returning_texture: float = 0.75
    returning_identity: float = 0.35
    hiding: float = 1.2  # face sizes from another face within which a face is lost behind it
    # Both below these within a shot: the track has slipped to another person.
    other_texture: float = 0.6
    other_identity: float = 0.7

    def __post_init__(self) -> None:
        times = (self.search_interval, self.lost_interval, self.memory, self.reach, self.restart)
        if not min(*times, self.settling, self.learning) >= 0:
            raise ValueError(f"TrackingConfig wants intervals that are not negative: {self}")
