from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from dff.face.errors import BadPhoto
from dff.infra.datasets.split import (
    SplitGroups,
    assign_split,
    default_group,
    find_split_groups,
)
from dff.infra.storage import LocalStorage
from tests.infra.datasets.test_near_duplicates import picture, reencoded, resized


def test_known_answers_stay_for_ever() -> None:
    known = {
        "afw/134212_1": "train",
        "helen/100032540_1": "train",
        "lfpw/image_0001": "train",
        "sampled-000018": "train",
        "sampled-000019": "dev",
        "sampled-000026": "dev",
    }
    assert {photo: assign_split(default_group(photo)) for photo in known} == known


def test_one_group_in_ten_is_for_validation() -> None:
    dev = sum(assign_split(f"photo-{i}") == "dev" for i in range(20_000))
    assert 1900 < dev < 2100


def test_the_faces_of_a_photo_go_together_wherever_the_folder_lies() -> None:
    for photo in range(300):
        together = {
            default_group(f"{folder}{photo}_{face}")
            for face in range(1, 12)
            for folder in ("", "a/", "b/afw_2/")
        }
        assert len(together) == 1


def test_numbers_of_photos_are_no_numbers_of_faces() -> None:
    splits = {assign_split(default_group(f"image_{i:04d}")) for i in range(100)}
    assert splits == {"train", "dev"}


def names_in(split: str, count: int) -> list[str]:
    return [n for n in (f"name{i}" for i in range(1000)) if assign_split(n) == split][:count]


def groups_of_folder(folder: Path) -> SplitGroups:
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    keys = [path.relative_to(folder).as_posix() for path in paths]
    return find_split_groups(LocalStorage(folder), {key.rpartition(".")[0]: key for key in keys})


def test_photos_without_duplicates_and_persons_keep_their_own_groups(tmp_path: Path) -> None:
    for name in (*names_in("train", 3), *names_in("dev", 3), "face_1", "face_2"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(sum(map(ord, name)) * 7 + len(name)))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    groups = groups_of_folder(tmp_path)
    assert len(groups.names) == 9
    assert groups.names == {photo: default_group(photo) for photo in groups.names}
    assert not groups.near_duplicates


def test_copies_of_a_photo_go_together(tmp_path: Path) -> None:
    train, dev = names_in("train", 4), names_in("dev", 2)
    image = picture(0)
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / f"{train[0]}.png"), image)
    cv2.imwrite(str(tmp_path / f"{dev[0]}.png"), image)
    cv2.imwrite(str(tmp_path / f"sub/{dev[1]}.jpg"), reencoded(resized(image, 0.6), 60))
    cv2.imwrite(str(tmp_path / f"{train[1]}.png"), picture(1))
    groups = groups_of_folder(tmp_path)
    copies = tuple(sorted([train[0], dev[0], f"sub/{dev[1]}"]))
    assert groups.near_duplicates == (copies,)
    assert {groups.names[name] for name in copies} == {min(train[0], *dev)}
    assert len({groups.split(name) for name in copies}) == 1
    assert groups.names[train[1]] == train[1]


def test_a_copy_joins_the_faces_of_the_photo(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "b_1.png"), picture(0))
    cv2.imwrite(str(tmp_path / "b_2.png"), picture(1))  # another crop of the same photo
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    assert groups_of_folder(tmp_path).names == dict.fromkeys(("a", "b_1", "b_2"), "a")


def test_the_photos_of_a_person_go_together(tmp_path: Path) -> None:
    """Also where photos of two persons have one name, and a copy has no entry of its own."""
    photos = ["ann/1", "ann/2", "bob/1", "bob/2", "copy", "other"]
    for number, photo in enumerate(photos):
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"{photo}.png"), picture(number))
    cv2.imwrite(str(tmp_path / "copy.png"), reencoded(picture(3), 70))
    (tmp_path / "persons.csv").write_text(
        "photo,person\nann/1.png,Ann\nann/2.png,Ann\n\nbob/1,Bob\nbob/2,Bob\n", encoding="utf-8"
    )
    groups = groups_of_folder(tmp_path)
    assert groups.names == dict(
        zip(photos, ["Ann", "Ann", "Bob", "Bob", "Bob", "other"], strict=True)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "begin with the line 'photo,person'"),
        (b"a.png,Ann\n", "begin with the line 'photo,person'"),
        (b"photo,person\na.png\n", "row 2: want a photo and a person"),
        (b"photo,person\na.png,\n", "row 2: want a photo and a person"),
        (b"photo,person\na.png,Ann,x\n", "row 2: want a photo and a person"),
        (b"photo,person\na.png,Ann\nb.png,Ann\n", "row 3: there is no photo 'b.png'"),
        (b"photo,person\na.png,Ann\na,Bob\n", "row 3: a second person for 'a'"),
        (b'photo,person\n"a.png,Ann\n', "not a CSV file in UTF-8"),
        (b"photo,person\n\xff.png,Ann\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_malformed_list_of_persons_is_refused_in_one_line(
    tmp_path: Path, text: bytes, message: str
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(0))
    (tmp_path / "persons.csv").write_bytes(text)
    with pytest.raises(BadPhoto, match=r"persons\.csv") as error:
        groups_of_folder(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
