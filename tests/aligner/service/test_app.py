from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import numpy as np
import pytest
import trimesh
from fastapi.testclient import TestClient
from PIL import Image
from starlette.routing import Route

from dff.aligner.face_description import FaceDescriber
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.service.align_service import LARGE, AlignService, drawn_triangles
from dff.aligner.service.app import ROUTES, create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import Limits, UploadLimits
from dff.aligner.service.http.problems import KINDS
from dff.aligner.service.match_schema import DenseMatchAnswer, MatchAnswer
from dff.aligner.service.memory import DECODING, DecodingMemory
from dff.aligner.service.routes import align as align_routes, batch, person
from dff.aligner.service.schema import AlignAnswer, BatchAnswer, PersonAnswer
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import DecodedImage, decode_image
from tests.aligner.image_files import animated, bomb, encoded, pixels, turned
from tests.aligner.known_aligner import WIDE, KnownAligner, known_alignment

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

LIMITS = Limits(body=300_000, pixels=40_000_000, boxes=4, deadline=60.0)
FRONT = FrontConfig(uploads=UploadLimits(body=300_000))


@pytest.fixture(scope="module")
def client(toy_model: MorphableModel) -> Iterator[TestClient]:
    with TestClient(create_app(KnownAligner(toy_model), limits=LIMITS)) as client:
        yield client


