"""What FastAPI leaves out of the API's description: other bodies, keys, examples of boxes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dff.aligner.service.keys import GUARDED

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
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
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _add_bodies(operation, schema)
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
