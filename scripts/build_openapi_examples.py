"""Build aligner/service/data/examples.json: answers that the API's description shows.

The shipped weights answer for the page's sample photo (public domain, NASA):

    python scripts/build_openapi_examples.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from dff.aligner.load import load_aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.http.limits import Limits

SERVICE = Path(__file__).parents[1] / "aligner" / "service"
SHORTENED = "AAAA"  # base64 of maps and pictures, which are long


def build() -> dict[str, Any]:
    """Answers by path."""
    photo = (SERVICE / "page" / "sample.jpg").read_bytes()
    aligner = load_aligner().with_quick_search()
    answers: dict[str, Any] = {}
    with TestClient(create_app(aligner, limits=Limits(deadline=60.0))) as client:
        while client.get("/readyz").status_code != 200:  # the first photo takes longer than others
            pass

        def ask(path: str, files: list[tuple[str, bytes]], **form: str) -> None:
            answer = client.post(path, files=[(name, data) for name, data in files], data=form)
            answers[path] = answer.raise_for_status().json()

        ask("/v1/align", [("image", photo)])
        two = [("images", photo), ("images", b"no image")]
        ask("/v1/align/batch", two)
        ask("/v1/align/person", two)
        pair = [("image_a", photo), ("image_b", photo)]
        ask("/v1/match", pair, landmarks='["nose_tip", "chin"]')
        ask("/v1/match/dense", pair)
        ask("/v1/features", [("image", photo)])
        for path in ("/v1/models", "/v2/models/aligner", "/v2/health/live", "/v2/health/ready"):
            answers[path] = client.get(path).json()
        for path in ("/healthz", "/readyz"):
            answers[path] = client.get(path).json()
    for name in ("descriptor", "face_probability"):
        answers["/v1/features"][name] = SHORTENED
    for name in ("colours_a", "colours_b"):
        answers["/v1/match/dense"][name] = SHORTENED
    return answers


if __name__ == "__main__":
    text = json.dumps(build(), separators=(",", ":"), sort_keys=True)
    (SERVICE / "data" / "examples.json").write_text(text + "\n")
