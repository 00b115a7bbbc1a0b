"""The faces found in a photo, and what was taken for a face and refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dff.aligner.alignment import Alignment
from dff.aligner.confidence import SURE_FROM
from dff.aligner.detection import overlap, same_face
from dff.face.geometry.camera import Box
from dff.infra.printing import counted

CONTRADICTING = 0.1  # intersection over union of a sure face and an unsure one that is turned to it


class FoundFaces(list[Alignment]):
    """The faces of an image.

    Where there is none, ``refused`` are the fits that failed, by falling confidence.
    """

    def __init__(self, faces: Iterable[Alignment], refused: Iterable[Alignment] = ()) -> None:
        super().__init__(faces)
        distinct: list[Alignment] = []
        for one in sorted(refused, key=lambda face: -face.face_confidence):
            if not any(same_face(one.box, other.box) for other in distinct):
                distinct.append(one)
        self.refused = () if self else tuple(distinct)


def accept_faces(found: Iterable[Alignment]) -> list[Alignment]:
    """The alignments that did not fail, by falling confidence, each face once."""
    kept: list[Alignment] = []
    for one in sorted(found, key=lambda face: -face.face_confidence):
        if not one.failed and not any(_excludes(other, one) for other in kept):
            kept.append(one)
    return kept


def _excludes(kept: Alignment, other: Alignment) -> bool:
    """Whether another face is the ``kept`` one, or can't lie where the kept one surely does.

    The chin and neck of a head that is upside down may look like an upright face.
    """
    box, place = (Box.around(face.landmarks_3d[:, :2]) for face in (kept, other))
    if same_face(place, box):
        return True
    if kept.face_confidence < SURE_FROM or other.face_confidence >= SURE_FROM:
        return False
    up, turned = (face.cam_from_head.rotation[:2, 1] for face in (kept, other))
    return float(up @ turned) < 0.0 and overlap(box.corners, place.corners) >= CONTRADICTING


def describe_missing_face(found: Sequence[Alignment], image: str = "") -> str:
    """A sentence: no face was found in an ``image``, and why the candidates were refused."""
    missing = f"no face found in {image}" if image else "no face found"
    refused = describe_refused(found)
    return (
        f"{missing} with sufficient confidence by these weights: {refused}" if refused else missing
    )


def describe_refused(found: Sequence[Alignment]) -> str:
    """How many candidates of an image without a face were refused, and why; "" for none."""
    refused = found.refused if isinstance(found, FoundFaces) else ()
    if not refused:
        return ""
    best = " of the best" if len(refused) > 1 else ""
    count = counted(len(refused), "candidate")
    return f"{count} refused; reason{best}: {refused[0].reason}"
