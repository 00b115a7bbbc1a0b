"""Requests as browsers, load balancers and HTTP libraries send them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import Limits
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, pixels
from tests.aligner.known_aligner import KnownAligner

GOOD = encoded(pixels())
BOX = [20.0, 20.0, 90.0, 100.0]
PAGE = "https://example.org"
GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "serve.md"
ROUTES = [
    ("/v1/align", "image"),
    ("/v1/align.glb", "image"),
    ("/v1/align/batch", "images"),
    ("/v1/align/person", "images"),
    ("/v1/align/person.glb", "images"),
]


@pytest.fixture(scope="module")
def client(toy_model: MorphableModel) -> Iterator[TestClient]:
    with TestClient(create_app(KnownAligner(toy_model), limits=Limits(deadline=60.0))) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(toy_model: MorphableModel) -> Iterator[TestClient]:
    """A service that pages of PAGE may use."""
    with TestClient(
        create_app(KnownAligner(toy_model), front=FrontConfig(origins=(PAGE,)))
    ) as client:
        yield client


def post(
    client: TestClient, path: str = "/v1/align", *, name: str = "image", **fields: Any
) -> dict[str, Any]:
    response = client.post(path, files=[(name, GOOD)], data=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refusal(client: TestClient, path: str, name: str = "image", **fields: Any) -> str:
    """The problem's detail."""
    response = client.post(path, files=[(name, GOOD)], data=fields)
    assert response.status_code == 422, response.text
    assert response.json()["type"] == "/problems/bad-request"
    detail: str = response.json()["detail"]
    return detail


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/openapi.json", "/problems/busy"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]


def test_head_tells_whether_the_service_is_ready(client: TestClient) -> None:
    while client.get("/readyz").status_code == 503:
        pass
    assert client.head("/readyz").status_code == 200
    assert client.head("/nowhere").status_code == 404
    assert client.head("/v1/align").status_code == 405


@pytest.mark.parametrize(
    ("path", "methods"), [("/v1/align", {"POST"}), ("/healthz", {"GET", "HEAD"})]
)
def test_options_names_the_methods(client: TestClient, path: str, methods: set[str]) -> None:
    answer = client.options(path)
    assert answer.status_code == 204
    assert set(answer.headers["allow"].split(", ")) == methods | {"OPTIONS"}
    assert answer.content == b""
    assert answer.headers["x-request-id"]
    assert client.options("/nowhere").status_code == 404


def preflight(client: TestClient, origin: str) -> Any:
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return client.options("/v1/align", headers=asks).headers.get("access-control-allow-origin")


def test_pages_of_other_origins_are_shut_out_by_default(client: TestClient) -> None:
    assert preflight(client, PAGE) is None
    answer = client.post("/v1/align", files={"image": GOOD}, headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_named_origins_may_ask(open_client: TestClient) -> None:
    assert preflight(open_client, PAGE) == PAGE
    assert preflight(open_client, "https://elsewhere.org") is None
    for data in (GOOD, b"no image"):
        answer = open_client.post("/v1/align", files={"image": data}, headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


def test_a_refused_preflight_has_problem_details(open_client: TestClient) -> None:
    for origin, method, words in (
        ("https://elsewhere.org", "POST", "origin"),
        (PAGE, "DELETE", "method"),
        ("https://elsewhere.org", "DELETE", "origin, method"),
    ):
        asks = {"Origin": origin, "Access-Control-Request-Method": method}
        answer = open_client.options("/v1/align", headers=asks)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert "Origin" in answer.headers["vary"]
        problem = answer.json()
        assert f"a page of {origin}: {words}" in problem["detail"]
        assert ("`dff serve --origin`" in problem["detail"]) == (origin != PAGE)
        assert problem["request_id"] == answer.headers["x-request-id"]


def test_all_origins_may_be_allowed(toy_model: MorphableModel) -> None:
    with TestClient(
        create_app(KnownAligner(toy_model), front=FrontConfig(origins=("*",)))
    ) as client:
        assert preflight(client, PAGE) == "*"


@pytest.mark.parametrize(
    "origin", ["example.org", f"{PAGE}/page", "ftp://example.org", "https://", ""]
)
def test_other_text_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match=r"is no origin: write it as https://example\.org"):
        FrontConfig(origins=(origin,))


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="image"',
        "form-data; name=image",
        "form-data; name=\"image\"; filename*=UTF-8''photo.png",
    ],
)
def test_a_photo_needs_no_file_name(client: TestClient, disposition: str) -> None:
    head = f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    large = encoded(pixels(1100, 900), "PNG") if disposition.endswith('"image"') else GOOD
    answer = client.post(
        "/v1/align",
        content=head + large + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "name"), ROUTES)
