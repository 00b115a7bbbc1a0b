"""``dff submit`` refuses what the cluster would not find, before it asks the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.commands.submit import Submittable, check_arguments, complete_arguments

SYNTHESIZE, TRAIN = Submittable.synthesize, Submittable.train
LABEL, CALIBRATE, EVALUATE = Submittable.label, Submittable.calibrate, Submittable.evaluate


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        (SYNTHESIZE, ["photos", "s3://b/out"], "PHOTOS photos"),
        (SYNTHESIZE, ["none", "./data/", "--identities", "3"], "OUT ./data/"),
        (SYNTHESIZE, ["none", "/d", "--model", "m.npz"], "--model m.npz"),
        (TRAIN, ["data", "--out", "/w"], "DATASET data"),
        (TRAIN, ["s3://b/d", "--out", "w.safetensors"], "--out w.safetensors"),
        (TRAIN, ["/d", "--out", "/w", "--start", "w.safetensors"], "--start w.safetensors"),
        (
            TRAIN,
            ["/d", "--out", "/w", "--evaluate-on", "/a", "--evaluate-on", "b"],
            "--evaluate-on b",
        ),
        (TRAIN, ["/d", "--out", "s3://b/w", "--storage", "runs"], "--storage runs"),
        (LABEL, ["photos"], "PHOTOS photos"),
        (CALIBRATE, ["w.safetensors", "s3://b/d"], "WEIGHTS w.safetensors"),
        (CALIBRATE, ["dff-open", "s3://b/d", "--json", "c.json"], "--json c.json"),
        (EVALUATE, ["300w", "/photos", "--weights", "w"], "--weights w"),
        (EVALUATE, ["300w", "photos"], "FOLDER photos"),
    ],
)
def test_a_relative_path_is_refused_by_name(
    command: Submittable, arguments: list[str], named: str
) -> None:
    with pytest.raises(ValueError, match="is a relative path") as told:
        check_arguments(command, arguments, uploaded=None)
    assert str(told.value).startswith(f"{named} is")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (SYNTHESIZE, ["none", "s3://b/out", "--model", "my-model"]),
        (SYNTHESIZE, ["/shared/photos", "/shared/data"]),
        (TRAIN, ["s3://b/d", "--out", "/w", "--start", "dff-open"]),
        (TRAIN, ["s3://b/d", "--out", "/w", "--start", "models:/dff@candidate"]),
        (LABEL, ["s3://b/photos"]),
        (CALIBRATE, ["models:/dff@candidate", "s3://b/d", "--out", "s3://b/w"]),
        (EVALUATE, ["300w", "/photos", "--weights", "s3://b/w"]),
    ],
)
def test_addresses_names_and_whole_paths_pass(command: Submittable, arguments: list[str]) -> None:
    check_arguments(command, arguments, uploaded=None)


def test_what_is_uploaded_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    check_arguments(SYNTHESIZE, ["photos", "s3://b/out"], uploaded=tmp_path)
    with pytest.raises(ValueError, match="OUT data is a relative path"):
        check_arguments(SYNTHESIZE, ["photos", "data"], uploaded=tmp_path)


def test_a_mistake_is_seen_before_the_cluster_is_asked() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        check_arguments(TRAIN, ["s3://b/d", "--out", "/w", "--no-such-option"], uploaded=None)


def test_a_password_is_refused_and_not_shown() -> None:
    arguments = ["s3://b/d", "--out", "/w", "--tracking", "http://u:hunter2@host"]
    with pytest.raises(ValueError, match="may hold no password") as told:
        check_arguments(TRAIN, arguments, uploaded=None)
    assert "hunter2" not in str(told.value)


def test_the_same_training_is_the_same_run() -> None:
    arguments = ["s3://b/d", "--out", "s3://b/faces.safetensors", "--storage", "s3://b/runs"]

    def added(*more: str) -> list[str]:
        words = [*arguments, *more]
        return complete_arguments(TRAIN, words, check_arguments(TRAIN, words, uploaded=None))

    first = added()
    assert first[:3] == ["--address", "auto", "--resume"]
    assert first[3].startswith("faces-")
    assert added() == first
    assert added("--seed", "1")[3] != first[3]
    assert added("--name", "mine") == ["--address", "auto"]
    assert added("--resume", "mine") == ["--address", "auto"]
    assert complete_arguments(LABEL, ["s3://b/photos"], {}) == []
