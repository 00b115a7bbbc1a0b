from __future__ import annotations

import logging

import pytest

from dff.infra.redaction import HidingFormatter, has_secret, hide_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:5000/x failed", "http://***@host:5000/x failed"),
        ("postgresql+psycopg2://u:hunter2@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://hunter2@host", "https://***@host"),
        ("http://u:hun@ter2@host/a", "http://***@host/a"),
        ("no Ray at u:hunter2@host:10001", "no Ray at ***@host:10001"),
        ("s3://KEY:hunter2@bucket/a b", "s3://***@bucket/a b"),
        ("http://h/x?token=hunter2&page=2", "http://h/x?token=***&page=2"),
        ("http://h/x?X-Amz-Signature=hunter2", "http://h/x?X-Amz-Signature=***"),
    ],
)
def test_secrets_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert has_secret(text)
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "text", ["http://host:5000/a@b", "me@example.org", "s3://b/a@b", "models:/dff@candidate", ""]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_a_logged_traceback_hides_them_too() -> None:
    try:
        raise OSError("no answer from http://u:hunter2@host")
    except OSError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "at %s", ("http://u:hunter2@h",), info)
    shown = HidingFormatter().format(record)
    assert "hunter2" not in shown
    assert "at http://***@h\n" in shown
    assert "OSError: no answer from http://***@host" in shown
