from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dff.face.errors import BadDataset
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.shards import (
    OCCLUDER,
    ViewRow,
    collect_persons,
    parquet_to_rows,
    read_columns,
    read_metadata,
    resolve_frame,
    rows_to_parquet,
)
from tests.infra.rows import noise_row, same_row, toy_view


@pytest.fixture(scope="module")
def rows() -> list[ViewRow]:
    rng = np.random.default_rng(5)
    return [noise_row(f"person {i}", view, rng=rng) for i in range(40) for view in range(7)]


@pytest.fixture(scope="module")
def shard(rows: list[ViewRow]) -> bytes:
    return rows_to_parquet(rows, {"plan": "abc"})


def test_rows_come_back_bit_by_bit(rows: list[ViewRow], shard: bytes) -> None:
    back = parquet_to_rows(shard)
    assert len(back) == len(rows)
    assert all(same_row(a, b) for a, b in zip(rows, back, strict=True))
    assert rows_to_parquet(back, {"plan": "abc"}) == shard


def test_the_check_of_sameness_sees_one_bit(rows: list[ViewRow]) -> None:
    moved = rows[0].landmarks_2d.copy()
    moved[3, 1] = np.nextafter(moved[3, 1], np.float32(9))
    assert not same_row(rows[0], replace(rows[0], landmarks_2d=moved))
    assert same_row(rows[0], replace(rows[0]))


def test_an_empty_shard_is_a_shard() -> None:
    assert parquet_to_rows(rows_to_parquet([], {})) == []


def test_models_of_many_triangles_get_wider_ids() -> None:
    rng = np.random.default_rng(1)
    for triangles, dtype in ((65_534, "uint16"), (65_535, "uint32"), (2_000_000, "uint32")):
        row = noise_row("a", 0, rng=rng)
        ids = row.triangle_ids.copy()
        ids[0, :3] = triangles - 1, -1, OCCLUDER
        row = replace(row, triangle_ids=ids)
        data = rows_to_parquet([row], {})
        assert read_columns(data, ["triangle_ids_dtype"]) == {"triangle_ids_dtype": [dtype]}
        assert same_row(parquet_to_rows(data)[0], row)


def test_the_same_rows_make_the_same_bytes_in_any_process(shard: bytes) -> None:
    script = """
import sys, hashlib, numpy as np
from dff.infra.datasets.shards import rows_to_parquet
from tests.infra.rows import noise_row
rng = np.random.default_rng(5)
rows = [noise_row(f"person {i}", view, rng=rng) for i in range(40) for view in range(7)]
sys.stdout.buffer.write(rows_to_parquet(rows, {"plan": "abc"}))
"""
    env = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    root = Path(__file__).parents[3]
    assert (
        subprocess.run(
            [sys.executable, "-c", script], env=env, cwd=root, capture_output=True
        ).stdout
        == shard
    )


def test_all_views_of_an_identity_lie_in_one_row_group(shard: bytes) -> None:
    file = pq.ParquetFile(io.BytesIO(shard))
    groups = [
        set(file.read_row_group(i, ["identity_id"])["identity_id"].to_pylist())
        for i in range(file.num_row_groups)
    ]
    assert len(groups) == 3  # 280 rows in groups of at least 128, of whole identities
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 40


def test_rows_of_an_identity_must_be_together_and_differ(rows: list[ViewRow]) -> None:
    with pytest.raises(ValueError, match="not together"):
        rows_to_parquet([rows[0], rows[7], rows[1]], {})
    with pytest.raises(ValueError, match="share a sample id"):
        rows_to_parquet([rows[0], rows[0]], {})


def test_a_person_is_stored_once_in_its_first_row(rows: list[ViewRow], shard: bytes) -> None:
    found = collect_persons(parquet_to_rows(shard))
    assert found == {row.identity_id: row.person for row in rows if row.view == 0}
    with pytest.raises(
        ValueError, match="person of 'person 0' is stored in another row than its first"
    ):
        rows_to_parquet([rows[0], replace(rows[1], person=b"again"), *rows[2:]], {})
    with pytest.raises(BadDataset, match=r"person 0/0002 has a person, which only the first row"):
        collect_persons([*rows[:2], replace(rows[2], person=b"again")])
    with pytest.raises(
        BadDataset, match=r"person 0/0001, the first row of 'person 0', has no person"
    ):
        collect_persons(rows[1:3])


