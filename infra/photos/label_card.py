"""The description of labelled photos: a Hugging Face card and Croissant metadata.

Photos and landmark files are files of their own, so the metadata describe two sets of files, where
those of rendered views (``dff.infra.datasets.dataset_card``) describe columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dff.infra.cards import CARD, CITATION, CONTEXT, CROISSANT, format_head, write_missing
from dff.infra.storage import Storage

TITLE = "Photos of faces with 68 predicted landmarks"
SUMMARY = (
    "Photos with the 68 landmarks of iBUG of one face each, predicted by an aligner and not "
    "checked by people: fit for training, not for evaluation."
)
_TAGS = ["faces", "facial-landmarks", "predicted-labels", "croissant"]


@dataclass(frozen=True)
class LabelledPhotos:
    """A folder of labelled photos, as its card describes it."""

    image_keys: Sequence[str]
    landmarks: int  # photos that have a file of landmarks
    confidence: float  # 0 to 1: lowest of a face that was labelled
    weights: Mapping[str, Any]  # card of the weights that predicted them

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the photos' files, each once, as they are written."""
        found = {key.rpartition("/")[2].rpartition(".") for key in self.image_keys}
        return sorted({f".{suffix}" for _, dot, suffix in found if dot})


def write_label_cards(storage: Storage, photos: LabelledPhotos) -> None:
    """Write both beside the photos; what is there stays as it is. Raises StorageError."""
    write_missing(storage, CARD, format_label_card(photos))
    write_missing(storage, CROISSANT, describe_label_croissant(photos))


def format_label_card(photos: LabelledPhotos) -> str:
    """The Hugging Face card. The licence of the photos is unknown here: "other"."""
    licences = photos.weights.get("data_licences", ())
    lines = [
        f"# {TITLE}",
        "",
        SUMMARY,
        "",
        f"{photos.landmarks} of {len(photos.image_keys)} photos have landmarks.",
        "",
        "## Files",
        "",
        "The landmarks of `name.jpg` are in `name.pts` (text): 68 lines of x and y in pixels as "
        "they are stored, before the EXIF orientation, where the centre of the first pixel is "
        "(1, 1). The 17 points of the jaw lie on the visible contour.",
        "",
        "## Origin",
        "",
        f"Labelled by `dff label --confidence {photos.confidence:g}` with weights trained on "
        f"dataset {photos.weights.get('dataset') or 'unknown'}, under {' AND '.join(licences)}."
        if licences
        else f"Labelled by `dff label --confidence {photos.confidence:g}`.",
        "",
        "The terms of the photos are those of their authors: say them here, in place of `other` "
        "above.",
    ]
    head = format_head(TITLE, "other", ["keypoint-detection"], _TAGS, len(photos.image_keys))
    return head + "\n".join(lines) + "\n"


def describe_label_croissant(photos: LabelledPhotos) -> dict[str, Any]:
    """Croissant metadata (JSON-LD): the photos and the landmark files, as two sets of files."""
    sets = [("photos", "photos as they were labelled", "image/*", photos.suffixes)]
    if photos.landmarks:
        described = "iBUG .pts files beside the photos, pixels from (1, 1)"
        sets.append(("landmarks", described, "text/plain", [".pts"]))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "dff-labelled-photos",
        "description": SUMMARY,
        "version": "1.0.0",
        "citeAs": CITATION,
        "keywords": _TAGS,
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": name,
                "name": name,
                "description": text,
                "encodingFormat": kind,
                "includes": [f"**/*{suffix}" for suffix in suffixes],
            }
            for name, text, kind, suffixes in sets
        ],
    }
