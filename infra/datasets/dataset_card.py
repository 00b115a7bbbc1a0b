"""The description of a published dataset: a Hugging Face card and Croissant metadata.

Both are made of the manifest and the plan's options alone, so they are the same for the same
dataset. Sources: the card's YAML as https://huggingface.co/docs/hub/datasets-cards describes it;
Croissant 1.1, https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dff.face.extras import require_extra
from dff.infra.cards import CARD, CITATION, CONTEXT, CROISSANT, format_head, write_missing
from dff.infra.datasets.dataset import MANIFEST, Manifest
from dff.infra.datasets.shards import CONVENTIONS, SCHEMA
from dff.infra.storage import Storage

with require_extra("train"):
    import pyarrow as pa

TITLE = "DFF views: synthetic faces with dense correspondence"
SUMMARY = (
    "Rendered views of faces with exact dense correspondence: the triangle of a 3D face model that "
    "every pixel shows, camera, pose, light, expression and 68 landmarks with their visibility."
)
COLUMNS = {
    "sample_id": "identity_id/view",
    "identity_id": "the person; all views of one lie in one row group",
    "photo_id": "the photo that the person was recovered from; empty for a sampled person",
    "photo_sha256": "of the photo's file; empty for a sampled person",
    "view": "number of the view of the person",
    "split": "train or dev; a person is in one of them",
    "mode": "rerender: a rendered head; profile: a photo warped to another view",
    "seed": "of the view's random draws",
    "image": "JPEG",
    "width": "pixels",
    "height": "pixels",
    "triangle_ids": CONVENTIONS["triangle_ids"],
    "triangle_ids_dtype": "uint16 or uint32",
    "camera": "weak_perspective or pinhole",
    "focal_or_scale": "pixels, or pixels a metre",
    "camera_centre": "pixels",
    "rotation": "cam_from_head",
    "translation": "cam_from_head, metres",
    "identity": "shape coefficients in standard deviations, and what goes beyond the model",
    "expression": "activations of the model's expressions",
    "light": CONVENTIONS["light"],
    "landmarks_2d": "68 points of iBUG in pixels, jaw on the visible contour",
    "landmarks_3d": "68 points of iBUG in pixels, jaw fixed to the surface",
    "visible_2d": "whether nothing hides the landmark",
    "visible_3d": "whether nothing hides the landmark",
    "yaw": "degrees, to the face's left",
    "pitch": "degrees",
    "roll": "degrees",
    "model": "name of the face model",
    "licence": "SPDX expression: the terms of this row",
    "fit_error": "of the recovery from a photo; 0 for a sampled person",
    "recipe": "JSON: everything else that the view was made of",
    "person": CONVENTIONS["person"],
}
_TAGS = ["synthetic", "faces", "3d-face", "dense-correspondence", "facial-landmarks", "croissant"]


def write_cards(storage: Storage, manifest: Manifest, options: Mapping[str, object]) -> None:
    """Write both beside the manifest of a finished dataset; what is there stays as it is.

    ``options``: of the plan. Raises StorageError.
    """
    write_missing(storage, CARD, format_card(manifest, options))
    write_missing(storage, CROISSANT, describe_croissant(manifest))


def list_licences(manifest: Manifest) -> list[str]:
    """SPDX licences of the rows, each once, in the order of their names."""
    expressions = manifest.counts.get("licence", {})
    return sorted({part.strip("() ") for text in expressions for part in text.split(" AND ")})


def format_card(manifest: Manifest, options: Mapping[str, object]) -> str:
    """The Hugging Face card: YAML and Markdown."""
    licences = list_licences(manifest)
    known = [licence for licence in licences if not licence.startswith("LicenseRef-")]
    others: dict[str, Any] = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/**/*.parquet"}],
            }
        ],
    }
    if known != licences:
        others["license_name"] = " AND ".join(licences)
    faces = manifest.subjects - manifest.failed_subjects
    lines = [
        f"# {TITLE}",
        "",
        SUMMARY,
        "",
        f"{manifest.rows} views of {faces} people in {len(manifest.shards)} Parquet files, "
        f"{sum(manifest.shards.sizes.tolist()) / 1e6:.1f} MB.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_join(found)} |" for name, found in sorted(manifest.counts.items())),
        *(f"| failed: {reason} | {count} |" for reason, count in sorted(manifest.failures.items())),
        "",
        "## Use",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'views = load_dataset("parquet", data_files="data/**/*.parquet", split="train")',
        'views[0]["image"], views[0]["landmarks_2d"]',
        "```",
        "",
        "`dff train FOLDER --out dff.safetensors` trains on it, `dff inspect FOLDER` shows it, and "
        "`dff inspect FOLDER --verify` renders views again and compares their bytes.",
        "",
        "## Columns",
        "",
        "| column | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in COLUMNS.items()),
        "",
        *(f"* {name}: {CONVENTIONS[name]}" for name in ("units", "frames", "camera")),
        "",
        "## Origin",
        "",
        f"Made by `dff synthesize` (plan `{manifest.plan}`) with "
        + ", ".join(f"{name} {value}" for name, value in sorted(manifest.libraries.items()))
        + ":",
        "",
        *(f"* {name}: {value}" for name, value in sorted(options.items())),
        "",
        f"Licence of the rows: {' AND '.join(licences)}. The same plan gives the same bytes.",
    ]
    head = format_head(
        TITLE,
        [licence.lower() for licence in known] if known == licences else "other",
        ["keypoint-detection", "image-feature-extraction"],
        _TAGS,
        manifest.rows,
        **others,
    )
    return head + "\n".join(lines) + "\n"


def _join(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({rows})" for value, rows in sorted(counts.items()))


def describe_croissant(manifest: Manifest) -> dict[str, Any]:
    """Croissant metadata (JSON-LD) of the dataset, with a field for each column.

    The files are a set by their pattern: the manifest, which is named with them, has the hash of
    each.
    """
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": f"dff-views-{manifest.plan[:12]}",
        "description": SUMMARY,
        "version": "1.0.0",
        "license": [f"https://spdx.org/licenses/{name}.html" for name in list_licences(manifest)],
        "citeAs": CITATION,
        "keywords": _TAGS,
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "description": f"Parquet files; {MANIFEST} has the SHA-256 of each",
                "encodingFormat": "application/vnd.apache.parquet",
                "includes": "data/**/*.parquet",
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "views",
                "name": "views",
                "description": SUMMARY,
                "key": {"@id": "views/sample_id"},
                "field": [_describe_field(field) for field in SCHEMA],
            }
        ],
    }


def _describe_field(field: Any) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": field.name}}
    item, shape = field.type, []
    while pa.types.is_list(item) or pa.types.is_fixed_size_list(item):
        shape.append(getattr(item, "list_size", -1))
        item = item.value_type
    if field.name == "image":
        kind = "sc:ImageObject"
        source["transform"] = {"jsonPath": "bytes"}
    else:
        kind = next(name for test, name in _KINDS if test(item))
    described = {
        "@type": "cr:Field",
        "@id": f"views/{field.name}",
        "name": field.name,
        "description": COLUMNS[field.name],
        "dataType": kind,
        "source": source,
    }
    if shape:
        described |= {"isArray": True, "arrayShape": ",".join(map(str, shape))}
    return described


_KINDS = (
    (pa.types.is_string, "sc:Text"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_binary, "sc:Text"),
)
