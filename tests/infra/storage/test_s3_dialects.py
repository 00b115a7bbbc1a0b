"""Servers that lack a part of S3: it is asked for once, then done in the way that they know."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator
from itertools import count

import pytest

from dff.commands.app import describe_error
from dff.face.errors import BadWeights, Conflict, StorageError, UnreadableObject
from dff.infra.networks import weights
from dff.infra.storage import ObjectInfo, S3Access, open_storage
from dff.infra.storage.s3 import NOTES, S3Dialect, S3Storage
from tests.s3_server import BUCKET, DIALECTS, FaultyS3, refuse

_fresh = count()
LOST = {
    "no conditions": {"conditions"},
    "ignored conditions": {"conditions"},
    "no checksums": {"checksums", "multi_delete"},
    "content md5": {"multi_delete"},
    "first listing only": {"list_v2"},
    "all": set(NOTES),
}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest, s3: FaultyS3) -> Iterator[str]:
    s3.dialect = request.param
    yield request.param
    s3.dialect = ""


def open_bucket(s3: FaultyS3, **access: bool) -> S3Storage:
    uri = f"s3://{BUCKET}/dialects/{next(_fresh)}"
    opened = open_storage(uri, endpoint_url=s3.url, access=S3Access(**access))
    assert isinstance(opened, S3Storage)
    return opened


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_every_dialect_keeps_the_laws_of_a_storage(
    s3: FaultyS3, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_bucket(s3)
    storage.check_writable()
    storage.write("a", b"one", if_absent=True)
    storage.write("a", b"one", if_absent=True)
    with pytest.raises(Conflict, match="already holds other bytes"):
        storage.write("a", b"two", if_absent=True)
    storage.write("b/c", b"three")
    assert storage.read("a") == b"one"
    assert storage.exists("b/c")
    assert storage.list() == [ObjectInfo("a", 3), ObjectInfo("b/c", 5)]
    storage.delete("a", "b/c", "never there")
    assert storage.list() == []

    known = storage._connection.dialect
    assert {name for name in NOTES if not getattr(known, name)} == LOST[dialect]
    said = warnings(caplog)
    assert len(said) == len(LOST[dialect]), "each is said once, in one line"
    for name in LOST[dialect]:
        assert any(f"{storage.uri} at {s3.url}: the server {NOTES[name]}" in line for line in said)


def test_what_was_learned_travels_along(s3: FaultyS3, caplog: pytest.LogCaptureFixture) -> None:
    s3.dialect = "all"
    try:
        storage = open_bucket(s3)
        storage.check_writable()
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            copy = pickle.loads(pickle.dumps(storage))
            copy.write("a", b"x", if_absent=True)
            copy.delete("a")
        assert not warnings(caplog)
    finally:
        s3.dialect = ""


def test_a_server_that_knows_all_is_asked_as_before(
    s3: FaultyS3, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_bucket(s3)
    storage.check_writable()
    assert storage.list() == []
    assert storage._connection.dialect == S3Dialect()
    assert not warnings(caplog)


def test_a_place_without_a_bucket_is_refused_before_the_work(s3: FaultyS3) -> None:
    with pytest.raises(StorageError, match="there is no bucket 'nowhere'"):
        open_storage("s3://nowhere/x", endpoint_url=s3.url).check_writable()


def test_a_public_bucket_is_read_without_credentials(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = open_bucket(s3)
    owned.write("a", b"x")
    client = owned._client(S3Dialect())
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    client.put_object_acl(Bucket=BUCKET, Key=f"{owned.prefix}a", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    public = open_storage(owned.uri, endpoint_url=s3.url, access=S3Access(anonymous=True))
    s3.requests.clear()
    assert public.read("a") == b"x"
    assert [info.key for info in public.list()] == ["a"]
    # weights are asked for alike: these bytes are no weights, but they are read
    with pytest.raises(BadWeights, match="cannot be read as a weights file"):
        weights.load(f"{owned.uri}a", endpoint_url=s3.url, access=S3Access(anonymous=True))
    assert not any("HTTP_AUTHORIZATION" in request for request in s3.requests)
    with pytest.raises(StorageError, match="--anonymous"):
        open_storage(owned.uri, endpoint_url=s3.url).read("a")
    with pytest.raises(StorageError, match="--anonymous"):
        weights.load(f"{owned.uri}a", endpoint_url=s3.url)
    client.put_bucket_acl(Bucket=BUCKET, ACL="private")
    s3.faults += [("PUT", refuse("403 Forbidden", "AccessDenied"))]
    with pytest.raises(StorageError, match="leave out --anonymous") as refused:
        public.check_writable()
    assert describe_error(refused.value).startswith("StorageError: can't write")


def test_who_asks_pays(s3: FaultyS3) -> None:
    storage = open_bucket(s3, request_payer=True)
    s3.requests.clear()
    storage.check_writable()
    storage.write("a", b"x")
    storage.read("a")
    storage.exists("a")
    storage.list()
    storage.delete("a")
    assert all(r.get("HTTP_X_AMZ_REQUEST_PAYER") == "requester" for r in s3.requests)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.access == storage.access


def test_a_listing_says_when_objects_were_written(s3: FaultyS3) -> None:
    storage = open_bucket(s3)
    storage.write("a", b"x")
    assert abs(storage.list()[0].modified - time.time()) < 60.0


def test_a_key_that_is_no_path_is_one_bad_object(s3: FaultyS3) -> None:
    storage = open_bucket(s3)
    storage._client(S3Dialect()).put_object(Bucket=BUCKET, Key=f"{storage.prefix}/a.jpg", Body=b"x")
    assert [info.key for info in storage.list()] == ["/a.jpg"]
    with pytest.raises(UnreadableObject, match=r"'/a\.jpg' can't be a key"):
        storage.read("/a.jpg")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("403 Forbidden", "AccessDenied"),
        ("400 Bad Request", "InvalidRequest"),  # encrypted with the customer's key
        ("400 Bad Request", "KMS.DisabledException"),
    ],
)
def test_an_object_that_is_refused_is_one_bad_object_and_a_refused_bucket_is_not(
    s3: FaultyS3, status: str, code: str
) -> None:
    storage = open_bucket(s3)
    storage.write("a", b"x")
    tries = 2 if code == "InvalidRequest" else 1  # with checksums, and without
    s3.faults += [("GET", refuse(status, code))] * tries
    with pytest.raises(UnreadableObject, match=rf"can't read .*/a: .*{code}"):
        storage.read("a")
    assert storage.read("a") == b"x"
    s3.faults += [("GET", refuse(status, code))] * tries
    s3.faults += [("GET", refuse("403 Forbidden", "AccessDenied"))]  # the listing
    with pytest.raises(StorageError, match=code) as raised:
        storage.read("a")
    assert not isinstance(raised.value, UnreadableObject)
    s3.faults += [("GET", refuse("403 Forbidden", "ExpiredToken"))]
    with pytest.raises(StorageError, match="ExpiredToken") as raised:
        storage.read("a")
    assert not isinstance(raised.value, UnreadableObject)
    assert s3.faults == []
