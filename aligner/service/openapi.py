"""Additions to FastAPI's description of the API: other bodies, keys, examples of boxes."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dff.aligner.service.http.keys import GUARDED
from dff.aligner.service.routes.models import NAME

_PHOTO = "/9j/4AAQSkZJRg=="  # the base64 of a JPEG begins so
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# of the fields that every request may have; a list or an object, not text, as in JSON
_EXAMPLES: dict[str, Any] = {
    "image": _PHOTO,
    "images": [_PHOTO, _PHOTO],
    "image_a": _PHOTO,
    "image_b": _PHOTO,
    "points": [[120.5, 80.0]],
    "landmarks": ["nose_tip", "chin"],
}
_FORM = "multipart/form-data"
_BINARY = {"type": "string", "format": "binary"}


def describe(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    """The OpenAPI description of ``app``; ``keys``: whether requests need an API key."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            servers=[{"url": app.root_path}] if app.root_path else None,
        )
        examples = _read_examples()
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _add_bodies(operation, schema)
                _add_examples(operation, path, examples)
                if keys and path.startswith(GUARDED):
                    operation["security"] = [{name: []} for name in KEYS]
        if keys:
            schema["components"]["securitySchemes"] = KEYS
        app.openapi_schema = schema
    return app.openapi_schema


def _add_bodies(operation: dict[str, Any], schema: dict[str, Any]) -> None:
    """A form may come as JSON, and one with a single photo as that photo."""
    content = operation.get("requestBody", {}).get("content", {})
    if _FORM not in content:
        return
    name = content[_FORM]["schema"]["$ref"].rpartition("/")[2]
    form = schema["components"]["schemas"][name]
    files = [key for key in form["properties"] if _is_file(form["properties"][key])]
    properties = {key: _to_json(value) for key, value in form["properties"].items()}
    content["application/json"] = {
        "schema": {"type": "object", "properties": properties, "required": form["required"]}
    }
    if len(files) == 1:
        for kind in ("image/jpeg", "image/png", "image/webp"):
            content[kind] = {"schema": _BINARY}


def _read_examples() -> dict[str, Any]:
    """Answers by path, which ``scripts/build_openapi_examples.py`` builds."""
    place = files("dff.aligner.service").joinpath("data", "examples.json")
    found: dict[str, Any] = json.loads(place.read_text("utf-8"))
    return found


def _add_examples(operation: dict[str, Any], path: str, examples: dict[str, Any]) -> None:
    """A request in JSON, and the answer that the page's sample photo gets."""
    request = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if request is not None:
        request["example"] = {
            name: _EXAMPLES[name] for name in request["schema"]["properties"] if name in _EXAMPLES
        }
    answer = operation["responses"]["200"].get("content", {}).get("application/json")
    example = examples.get(path.replace("{name}", NAME))
    if answer is not None and example is not None:
        answer["example"] = example


def _is_file(about: dict[str, Any]) -> bool:
    each = about.get("items", about)
    return "contentMediaType" in each or each.get("format") == "binary"


def _to_json(about: dict[str, Any]) -> dict[str, Any]:
    """A field of a form in JSON: files are base64, and other fields are no text but JSON."""
    told: dict[str, Any] = {key: about[key] for key in ("title", "description") if key in about}
    if not _is_file(about):
        return told
    text = {"type": "string", "contentEncoding": "base64"}
    return told | ({"type": "array", "items": text} if "items" in about else text)
