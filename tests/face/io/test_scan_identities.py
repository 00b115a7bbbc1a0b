"""The registration of scanned identities, by which the open head's file is made."""

import numpy as np

from dff.face.io.assets import SHIPPED
from dff.face.model.morphable import MorphableModel
from scripts.scan_identities import FACE, carry_scans


def test_identities_of_the_same_mesh_keep_their_places(open_head: MorphableModel) -> None:
    found = carry_scans(open_head, SHIPPED[open_head.name])
    rows = np.unique(open_head.faces[open_head.find_triangles(*FACE)])
    off_mean = np.linalg.norm(found.mean - open_head.template, axis=1)[rows]
    assert off_mean.max() < 1e-6
    # The registration smooths them.
    off_modes = np.linalg.norm(found.modes - open_head.identity, axis=2)[:, rows]
    assert off_modes.mean() < 0.05 * np.linalg.norm(open_head.identity, axis=2)[:, rows].mean()
