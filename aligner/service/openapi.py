"""Additions to FastAPI's description of the API: other bodies, keys, examples of boxes."""

from __future__ import annotations

import base64
import copy
import json
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dff.aligner.service.http.keys import GUARDED
from dff.aligner.service.http.problems import describe_problems
from dff.aligner.service.routes.models import NAME
from dff.aligner.service.routes.track import FrameAnswer

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# of fields that are no files; a list or an object, not text, as in JSON
_EXAMPLES: dict[str, Any] = {"points": [[12.5, 8.0]], "landmarks": ["nose_tip", "chin"]}
_FORM = "multipart/form-data"
_BINARY = {"type": "string", "format": "binary"}
_FILE = "application/octet-stream"  # FastAPI's type of files in forms
_METRICS = {
    "get": {
        "tags": ["health"],
        "summary": "Metrics",
        "description": "Counts and durations of requests, in the text format of Prometheus.",
        "operationId": "metrics",
        "responses": {
            "200": {
                "description": "the metrics",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **{str(code): said for code, said in describe_problems("unauthorized").items()},
        },
    }
}
_HEADERS = {
    "X-Request-ID": {
        "description": "id of the request, the client's where it sent one",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "seconds after which the request may be sent again",
        "schema": {"type": "integer"},
    },
}


def describe(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    """The OpenAPI description of ``app``; ``keys``: whether requests need an API key."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            servers=[{"url": app.root_path}] if app.root_path else None,
        )
        schema["paths"]["/metrics"] = copy.deepcopy(_METRICS)
        examples = _read_examples()
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _add_bodies(operation, schema)
                _add_examples(operation, path, examples)
                if keys and path.startswith(GUARDED):
                    operation["security"] = [{name: []} for name in KEYS]
        _add_headers(schema)
        _add_frames(schema)
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
            name: _photo_example(about) if _is_base64(about) else _EXAMPLES[name]
            for name, about in request["schema"]["properties"].items()
            if _is_base64(about) or name in _EXAMPLES
        }
    answer = operation["responses"]["200"].get("content", {}).get("application/json")
    example = examples.get(path.replace("{name}", NAME))
    if answer is not None and example is not None:
        answer["example"] = example


def _add_headers(schema: dict[str, Any]) -> None:
    """The headers of every answer, and of those that ask for patience."""
    schema["components"]["headers"] = _HEADERS
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                names = [*_HEADERS] if status == "503" else ["X-Request-ID"]
                response["headers"] = {
                    name: {"$ref": f"#/components/headers/{name}"} for name in names
                }


def _add_frames(schema: dict[str, Any]) -> None:
    """The messages of the web socket, of which no operation tells."""
    where = "#/components/schemas/{model}"
    told = FrameAnswer.model_json_schema(mode="serialization", ref_template=where)
    schemas = schema["components"]["schemas"]
    for name, one in (told.pop("$defs") | {FrameAnswer.__name__: told}).items():
        schemas.setdefault(name, one)


def _photo_example(about: dict[str, Any]) -> str | list[str]:
    """The base64 of a small grey JPEG file, twice for a list of them."""
    good, data = cv2.imencode(".jpg", np.full((16, 16), 128, np.uint8))
    assert good
    text = base64.b64encode(bytes(data)).decode()
    return [text, text] if "items" in about else text


def _is_base64(about: dict[str, Any]) -> bool:
    return "contentEncoding" in about.get("items", about)


def _is_file(about: dict[str, Any]) -> bool:
    each = about.get("items", about)
    return each.get("contentMediaType") == _FILE or each.get("format") == "binary"


def _to_json(about: dict[str, Any]) -> dict[str, Any]:
    """A field of a form in JSON: files are base64, and other fields are no text but JSON."""
    kept = ("title", "description", "minItems", "maxItems")
    told: dict[str, Any] = {key: about[key] for key in kept if key in about}
    if not _is_file(about):
        return told | about["contentSchema"]
    text = {"type": "string", "contentEncoding": "base64"}
    return told | ({"type": "array", "items": text} if "items" in about else text)
