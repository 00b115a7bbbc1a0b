"""Verification: views are reproduced from the dataset alone, and differences are named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.errors import BadDataset
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render
from dff.infra.datasets.dataset import MANIFEST, Shards, open_dataset
from dff.infra.datasets.ground_truth import LandmarkVisibility, compute_maps
from dff.infra.datasets.shards import ViewRow, rows_to_parquet
from dff.infra.storage import open_storage
from dff.pipeline.inspection.verify import (
    check_dataset,
    decode_stored_person,
    raise_for_differences,
)
from dff.pipeline.job.plan import KEY, parse_plan
from dff.pipeline.synthesis import synthesize

IDENTITIES, VIEWS = 3, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("verify") / "set")
    synthesize(None, out, identities=IDENTITIES, views=VIEWS, size=160, seed=4, shard_subjects=2)
    return out


def tampered(made: str, out: Path, change: Callable[[list[ViewRow]], list[ViewRow]]) -> str:
    """A copy whose first shard has other rows, and a manifest that says so."""
    old, new = open_dataset(made), open_storage(str(out / "tampered"))
    shards = []
    for index, shard in enumerate(old.shards):
        data = old.storage.read(shard.key)
        if index == 0:
            data = rows_to_parquet(change(old.read_shard(0)), {"plan": old.manifest.plan})
        new.write(shard.key, data)
        shards.append((shard.rows, len(data), hashlib.sha256(data).hexdigest()))
    new.write("plan.json", old.storage.read("plan.json"))
    columns = Shards.of([s[0] for s in shards], [s[1] for s in shards], [s[2] for s in shards])
    new.write(MANIFEST, replace(old.manifest, shards=columns).to_json())
    return new.uri


def without_person(rows: list[ViewRow]) -> list[ViewRow]:
    return [replace(rows[0], person=None), *rows[1:]]


def with_the_others_person(rows: list[ViewRow]) -> list[ViewRow]:
    return [replace(rows[0], person=rows[VIEWS].person), *rows[1:]]


def with_half_a_person(rows: list[ViewRow]) -> list[ViewRow]:
    assert rows[0].person is not None
    return [replace(rows[0], person=rows[0].person[: len(rows[0].person) // 2]), *rows[1:]]


def with_another_image(rows: list[ViewRow]) -> list[ViewRow]:
    return [rows[0], replace(rows[1], image=rows[2].image), *rows[2:]]


def with_moved_landmarks(rows: list[ViewRow]) -> list[ViewRow]:
    return [
        rows[0],
        replace(rows[1], landmarks_2d=rows[1].landmarks_2d + np.float32(0.5)),
        *rows[2:],
    ]


def with_another_recipe(rows: list[ViewRow]) -> list[ViewRow]:
    return [rows[0], replace(rows[1], recipe="not json"), *rows[2:]]


def with_another_pose(rows: list[ViewRow]) -> list[ViewRow]:
    moved = replace(rows[1].cam_from_head, translation=rows[1].cam_from_head.translation * 1.001)
    return [rows[0], replace(rows[1], cam_from_head=moved), *rows[2:]]


def test_every_view_is_reproduced_from_the_dataset_alone(made: str) -> None:
    checks = check_dataset(open_dataset(made), 0)
    assert checks.differences == []
    assert checks.rows == checks.same == checks.pairs == IDENTITIES * VIEWS
    assert checks.points > 500
    assert checks.worst < 0.1


def test_maps_of_rows_are_those_of_rendering(made: str, open_head: MorphableModel) -> None:
    """Equal to the last bit where the model is visible, with any accessories."""
    dataset = open_dataset(made)
    hidden = 0
    for row in (row for index in range(len(dataset.shards)) for row in dataset.read_shard(index)):
        maps = compute_maps(row, open_head)
        cam = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))
        alone = render(cam, open_head.faces, row.camera, (row.height, row.width))
        before = maps.occluder & alone.mask
        hidden += int(before.sum())
        assert (maps.model == (alone.mask & ~before)).all()
        for name in ("triangle", "barycentric", "depth", "normal"):
            assert (
                getattr(maps, name)[maps.model].tobytes()
                == getattr(alone, name)[maps.model].tobytes()
            )
        y, x = np.nonzero(maps.model)
        assert (
            np.abs(row.camera.px_from_cam(maps.point[y, x]) - np.stack([x, y], 1) - 0.5).max()
            < 0.01
        )
        places = row.camera.px_from_cam(cam[open_head.landmarks.vertex])
        assert np.abs(places - maps.landmarks_3d.px).max() < 0.01
        for marks in (maps.landmarks_2d, maps.landmarks_3d):
            assert ((marks.visibility == LandmarkVisibility.VISIBLE) == marks.visible).all()
    assert hidden > 100


def test_a_sample_is_of_the_asked_size_and_always_the_same(made: str) -> None:
    dataset = open_dataset(made)
    one, again = check_dataset(dataset, 5), check_dataset(dataset, 5)
    assert one == again
    assert one.rows == one.pairs == 5


@pytest.mark.parametrize(
    ("change", "failed", "said"),
    [
        (
            without_person,
            4,
            "sampled-000000/0000, the first row of 'sampled-000000', has no person",
        ),
        (with_the_others_person, 4, "stored person of sampled-000000 is that of 'sampled-000001'"),
        (with_half_a_person, 4, "stored person of sampled-000000 is cut off or damaged"),
        (with_another_image, 1, r"sampled-000000/0001: image: \d+ pixels differ"),
        (with_moved_landmarks, 1, "sampled-000000/0001: landmarks_2d: .* is 0.71 px off"),
        (with_another_recipe, 1, "sampled-000000/0001: can't be rendered again: JSONDecodeError"),
        (
            with_another_pose,
            1,
            r"sampled-000000/0001: .*triangle_ids: \d+ pixels show another triangle",
        ),
    ],
)
def test_differences_are_named_with_their_file_and_row(
    change: Callable[[list[ViewRow]], list[ViewRow]],
    failed: int,
    said: str,
    made: str,
    tmp_path: Path,
) -> None:
    dataset = open_dataset(tampered(made, tmp_path, change))
    dataset.verify()  # its hashes are in order
    checks = check_dataset(dataset, 0)
    assert checks.rows - checks.same == failed
    message = (
        f"{failed} of 12 views are not reproduced .*data/part-00000-of-00002.parquet: .*{said}"
    )
    with pytest.raises(BadDataset, match=message):
        raise_for_differences(checks, dataset)


def test_an_installation_that_cannot_reproduce_views_is_refused_first(
    made: str, tmp_path: Path
) -> None:
    dataset = open_dataset(tampered(made, tmp_path, lambda rows: rows))
    plan = parse_plan(dataset.storage.read(KEY), KEY)
    dataset.storage.write(KEY, replace(plan, renderer="zbuffer of old").to_json())
    with pytest.raises(
        BadDataset,
        match=r"plan.json: rendered by zbuffer of old; here is zbuffer, whose pixels may",
    ):
        check_dataset(dataset)


def test_a_person_of_the_dataset_makes_new_views_too(made: str, open_head: MorphableModel) -> None:
    rows = open_dataset(made).read_shard(0)[:VIEWS]
    person = decode_stored_person(rows, open_head)
    assert person.id == rows[0].identity_id
    assert (person.identity == rows[0].coefficients(open_head).identity).all()
    with pytest.raises(
        BadDataset, match="sampled-000000/0001, the first row of 'sampled-000000', has no person"
    ):
        decode_stored_person(rows[1:], open_head)
