"""A stored person: what comes back is what views are made of, and what is wrong with its bytes is
named.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.face.errors import BadDataset
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.pipeline.accessories.sampling import sample_accessories
from dff.pipeline.subjects import subject_file as person_file
from dff.pipeline.subjects.subject import Person, PhotoScene
from dff.pipeline.subjects.subject_file import decode_person, encode_person, store_person


def smooth(size: int, channels: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A (size, size, channels) picture of soft waves, which JPEG keeps well."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        0.5 + 0.3 * np.sin(2 * np.pi * (a * x + b * y))
        for a, b in rng.uniform(0.2, 1.0, (channels, 2))
    ]
    return np.stack(waves, axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def person(toy_model: MorphableModel) -> Person:
    """With a photo's scene, things to wear and hold, and text from everywhere."""
    rng = np.random.default_rng(3)
    identity = rng.normal(size=4)
    own = PhotoScene(
        expression=rng.uniform(size=3),
        camera=WeakPerspective(300.0 / 7.0, np.array([1 / 3, 70.1])),
        cam_from_head=Rigid(rotation_from_angles(10.0, -3.0, 2.0), np.array([0.0, 0.01, 0.9])),
        light=rng.normal(size=(9, 3)),
        crop=smooth(64, 4, rng),
        surroundings=smooth(32, 4, rng),
        lit_texture=smooth(48, 4, rng),
    )
    return Person(
        id="afw/ünï 3",
        photo_id="afw/ünï",
        photo_sha256="ab" * 32,
        split="train",
        licence="CC0-1.0",
        fit_error=1.0 / 3.0,
        identity=identity,
        neutral=toy_model.vertices(Coefficients(identity, np.zeros(3))),
        texture=smooth(64, 4, rng),
        texture_recipe={"from": "photo", "seen": 0.1, "albedo": [0.1, 0.2], "note": {"is": None}},
        accessories=sample_accessories(np.array([0.2, 0.1, 0.1]), rng=rng),
        photo_scene=own,
    )


@pytest.fixture(scope="module")
def data(person: Person, toy_model: MorphableModel) -> bytes:
    return encode_person(person, toy_model)


