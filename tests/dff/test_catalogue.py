"""``dff models`` lists what is installed, and where the rest is."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dff.catalogue import list_assets
from dff.commands.app import app
from dff.infra.networks import weights


def test_assets_that_ship_are_listed_with_licence_and_size() -> None:
    assets = {asset.name: asset for asset in list_assets()}
    licences = {
        "open-head": "CC0-1.0 AND MIT",
        "open-albedo": "CC0-1.0",
        "dff-open": "CC0-1.0 AND MIT",
    }
    for name, licence in licences.items():
        assert assets[name].licence == licence
        assert assets[name].size.endswith(" MB")
    assert assets["flame"].size == "not installed"


def test_research_weights_that_are_not_installed_are_located(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(weights.NAMED, "dff-research", Path("/nowhere/dff-research.safetensors"))
    output = CliRunner().invoke(app, ["models"], env={"COLUMNS": "300"}).output
    (line,) = (line for line in output.splitlines() if line.startswith("dff-research"))
    assert weights.RESEARCH_TERMS in line
    assert "not installed" in line
    assert "weights/research/dff-research.safetensors" in line
