"""One self-contained HTML page of sections with figures and tables: no scripts, no links."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from dff.face.arrays import Array, UInt8
from dff.face.extras import require_extra

with require_extra("all"):
    import jinja2


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; a ``wide`` one takes the page's whole width."""

    caption: str
    image: UInt8[Array, "height width 3"]  # RGB
    wide: bool = False

    @property
    def data_uri(self) -> str:
        """The picture as a JPEG ``data:`` address."""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "JPEG", quality=90)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A titled part of the page: text, then figures, then a table."""

    title: str
    text: str
    figures: Sequence[Figure] = field(default_factory=tuple)
    table: Table | None = None


def html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as text; every value is escaped."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("dff"), autoescape=True)
    return environment.get_template("report.html").render(title=title, lead=lead, sections=sections)
