"""The aligner with a network that is right: what remains is the solver."""

from __future__ import annotations

import pytest

from dff.aligner.align import Aligner
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import READING, OracleNet, PositionCode, oracle_anchors


@pytest.fixture(scope="session")
def code(open_head: MorphableModel) -> PositionCode:
    return PositionCode.of(open_head)


@pytest.fixture(scope="session")
def oracle_aligner(open_head: MorphableModel, code: PositionCode) -> Aligner:
    return Aligner(OracleNet(code), oracle_anchors(open_head, code), open_head, config=READING)
