"""Answers as JSON: Starlette's bytes, and an event loop that goes on while they are written."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from dff.aligner.service import answers
from dff.aligner.service.answers import answered, written
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import pixels
from tests.aligner.known_aligner import KnownAligner

ODD: list[Any] = [
    {},
    {"faces": []},
    {"faces": [{}]},
    {"a": {"b": {}, "c": [[], {}], "d": [{}, [], 1]}, "e": [{"f": [{"g": [1, [2]]}]}, None]},
    {
        'Ünï\u2028 "quoted" \\ \x00 😀': [
            "\n",
            True,
            False,
            None,
            10**30,
            -0.0,
            1e-7,
            1e300,
            0.1 + 0.2,
        ]
    },
]


@pytest.mark.parametrize("answer", ODD)
def test_the_bytes_are_starlettes(answer: dict[str, Any]) -> None:
    assert written(answer) == JSONResponse(answer).body


def test_the_bytes_of_faces_are_starlettes(toy_model: MorphableModel) -> None:
    (face,) = KnownAligner(toy_model).align(pixels())
    told = {
        "photos": [
            {"faces": [face.to_json(mesh=True, trace=True)] * 2},
            {"problem": {"status": 422}},
        ]
    }
    assert written(told) == JSONResponse(told).body


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_as_by_starlette(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        written({"faces": [{"pose": {"yaw": number}}]})


def test_answers_are_made_and_written_in_a_thread() -> None:
    here: list[int] = []

    def answer() -> dict[str, Any]:
        here.append(threading.get_ident())
        return {"faces": []}

    response = asyncio.run(answered(answer))
    assert response.body == b'{"faces":[]}'
    assert response.headers["content-type"] == "application/json"
    assert here != [threading.get_ident()]


def test_no_piece_holds_the_interpreter_for_more_than_a_mesh(
    monkeypatch: pytest.MonkeyPatch, toy_model: MorphableModel
) -> None:
    """json's encoder never yields within a call: the largest call is one mesh, however many faces
    there are.
    """
    (face,) = KnownAligner(toy_model).align(pixels())
    told = face.to_json(mesh=True, trace=True)
    pieces: list[int] = []
    dumps = answers._dumps

    def counted(value: Any) -> str:
        text = dumps(value)
        pieces.append(len(text))
        return text

    monkeypatch.setattr(answers, "_dumps", counted)
    written(
        {
            "photos": [{"faces": [told] * 20, "image": {"width": 1, "height": 1}}] * 3,
            "request_id": "a",
        }
    )
    assert max(pieces) <= max(len(str(told[name])) for name in ("mesh", "landmarks_3d"))
    assert sum(pieces) > 100 * max(pieces)
