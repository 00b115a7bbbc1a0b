"""Fields of a request as clients send them: known by name, in the form or in the query."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from dff.aligner.service.http.problems import Problem

MULTIPART = b"multipart/form-data"
JSON = b"application/json"
URLENCODED = b"application/x-www-form-urlencoded"
NO_FORM = (
    "the body is not what its Content-Type says, application/x-www-form-urlencoded: send a photo "
    "with Content-Type image/jpeg, or files in a form of type multipart/form-data"
)
TEXT = 1 << 20  # bytes of a field that is sent as a file; as many as of one that is sent as text

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}")  # of a field, known or not

Items = list[tuple[str, Any]]  # name, and text or an uploaded file


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields that a route takes."""

    files: tuple[str, ...]
    form: tuple[str, ...]  # text fields of the form
    query: tuple[str, ...]

    def describe(self) -> str:
        """The fields in words."""
        files = f"{'the file' if len(self.files) == 1 else 'the files'} {' and '.join(self.files)}"
        options = ", ".join(dict.fromkeys([*self.form, *self.query]))
        return f"this route takes {files}, and in the form or the query {options}"


class FormRoute(APIRoute):
    """A route that takes text fields from the form or the query, wherever its client puts them.

    Instead of a form the body may be one photo (``image/...``), or JSON in which photos are base64.
    A photo may be a part without a file name, and a text field may be a file. Refused by name are
    unknown fields, fields that are given twice, and missing files.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called with the fields in their places."""
        handle = super().get_route_handler()
        names = _find_names(self.dependant)

        async def handle_fields(request: Request) -> Response:
            request.state.arrived = time.monotonic()
            form = await _parse_form(request, names)
            try:
                return await handle(await _arrange(request, form, names))
            finally:
                await form.close()

        return handle_fields


class _ArrangedRequest(Request):
    """A request whose form is already parsed."""

    def __init__(self, request: Request, form: FormData, query: str) -> None:
        super().__init__({**request.scope, "query_string": query.encode()}, request.receive)
        self._arranged = form

    def form(self, **limits: Any) -> Awaitable[FormData]:  # type: ignore[override]
        async def get() -> FormData:
            return self._arranged

        return get()


class _FormParser(MultiPartParser):
    """Takes the parts named ``files`` as files, also those without a file name."""

    def __init__(self, headers: Headers, stream: Any, files: tuple[str, ...]) -> None:
        super().__init__(headers, stream)
        self._files = {name.encode() for name in files}

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition
        _, options = parse_options_header(disposition)
        if disposition and options.get(b"name") in self._files and b"filename" not in options:
            self._current_part.content_disposition = disposition + b'; filename="unnamed"'
        super().on_headers_finished()


def _find_names(dependant: Dependant) -> FieldNames:
    found = [*_walk(dependant)]
    body = [field for each in found for field in each.body_params]
    files = [field.alias for field in body if isinstance(field.field_info, params.File)]
    query = [field.alias for each in found for field in each.query_params]
    form = [field.alias for field in body if field.alias not in files]
    return FieldNames(tuple(files), tuple(form), tuple(query))


def _walk(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _walk(each)


async def _parse_form(request: Request, names: FieldNames) -> FormData:
    """The form; an empty one for a body of another type.

    Raises Problem ``bad-form`` for a broken one.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if kind.startswith(b"image/") and len(names.files) == 1:
        return FormData([(names.files[0], await _to_file(await request.body()))])
    if kind == JSON:
        return await _parse_json(await request.body(), names)
    if kind == URLENCODED:
        return _parse_urlencoded(await request.body())
    if kind != MULTIPART:
        return FormData()
    if b"boundary" not in options:
        raise Problem(
            "bad-form",
            "the header Content-Type names no boundary of the form's parts: let your HTTP "
            "library write it",
        )
    try:
        return await _FormParser(request.headers, request.stream(), names.files).parse()
    except (MultiPartException, FormParserError) as error:
        raise Problem("bad-form", f"the form can't be parsed: {error}") from error


def _parse_urlencoded(body: bytes) -> FormData:
    """The text fields of a body of curl's default type.

    Raises Problem ``bad-form`` for one that holds something else, as ``curl --data-binary`` sends.
    """
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body))
    except ValueError as error:
        raise Problem("bad-form", NO_FORM) from error
    if not all(_NAME.fullmatch(name) for name, _ in pairs):
        raise Problem("bad-form", NO_FORM)
    return FormData([(name, value) for name, value in pairs])


async def _parse_json(body: bytes, names: FieldNames) -> FormData:
    """The form that a JSON object stands for. Raises Problem ``bad-request``."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(
            "bad-request", f"the body is not JSON, as its Content-Type says: {error}"
        ) from error
    if not isinstance(fields, dict):
        raise Problem("bad-request", f"the body is not a JSON object: {names.describe()}")
    items: Items = []
    for name, value in fields.items():
        if name in names.files:
            for each in value if isinstance(value, list) else [value]:
                items.append((name, await _to_file(_decode_base64(name, each))))
        elif isinstance(value, str):
            items.append((name, value))
        else:
            items.append((name, json.dumps(value)))
    return FormData(items)


