"""What is at hand: face models, albedo models and weights, with their licences and sizes."""

from __future__ import annotations

from dff.face.io.assets import SHIPPED_ALBEDO, list_models, load_albedo
from dff.infra import cascade_file, weights

Row = tuple[str, str, str, str, str]  # name, kind, licence, size, description


def catalogue() -> list[Row]:
    """One row for each model: those that come with the program, and those that the user may
    supply.
    """
    rows: list[Row] = []
    for info in list_models():
        about = f"{info.vertices} vertices, {info.modes} modes; {info.description}"
        rows.append(
            (
                info.name,
                "face model",
                info.licence,
                _size(info.bytes if info.available else None),
                about,
            )
        )
    for name, path in SHIPPED_ALBEDO.items():
        albedo = load_albedo(name)
        about = f"{len(albedo.components)} components, {albedo.mean.shape[1]} texels"
        rows.append((name, "albedo", albedo.licence, _size(path.stat().st_size), about))
    for name, path in weights.SHIPPED.items():
        if not path.exists():
            rows.append((name, "weights", "-", _size(None), "not shipped with this version"))
            continue
        loaded = weights.load(name)
        card = loaded.card
        about = f"for {card['model']}, {card['steps']} steps"
        if loaded.landmark_offsets_source:
            about += f"; landmarks as by {loaded.landmark_offsets_source}"
        rows.append(
            (
                name,
                "weights",
                " AND ".join(
                    sorted(
                        {name for terms in card["data_licences"] for name in terms.split(" AND ")}
                    )
                ),
                _size(path.stat().st_size),
                about,
            )
        )
    for name, path in cascade_file.SHIPPED.items():
        if path.exists():
            _, words = cascade_file.read(path)
            licence = " AND ".join(words["card"]["data_licences"])
            rows.append(
                (f"{name}-cascade", "cascade", licence, _size(path.stat().st_size), f"for {name}")
            )
    return rows


def _size(bytes_: int | None) -> str:
    return "not here" if bytes_ is None else f"{bytes_ / 1e6:.1f} MB"
