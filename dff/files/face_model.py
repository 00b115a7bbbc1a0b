"""The face model that a dataset shows."""

from __future__ import annotations

from dff.infra.dataset import Dataset

DEFAULT_MODEL = "open-head"


def choose_face_model(dataset: Dataset, model: str | None) -> str:
    """Name or file of the face model: ``model``, else the one that the dataset's manifest names.

    Raises ValueError for a dataset of several models.
    """
    if model is not None:
        return model
    names = sorted(dataset.manifest.counts.get("model", {}))
    if len(names) > 1:
        raise ValueError(f"the dataset shows several face models: {', '.join(names)}")
    return names[0] if names else DEFAULT_MODEL
