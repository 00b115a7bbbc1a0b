"""Face models, albedo models and weights: licence, size, and where those not installed are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dff.face.io.assets import SHIPPED_ALBEDO, list_models, load_albedo
from dff.infra.networks import cascade_file, weights


class Asset(NamedTuple):
    """One row of ``dff models``."""

    name: str
    kind: str
    licence: str
    size: str
    description: str


def list_assets() -> list[Asset]:
    """The assets that ship with the program, and those that the user may supply."""
    return [*_face_models(), *_albedo_models(), *_weights(), *_cascades()]


def _face_models() -> Iterator[Asset]:
    for info in list_models():
        about = f"{info.vertices} vertices, {info.modes} modes; {info.description}"
        size = _format_size(info.bytes if info.available else None)
        yield Asset(info.name, "face model", info.licence, size, about)


def _albedo_models() -> Iterator[Asset]:
    for name, path in SHIPPED_ALBEDO.items():
        albedo = load_albedo(name)
        about = f"{len(albedo.components)} components, {albedo.mean.shape[1]} texels"
        yield Asset(name, "albedo", albedo.licence, _file_size(path), about)


def _weights() -> Iterator[Asset]:
    for name, path in weights.NAMED.items():
        research = name in weights.RESEARCH
        if not path.exists():
            licence = weights.RESEARCH_TERMS if research else "-"
            where = f"in the repository: weights/research/{path.name}" if research else ""
            yield Asset(name, "weights", licence, _format_size(None), where)
            continue
        loaded = weights.load(name)
        about = f"for {loaded.card['model']}, {loaded.card['steps']} steps"
        if loaded.landmark_offsets_source:
            about += f"; landmark offsets of {loaded.landmark_offsets_source}"
        if research:
            about += f"; {weights.RESEARCH_TERMS}: {path}"
        yield Asset(name, "weights", _join(loaded.card["data_licences"]), _file_size(path), about)


def _cascades() -> Iterator[Asset]:
    for name, path in cascade_file.SHIPPED.items():
        if path.exists():
            _, about = cascade_file.read_cascade(path)
            licence = _join(about["card"]["data_licences"])
            yield Asset(f"{name}-cascade", "cascade", licence, _file_size(path), f"for {name}")


def _join(licences: list[str]) -> str:
    """Licences as one SPDX expression, each once."""
    return " AND ".join(sorted({name for terms in licences for name in terms.split(" AND ")}))


def _file_size(path: Path) -> str:
    return _format_size(path.stat().st_size)


def _format_size(size: int | None) -> str:
    return "not installed" if size is None else f"{size / 1e6:.1f} MB"
