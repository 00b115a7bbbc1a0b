"""Secrets in addresses, hidden before an error or a log shows them."""

from __future__ import annotations

import logging
import re

HIDDEN = "***"
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@|\b[^\s/?#'\"@:]+:[^\s/?#'\"]+@(?=[\w\[])")
_QUERY = re.compile(
    r"(?<=[?&])([\w.-]*(?:password|passwd|pwd|secret|token|signature|credential)[\w.-]*)=[^&\s'\"]+",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """``text`` without users, passwords and tokens in the addresses that it holds.

    ``http://user:password@host/?token=x`` becomes ``http://***@host/?token=***``.
    """
    return _QUERY.sub(rf"\1={HIDDEN}", _LOGIN.sub(f"{HIDDEN}@", text))


def has_secret(text: str) -> bool:
    """Whether ``hide_secrets`` would hide something."""
    return hide_secrets(text) != text


class HidingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks too, pass through ``hide_secrets``."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record))