def post(
    client: TestClient, data: bytes, *, name: str = "a.png", path: str = "/v1/align", **form: str
) -> httpx.Response:
    return client.post(path, files={"image": (name, data)}, data=form)


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """Status and kind, after checking that this is a problem as RFC 9457 has it."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    assert body["status"] == response.status_code
    assert body["detail"]
    return response.status_code, body["type"].removeprefix("/problems/")


def test_a_photo_gives_its_faces(client: TestClient, toy_model: MorphableModel) -> None:
    response = post(client, encoded(pixels()))
    assert response.status_code == 200
    body = response.json()
    height, width = pixels().shape[:2]
    expected = known_alignment(toy_model, Box(40, 30, 120, 90))
    describer = FaceDescriber(toy_model)
    assert body["faces"] == [describer.describe(expected, Intrinsics.of(width, height))]
    assert body["image"] == {"width": 160, "height": 120}
    assert body["model"] == {
        "face_model": toy_model.name,
        "face_model_licence": toy_model.licence,
        "expression_names": list(toy_model.expression_names),
        "weights": {
            "dataset": None,
            "data_licences": [],
            "landmarks_from": None,
            "steps": 7,
        },
    }
    assert set(body["timing"]) == {"queue_ms", "decode_ms", "align_ms"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert "triangles" not in body


def test_an_answer_says_what_the_search_left_out(client: TestClient) -> None:
    """Not where boxes were given, of which nothing is searched."""
    wide = encoded(pixels(60, WIDE + 1))
    assert "warnings" not in post(client, encoded(pixels())).json()
    (warning,) = post(client, wide).json()["warnings"]
    assert str(WIDE) in warning
    assert "warnings" not in post(client, wide, boxes="[[0, 0, 50, 50]]").json()
    nothing = post(client, encoded(np.zeros((60, WIDE + 1, 3), np.uint8)))
    assert problem_of(nothing) == (422, "no-face")
    assert warning in nothing.json()["detail"]
    files = [("images", ("a.png", data)) for data in (encoded(pixels()), wide)]
    photos = client.post("/v1/align/batch", files=files).json()["photos"]
    assert [photo.get("warnings") for photo in photos] == [None, [warning]]


def test_mesh_and_trace_on_demand(client: TestClient, toy_model: MorphableModel) -> None:
    body = post(client, encoded(pixels()), path="/v1/align?mesh=1&trace=1").json()
    (face,) = body["faces"]
    assert np.shape(face["mesh"]) == (len(toy_model.template), 3)
    assert body["triangles"] == drawn_triangles(toy_model).tolist()
    assert [i["pose"]["yaw"] for i in face["trace"]] == [20.0, 0.0]
    assert face["trace"][0]["motion"] is None  # infinite, which JSON can't say


def test_boxes_are_used_as_given(client: TestClient) -> None:
    boxes = [[10, 10, 50, 60], [80.5, 20, 150, 110]]
    faces = post(client, encoded(pixels()), boxes=json.dumps(boxes)).json()["faces"]
    assert [face["box"] for face in faces] == boxes


def test_glb_is_the_mesh_in_metres(client: TestClient, toy_model: MorphableModel) -> None:
    response = post(client, encoded(pixels()), path="/v1/align.glb")
    assert response.headers["content-type"] == "model/gltf-binary"
    mesh = trimesh.load(io.BytesIO(response.content), file_type="glb", force="mesh", process=False)
    count = len(toy_model.template)
    np.testing.assert_allclose(mesh.vertices[:count], toy_model.template, atol=1e-6)
    np.testing.assert_allclose(mesh.triangles, toy_model.template[toy_model.faces], atol=1e-6)
    drawn = client.post(
        "/v1/align", files={"image": encoded(pixels())}, headers={"Accept": "image/png"}
    )
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).size == pixels().shape[1::-1]
    assert problem_of(post(client, encoded(pixels()), path="/v1/align.glb?face=1")) == (
        422,
        "no-face",
    )


def test_a_drawing_holds_no_other_photo(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = threading.Event(), threading.Event()

    def draw_slowly(*args: object) -> bytes:
        begun.set()
        assert done.wait(30)
        return b"drawn"

    monkeypatch.setattr(align_routes, "draw_png", draw_slowly)
    files, headers = {"image": encoded(pixels())}, {"Accept": "image/png"}
    with ThreadPoolExecutor(1) as thread:
        drawn = thread.submit(client.post, "/v1/align", files=files, headers=headers)
        assert begun.wait(30)
        other = post(client, encoded(pixels()))
        done.set()
        assert other.status_code == 200
        assert drawn.result(30).content == b"drawn"


def test_orientation_is_applied_before_alignment(toy_model: MorphableModel) -> None:
    aligner = KnownAligner(toy_model)
    with TestClient(create_app(aligner, limits=LIMITS)) as client:
        body = post(client, turned(pixels(), 6), name="phone.jpg").json()
    assert body["image"] == {"width": 120, "height": 160}
    dark = aligner.seen[-1][:, :, 0] < 100
    assert (
        dark[:30, 90:].mean() > 0.9
    )  # the block of the upper left corner, turned clockwise, is at the upper right
    assert dark.mean() < 0.12


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"", 422, "empty"),
        (b"GIF89a not really", 415, "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not-an-image"),
        (encoded(pixels(), "GIF"), 415, "not-an-image"),
        (encoded(pixels(), "JPEG")[:-300], 422, "damaged"),
        (animated("WEBP"), 422, "animated"),
        (bomb(), 413, "too-many-pixels"),
        (b"\xff\xd8\xff" + bytes(400_000), 413, "too-large"),
        (encoded(np.zeros((64, 64, 3), np.uint8)), 422, "no-face"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_images_are_named(client: TestClient, data: bytes, status: int, kind: str) -> None:
    assert problem_of(post(client, data)) == (status, kind)


@pytest.mark.parametrize(
    "boxes",
    [
        "nonsense",
        "[]",
        "[[1, 2, 3]]",
        "{}",
        "[[10, 10, 5, 50]]",
        "[[0, 0, NaN, 10]]",
        '[["a", 0, 1, 1]]',
        "[[500, 500, 600, 600]]",
        "[[0, 0, 1e300, 1e300]]",
        "[[0, 0, 1e999, 10]]",
        "[[0,0,9,9],[0,0,9,9],[0,0,9,9],[0,0,9,9],[0,0,9,9]]",
        "[" * 5000,
    ],
)
def test_bad_boxes_are_refused(client: TestClient, boxes: str) -> None:
    assert problem_of(post(client, encoded(pixels()), boxes=boxes)) == (422, "bad-boxes")


def test_requests_without_the_form_are_refused(client: TestClient) -> None:
    assert problem_of(client.post("/v1/align")) == (422, "bad-request")
    assert problem_of(client.post("/v1/align", data={"image": "text"})) == (422, "bad-request")
    assert problem_of(client.post("/v1/align", content=encoded(pixels()))) == (422, "bad-request")
    assert problem_of(post(client, encoded(pixels()), path="/v1/align?mesh=perhaps")) == (
        422,
        "bad-request",
    )
    broken = client.post(
        "/v1/align",
        content=b"--x\r\nbroken",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert broken.status_code in (400, 422)
    assert broken.headers["content-type"] == "application/problem+json"


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    nowhere, wrong = client.get("/nowhere"), client.get("/v1/align")
    assert problem_of(nowhere) == (404, "about:blank")
    assert nowhere.json()["detail"] == "the service has no such path: /docs lists its paths"
    assert problem_of(wrong) == (405, "about:blank")
    assert wrong.json()["detail"] == "this path takes POST: /docs describes each path"


def test_a_slash_too_many_is_no_redirection(client: TestClient) -> None:
    for path in ("/v1/align/", "/healthz/"):
        answer = client.post(path, headers={"Host": "example.org"}, follow_redirects=False)
        assert problem_of(answer) == (404, "about:blank")


def test_each_path_names_its_methods_to_others(client: TestClient) -> None:
    methods: dict[str, set[str]] = {"/metrics": {"GET"}, "/openapi.json": {"GET"}}
    for route in (route for module in ROUTES for route in module.router.routes):
        if isinstance(route, Route):
            path = re.sub(r"{\w+(:\w+)?}", "x", route.path)
            methods.setdefault(path, set()).update(route.methods or ())
    assert len(methods) > 20
    for path, known in methods.items():
        allowed = {*known, "OPTIONS"} | ({"HEAD"} if "GET" in known else set())
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - allowed:
            refused = client.request(method, path)
            assert problem_of(refused) == (405, "about:blank"), (method, path)
            assert {*refused.headers["allow"].split(", ")} == allowed, (method, path)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "a\x00b.png",
        "x" * 1000 + ".png",
        "<script>alert(1)</script>",
        "фото.png",
    ],
)
def test_file_names_are_ignored(client: TestClient, name: str) -> None:
    response = post(client, encoded(pixels()), name=name)
    assert response.status_code == 200
    assert "script" not in response.text
    assert "passwd" not in response.text
    assert "script" not in post(client, b"no image", name=name).text


def test_an_endless_body_is_cut_off_early(toy_model: MorphableModel) -> None:
    """Without a Content-Length the bytes are counted, and the rest is never asked for."""
    sent = 0

    async def body() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(KnownAligner(toy_model), front=FRONT))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form = {"content-type": "multipart/form-data; boundary=x"}
            return await client.post("/v1/align", content=body(), headers=form)

    assert problem_of(asyncio.run(run())) == (413, "too-large")
    assert sent <= LIMITS.body + 20_000


class Slow(KnownAligner):
    """Aligns when its ``gate`` is open."""

    def __init__(self, model: MorphableModel) -> None:
        super().__init__(model)
        self.gate = threading.Event()

    def align(self, image: Any, boxes: Any = None) -> Any:
        self.gate.wait(60)
        return super().align(image, boxes)


def wait_until_ready(client: TestClient, path: str = "/readyz") -> None:
    deadline = time.monotonic() + 60
    while client.get(path).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.get(path).status_code == 200


def test_readiness_follows_the_first_alignment(toy_model: MorphableModel) -> None:
    aligner = Slow(toy_model)
    with TestClient(create_app(aligner)) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        waiting = client.get("/readyz")
        assert problem_of(waiting) == (503, "not-ready")
        assert waiting.headers["retry-after"] == "5"
        aligner.gate.set()
        wait_until_ready(client)
        assert client.get("/readyz").json() == {"status": "ready"}


def test_readiness_is_that_of_all_weights(toy_model: MorphableModel) -> None:
    other = Slow(toy_model)
    with TestClient(create_app(KnownAligner(toy_model), also={"other": other})) as client:
        wait_until_ready(client, "/readyz?weights=default")
        for path in ("/readyz", "/v2/health/ready", "/readyz?weights=other"):
            assert problem_of(client.get(path)) == (503, "not-ready")
        assert problem_of(client.get("/readyz?weights=none")) == (422, "bad-request")
        other.gate.set()
        wait_until_ready(client)
        assert client.get("/v2/health/ready").json() == {"ready": True}


def test_internal_errors_reveal_nothing(toy_model: MorphableModel) -> None:
    class Broken(KnownAligner):
        def align(self, image: Any, boxes: Any = None) -> Any:
            raise RuntimeError("the password is swordfish")

    with TestClient(create_app(Broken(toy_model)), raise_server_exceptions=False) as client:
        response = post(client, encoded(pixels()))
        assert problem_of(response) == (500, "internal")
        assert "swordfish" not in response.text
        assert client.get("/readyz").status_code == 503  # warming up failed too


class Gated(KnownAligner):
    """Aligns when it is let, and knows how many photos are being aligned."""

    def __init__(self, model: MorphableModel) -> None:
        super().__init__(model)
        self.gate, self.inside, self.most = threading.Event(), 0, 0
        self.lock = threading.Lock()

    def align(self, image: Any, boxes: Any = None) -> Any:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.gate.wait(60)
        with self.lock:
            self.inside -= 1
        return super().align(image, boxes)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert true()


def test_slow_alignments_do_not_block_health(toy_model: MorphableModel) -> None:
    aligner = Gated(toy_model)

    async def run() -> None:
        transport = httpx.ASGITransport(create_app(aligner))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = [
                asyncio.create_task(client.post("/v1/align", files={"image": encoded(pixels())}))
                for _ in range(3)
            ]
            await until(lambda: aligner.inside > 0)
            assert (await client.get("/healthz")).status_code == 200
            assert not any(task.done() for task in slow)
            aligner.gate.set()
            assert [r.status_code for r in await asyncio.gather(*slow)] == [200, 200, 200]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/align", "image"),
        *((path, "images") for path in (batch.PATH, person.PATH, person.GLB_PATH)),
    ],
)
def test_requests_over_the_limit_are_refused(
    toy_model: MorphableModel, path: str, field: str
) -> None:
    aligner = Gated(toy_model)
    good = {field: encoded(pixels())}

    async def run() -> None:
        transport = httpx.ASGITransport(create_app(aligner, limits=Limits(requests=3)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            tasks = [asyncio.create_task(client.post(path, files=good)) for _ in range(4)]
            first, others = await asyncio.wait(
                tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED
            )
            (away,) = [task.result() for task in first]
            assert problem_of(away) == (503, "busy")
            assert away.headers["retry-after"] == "1"
            assert (await client.get("/healthz")).status_code == 200
            aligner.gate.set()
            assert [r.status_code for r in await asyncio.gather(*others)] == [200] * 3
            # whatever becomes of a request, it gives its place back
            for data in (
                b"no image",
                b"",
                encoded(np.zeros((64, 64, 3), np.uint8)),
                encoded(pixels()),
            ) * 2:
                assert (await client.post(path, files={field: data})).status_code != 503

    asyncio.run(run())


def test_waiting_photos_are_not_decoded(toy_model: MorphableModel) -> None:
    """Of six photos four fit into the memory for decoded ones, whatever their files' sizes are."""
    app = create_app(Gated(toy_model), limits=Limits(decoded=11, small_decoded=1, batch=1))
    service: AlignService = app.state.service
    aligner = cast(Gated, service.aligner)
    cost = DECODING * 160 * 120
    service.memory = DecodingMemory(2 * cost, small=1)

    async def run() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            good = {"image": encoded(pixels())}
            tasks = [asyncio.create_task(client.post("/v1/align", files=good)) for _ in range(6)]
            await until(lambda: aligner.inside == 1)
            # four are decoded, at 3 bytes a pixel; a fifth would be too many
            await until(lambda: service.memory.held == 4 * 3 * 160 * 120)
            await until(lambda: service.scheduler.waiting == 3)
            aligner.gate.set()
            return [response.status_code for response in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [200] * 6
    assert service.memory.held == 0


def test_large_photos_are_decoded_one_after_another(
    toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(KnownAligner(toy_model), limits=LIMITS)
    decoding: list[int] = []  # pixels of the photos that are decoded at the moment
    most, small = 0, threading.Event()

    def decode(data: bytes, **options: Any) -> DecodedImage:
        nonlocal most
        photo = decode_image(data, **options)
        count = photo.pixels.shape[0] * photo.pixels.shape[1]
        decoding.append(count)
        most = max(most, sum(count >= LARGE for count in decoding))
        if count < LARGE:
            small.set()
        assert small.wait(30), "small photos are decoded beside large ones"
        time.sleep(0.05)
        decoding.remove(count)
        return photo

    monkeypatch.setattr("dff.aligner.service.http.forms.decode_image", decode)

    async def run() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sizes = [(LARGE // 2000, 2000)] * 3 + [(120, 160)]
            files = [{"image": encoded(pixels(*size))} for size in sizes]
            posts = [client.post("/v1/align", files=each) for each in files]
            return [response.status_code for response in await asyncio.gather(*posts)]

    assert asyncio.run(run()) == [200] * 4
    assert most == 1


def test_what_would_be_late_is_refused_at_once(toy_model: MorphableModel) -> None:
    aligner = Gated(toy_model)
    app = create_app(aligner)
    app.state.service.scheduler.durations.unit = 10.0  # seconds: a photo takes 20

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            good = {"image": encoded(pixels())}

            def post(seconds: float) -> asyncio.Task[httpx.Response]:
                headers = {"Deadline": str(seconds)}
                return asyncio.create_task(client.post("/v1/align", files=good, headers=headers))

            first = post(60)
            await until(lambda: aligner.inside == 1)
            second = post(60)
            await until(lambda: app.state.service.scheduler.waiting == 1)
            started = time.monotonic()
            refused = await post(30)
            assert problem_of(refused) == (503, "deadline")
            assert int(refused.headers["retry-after"]) >= 1
            assert time.monotonic() - started < 15
            assert problem_of(await post(-1)) == (422, "bad-request")
            aligner.gate.set()
            done = await asyncio.gather(first, second)
            assert [response.status_code for response in done] == [200] * 2

    asyncio.run(run())


def test_a_request_that_names_a_deadline_waits_that_long(toy_model: MorphableModel) -> None:
    """Others are not kept waiting for a turn that comes late."""
    given: list[float] = []
    app = create_app(KnownAligner(toy_model), limits=Limits(slowdown=2.5))
    service: AlignService = app.state.service
    align = service.scheduler.align

    async def note(*args: Any, slowdown: float) -> Any:
        given.append(slowdown)
        return await align(*args, slowdown=slowdown)

    with TestClient(app) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.scheduler, "align", note)
        files = {"image": encoded(pixels())}
        for headers in ({}, {"Deadline": "30"}):
            assert client.post("/v1/align", files=files, headers=headers).status_code == 200
    assert given == [2.5, np.inf]


def test_an_answer_that_becomes_late_is_given_up(toy_model: MorphableModel) -> None:
    aligner = Gated(toy_model)

    async def run() -> None:
        transport = httpx.ASGITransport(create_app(aligner))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"Deadline": "0.5"}
            late = await client.post(
                "/v1/align", files={"image": encoded(pixels())}, headers=headers
            )
            assert problem_of(late) == (503, "deadline")
            aligner.gate.set()

    asyncio.run(run())


def test_openapi_describes_every_answer(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/v1/align"]["post"]
    assert set(operation["responses"]) == {
        *("200", "400", "401", "408", "413", "415", "422", "431", "500", "503"),
    }
    for path, operations in schema["paths"].items():
        for each in operations.values():
            for code, response in each["responses"].items():
                if int(code) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], path
    assert "multipart/form-data" in operation["requestBody"]["content"]
    told = " ".join(
        r["description"]
        for p in schema["paths"].values()
        for o in p.values()
        for r in o["responses"].values()
    )
    assert all(f"`{kind}`" in told for kind in KINDS)
    # every field of an answer is explained
    answers = {n: s for n, s in schema["components"]["schemas"].items() if n.endswith("Answer")}
    assert {"AlignAnswer", "BatchAnswer", "PersonAnswer", "FaceAnswer", "FrameAnswer"} <= {*answers}
    assert "`/v1/track`" in schema["info"]["description"], "OpenAPI has no place for web sockets"
    for name, answer in answers.items():
        for field, about in answer["properties"].items():
            assert about.get("description") or "$ref" in about, f"{name}.{field}"


@pytest.mark.parametrize("kind", KINDS)
def test_each_problem_explains_itself_at_its_type(client: TestClient, kind: str) -> None:
    assert KINDS[kind].title in client.get(f"/problems/{kind}").text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_no_other_host(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    links = re.findall(r"""(?:https?:)?//[\w.-]+\.\w+""", response.text)
    assert set(links) <= {"http://www.w3.org"}  # the name of SVG's namespace, which is no address
    loaded = re.findall(r"""<(?:link|script)[^>]+(?:href|src)="([^"]+)""", response.text)
    assert all(address.startswith(("data:", "page/")) for address in loaded), loaded
    assert "@import" not in response.text


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Limits(body=0)


def test_fields_are_described_with_their_types_and_limits(client: TestClient) -> None:
    api = client.get("/openapi.json").json()

    def fields(path: str) -> Any:
        content = api["paths"][path]["post"]["requestBody"]["content"]
        return content["application/json"]["schema"]["properties"]

    boxes, _ = fields("/v1/align")["boxes"]["anyOf"]
    assert boxes["maxItems"] == Limits().boxes
    assert boxes["items"]["prefixItems"] == [{"type": "number"}] * 4
    images = fields("/v1/align/batch")["images"]
    assert (images["minItems"], images["maxItems"]) == (1, Limits().photos)
    match = fields("/v1/match")
    assert [match[name]["maxItems"] for name in ("points", "landmarks", "vertices")] == [1024] * 3
    assert match["vertices"]["items"] == {"type": "integer"}
    # in a form the same is the content of a text
    form = api["components"]["schemas"]["Body_align"]["properties"]["boxes"]
    assert form["contentMediaType"] == "application/json"
    assert form["contentSchema"]["anyOf"][0] == boxes
    for operations in api["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                assert "X-Request-ID" in response["headers"]
    assert "Retry-After" in api["paths"]["/v1/align"]["post"]["responses"]["503"]["headers"]
    answer = client.get("/metrics")
    assert "text/plain" in api["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert answer.headers["content-type"].startswith("text/plain")


def test_the_examples_of_requests_can_be_sent(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    for path in ("/v1/align", "/v1/align/batch", "/v1/align/person", "/v1/align.glb"):
        body = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert client.post(path, json=body).status_code == 200, path


def test_every_operation_has_examples_that_are_valid(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    for path, operations in api["paths"].items():
        for operation in operations.values():
            answer = operation["responses"]["200"]["content"]
            if "application/json" in answer:
                assert answer["application/json"]["example"], path
            request = operation.get("requestBody", {}).get("content", {}).get("application/json")
            assert request is None or request["example"], path
    for path, form in (
        ("/v1/align", AlignAnswer),
        ("/v1/align/batch", BatchAnswer),
        ("/v1/align/person", PersonAnswer),
        ("/v1/match", MatchAnswer),
        ("/v1/match/dense", DenseMatchAnswer),
    ):
        operation = api["paths"][path]["post"]
        form.model_validate(operation["responses"]["200"]["content"]["application/json"]["example"])
