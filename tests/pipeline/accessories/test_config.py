from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from dff.pipeline.accessories import config
from dff.pipeline.accessories.config import DATA, read_config
from dff.pipeline.accessories.garments import CUTS, HATS
from dff.pipeline.accessories.hands import EMPTY, FULL, POSES
from dff.pipeline.accessories.sampling import PRIOR


@dataclass(frozen=True)
class Sizes:
    width: float


def test_every_table_names_its_source() -> None:
    for path in DATA.glob("*.toml"):
        for name, table in tomllib.loads(path.read_text()).items():
            assert table["source"].strip(), f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sizes]\nwidth = 1.0", "no source"),
        ('[sizes]\nsource = "x"\nwidth = 1.0\nheight = 2.0', "height"),
        ('[sizes]\nsource = "x"', "width"),
        ('[sizes]\nsource = "x"\nwidth = "wide"', "width"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sizes.toml").write_text(text)
    monkeypatch.setattr(config, "DATA", tmp_path)
    with pytest.raises(ValueError, match=message):
        read_config(Sizes, "sizes.toml", "sizes")


def test_the_tables_cover_every_kind() -> None:
    assert set(POSES) == {*EMPTY, *FULL}
    assert set(PRIOR.hats.tall) == set(HATS)
    assert len(PRIOR.clothes.cut_odds) == len(CUTS)
    assert len(PRIOR.hats.odds) == len(HATS)
    for odds in (PRIOR.hair.odds_long, PRIOR.hair.odds_short, PRIOR.hats.odds):
        assert sum(odds) == pytest.approx(1.0)
