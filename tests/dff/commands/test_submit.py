"""``dff submit`` refuses what the cluster would not find, before it asks the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.commands.submit import Submittable, check_arguments

SYNTHESIZE, TRAIN = Submittable.synthesize, Submittable.train


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