def parts_of(value: object, path: str = "") -> dict[str, object]:
    """Every leaf below a value, by its path."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif hasattr(value, "__dataclass_fields__"):
        names = person_file.stored_fields(type(value))
        items = [(name, getattr(value, field)) for field, name in names.items()]
    else:
        return {path: value}
    return {
        k: v
        for name, item in items
        for k, v in parts_of(item, f"{path}.{name}" if path else str(name)).items()
    }


def changed(
    data: bytes, change: Callable[[dict[str, bytes]], object], compress: int = zipfile.ZIP_STORED
) -> bytes:
    """The archive with other members, intact as an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The archive with another document."""

    def in_document(members: dict[str, bytes]) -> None:
        document = json.loads(members["person.json"])
        change(document)
        members["person.json"] = json.dumps(document).encode()

    return changed(data, in_document)


def test_numbers_and_text_come_back_bit_by_bit(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    before, after = parts_of(person), parts_of(decode_person(data, toy_model, name=person.id))
    assert before.keys() == after.keys()
    assert set(person_file.IMAGE_QUALITY) < before.keys()
    for path, value in before.items():
        found = after[path]
        if path in person_file.IMAGE_QUALITY:
            continue
        assert type(found) is type(value), path
        if isinstance(value, np.ndarray) and isinstance(found, np.ndarray):
            assert (found.dtype, found.shape, found.tobytes()) == (
                value.dtype,
                value.shape,
                value.tobytes(),
            ), path
        else:
            assert found == value, path


def test_images_come_back_within_their_quality(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    before, after = parts_of(person), parts_of(decode_person(data, toy_model, name=person.id))
    for path in person_file.IMAGE_QUALITY:
        a, b = before[path], after[path]
        assert isinstance(a, np.ndarray)
        assert isinstance(b, np.ndarray)
        assert (b.dtype, b.shape) == (np.float32, a.shape)
        assert np.abs(a - b)[..., :3].mean() < 1.5 / 255
        assert np.abs(a - b)[..., 3:].max(initial=0.0) <= 0.501 / 255  # a mask is not blurred


def test_a_split_group_comes_back_and_is_left_out_where_there_is_none(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    assert b"split_group" not in data
    named = encode_person(replace(person, split_group="Ann"), toy_model)
    assert decode_person(named, toy_model, name=person.id).split_group == "Ann"
    assert decode_person(data, toy_model, name=person.id).split_group == ""


def test_the_bytes_are_determined_by_the_person(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    assert encode_person(replace(person), toy_model) == data
    kept = store_person(person, toy_model)
    assert kept.data == data
    assert parts_of(kept.person).keys() == parts_of(person).keys()
    # What is rendered is what a reader gets.
    again = parts_of(decode_person(kept.data, toy_model, name=person.id))
    for path, value in parts_of(kept.person).items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == again[path].tobytes(), path  # type: ignore[attr-defined]


def test_any_tool_opens_it(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        assert {"person.json", "texture.jpg", "texture.png", "own.photo.jpg"} <= set(names)
        assert archive.testzip() is None
        assert json.loads(archive.read("person.json"))["person"]["licence"] == "CC0-1.0"


def test_bytes_that_are_cut_off_or_altered_are_found(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    rng = np.random.default_rng(0)
    for end in [0, 1, 10, len(data) // 2, len(data) - 1, *rng.integers(0, len(data), 20)]:
        with pytest.raises(
            BadDataset, match="the stored person of afw/ünï 3 is cut off or damaged"
        ):
            decode_person(data[:end], toy_model, name=person.id)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            altered = bytearray(data)
            altered[
                info.header_offset + 30 + len(info.filename.encode()) + info.file_size // 2
            ] ^= 8
            with pytest.raises(
                BadDataset, match=f"person of afw/ünï 3 is damaged in {info.filename}"
            ):
                decode_person(bytes(altered), toy_model, name=person.id)


def test_a_flipped_bit_is_found_or_harmless(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    """The archive says some things twice, and some that no one asks."""
    rng = np.random.default_rng(1)
    directory = data.index(b"PK\x01\x02")
    found = 0
    for place in [*rng.integers(0, directory, 50), *rng.integers(directory, len(data), 100)]:
        altered = bytearray(data)
        altered[place] ^= 1 << int(rng.integers(8))
        try:
            back = decode_person(bytes(altered), toy_model, name=person.id)
        except BadDataset as error:
            assert "afw/ünï 3" in str(error)  # noqa: PT017
            found += 1
        else:
            assert encode_person(back, toy_model) == encode_person(
                decode_person(data, toy_model, name=person.id), toy_model
            )
    assert found > 70


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("person.json"), "has no person.json"),
        (lambda m: m.pop("texture.jpg"), "has no texture.jpg"),
        (lambda m: m.pop("own.light.npy"), "has no own.light.npy"),
        (
            lambda m: m.update({"texture.jpg": b"no picture"}),
            "has a texture.jpg that is no picture",
        ),
        (lambda m: m.update({"texture.jpg": b""}), "has a texture.jpg that is no picture"),
        (
            lambda m: m.update({"texture.png": m["texture.png"][:20]}),
            "has a texture.png that is no picture",
        ),
        (
            lambda m: m.update({"own.photo.png": m["own.surroundings.png"]}),
            "has parts of different sizes in own.photo",
        ),
        (
            lambda m: m.update({"identity.npy": m["identity.npy"][:-3]}),
            "has a identity.npy that is no array",
        ),
        (
            lambda m: m.update({"identity.npy": b"PK\x03\x04"}),
            "has a identity.npy that is no array",
        ),
        (lambda m: m.update({"person.json": b"{"}), "does not fit this program"),
        (lambda m: m.update({"person.json": b"[]"}), "does not fit this program"),
    ],
)
def test_a_wrong_field_is_named(
    change: Callable[[dict[str, bytes]], object],
    said: str,
    person: Person,
    data: bytes,
    toy_model: MorphableModel,
) -> None:
    with pytest.raises(BadDataset, match=f"stored person of afw/ünï 3 .*{said}"):
        decode_person(changed(data, change), toy_model, name=person.id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=3), "is of format 3, this program reads 2"),
        (lambda d: d.update(model="other"), "is of the model 'other', not 'toy'"),
        (lambda d: d["person"].update(id="afw/other"), "is that of 'afw/other'"),
        (lambda d: d["person"].pop("outfit"), "does not fit this program"),
        (lambda d: d["person"].update(hat=1), "does not fit this program"),
        (
            lambda d: d["person"]["outfit"]["of"].pop("breadth"),
            "and this program disagree about outfit.breadth",
        ),
        (
            lambda d: d["person"]["outfit"].update({"is": "Popen"}),
            "has in outfit a Popen, which this program does not",
        ),
        (lambda d: d["person"]["own"]["of"]["photo"].update(channels=3), "PhotoScene wants"),
    ],
)
def test_an_unknown_type_is_named(
    change: Callable[[dict[str, Any]], object],
    said: str,
    person: Person,
    data: bytes,
    toy_model: MorphableModel,
) -> None:
    with pytest.raises(BadDataset, match=f"stored person of afw/ünï 3 .*{said}"):
        decode_person(rewritten(data, change), toy_model, name=person.id)


def test_nothing_unfolds_and_nothing_is_unpickled(
    person: Person, data: bytes, toy_model: MorphableModel
) -> None:
    with pytest.raises(BadDataset, match=r"has a compressed part 'person.json'"):
        decode_person(
            changed(data, lambda m: None, zipfile.ZIP_DEFLATED), toy_model, name=person.id
        )
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(BadDataset, match=r"has a identity.npy that is no array"):
        decode_person(
            changed(data, lambda m: m.update({"identity.npy": pickled.getvalue()})),
            toy_model,
            name=person.id,
        )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fit_error": float("nan")}, "fit_error: nan can't be stored"),
        ({"texture_recipe": {"a": {1, 2}}}, r"texture_recipe.a: \{1, 2\} can't be stored"),
        ({"texture_recipe": {1: "a"}}, "texture_recipe: only text names"),
        ({"identity": np.zeros(4)}, "the shape of afw/ünï 3 is not what toy gives"),
        ({"texture": np.full((8, 8, 4), np.inf, np.float32)}, "texture wants finite"),
        (
            {"texture_recipe": {"a": np.zeros(3, np.complex128)}},
            "texture_recipe.a: arrays of complex128",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused(
    wrong: dict[str, Any], said: str, person: Person, toy_model: MorphableModel
) -> None:
    with pytest.raises(ValueError, match=said):
        encode_person(replace(person, **wrong), toy_model)
