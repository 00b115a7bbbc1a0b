"""The front door: what ``import dff`` gives."""

from __future__ import annotations

import pytest

import aligner.align
import dff
import face.errors


def test_every_public_name_is_there_and_is_the_rooms_own() -> None:
    for name in dff.__all__:
        assert getattr(dff, name).__module__.split(".")[0] in {"face", "infra", "pipeline", "trainer", "aligner"}
    assert dff.load_aligner is aligner.align.load_aligner
    assert dff.DffError is face.errors.DffError


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = dff.nothing_of_the_kind
