"""Answers as JSON: what was built, in a thread, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from dff.aligner.face_description import FaceDescriber
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.service.align_service import answer_face
from dff.aligner.service.http import json_response
from dff.aligner.service.http.json_response import encode_answer, respond
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.schema import (
    AlignAnswer,
    BatchAnswer,
    FaceAnswer,
    ImageSize,
    ModelInfo,
    PhotoFaces,
    PhotoRefused,
    Timing,
    WeightsInfo,
)
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import pixels
from tests.aligner.known_aligner import KnownAligner

CAMERA = Intrinsics.of(160, 120)
SIZE, TIMING = ImageSize(width=1, height=1), Timing(queue_ms=0.0, decode_ms=1.0, align_ms=2.0)
ODD = 'Ünï\u2028 "quoted" \\ \x00 😀'
WEIGHTS = WeightsInfo(dataset=ODD, data_licences=["\n"], landmarks_from=None, steps=10**15)
INFO = ModelInfo(face_model="m", face_model_licence="l", expression_names=[], weights=WEIGHTS)


@pytest.fixture(scope="module")
def told(toy_model: MorphableModel) -> dict[str, Any]:
    (face,) = KnownAligner(toy_model).align(pixels())
    return FaceDescriber(toy_model).describe(face, CAMERA, mesh=True, trace=True)


def batch(faces: list[FaceAnswer]) -> BatchAnswer:
    refused = PhotoRefused(problem=Problem("no-face").describe())
    photos: list[PhotoFaces | PhotoRefused] = [PhotoFaces(faces=faces, image=SIZE)] * 3
    return BatchAnswer(photos=[*photos, refused], model=INFO, timing=TIMING, request_id="a")


def test_a_face_is_written_as_the_aligner_returns_it(told: dict[str, Any]) -> None:
    assert json.loads(encode_answer(FaceAnswer.model_validate(told))) == told
    assert told["trace"][0]["motion"] is None  # a null that belongs to the answer


def test_optional_fields_are_left_out(toy_model: MorphableModel) -> None:
    (face,) = KnownAligner(toy_model).align(pixels())
    describer = FaceDescriber(toy_model)
    answer = answer_face(describer, face, CAMERA, mesh=False, trace=False)
    written = json.loads(encode_answer(answer))
    assert written == describer.describe(face, CAMERA)
    assert not {"mesh", "trace"} & set(written)


def test_nested_answers_are_written_whole(told: dict[str, Any]) -> None:
    answer = batch([FaceAnswer.model_validate(told)] * 2)
    assert json.loads(encode_answer(answer)) == {
        "photos": [{"faces": [told] * 2, "image": {"width": 1, "height": 1}}] * 3
        + [{"problem": Problem("no-face").describe().model_dump()}],
        "model": {
            "face_model": "m",
            "face_model_licence": "l",
            "expression_names": [],
            "weights": WEIGHTS.model_dump(),
        },
        "timing": {"queue_ms": 0.0, "decode_ms": 1.0, "align_ms": 2.0},
        "request_id": "a",
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(told: dict[str, Any], number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        FaceAnswer.model_validate(told | {"pose": told["pose"] | {"yaw": number}})


def test_fields_that_the_schema_lacks_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="extra"):
        FaceAnswer.model_validate(told | {"age": 30})


def test_long_answers_are_built_and_written_in_a_thread() -> None:
    here: list[int] = []

    def build() -> BaseModel:
        here.append(threading.get_ident())
        return AlignAnswer(faces=[], image=SIZE, model=INFO, timing=TIMING, request_id="a")

    response = asyncio.run(respond(build))
    assert bytes(response.body).startswith(b'{"faces":[],')
    assert response.headers["content-type"] == "application/json"
    assert here != [threading.get_ident()]
    short = asyncio.run(respond(build, short=True))
    assert short.body == response.body
    assert here[1] == threading.get_ident()


def test_no_call_of_the_encoder_writes_more_than_a_face(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    """The encoder holds the interpreter for the length of a call, fragments apart."""
    written: list[int] = []

    class Piece:
        def __init__(self, data: bytes) -> None:
            self.data = data

    class Counting:
        Fragment = Piece

        @staticmethod
        def dumps(value: Any) -> bytes:
            inside = 0

            def insert(piece: Piece) -> orjson.Fragment:
                nonlocal inside
                inside += len(piece.data)
                return orjson.Fragment(piece.data)

            data = orjson.dumps(value, default=insert)
            written.append(len(data) - inside)
            return data

    monkeypatch.setattr(json_response, "orjson", Counting)
    size = len(encode_answer(batch([FaceAnswer.model_validate(told)] * 20)))
    assert max(written) < size / 60  # 60 faces
    assert sum(written) == size
