"""The citation file: as its format has it, and of this version."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PERSON, ENTITY = {"family-names", "given-names"}, {"name"}
SOFTWARE = {
    "cff-version",
    "message",
    "type",
    "title",
    "version",
    "license",
    "authors",
    "keywords",
    "references",
}
REFERENCE = {"type", "title", "authors", "year", "url", "identifiers"}


def test_the_citation_is_of_this_version_and_well_formed() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(cited) == SOFTWARE
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["version"] == project["version"]
    assert cited["license"] in project["license"].split(" AND ")  # the program's; data have theirs
    assert [set(author) for author in cited["authors"]] == [ENTITY]
    (paper,) = cited["references"]
    assert set(paper) == REFERENCE
    assert all(set(author) == PERSON for author in paper["authors"])
    assert {set(one) == {"type", "value"} for one in paper["identifiers"]} == {True}


def test_the_paper_is_the_one_that_the_readme_names() -> None:
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"]
    names = ", ".join(author["family-names"] for author in paper["authors"])
    number = paper["url"].rsplit("/", 1)[1]
    assert f'{names}, "{paper["title"]}" (arXiv {number})' in (ROOT / "README.md").read_text(
        "utf-8"
    )
