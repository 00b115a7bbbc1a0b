"""Faces tracked from frame to frame: each begins where it was, and is smoothed over time.

A frame's alignments begin from the last frame's, so that nothing is detected. Mostly only pose and
expression are fitted, in a small crop (``following``); now and then, and where that fails, a face
is aligned in full, and its appearance is measured. The whole frame is searched when a face is lost,
when the shot may have changed, and now and then for faces that came in.

A track never changes its person. Where the frame changes unusually, as at a cut, a face keeps its
number only if it looks like its track's person (``dff.aligner.appearance``), wherever it is then; a
face that was hidden or lost for some seconds gets its number back on the same condition. So does a
face most of whose pixels change between two frames, unless something covers it or no longer does.

The first frame that shows a face may show too little of it to be recognised. Who can hold frames
back gives a new track some time to settle (``TrackingConfig.settling``), in which it may prove to
be one that was lost: its faces then belong to that one from the first (``settling``). Otherwise the
number of a new track is final.

Smoothing is the One Euro filter (Casiez, Roussel and Vogel 2012), a low-pass whose cutoff rises
with speed: a face at rest stands still, a moving one is not held back. Speeds are face sizes a
second. Pose, shape and lids are filtered each at its own speed, since a blink is fast in a face at
rest; the landmarks follow from all, so that mesh, pose and landmarks remain one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, Pose
from dff.aligner.appearance import AppearanceDescriptor, shrink_by_samples
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.detection import Search, same_face
from dff.aligner.face_request import Steps
from dff.aligner.face_search import find_faces
from dff.aligner.fitting.expressions import find_blinks
from dff.aligner.found_faces import describe_refused
from dff.aligner.landmark_placement import move_alignment, place_landmarks
from dff.aligner.tracking.following import CLOCK_ERROR, FaceFollower, FollowedFace
from dff.aligner.tracking.pictures import face_picture, share_differing
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid
from dff.face.model.landmark_offsets import LandmarkOffsets
from dff.face.model.landmarks import EYES
from dff.face.model.morphable import Coefficients, MorphableModel


class OneEuro:
    """The filter of one signal: numbers that move together, in units of comparable speed."""

    def __init__(self, smoothing: SmoothingConfig) -> None:
        self.smoothing = smoothing
        self.last: Floats | None = None
        self.velocity = np.zeros(1)

    def share(self, value: Floats, interval: float) -> float:
        """The share of the new (N,) ``value`` in the filtered one, which becomes ``last``.

        ``interval``: seconds since the value before.
        """
        if self.last is None:
            self.last, self.velocity = value, np.zeros_like(value)
            return 1.0
        # Measured from the filtered value, so that lag itself counts as speed and opens the filter.
        velocity = (value - self.last) / interval
        self.velocity = self.velocity + self._share(self.smoothing.speed, interval) * (
            velocity - self.velocity
        )
        moving = max(float(np.linalg.norm(self.velocity)) - self.smoothing.quiet, 0.0)
        share = self._share(self.smoothing.rest + self.smoothing.gain * moving, interval)
        self.last = self.last + share * (value - self.last)
        return share

    @staticmethod
    def _share(cutoff: float, interval: float) -> float:
        return 1.0 / (1.0 + 1.0 / (2.0 * np.pi * cutoff * interval))


class Smoother:
    """Smooths the alignments of one face over time."""

    def __init__(
        self,
        model: MorphableModel,
        smoothing: SmoothingConfig,
        *,
        landmark_offsets: LandmarkOffsets | None = None,
    ) -> None:
        self.model, self.landmark_offsets = model, landmark_offsets or LandmarkOffsets()
        self.size = Box.around(model.template[model.landmarks.vertex][:, :2]).size  # metres
        self.pose, self.shape, self.lids = (OneEuro(smoothing) for _ in range(3))
        self.blinks = find_blinks(model.expression_names)
        moved = model.expression[self.blinks][:, model.landmarks.vertex[EYES]]
        # face sizes by which shutting the eyes moves the lids
        self.reach = float(np.linalg.norm(moved, axis=-1).max(initial=0.0)) / self.size
        self.before: Alignment | None = None
        self.time = 0.0  # seconds, of the face before

    def __call__(self, face: Alignment, time: float) -> Alignment:
        """The face, seen at ``time`` in seconds, smoothed by those before it."""
        interval, self.time = time - self.time, time
        rotation, camera = face.cam_from_head.rotation, face.camera
        posed = self._pose_share(face, interval)
        points = face.vertices[self.model.landmarks.vertex] / self.size
        shaped = self.shape.share(
            (points - points.mean(0)).ravel() / np.sqrt(len(points)), interval
        )
        before = self.before or face
        vertices = _blend(before.vertices, face.vertices, shaped)
        expression, found = before.coefficients.expression, face.coefficients.expression
        blinked = self.lids.share(self.reach * found[self.blinks], interval)
        lids = (blinked - shaped) * (found - expression)[self.blinks]
        expression = _blend(expression, found, shaped)
        expression[self.blinks] += lids
        vertices += np.tensordot(lids, self.model.expression[self.blinks], axes=1)
        coefficients = Coefficients(
            _blend(before.coefficients.identity, face.coefficients.identity, shaped), expression
        )
        u, _, vt = np.linalg.svd(_blend(before.cam_from_head.rotation, rotation, posed))
        turned = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        scale = float(np.exp(_blend(np.log(before.camera.scale), np.log(camera.scale), posed)))
        camera = replace(
            camera, scale=scale, centre=_blend(before.camera.centre, camera.centre, posed)
        )
        # the reference frame stands still in the head
        matrix = turned @ (rotation.T @ face.pose.matrix)
        posed_head = Rigid(turned, face.cam_from_head.translation)
        refinement = _blend(before.refinement, face.refinement, shaped)
        landmarks = place_landmarks(
            self.model,
            self.landmark_offsets,
            vertices[self.model.landmarks.used],
            self.landmark_offsets.in_head(coefficients.joined),
            posed_head,
            camera,
            refinement,
        )
        self.before = move_alignment(
            face,
            vertices,
            landmarks,
            coefficients,
            posed_head,
            camera,
            Pose.of(matrix),
            refinement=refinement,
        )
        return self.before

    def _pose_share(self, face: Alignment, interval: float) -> float:
        """How much of the pose of ``face`` the smoothed one takes."""
        rotation, camera = face.cam_from_head.rotation, face.camera
        # A turn by one radian moves the landmarks by about half the face size.
        moves = np.concatenate(
            [
                camera.centre / (camera.scale * self.size),
                [np.log(camera.scale)],
                0.5 * rotation[:2].ravel(),
            ]
        )
        if self.pose.last is not None and self.before is not None:
            # Positions are counted in the size of the face before, or growing would look like
            # moving.
            moves[:2] = camera.centre / (self.before.camera.scale * self.size)
            self.pose.last[:2] = self.before.camera.centre / (self.before.camera.scale * self.size)
        return self.pose.share(moves, interval)


def _blend(old: Floats, new: Floats, share: float) -> Floats:
    return np.asarray(old + share * (new - old))


@dataclass(frozen=True)
class Tracked:
    """A face of a frame."""

    track: int  # the same number is the same face, from frame to frame
    face: Alignment
    raw: Alignment  # as it was found, before smoothing


@dataclass(frozen=True)
class SeenFace:
    """A face of the current frame."""

    face: Alignment
    appearance: AppearanceDescriptor  # at its last full alignment
    followed: FollowedFace | None = None  # None: it was aligned in full
    picture: Floats | None = None  # of ``face_picture``; None where it is not made yet


@dataclass
class Track:
    """A person who is followed, or remembered."""

    number: int
    face: Alignment
    appearance: AppearanceDescriptor
    time: float  # seconds, of the last frame that showed the face
    begin: float  # and of the first one
    smoother: Smoother | None = None
    followed: FollowedFace | None = None  # None: the next frame aligns the face in full
    full_until: float = -np.inf  # seconds: until then every frame does
    hidden: bool = False  # lost where another face was: it may come out from behind that one
    picture: Floats | None = None  # of ``face_picture``, in its last frame
    changed: bool = False  # lost where its pixels changed: its place tells nothing of its person


class Tracker:
    """Tracks the faces of a video, given frame by frame."""

    def __init__(self, aligner: Aligner, *, config: TrackingConfig | None = None) -> None:
        self.aligner, self.config = aligner.with_quick_search(), config or TrackingConfig()
        self.meter = aligner.appearance_meter  # trackers of one aligner share it
        interval = aligner.config.following.interval
        self.follower = FaceFollower(self.aligner) if interval > 0 else None
        self.tracks: dict[int, Track] = {}  # by number: those that the last frame shows
        self.lost: dict[int, Track] = {}  # and those that are remembered
        self.time = -np.inf  # seconds, of the last frame
        self.shot = -np.inf  # and since when there may have been no cut
        self.searched = -np.inf  # and of the last search
        self.count = 0  # of tracks
        self.refused = ""  # what the last search took for faces and refused, if it found none
        # by number: tracks that this frame showed to be lost ones
        self.renamed: dict[int, int] = {}
        self.thumbnail: Bytes | None = None
        self.usual_change = 0.0  # levels: running mean of the change between frames

    def step(self, frame: Bytes, time: float) -> list[Tracked]:
        """The faces of the next (H, W, 3) uint8 RGB frame, taken at ``time`` in seconds.

        Raises BadPhoto as ``Aligner.align``, ValueError unless times increase.
        """
        faces = self.aligner.config.batch
        return self.aligner.run_to_end(self.step_in_steps(frame, time, faces=faces))

    def step_in_steps(self, frame: Bytes, time: float, *, faces: int) -> Steps[list[Tracked]]:
        """``step`` as a generator that returns its value and yields between its parts.

        It yields the requests of ``Aligner.align_in_steps`` for at most ``faces`` faces. If it is
        closed before its end, the frame counts as not seen.
        """
        if not (np.isfinite(time) and time > self.time):
            raise ValueError(f"the times of frames increase: {time} s comes after {self.time} s")
        known = self.time, self.shot, self.thumbnail, self.usual_change, self.searched
        people = dict(self.tracks), self.lost
        try:
            tracked = yield from self._step(frame, time, faces)
        except BaseException:  # such as the end of a session
            self.time, self.shot, self.thumbnail, self.usual_change, self.searched = known
            self.tracks, self.lost = people
            raise
        return tracked

    def _step(self, frame: Bytes, time: float, faces: int) -> Steps[list[Tracked]]:
        self.time = time
        cut = self._may_be_cut(frame)
        if cut:
            self.shot = time
        seen = yield from self._follow(frame, strict=cut)
        lost = {number: track for number, track in self.tracks.items() if number not in seen}
        for track in lost.values():
            others = (_distance(track.face, one.face) for one in seen.values())
            track.hidden = min(others, default=np.inf) <= self.config.hiding
        self.lost = {
            number: track
            for number, track in (self.lost | lost).items()
            if time - track.time <= self.config.memory
        }
        interval = self.config.lost_interval if self.lost else self.config.search_interval
        due = time - self.searched > min(interval, self.config.search_interval) - CLOCK_ERROR
        if cut or not seen or lost or due:
            found = yield from self._search(frame, seen, faces, strict=cut)
            self.searched = time
            seen |= found
        self.renamed = self._recognise(frame, seen)
        for number, former in self.renamed.items():
            self._rename(self.tracks.pop(number), self.lost.pop(former))
        seen = {self.renamed.get(number, number): one for number, one in seen.items()}
        updated = dict[int, Track]()
        for number in sorted(seen):
            yield None
            updated[number] = self._updated(number, frame, seen[number])
        self.tracks = updated
        return [
            Tracked(number, self._smoothed(track), track.face)
            for number, track in self.tracks.items()
        ]

    def _follow(self, frame: Bytes, *, strict: bool) -> Steps[dict[int, SeenFace]]:
        """The faces of the last frame that align where they were, each face once.

        A face that two tracks come to belongs to the one whose person it looks like. One that has
        become another person is lost; ``strict``: unless it is clearly the same one.
        """
        quick = dict[int, SeenFace]()
        if not strict:
            quick = yield from self._follow_quickly(frame)
        some = [(2.0, self.tracks[number], one) for number, one in quick.items()]
        rest = [track for number, track in self.tracks.items() if number not in quick]
        found: Sequence[Alignment] = ()
        if rest:
            (found,) = yield from self.aligner.track_in_steps(
                [frame], [[track.face for track in rest]]
            )
        for track, face in zip(rest, found, strict=True):
            if not face.failed:
                yield None
                picture = self._picture(frame, face)
                others = [one.face for one in self.tracks.values() if one is not track]
                appearance = self._measure(frame, face, others)
                track.changed = self._is_exchanged(track, face, picture)
                check = self._is_same if strict or track.changed else self._may_be
                if check(track, appearance):
                    seen = SeenFace(face, appearance, picture=picture)
                    some.append((_agreement(track, appearance), track, seen))
        kept: dict[int, SeenFace] = {}
        for _, track, seen in sorted(some, key=lambda one: -one[0]):
            if not _among(seen.face, [other.face for other in kept.values()]):
                kept[track.number] = seen
        return kept

    def _follow_quickly(self, frame: Bytes) -> Search[dict[int, SeenFace]]:
        """The faces of the last frame that pose and expression alone can be fitted to, by track.

        Where that fails soon after a full alignment, the next frames align the face in full, too.
        Where two tracks come to one place, or the pixels of a face change, appearance must decide.
        """
        out: dict[int, SeenFace] = {}
        for track in self.tracks.values():
            if self.follower is None or track.followed is None:
                continue
            yield
            followed = self.follower.follow(frame, track.followed, self.time)
            if followed is not None:
                picture = self._picture(frame, followed.face)
                if not self._changes(track, picture):
                    seen = SeenFace(followed.face, track.appearance, followed, picture)
                    out[track.number] = seen
            elif self._fails_at_once(track.followed):
                track.full_until = self.time + self.config.search_interval
        faces = {number: one.face for number, one in out.items()}
        return {
            number: one
            for number, one in out.items()
            if not _among(one.face, [face for other, face in faces.items() if other != number])
        }

    @staticmethod
    def _fails_at_once(followed: FollowedFace) -> bool:
        """Whether a face that isn't followed further has not been since its full alignment.

        Closed eyes don't count: they may open in any frame.
        """
        key = followed.keyframe
        return followed.face is key.face and not key.closed

    def _measure(
        self, frame: Bytes, face: Alignment, others: Iterable[Alignment]
    ) -> AppearanceDescriptor:
        """The appearance of what neither another face nor a thing may cover."""
        return self.meter.measure(frame, face, others=others, covers=True)

    def _picture(self, frame: Bytes, face: Alignment) -> Floats:
        return face_picture(frame, face.landmarks_3d, self.config.picture)

    def _changes(self, track: Track, picture: Floats) -> bool:
        """Whether most pixels of a track's face differ from those of the last frame.

        But for a factor that most of them share, as where a lamp is switched on.
        """
        if track.picture is None:
            return False
        differing = share_differing(picture, track.picture, self.config.differing)
        return differing > self.config.most_differ

    def _is_exchanged(self, track: Track, face: Alignment, picture: Floats) -> bool:
        """Whether the pixels of a track's face change, but for no cover that comes or goes."""
        less, more = sorted(one.visibility.mean() for one in (track.face, face))
        return self._changes(track, picture) and less >= self.config.as_visible * more

    def _search(
        self,
        frame: Bytes,
        seen: Mapping[int, SeenFace],
        faces: int,
        *,
        strict: bool,
    ) -> Steps[dict[int, SeenFace]]:
        """Faces of the whole frame beside those ``seen``; remembered ones keep their numbers."""
        known = [one.face for one in seen.values()]
        if known:
            known_only = yield from self._shows_only(frame, known)
            if known_only:
                return {}
        new: list[SeenFace] = []
        (found,) = yield from self.aligner.align_in_steps([frame], faces=faces)
        self.refused = describe_refused(found)
        for face in found:
            if not _among(face, known):
                yield None
                appearance = self._measure(frame, face, known)
                known.append(face)
                new.append(SeenFace(face, appearance))
        pairs = sorted(
            (
                (_agreement(track, one.appearance), track.number, i)
                for i, one in enumerate(new)
                for track in self.lost.values()
                if self._returns(track, one, strict=strict)
            ),
            reverse=True,
        )
        numbers: dict[int, int] = {}
        for _, number, i in pairs:
            if i not in numbers and number not in numbers.values():
                numbers[i] = number
        for i in range(len(new)):
            if i not in numbers:
                numbers[i], self.count = self.count, self.count + 1
        return {numbers[i]: one for i, one in enumerate(new)}

    def _shows_only(self, frame: Bytes, known: Sequence[Alignment]) -> Search[bool]:
        """Whether all detections in a frame are of the ``known`` faces."""
        boxes = [Box.around(face.landmarks_3d[:, :2]) for face in known]
        found = yield from find_faces(self.aligner.detector, frame)
        return all(any(same_face(one.box, box) for box in boxes) for one in found)

    def unsettled(self) -> set[int]:
        """The tracks of the last frame that a later one may rename."""
        return {
            number
            for number, track in self.tracks.items()
            if self._settles(track) and self._possible(track)
        }

    def _settles(self, track: Track) -> bool:
        """Whether a track is so new that it may be renamed."""
        return self.time - track.begin < self.config.settling - CLOCK_ERROR

    def _possible(self, track: Track) -> list[Track]:
        """The lost tracks that a new one may prove to be: no frame showed both."""
        return [lost for lost in self.lost.values() if lost.time < track.begin]

    def _recognise(self, frame: Bytes, seen: Mapping[int, SeenFace]) -> dict[int, int]:
        """The numbers of lost people, by those of the new tracks that prove to be theirs.

        Too little is seen at first of one who comes out from behind another. The appearance is
        therefore that in this frame, not that of the last full alignment.
        """
        former: dict[int, int] = {}
        for number, one in seen.items():
            track = self.tracks.get(number)
            if track is None or not self._settles(track):
                continue
            possible = [
                lost for lost in self._possible(track) if lost.number not in former.values()
            ]
            if not possible:
                continue
            others = [other.face for other in seen.values() if other is not one]
            now = replace(one, appearance=self._measure(frame, one.face, others))
            for lost in possible:
                if self._returns(lost, now, strict=True):
                    former[number] = lost.number
                    break
        return former

    def _rename(self, track: Track, lost: Track) -> None:
        """Go on with the number and the known appearance of the lost track."""
        self.tracks[lost.number] = replace(
            track, number=lost.number, appearance=lost.appearance, begin=lost.begin
        )

    def _returns(self, track: Track, seen: SeenFace, *, strict: bool) -> bool:
        """Whether a face that was found is the person of a lost track."""
        face, appearance, away = seen.face, seen.appearance, self.time - track.time
        surprising = strict or track.changed
        if not surprising and away <= self.config.lost_interval and _among(face, [track.face]):
            return self._may_be(track, appearance)
        if track.time < self.shot:  # the place in another shot tells nothing
            return self._is_same(track, appearance)
        near = _distance(track.face, face) <= 1.0 + self.config.reach * away
        return near and self._is_same(track, appearance, expected=track.hidden)

    def _is_same(
        self, track: Track, appearance: AppearanceDescriptor, *, expected: bool = False
    ) -> bool:
        """Whether the appearance is clearly that of the track's person.

        ``expected``: the person is likely to come out from behind another, so that less is enough.
        """
        config, known = self.config, track.appearance
        texture = config.returning_texture if expected else config.same_texture
        identity = config.returning_identity if expected else config.same_identity
        return (
            known.texture_agreement(appearance) >= texture
            and known.identity_agreement(appearance) >= identity
        )

    def _may_be(self, track: Track, appearance: AppearanceDescriptor) -> bool:
        """Whether the appearance is not clearly that of another person."""
        return (
            track.appearance.texture_agreement(appearance) >= self.config.other_texture
            or track.appearance.identity_agreement(appearance) >= self.config.other_identity
        )

    def _updated(self, number: int, frame: Bytes, seen: SeenFace) -> Track:
        """The track of a face that this frame shows."""
        lost = self.lost.pop(number, None)
        old = lost or self.tracks.get(number)
        face, followed = seen.face, seen.followed
        full_until = -np.inf if old is None else old.full_until
        if followed is None and self.follower is not None and self.time >= full_until:
            followed = self.follower.begin(frame, face, self.time, first=old is None)
        picture = self._picture(frame, face) if seen.picture is None else seen.picture
        if old is None:
            begin = self.time
            return Track(
                number, face, seen.appearance, begin, begin, followed=followed, picture=picture
            )
        away = self.time - old.time
        known = old.appearance
        if seen.followed is None:
            measured = old.time if old.followed is None else old.followed.keyframe.time
            since = self.time - measured
            share = 1.0 - float(np.exp(-since / max(self.config.learning, CLOCK_ERROR)))
            known = known.blended(seen.appearance, share)
        # what was lost before a cut, and is found after it, is in another place
        moved = lost is not None and lost.time < self.shot
        smoother = None if moved or away > self.config.restart else old.smoother
        return Track(
            number,
            face,
            known,
            self.time,
            old.begin,
            smoother,
            followed,
            full_until,
            picture=picture,
        )

    def _smoothed(self, track: Track) -> Alignment:
        if self.config.smoothing is None:
            return track.face
        if track.smoother is None:
            track.smoother = Smoother(
                self.aligner.model,
                self.config.smoothing,
                landmark_offsets=self.aligner.landmark_offsets,
            )
        return track.smoother(track.face, track.time)

    def _may_be_cut(self, frame: Bytes) -> bool:
        """Whether the frame may begin another shot: it differs from the last one unusually."""
        small = shrink_by_samples(frame, self.config.thumbnail, 4)
        before, self.thumbnail = self.thumbnail, small
        if before is None:
            return False
        change = cv2.norm(small, before, cv2.NORM_L1) / small.size
        usual = self.usual_change
        cut = change > max(self.config.least_cut, self.config.cut_ratio * usual)
        self.usual_change = usual + 0.2 * (min(change, self.config.cut) - usual)
        return cut or change > self.config.cut


def _agreement(track: Track, appearance: AppearanceDescriptor) -> float:
    """How well an appearance fits a track's person; more is better."""
    known = track.appearance
    return known.texture_agreement(appearance) + known.identity_agreement(appearance)


def _distance(one: Alignment, other: Alignment) -> float:
    """Between the centres of two faces, over the size of the larger one."""
    a, b = (Box.around(face.landmarks_3d[:, :2]) for face in (one, other))
    return float(np.linalg.norm(a.centre - b.centre)) / max(a.size, b.size)


def _among(face: Alignment, others: Sequence[Alignment]) -> bool:
    if not others:
        return False
    box = Box.around(face.landmarks_3d[:, :2])
    return any(same_face(box, Box.around(other.landmarks_3d[:, :2])) for other in others)
