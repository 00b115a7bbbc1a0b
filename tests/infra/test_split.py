from __future__ import annotations

from dff.infra.split import split_of


def test_known_answers_stay_for_ever() -> None:
    known = {
        "afw/134212_1": "train",
        "helen/100032540_1": "train",
        "lfpw/image_0001": "train",
        "sampled-000018": "train",
        "sampled-000019": "dev",
        "sampled-000026": "dev",
    }
    assert {photo: split_of(photo) for photo in known} == known


def test_one_photo_in_ten_is_for_judging() -> None:
    dev = sum(split_of(f"photo-{i}") == "dev" for i in range(20_000))
    assert 1900 < dev < 2100


def test_the_faces_of_a_photo_go_together_wherever_the_folder_lies() -> None:
    for photo in range(300):
        together = {
            split_of(f"{folder}{photo}_{face}")
            for face in range(1, 12)
            for folder in ("", "a/", "b/afw_2/")
        }
        assert len(together) == 1


def test_numbers_of_photos_are_no_numbers_of_faces() -> None:
    assert {split_of(f"image_{i:04d}") for i in range(100)} == {"train", "dev"}
