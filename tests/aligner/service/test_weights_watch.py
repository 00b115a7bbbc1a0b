"""A server takes the version that an alias names, and keeps its weights when there is none."""

from __future__ import annotations

import asyncio

import pytest

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.server_config import ServerConfig, check_poll
from dff.aligner.service.weights_watch import WeightsWatch
from dff.face.errors import BadWeights
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner


def test_the_version_of_the_alias_is_served(toy_model: MorphableModel) -> None:
    answers: list[str | None] = ["1", "1", None, "2", "3", "2"]  # None: MLflow does not answer
    named = ""

    def find(address: str) -> str:
        nonlocal named
        assert address == "models:/dff@champion"
        if not answers:
            raise asyncio.CancelledError
        answer = answers.pop(0)
        if answer is None:
            raise BadWeights("MLflow does not answer")
        named = answer
        return answer

    loaded: list[str] = []

    def load() -> KnownAligner:
        if named == "3":
            raise BadWeights("version 3 holds no weights")
        loaded.append(named)
        return KnownAligner(toy_model)

    service = AlignService(KnownAligner(toy_model), limits=Limits())
    first = service.aligner
    watch = WeightsWatch("models:/dff@champion", load, 0.0, find=find)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch.run(service))
    assert loaded == ["2"]  # version 3 can't be loaded, and then 2 is there already
    assert service.aligner is not first
    assert service.scheduler.aligner is service.aligner
    assert watch.version == "2"


def test_only_an_alias_is_polled() -> None:
    check_poll("models:/dff@champion", 5.0)
    check_poll(None, None)
    for weights in (None, "dff.safetensors", "models:/dff/3"):
        with pytest.raises(ValueError, match="NAME@ALIAS"):
            check_poll(weights, 5.0)
        with pytest.raises(ValueError, match="NAME@ALIAS"):
            ServerConfig(weights=weights, poll=5.0)
