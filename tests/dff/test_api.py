"""The front door: what ``import dff`` gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dff
import dff.aligner.align
import dff.face.errors
from tests.aligner.image_files import pixels, turned

ROOMS = ("face", "infra", "pipeline", "trainer", "aligner")


def test_every_public_name_is_there_and_is_the_rooms_own() -> None:
    homes = [["dff", room] for room in ROOMS] + [["dff", "client"]]
    for name in dff.__all__:
        assert getattr(dff, name).__module__.split(".")[:2] in homes
    assert dff.load_aligner is dff.aligner.load.load_aligner
    assert dff.DffError is dff.face.errors.DffError


def test_the_reference_lists_every_public_name_with_its_module() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "dff.md"
    listed = re.findall(r"^\| `(\w+)` \|.*\| \[`([\w.]+)`\]", page.read_text("utf-8"), re.M)
    assert dict(listed) == {name: getattr(dff, name).__module__ for name in dff.__all__}


def test_a_photo_is_read_upright_and_a_bad_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "phone 1.jpg").write_bytes(turned(pixels(height=120, width=160), 6))
    assert dff.read_image(tmp_path / "phone 1.jpg").shape == (160, 120, 3)
    (tmp_path / "text.jpg").write_text("no image")
    for name, says in (
        ("text.jpg", r"text\.jpg: this is not an image"),
        ("none.jpg", r"can't read .*none\.jpg: No such"),
    ):
        with pytest.raises(dff.DffError, match=says):
            dff.read_image(tmp_path / name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = dff.nothing_of_the_kind