def _decode_base64(name: str, value: Any) -> bytes:
    """The bytes of a file in base64, or of a ``data:`` URL, as browsers read files.

    Raises Problem ``bad-request``.
    """
    if isinstance(value, str) and value.startswith("data:"):
        head, _, value = value.partition(",")
        if not head.endswith(";base64"):
            raise Problem("bad-request", f"{name} is a data: URL without base64")
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise Problem(
            "bad-request", f"{name} is not base64: encode the bytes of the file"
        ) from error


async def _to_file(data: bytes) -> UploadFile:
    return UploadFile(io.BytesIO(data), size=len(data), filename="unnamed")


async def _arrange(request: Request, form: FormData, names: FieldNames) -> Request:
    """The request with each field where the route looks for it. Raises Problem ``bad-request``."""
    sent, asked = form.multi_items(), request.query_params.multi_items()
    _check_names(sent, asked, names)
    texts = [(name, await _read_text(name, v)) for name, v in sent if name not in names.files]
    fields: Items = [(name, value) for name, value in sent if name in names.files]
    fields += [(name, text) for name, text in [*texts, *asked] if name in names.form]
    query = [(name, text) for name, text in [*asked, *texts] if name in names.query]
    return _ArrangedRequest(request, FormData(fields), urlencode(query))


def check_query(asked: Iterable[str], known: Sequence[str]) -> None:
    """Raises Problem ``bad-request`` for names in a query that are unknown or given twice."""
    names = list(asked)
    _refuse_unknown(names, known, f"this route takes {', '.join(known)} in the query")
    _refuse_repeated(names)


def _check_names(sent: Items, asked: Items, names: FieldNames) -> None:
    given = [name for name, _ in [*sent, *asked]]
    _refuse_unknown(given, {*names.files, *names.form, *names.query}, names.describe())
    for name, _ in asked:
        if name in names.files:
            raise Problem("bad-request", f"{name} is a file: send it in the form, not in the query")
    _refuse_repeated(name for name in given if name not in names.files)
    uploaded = {name for name, value in sent if isinstance(value, UploadFile)}
    for name in names.files:
        if name not in uploaded:
            raise Problem(
                "bad-request",
                f"the file {name} is missing: send it in a form of type multipart/form-data, "
                f"for example with curl -F {name}=@photo.jpg",
            )


def _refuse_unknown(given: Iterable[str], known: Collection[str], hint: str) -> None:
    for name in given:
        if name not in known:
            shown = f"unknown field {name!r}" if _NAME.fullmatch(name) else "an unknown field"
            raise Problem("bad-request", f"{shown}: {hint}")


def _refuse_repeated(given: Iterable[str]) -> None:
    for name, count in Counter(given).items():
        if count > 1:
            raise Problem("bad-request", f"{name} is given {count} times: give it once")


async def _read_text(name: str, value: str | UploadFile) -> str:
    if isinstance(value, str):
        return value
    if value.size is not None and value.size > TEXT:
        raise Problem(
            "too-large", f"the field {name} may have at most {TEXT} bytes: send fewer entries"
        )
    try:
        return (await value.read()).decode()
    except UnicodeDecodeError as error:
        raise Problem("bad-request", f"the field {name} is not text: encode it as UTF-8") from error
