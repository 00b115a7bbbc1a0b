"""The page's files: everything is served here, nothing is inline, and text has contrast."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from dff.aligner.service.app import create_app
from dff.aligner.service.routes.pages import FILES, PAGES
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner

STYLE = (PAGES / "style.css").read_text("utf-8")
SCHEME = re.compile(r":root \{(.*?)\}", re.S)
PAIRS = (
    ("ink", "ground"),
    ("ink", "card"),
    ("quiet", "ground"),
    ("quiet", "card"),
    ("quiet", "stage"),
    ("accent", "ground"),
    ("accent-ink", "accent"),
    ("bad", "bad-ground"),
    ("bad", "card"),
)


@pytest.fixture(scope="module")
def client(toy_model: MorphableModel) -> Iterator[TestClient]:
    with TestClient(create_app(KnownAligner(toy_model))) as client:
        yield client


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_pages_load_their_own_files_only(client: TestClient, page: str) -> None:
    answer = client.get(page)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", answer.text), "nothing is inline"
    loaded = re.findall(r'(?:src|href)="(page/[^"]+)"', answer.text)
    assert len(loaded) >= 2
    for name in loaded:
        assert client.get(f"/{name}").status_code == 200, name
    assert not re.search(r'(?:src|href)="(?:https?:)?//', answer.text)


def test_scripts_import_files_that_are_served(client: TestClient) -> None:
    for name, path in FILES.items():
        if path.suffix == ".js":
            answer = client.get(f"/page/{name}")
            assert "javascript" in answer.headers["content-type"]
            folder = name.rpartition("/")[0]
            text = answer.text if "min" not in name else answer.text[-200_000:]
            for used in re.findall(r'(?:from|import)\s*\(?["\']\./([^"\']+)["\']', text):
                assert f"{folder}/{used}".lstrip("/") in FILES, used


def test_other_files_are_not_served(client: TestClient) -> None:
    for name in ("index.html", "../app.py", "%2e%2e/app.py", "vendor/", "nothing.js"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 404, name
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("asked", ["bytes=5-1", "bytes=0-9", "bytes=" + "0-0," * 2000 + "0-0"])
def test_files_are_answered_whole(client: TestClient, asked: str) -> None:
    answer = client.get("/page/sample.jpg", headers={"Range": asked})
    assert answer.status_code == 200
    assert answer.content == FILES["sample.jpg"].read_bytes()


def test_a_file_that_is_the_same_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/style.css")
    etag, changed = first.headers["etag"], first.headers["last-modified"]
    for condition in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", W/{etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": changed},
    ):
        again = client.get("/page/style.css", headers=condition)
        assert (again.status_code, again.content) == (304, b""), condition
        assert again.headers["etag"] == etag
    for condition in (
        {"If-None-Match": '"other"'},
        {"If-None-Match": '"other"', "If-Modified-Since": changed},
        {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ):
        other = client.get("/page/style.css", headers=condition)
        assert (other.status_code, other.content) == (200, first.content), condition


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_edges_have_the_contrast_of_wcag_aa(scheme: int) -> None:
    """4.5 for text, 3 for the edges of controls."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", SCHEME.findall(STYLE)[scheme]))
    for text, ground in PAIRS:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("card", "ground"):
        assert contrast(colours["edge"], colours[ground]) >= 3.0, ground
