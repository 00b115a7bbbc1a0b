"""The faces found in a photo, and what was taken for a face and refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dff.aligner.alignment import Alignment
from dff.aligner.detection import same_face
from dff.infra.printing import counted


class FoundFaces(list[Alignment]):
    """The faces of an image. Where there is none, ``refused`` are the fits that failed, the one of
    the highest confidence first.
    """

    def __init__(self, faces: Iterable[Alignment], refused: Iterable[Alignment] = ()) -> None:
        super().__init__(faces)
        distinct: list[Alignment] = []
        for one in sorted(refused, key=lambda face: -face.face_confidence):
            if not any(same_face(one.box, other.box) for other in distinct):
                distinct.append(one)
        self.refused = () if self else tuple(distinct)


def describe_missing_face(found: Sequence[Alignment], image: str = "") -> str:
    """That no face was found in an ``image``, and why the candidates are none."""
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
