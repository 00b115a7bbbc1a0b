"""Photos of one person: which face of each shows the person, and which show someone else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.appearance import AppearanceDescriptor
from dff.aligner.config import MultiImageConfig
from dff.aligner.face_request import Steps
from dff.aligner.fitting.multi_image import PersonCheck, choose_person, find_strangers
from dff.aligner.found_faces import describe_missing_face
from dff.aligner.person_appearance import PersonAppearanceMeter
from dff.face.arrays import Bytes
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel


@dataclass(frozen=True)
class PersonAligner:
    """Aligns photos of one person, whose faces were aligned alone."""

    model: MorphableModel
    config: MultiImageConfig
    meter: PersonAppearanceMeter
    # the faces of one identity from those aligned alone, by number of their photo
    fit: Callable[[Mapping[int, Bytes], Mapping[int, Alignment]], Steps[dict[int, Alignment]]]

    def align_in_steps(
        self,
        images: Sequence[Bytes],
        found: Sequence[Sequence[Alignment]],
        boxes: Sequence[Box | None] | None,
    ) -> Steps[PersonAlignment]:
        """As ``Aligner.align_person_in_steps``, from the faces ``found`` in each photo."""
        left_out = {
            i: describe_missing_face(some) if not some else some[0].reason
            for i, some in enumerate(found)
            if not some or some[0].failed
        }
        candidates = {i: some for i, some in enumerate(found) if i not in left_out}
        alone = choose_person(candidates, self.config) if candidates else {}
        check = yield from self._check(images, alone)
        doubts = {
            i: f"may show someone else (agreement {agreement:.2f})"
            for i, agreement in {**check.doubtful, **check.strangers}.items()
        }
        for i, agreement in check.strangers.items():
            if boxes is None or boxes[i] is None:  # a box says who is meant
                left_out[i] = f"not the person of the other photos (agreement {agreement:.2f})"
                del alone[i]
        while alone:
            fitted = yield from self.fit({i: images[i] for i in alone}, alone)
            lost = {i: face.reason for i, face in fitted.items() if face.failed}
            if not lost:
                doubts = {i: why for i, why in doubts.items() if i in fitted}
                return PersonAlignment.of(self.model, len(images), fitted, left_out, doubts)
            left_out |= lost  # these affected the fit of the others, which is repeated
            alone = {i: face for i, face in alone.items() if i not in lost}
        raise NoFace("; ".join(f"photo {i + 1}: {why}" for i, why in sorted(left_out.items())))

    def _check(self, images: Sequence[Bytes], alone: Mapping[int, Alignment]) -> Steps[PersonCheck]:
        """Which of the faces, by number of their photo, look like someone else's."""
        seen: dict[int, AppearanceDescriptor] = {}
        for i, face in alone.items():
            yield None
            seen[i] = self.meter.measure(images[i], face)
        return find_strangers(alone, seen, self.config)
