"""The report page holds everything itself and escapes what it is given."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from dff.report import Figure, Section, Table, html


def test_page_holds_its_pictures_and_fetches_nothing() -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    image[..., 0] = 200
    page = html(
        "Title",
        "Lead",
        [Section("One", "Text", [Figure("red", image)], Table(("a", "b"), [("x", 1)]))],
    )
    uri = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert uri is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1]))), dtype=int)
    assert shown.shape == image.shape
    assert np.abs(shown - image).max() <= 3
    assert not re.search(r"https?://|<script", page)
    assert "<td>x</td><td>1</td>" in page


def test_text_is_escaped() -> None:
    page = html("<b>t</b>", "l", [Section("<img src=x>", "a & b")])
    assert "<b>t</b>" not in page
    assert "<img src=x>" not in page
    assert "a &amp; b" in page