def test_plain_pyarrow_reads_it_and_it_explains_itself(
    rows: list[ViewRow], shard: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_bytes(shard)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == len(rows)
    row = table.slice(9, 1).to_pylist()[0]
    np.testing.assert_array_equal(np.array(row["landmarks_2d"], np.float32), rows[9].landmarks_2d)
    np.testing.assert_array_equal(row["rotation"], rows[9].cam_from_head.rotation)
    assert row["image"]["bytes"] == rows[9].image
    said = read_metadata(shard)
    assert said["plan"] == "abc"
    assert said["licence"] == "CC0-1.0 AND research-only"
    assert said["schema_version"] == "2"
    assert "metres" in said["units"]
    assert "y down" in said["frames"]


def test_selected_columns_are_read_alone(rows: list[ViewRow], shard: bytes) -> None:
    assert read_columns(shard, ["view", "licence"]) == {
        "view": [row.view for row in rows],
        "licence": [row.licence for row in rows],
    }
    with pytest.raises(ValueError, match="no column \\['colour'\\]"):
        read_columns(shard, ["view", "colour"])


def test_hugging_face_datasets_opens_it_with_pictures(
    rows: list[ViewRow], shard: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_bytes(shard)
    script = """
import json, sys
from datasets import load_dataset
data = load_dataset("parquet", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
row = data[9]
stream = load_dataset("parquet", data_files=sys.argv[1], split="train", streaming=True)
# Read to the end: Arrow's threads abort the interpreter if a stream is left while they read ahead.
streamed = list(stream)[9]
json.dump({
    "streamed": [streamed["sample_id"], streamed["image"].tobytes() == row["image"].tobytes()],
    "type": type(data.features["image"]).__name__, "rows": len(data), "mode": row["image"].mode,
    "size": row["image"].size, "pixels": list(row["image"].tobytes()), "light": row["light"],
}, sys.stdout)
"""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", script, str(tmp_path / "a.parquet"), str(tmp_path / "cache")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    wanted = Image.open(io.BytesIO(rows[9].image))
    assert said["streamed"] == [rows[9].sample_id, True]
    assert (said["type"], said["rows"], said["mode"]) == ("Image", len(rows), "RGB")
    assert said["size"] == [rows[9].width, rows[9].height]
    assert bytes(said["pixels"]) == wanted.tobytes()
    np.testing.assert_array_equal(np.array(said["light"], np.float32), rows[9].light)


def test_a_flipped_bit_in_any_column_is_found(shard: bytes) -> None:
    metadata = pq.ParquetFile(io.BytesIO(shard)).metadata
    for i in range(metadata.num_columns):
        chunk = metadata.row_group(1).column(i)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        damaged = bytearray(shard)
        damaged[start + chunk.total_compressed_size - 2] ^= 4
        with pytest.raises(BadDataset, match="part-1 is damaged"):
            parquet_to_rows(bytes(damaged), "part-1")


def test_what_is_no_shard_is_refused_by_name(shard: bytes) -> None:
    for data in (b"", b"PAR1", b"\0" * 100, shard[:-1], shard[: len(shard) // 2]):
        with pytest.raises(BadDataset, match="part-1 is not a Parquet file"):
            parquet_to_rows(data, "part-1")
    other = pq.read_table(io.BytesIO(shard))
    sink = io.BytesIO()
    pq.write_table(other.replace_schema_metadata({"schema_version": "1"}), sink)
    with pytest.raises(BadDataset, match="part-1 has schema version 1, this program reads 2"):
        parquet_to_rows(sink.getvalue(), "part-1")
    sink = io.BytesIO()
    pq.write_table(other.drop_columns(["light"]), sink)
    with pytest.raises(BadDataset, match="other columns"):
        parquet_to_rows(sink.getvalue(), "part-1")


def test_the_dense_ground_truth_comes_back_exactly(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(2)
    made = [toy_view(toy_model, "a", view, rng=rng) for view in range(6)]
    back = parquet_to_rows(rows_to_parquet([row for row, _ in made], {}))
    for row, (_, frame) in zip(back, made, strict=True):
        again = resolve_frame(row, toy_model)
        assert frame.mask.sum() > 200
        for name in ("triangle", "barycentric", "depth", "normal"):
            assert getattr(again, name).tobytes() == getattr(frame, name).tobytes()
    with pytest.raises(BadDataset, match="shows the model 'other'"):
        resolve_frame(replace(back[0], model="other"), toy_model)


def test_pixels_are_those_of_the_image(rows: list[ViewRow]) -> None:
    wanted = np.asarray(Image.open(io.BytesIO(rows[3].image)).convert("RGB"))
    np.testing.assert_array_equal(rows[3].pixels(), wanted)
    with pytest.raises(BadDataset, match=r"person 0/0003 is not a JPEG"):
        replace(rows[3], image=b"no image").pixels()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_id": "person 0/0001"},
        {"width": 3},
        {"light": np.zeros((9, 4))},
        {"landmarks_2d": np.full((68, 2), np.nan)},
        {"seed": 2**63},
        {"seed": -1},
        {"pose": (0.0, float("inf"), 0.0)},
        {"fit_error": float("nan")},
    ],
)
def test_a_row_is_checked_where_it_is_born(rows: list[ViewRow], wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"person 0"):
        replace(rows[0], **wrong)  # type: ignore[arg-type]
