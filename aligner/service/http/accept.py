"""The header Accept: which of several media types a client prefers (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.responses import Response

JSON = "application/json"
# the weight of a media range, which ends its parameters
_WEIGHT = re.compile(r"\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)


def choose_media_type(accept: str, offered: Sequence[str]) -> str:
    """The ``offered`` type that the header prefers; the first of several with the same weight.

    The most specific range that fits a type says its weight. Also the first where the header is
    empty or names none of them.
    """
    weights = [_parse_range(text) for text in accept.lower().split(",") if text.strip()]

    def weigh(media_type: str) -> float:
        kind = media_type.partition("/")[0]
        for wanted in (media_type, f"{kind}/*", "*/*"):
            found = [weight for name, weight in weights if name == wanted]
            if found:
                return max(found)
        return 0.0

    return max(offered, key=weigh)


def vary_by_accept(answer: Response) -> Response:
    """The answer, marked so that caches keep one for each type that clients prefer."""
    answer.headers.add_vary_header("Accept")
    return answer


def _parse_range(text: str) -> tuple[str, float]:
    """A media range without its parameters, and its weight; 0 for a weight that is none."""
    name, *parameters = text.split(";")
    for parameter in parameters:
        if parameter.strip().startswith("q"):
            weight = _WEIGHT.fullmatch(parameter)
            return name.strip(), float(weight.group(1)) if weight else 0.0
    return name.strip(), 1.0