def test_null_boxes_mean_detection(client: TestClient, path: str, name: str) -> None:
    with_null = client.post(path, files=[(name, GOOD)], data={"boxes": "null"})
    without = client.post(path, files=[(name, GOOD)])
    assert with_null.status_code == without.status_code == 200
    if not path.endswith(".glb"):
        assert with_null.json().keys() == without.json().keys()


def test_options_count_wherever_they_are(client: TestClient) -> None:
    boxes = json.dumps([BOX])
    for answer in (
        post(client, boxes=boxes),
        client.post("/v1/align", files={"image": GOOD}, params={"boxes": boxes}).json(),
        client.post(
            "/v1/align", files={"image": GOOD, "boxes": ("boxes.json", boxes.encode())}
        ).json(),
    ):
        assert [face["box"] for face in answer["faces"]] == [BOX]
    assert "mesh" in post(client, mesh="1", trace="1")["faces"][0]
    assert "trace" in post(client, mesh="1", trace="1")["faces"][0]
    several = post(client, "/v1/align/batch", name="images", mesh="true")
    assert "mesh" in several["photos"][0]["faces"][0]
    missing = client.post("/v1/align.glb", files={"image": GOOD}, data={"face": "3"})
    assert missing.json()["type"] == "/problems/no-face"


@pytest.mark.parametrize(("path", "name"), ROUTES)
def test_unknown_fields_are_refused_by_name(client: TestClient, path: str, name: str) -> None:
    for detail in (
        refusal(client, path, name, boxs="[]"),
        refusal(client, f"{path}?boxs=1", name),
    ):
        assert f"unknown field 'boxs': this route takes the file {name}, and in the form" in detail
        options = detail.partition("the query ")[2].split(", ")
        assert {"boxes", "weights"} <= set(options)
        assert len(set(options)) == len(options)
    other = client.post(path, files=[(name, GOOD), ("file", GOOD)])
    assert "unknown field 'file'" in other.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", GOOD),
        ("application/x-www-form-urlencoded", b"{}"),
        ("application/x-www-form-urlencoded", b"%00=1"),
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"nonsense"),
    ],
)
def test_a_body_that_is_no_form_is_a_problem_that_does_not_repeat_it(
    client: TestClient, kind: str, body: bytes
) -> None:
    answer = client.post("/v1/align", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/bad-form"
    assert len(answer.json()["detail"]) < 250
    assert answer.json()["detail"].isascii()
    name = client.post("/v1/align", files={"image": GOOD}, params={"\x1b[31m": "1"})
    assert name.json()["detail"].startswith("an unknown field: this route takes the file image")


def test_a_field_that_is_given_twice_is_refused(client: TestClient) -> None:
    assert refusal(client, "/v1/align?mesh=1", mesh="0") == "mesh is given 2 times: give it once"
    assert refusal(client, "/v1/align?mesh=1&mesh=0") == "mesh is given 2 times: give it once"
    assert (
        refusal(client, "/v1/align", boxes=["null", "null"])
        == "boxes is given 2 times: give it once"
    )


def test_a_missing_photo_is_named_with_the_way_out(client: TestClient) -> None:
    missing = "the file image is missing: send it in a form of type multipart/form-data"
    for request in (
        {},
        {"json": {"boxes": None}},
        {"data": {"image": "photo.jpg"}},
        {"files": {"boxes": (None, "null")}},
    ):
        answer = client.post("/v1/align", **request)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(missing), answer.text
    address = client.post("/v1/align", params={"image": "https://example.org/a.jpg"})
    assert address.json()["detail"] == "image is a file: send it in the form, not in the query"


def test_text_fields_must_be_text(client: TestClient) -> None:
    for data, kind in ((b"\xff\xfe", "bad-request"), (b" " * (2 << 20), "too-large")):
        answer = client.post("/v1/align", files={"image": GOOD, "boxes": ("boxes.json", data)})
        assert answer.json()["type"] == f"/problems/{kind}"


def test_a_photo_may_be_the_whole_body(client: TestClient) -> None:
    expected = post(client)["faces"]
    for kind in ("image/png", "image/jpeg"):  # the content counts
        answer = client.post("/v1/align", content=GOOD, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json()["faces"] == expected
    boxes = client.post(
        "/v1/align",
        params={"boxes": json.dumps([BOX])},
        content=GOOD,
        headers={"Content-Type": "image/png"},
    )
    assert boxes.json()["faces"][0]["box"] == BOX
    empty = client.post("/v1/align", content=b"", headers={"Content-Type": "image/png"})
    assert empty.json()["type"] == "/problems/empty"


def test_photos_may_come_as_json(client: TestClient) -> None:
    text = base64.b64encode(GOOD).decode()
    one = client.post("/v1/align", json={"image": text, "boxes": [BOX], "mesh": True}).json()
    assert one["faces"] == post(client, boxes=json.dumps([BOX]), mesh="1")["faces"]
    by_browser = client.post("/v1/align", json={"image": f"data:image/jpeg;base64,{text}"}).json()
    assert by_browser["faces"] == post(client)["faces"]
    several = client.post("/v1/align/batch", json={"images": [text, text], "boxes": None})
    assert [len(photo["faces"]) for photo in several.json()["photos"]] == [1, 1]
    for body, told in (
        ("nonsense", "the body is not JSON"),
        ("[1]", "not a JSON object: this route takes"),
        ("[" * 100_000, "the body is not JSON"),
        ('{"image": 5}', "image is not base64: encode the bytes of the file"),
        ('{"image": "*"}', "image is not base64: encode the bytes of the file"),
        ('{"image": "data:image/svg+xml,<svg/>"}', "image is a data: URL without base64"),
        ('{"image": "", "bocks": 1}', "unknown field 'bocks'"),
    ):
        answer = client.post(
            "/v1/align", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 422
        assert told in answer.json()["detail"]


def test_the_mesh_on_accept(client: TestClient) -> None:
    headers = {"Accept": "model/gltf-binary"}
    answer = client.post("/v1/align", files={"image": GOOD}, headers=headers)
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert answer.content == client.post("/v1/align.glb", files={"image": GOOD}).content


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("text/html", "application/json"),
        ("text/html,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", "application/json"),
        ("application/json, image/png;q=0.1", "application/json"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("image/*", "image/png"),
        ("IMAGE/PNG; charset=x; Q=0.3", "image/png"),
        ("model/gltf-binary, */*;q=0.1", "model/gltf-binary"),
        ("model/gltf-binary;q=0, image/png;q=0.2", "image/png"),
        ("image/png;q=two, model/gltf-binary;q=0.001", "model/gltf-binary"),
    ],
)
def test_accept_decides_the_type_of_the_answer(
    client: TestClient, accept: str, media_type: str
) -> None:
    answer = client.post("/v1/align", files={"image": GOOD}, headers={"Accept": accept})
    assert answer.headers["content-type"] == media_type
    assert "Accept" in [name.strip() for name in answer.headers["vary"].split(",")]


def test_the_open_inference_protocol(client: TestClient) -> None:
    while client.get("/v2/health/ready").status_code == 503:
        pass
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    outputs = client.get("/v2/models/aligner").json()["outputs"]
    (face,) = post(client)["faces"]
    for tensor in outputs:
        value = face["pose"]["matrix"] if tensor["name"] == "pose" else face[tensor["name"]]
        shape = np.shape(value)
        assert all(a in (-1, b) for a, b in zip(tensor["shape"][1:], shape, strict=True))
    unknown = client.get("/v2/models/other")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/no-model")
    assert client.get("/v1/models").json()["models"] == [post(client)["model"]]


def test_camera_and_landmarks_on_request(client: TestClient) -> None:
    form = {"focal_px": "500", "landmarks": "5,blendshapes"}
    answer = client.post("/v1/align", files={"image": GOOD}, data=form)
    (face,) = answer.json()["faces"]
    assert face["intrinsics"]["focal"] == 500.0
    assert face["intrinsics"]["source"] == "given"
    assert face["head_in_camera"]["translation"][2] == pytest.approx(
        500.0 / face["camera"]["scale"], rel=0.01
    )
    assert np.shape(face["landmarks"]["5"]) == (5, 2)
    assert "_neutral" in face["blendshapes"]
    assert "irises" not in face
    for name in ("wflw98", "none"):  # of another face model; unknown
        refused = client.post("/v1/align", files={"image": GOOD}, data={"landmarks": name})
        assert refused.status_code == 422
        assert name in refused.json()["detail"]


def test_several_photos_may_have_one_focal_length(client: TestClient) -> None:
    form, files = {"focal_px": "500"}, [("images", GOOD)] * 2
    batch = client.post("/v1/align/batch", files=files, data=form).json()["photos"]
    person = client.post("/v1/align/person", files=files, data=form).json()["photos"]
    for face in [photo["faces"][0] for photo in batch] + [photo["face"] for photo in person]:
        assert (face["intrinsics"]["focal"], face["intrinsics"]["source"]) == (500.0, "given")


def test_weights_side_by_side(toy_model: MorphableModel) -> None:
    other = KnownAligner(toy_model)
    other.card = {"steps": 8}
    app = create_app(KnownAligner(toy_model), limits=Limits(deadline=60.0), also={"other": other})
    with TestClient(app) as client:

        def steps(form: dict[str, str]) -> int:
            answer = client.post("/v1/align", files={"image": GOOD}, data=form).json()
            return int(answer["model"]["weights"]["steps"])

        assert steps({}) == steps({"weights": "default"}) == 7
        assert steps({"weights": "other"}) == 8
        listed = client.get("/v1/models").json()
        assert listed["names"] == ["default", "other"]
        assert [each["weights"]["steps"] for each in listed["models"]] == [7, 8]
        for name in ("aligner", "default", "other"):
            assert client.get(f"/v2/models/{name}").json()["name"] == name
        refused = client.post("/v1/align?weights=none", files={"image": GOOD})
        assert refused.status_code == 422
        assert "default, other" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("path", "name", "fields", "kind", "says"),
    [
        (
            "/v1/align",
            "image",
            {"boxes": "[[1, 2]]"},
            "bad-boxes",
            "boxes must be JSON [[x0, y0, x1, y1], ...], a box for each face: boxes[0] has too few "
            "entries",
        ),
        (
            "/v1/align",
            "image",
            {"boxes": "1,2,3,4"},
            "bad-boxes",
            "boxes must be JSON [[x0, y0, x1, y1], ...], a box for each face: this is not JSON",
        ),
        (
            "/v1/align/batch",
            "images",
            {"boxes": '[["a", 2, 3, 4]]'},
            "bad-boxes",
            "boxes must be JSON with null or [[x0, y0, x1, y1], ...] for each image: boxes[0][0] "
            "is text",
        ),
        (
            "/v1/align/person",
            "images",
            {"boxes": '{"a": 1}'},
            "bad-boxes",
            "boxes must be JSON with null or [x0, y0, x1, y1] for each image: boxes is an object",
        ),
        ("/v1/align", "image", {"mesh": "perhaps"}, "bad-request", "mesh must be 1 or 0"),
        ("/v1/align.glb", "image", {"face": "-1"}, "bad-request", "face must be at least 0"),
        ("/v1/align.glb", "image", {"face": "a"}, "bad-request", "face must be a whole number"),
        ("/v1/align", "image", {"focal_px": "a"}, "bad-request", "focal_px must be a number"),
        ("/v1/align", "image", {"focal_px": "0"}, "bad-request", "focal_px must be at least 1"),
        ("/v1/align", "image", {"focal_px": "nan"}, "bad-request", "focal_px must be a number"),
        ("/v1/align", "image", {"focal_px": "inf"}, "bad-request", "focal_px must be a number"),
    ],
)
def test_a_wrong_field_is_told_what_it_must_be(
    client: TestClient, path: str, name: str, fields: dict[str, str], kind: str, says: str
) -> None:
    answer = client.post(path, files=[(name, GOOD)], data=fields).json()
    assert (answer["type"], answer["detail"]) == (f"/problems/{kind}", says)


def test_no_parameter_is_explained_in_the_words_of_a_library(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    asked = 0
    for path, operation in paths.items():
        for parameter in operation.get("post", {}).get("parameters", ()):
            wrong = {parameter["name"]: "nonsense"}
            sent = {"headers": wrong} if parameter["in"] == "header" else {"params": wrong}
            files = [(name, GOOD) for name in ("image", "images", "image_a", "image_b")]
            known = _form_fields(client, path)
            answer = client.post(path, files=[one for one in files if one[0] in known], **sent)
            if answer.status_code != 501:  # an aligner without a network
                asked += 1
                assert answer.status_code == 422, (path, parameter, answer.text)
                detail = answer.json()["detail"]
                assert not any(word in detail for word in ("Input", "Field", "valid")), detail
    assert asked >= 15


def _form_fields(client: TestClient, path: str) -> dict[str, Any]:
    """The schemas of the fields of a route's form, by name."""
    described = client.get("/openapi.json").json()
    body = described["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
    name = body["schema"]["$ref"].rpartition("/")[2]
    fields: dict[str, Any] = described["components"]["schemas"][name]["properties"]
    return fields


def test_the_guide_lists_the_fields_of_each_route(client: TestClient) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", GUIDE.read_text("utf-8"), re.M)
    listed = {(name, path) for name, paths in rows for path in re.findall(r"`(/v1/\S+)`", paths)}
    paths = client.get("/openapi.json").json()["paths"]
    taken = {
        (name, path)
        for path, operations in paths.items()
        if "post" in operations
        for name in (
            *_form_fields(client, path),
            *(
                one["name"]
                for one in operations["post"].get("parameters", ())
                if one["in"] == "query"
            ),
        )
    }
    assert {(name, path) for name, path in taken if (name, "every") not in rows} == listed
    everywhere = [name for name, paths in rows if paths == "every"]
    assert all((name, path) in taken for name in everywhere for _, path in listed)
