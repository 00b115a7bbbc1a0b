"""Weights files: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dff.face.descriptor import Anchors, DescriptorNet, NetConfig
from dff.face.errors import BadWeights, StorageError
from dff.face.model.landmark_offsets import TERMS, LandmarkOffsets, PoseCorrection
from dff.face.model.morphable import MorphableModel
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.landmark_refinement import LandmarkRefinement
from dff.infra.networks import weights
from dff.infra.storage import open_storage
from tests.face.solve.test_expression_correction import some_correction
from tests.s3_server import FaultyS3

CARD = {"model": "toy", "model_licence": "CC0-1.0", "data_licences": ["CC0-1.0"], "steps": 3}


@pytest.fixture
def anchors(toy_model: MorphableModel) -> Anchors:
    vertex = np.array([1, 5, 9], np.int32)
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Anchors(vertex, toy_model.template[vertex], vectors, 16.0)


@pytest.fixture
def net() -> DescriptorNet:
    torch.manual_seed(1)
    return DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1)))


@pytest.fixture
def path(tmp_path: Path, net: DescriptorNet, anchors: Anchors) -> Path:
    out = tmp_path / "new folder" / "w.safetensors"
    weights.save(out, net, anchors, CARD)
    return out


def rewrite(path: Path, *, tensors: dict[str, torch.Tensor] | None = None, **about: object) -> None:
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["descriptor"])
    metadata = {"descriptor": json.dumps({**old, **about})}
    save_file(load_file(path) if tensors is None else tensors, path, metadata)


def test_a_file_gives_back_what_was_saved(
    path: Path, net: DescriptorNet, anchors: Anchors, toy_model: MorphableModel
) -> None:
    got = weights.load(path, model=toy_model)
    assert got.card == CARD
    assert got.net.config == net.config
    assert not got.net.training
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(got.net(image).descriptor, net.eval()(image).descriptor)
    for name in ("vertex", "position", "descriptor"):
        np.testing.assert_array_equal(getattr(got.anchors, name), getattr(anchors, name))
    assert got.anchors.scale == anchors.scale
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_match_errors_come_back(path: Path, net: DescriptorNet, anchors: Anchors) -> None:
    assert weights.load(path).anchors.error_fields.shape == (3, 3, 0)
    fields = np.random.default_rng(2).normal(size=(3, 3, 4)).astype(np.float32)
    weights.save(path, net, replace(anchors, error_fields=fields), CARD)
    np.testing.assert_array_equal(weights.load(path).anchors.error_fields, fields)


def test_a_correction_of_fits_comes_back_and_may_be_absent(
    path: Path, net: DescriptorNet, anchors: Anchors, toy_model: MorphableModel
) -> None:
    assert weights.load(path).fit_correction is None
    rng = np.random.default_rng(2)
    dims, wide = anchors.descriptor.shape[1], len(toy_model.identity) + len(toy_model.expression)
    tables = [(68, dims), (68 * dims, 9), (9,), (3, wide)]
    saved = FitCorrection(*(rng.normal(scale=0.01, size=shape) for shape in tables))
    weights.save(path, net, anchors, CARD, fit_correction=saved)
    got = weights.load(path, model=toy_model).fit_correction
    assert got is not None
    for name, table in vars(saved).items():
        np.testing.assert_array_equal(getattr(got, name), table.astype(np.float16), err_msg=name)
    weights.rewrite(path, weights.load(path))
    assert weights.load(path).fit_correction is not None
    tensors = load_file(path)
    tensors["fit_correction.offset"] = torch.zeros(8, dtype=torch.float16)
    rewrite(path, tensors=tensors)
    with pytest.raises(BadWeights, match="a bad correction of fits"):
        weights.load(path)
    for table in ("weight", "offset"):  # a hundred to a thousand times what was learned
        damaged = {f"fit_correction.{table}": 1000 * torch.tensor(getattr(saved, table)).half()}
        whole = {"fit_correction.offset": torch.tensor(saved.offset).half()}
        rewrite(path, tensors=tensors | whole | damaged)
        with pytest.raises(BadWeights, match="changes poses by numbers as large as"):
            weights.load(path)
    del tensors["fit_correction.offset"]
    rewrite(path, tensors=tensors)
    with pytest.raises(BadWeights, match="a bad correction of fits"):
        weights.load(path)
    other = replace(saved, directions=np.zeros((3, wide + 1)))
    weights.save(path, net, anchors, CARD, fit_correction=other)
    with pytest.raises(BadWeights, match=f"corrects fits by {wide + 1} coefficients"):
        weights.load(path, model=toy_model)


def test_a_correction_of_expressions_comes_back_and_may_be_absent(
    path: Path, net: DescriptorNet, anchors: Anchors, toy_model: MorphableModel
) -> None:
    assert weights.load(path).expression_correction is None
    dims, units = anchors.descriptor.shape[1], len(toy_model.expression)
    saved = some_correction(dims, units)
    weights.save(path, net, anchors, CARD, expression_correction=saved)
    weights.rewrite(path, weights.load(path))
    got = weights.load(path, model=toy_model).expression_correction
    assert got is not None
    for name, table in vars(saved).items():
        np.testing.assert_array_equal(getattr(got, name), table.astype(np.float16), err_msg=name)
    tensors = load_file(path)
    del tensors["expression_correction.fitted"]
    rewrite(path, tensors=tensors)
    with pytest.raises(BadWeights, match=r"a bad correction of expressions: it lacks .*\.fitted"):
        weights.load(path)
    for other, says in (
        (some_correction(dims, units + 1), f"corrects {units + 1} activations"),
        (some_correction(dims + 1, units), f"by descriptors of {dims + 1} numbers"),
    ):
        weights.save(path, net, anchors, CARD, expression_correction=other)
        with pytest.raises(BadWeights, match=says):
            weights.load(path, model=toy_model)


def test_a_licence_of_further_data_is_added_once(path: Path) -> None:
    before = weights.load(path)
    once = weights.add_licence(before, "LicenseRef-ours")
    assert once.card["data_licences"] == [*before.card["data_licences"], "LicenseRef-ours"]
    assert weights.add_licence(once, "LicenseRef-ours").card == once.card
    weights.rewrite(path, once)
    assert weights.load(path).card == once.card


def test_a_refinement_of_landmarks_comes_back_and_may_be_absent(
    path: Path, net: DescriptorNet, anchors: Anchors, toy_model: MorphableModel
) -> None:
    assert weights.load(path).landmark_refinement is None
    rng = np.random.default_rng(2)
    dims = anchors.descriptor.shape[1]
    tables = [(68, dims), (68 * dims, 136), (136,)]
    saved = LandmarkRefinement(*(rng.normal(scale=1e-4, size=shape) for shape in tables))
    weights.save(path, net, anchors, CARD, landmark_refinement=saved)
    weights.rewrite(path, weights.load(path))
    got = weights.load(path, model=toy_model).landmark_refinement
    assert got is not None
    for name, table in vars(saved).items():
        np.testing.assert_allclose(getattr(got, name), table, atol=1e-6, err_msg=name)
    tensors = load_file(path)
    del tensors["landmark_refinement.offset"]
    rewrite(path, tensors=tensors)
    with pytest.raises(BadWeights, match="a bad refinement of landmarks: it lacks"):
        weights.load(path)
    other = LandmarkRefinement(np.zeros((68, 3)), np.zeros((68 * 3, 136)), saved.offset)
    weights.save(path, net, anchors, CARD, landmark_refinement=other)
    with pytest.raises(BadWeights, match="refines landmarks by descriptors of 3 numbers"):
        weights.load(path, model=toy_model)


def test_a_calibration_comes_back_and_may_be_absent(
    path: Path, net: DescriptorNet, anchors: Anchors
) -> None:
    assert weights.load(path).calibration is None
    weights.save(path, net, anchors, CARD, calibration={"face": [0.5, -1.25]})
    assert weights.load(path).calibration == {"face": [0.5, -1.25]}
    rewrite(path, calibration=7)
    with pytest.raises(BadWeights, match="metadata"):
        weights.load(path)


def test_landmark_offsets_come_back_and_may_be_absent(
    path: Path, net: DescriptorNet, anchors: Anchors, toy_model: MorphableModel
) -> None:
    assert weights.load(path).landmark_offsets is None
    rng = np.random.default_rng(2)
    wide = len(toy_model.identity) + len(toy_model.expression)
    for response in (np.zeros((2, 68, 3, 0)), rng.normal(scale=0.01, size=(2, 68, 3, wide))):
        landmark_offsets = LandmarkOffsets(
            rng.normal(scale=0.01, size=(2, 68, 3)),
            response,
            rng.normal(scale=0.01, size=(2, 68, TERMS, 2)),
            rng.uniform(size=(2, 2)),
        )
        correction = PoseCorrection(rng.normal(scale=0.1, size=(TERMS, 3)), np.array([80.0, 30.0]))
        weights.save(
            path,
            net,
            anchors,
            CARD,
            landmark_offsets=landmark_offsets,
            landmark_offsets_source="ours",
            pose_correction=correction,
            mean_identity=np.arange(4.0),
        )
        got = weights.load(path, model=toy_model)
        assert got.mean_identity.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert got.landmark_offsets is not None
        assert got.landmark_offsets_source == "ours"
        for name, table in vars(landmark_offsets).items():
            np.testing.assert_allclose(getattr(got.landmark_offsets, name), table, rtol=1e-6)
        assert got.pose_correction is not None
        np.testing.assert_allclose(got.pose_correction.turn, correction.turn, rtol=1e-6)
        np.testing.assert_allclose(got.pose_correction.pose_limit, [80.0, 30.0])
    weights.save(
        path,
        net,
        anchors,
        CARD,
        landmark_offsets=LandmarkOffsets(response=np.zeros((2, 68, 3, wide + 1))),
    )
    with pytest.raises(BadWeights, match="coefficients"):
        weights.load(path, model=toy_model)


def test_weights_are_as_readable_as_other_files(
    net: DescriptorNet, anchors: Anchors, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        weights.save(tmp_path / "w", net, anchors, CARD)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o640


def test_the_same_weights_make_the_same_bytes(
    path: Path, net: DescriptorNet, anchors: Anchors
) -> None:
    again = path.with_name("again.safetensors")
    weights.save(again, net, anchors, dict(reversed(CARD.items())))
    assert again.read_bytes() == path.read_bytes()


def test_a_card_must_say_the_terms(tmp_path: Path, net: DescriptorNet, anchors: Anchors) -> None:
    with pytest.raises(ValueError, match="model_licence"):
        weights.save(
            tmp_path / "w", net, anchors, {k: v for k, v in CARD.items() if k != "model_licence"}
        )


def test_anchors_must_fit_the_network(tmp_path: Path, net: DescriptorNet, anchors: Anchors) -> None:
    short = replace(anchors, descriptor=np.array([[1.0, 0.0]] * 3, np.float32))
    with pytest.raises(ValueError, match="2 numbers for a network of 8"):
        weights.save(tmp_path / "w", net, short, CARD)


def test_missing_and_truncated_files(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="nowhere"):
        weights.load(tmp_path / "nowhere.safetensors")
    data = path.read_bytes()
    for length in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadWeights, match="cannot be read"):
            weights.load(path)


def test_tensors_that_are_not_there_or_of_another_shape(path: Path) -> None:
    tensors = load_file(path)
    rewrite(path, tensors={k: v for k, v in tensors.items() if k != "net.to_face.bias"})
    with pytest.raises(BadWeights, match=r"lacks 1 tensors, such as net\.to_face\.bias"):
        weights.load(path)
    rewrite(path, tensors={k: v for k, v in tensors.items() if k != "anchors.vertex"})
    with pytest.raises(BadWeights, match=r"anchors\.vertex"):
        weights.load(path)
    rewrite(path, tensors={**tensors, "net.more": torch.zeros(1)})
    with pytest.raises(BadWeights, match=r"does not name, such as net\.more"):
        weights.load(path)
    rewrite(path, tensors={**tensors, "net.to_face.bias": torch.zeros(2)})
    with pytest.raises(
        BadWeights, match=r"net\.to_face\.bias is \(2,\), its configuration says \(1,\)"
    ):
        weights.load(path)
    rewrite(path, tensors={**tensors, "net.to_face.bias": torch.tensor([float("nan")])})
    with pytest.raises(BadWeights, match="not finite"):
        weights.load(path)
    rewrite(path, tensors={**tensors, "anchors.descriptor": 2 * tensors["anchors.descriptor"]})
    with pytest.raises(BadWeights, match="bad anchors"):
        weights.load(path)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_of_a_type_that_no_weights_have(path: Path, kind: torch.dtype) -> None:
    rewrite(path, tensors={**load_file(path), "net.to_face.bias": torch.zeros(1, dtype=kind)})
    with pytest.raises(BadWeights, match="cannot be read as a weights file"):
        weights.load(path)


def test_metadata_of_something_else(path: Path) -> None:
    config = {"dims": 8, "widths": [8, 16], "depths": [1, 1], "colour": "red"}
    rewrite(path, config=config)
    with pytest.raises(BadWeights, match=r"bad metadata.*colour"):
        weights.load(path)
    rewrite(path, format="another")
    with pytest.raises(BadWeights, match="format 'another'"):
        weights.load(path)
    save_file(load_file(path), path)
    with pytest.raises(BadWeights, match="format 'none'"):
        weights.load(path)


def test_a_card_without_its_terms_is_refused(path: Path) -> None:
    rewrite(path, card={"model": "toy"})
    with pytest.raises(BadWeights, match="does not say its model_licence"):
        weights.load(path)


def test_weights_of_another_model(path: Path, toy_model: MorphableModel) -> None:
    with pytest.raises(BadWeights, match="trained on the face model 'toy', not 'other'"):
        weights.load(path, model=replace(toy_model, name="other"))
    with pytest.raises(BadWeights, match="another version of toy"):
        weights.load(path, model=replace(toy_model, template=toy_model.template * 1.01))


def test_weights_lie_in_a_bucket_too(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    shipped = weights.load(weights.DEFAULT)
    address = "s3://faces/trained/dff.safetensors"
    weights.check_destination(address)
    weights.rewrite(address, shipped)
    weights.rewrite(tmp_path / "w.safetensors", shipped)
    stored = open_storage("s3://faces/trained")
    assert [info.key for info in stored.list()] == ["dff.safetensors"]
    assert stored.read("dff.safetensors") == (tmp_path / "w.safetensors").read_bytes()
    assert weights.load(address).card == shipped.card
    assert weights.everywhere(address) == address
    stored.write("bad.safetensors", b"no weights")
    with pytest.raises(BadWeights, match=r"trained/bad\.safetensors cannot be read"):
        weights.load("s3://faces/trained/bad.safetensors")
    with pytest.raises(BadWeights, match="no weights file s3://faces/trained/none"):
        weights.load("s3://faces/trained/none")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("models:/dff@champion", "can't be written to models:/dff@champion"),
        ("gs://bucket/w", "can't be written to gs://bucket/w"),
        ("s3://bucket/", "names no file"),
        ("s3://bucket", "names no file"),
    ],
)
def test_an_address_is_never_taken_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=told):
        weights.check_destination(address)
    assert not list(tmp_path.iterdir())
