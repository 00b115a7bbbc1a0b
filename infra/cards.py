"""What the descriptions of published data share: a Hugging Face card and Croissant metadata.

Sources: the card's YAML as https://huggingface.co/docs/hub/datasets-cards describes it; Croissant
1.1, https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dff.infra.storage import Storage

CARD, CROISSANT = "README.md", "croissant.json"
"""Keys of both beside the data."""
CITATION = (
    "Jiang, Zhang, Deng, Guo, Liu: Deep Face Feature for Face Alignment. arXiv 1708.02721, 2017"
)
_SIZES = ((1000, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_SIZE_BEYOND = "n>1M"


def write_missing(storage: Storage, key: str, content: str | Mapping[str, Any]) -> None:
    """Write a text, or a mapping as JSON; what is there stays as it is. Raises StorageError."""
    if not isinstance(content, str):
        content = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if not storage.exists(key):
        storage.write(key, content.encode())


def format_head(
    title: str,
    licence: str | list[str],
    tasks: list[str],
    tags: list[str],
    size: int,
    **others: Any,
) -> str:
    """The YAML before a card's text, of a dataset of ``size`` images."""
    about: dict[str, Any] = {
        "pretty_name": title,
        "license": licence,
        "task_categories": tasks,
        "tags": tags,
        "size_categories": [next((name for most, name in _SIZES if size < most), _SIZE_BEYOND)],
        **others,
    }
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in about.items())  # YAML too
    return f"---\n{lines}---\n\n"


CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
