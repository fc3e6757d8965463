"""Messages by hand, against the classes that protobuf's compiler made for the ``dapr`` package."""

import pytest
from dapr.proto.runtime.v1 import metadata_pb2, secret_pb2
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st

from secretfs.api.messages import (
    RegisteredComponent,
    bulk_response,
    metadata_response,
    read_bulk_request,
    read_secret_request,
    secret_response,
)
from tests.support.canary import secret

TEXTS = st.text(max_size=300)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=5)


@given(TEXTS, TEXTS, MAPS)
def test_requests_for_a_secret(store: str, key: str, metadata: dict[str, str]) -> None:
    message = secret_pb2.GetSecretRequest(store_name=store, key=key, metadata=metadata).SerializeToString()
    assert read_secret_request(message) == (store, key, metadata)


@given(TEXTS, MAPS)
def test_requests_for_all(store: str, metadata: dict[str, str]) -> None:
    message = secret_pb2.GetBulkSecretRequest(store_name=store, metadata=metadata).SerializeToString()
    assert read_bulk_request(message) == (store, metadata)


@given(MAPS)
@example({"k": secret("x" * 70_000)})
def test_a_secret(values: dict[str, str]) -> None:
    assert dict(secret_pb2.GetSecretResponse.FromString(secret_response(values)).data) == values


@given(st.dictionaries(TEXTS, MAPS, max_size=4))
def test_all_secrets(secrets: dict[str, dict[str, str]]) -> None:
    answer = secret_pb2.GetBulkSecretResponse.FromString(bulk_response(secrets))
    assert {name: dict(one.secrets) for name, one in answer.data.items()} == secrets


@given(TEXTS, st.lists(st.builds(RegisteredComponent, TEXTS, TEXTS, TEXTS, st.tuples(TEXTS))), MAPS, TEXTS)
def test_metadata(app_id: str, components: list[RegisteredComponent], extended: dict[str, str], version: str) -> None:
    answer = metadata_pb2.GetMetadataResponse.FromString(metadata_response(app_id, components, extended, version))
    assert (answer.id, answer.runtime_version, dict(answer.extended_metadata)) == (app_id, version, extended)
    found = [(one.name, one.type, one.version, tuple(one.capabilities)) for one in answer.registered_components]
    assert found == components


def test_what_a_newer_client_adds_is_passed_over() -> None:
    added = bytes([15 << 3, 200, 1]) + bytes([14 << 3 | 1, *range(8)]) + bytes([13 << 3 | 5, *range(4)])
    known = secret_pb2.GetSecretRequest(store_name="vault", key="db", metadata={"a": ""}).SerializeToString()
    assert read_secret_request(added + known + added) == ("vault", "db", {"a": ""})


def test_the_last_of_several_counts() -> None:
    first = secret_pb2.GetSecretRequest(store_name="one", metadata={"a": "1", "b": "1"}).SerializeToString()
    second = secret_pb2.GetSecretRequest(store_name="two", metadata={"a": "2"}).SerializeToString()
    assert read_secret_request(first + second) == ("two", "", {"a": "2", "b": "1"})


@given(st.binary(max_size=60))
def test_whatever_is_a_message_to_both_is_the_same_message(message: bytes) -> None:
    """We are stricter (no groups, which nobody sends any more), or laxer about fields that are passed over anyway."""
    try:
        theirs = secret_pb2.GetSecretRequest.FromString(message)
        ours = read_secret_request(message)
    except (DecodeError, ValueError):
        return
    assert ours == (theirs.store_name, theirs.key, dict(theirs.metadata))


@pytest.mark.parametrize(
    "message",
    [
        *(b"\x0a", b"\x0a\x02x", b"\x0a\x01\xff", b"\x12\xff\xff\xff\xff\x0f", b"\x00\x00", b"\x0d\x00", b"\x09\x00"),
        *(b"\x80", b"\xff" * 11, b"\x80\x80\x80\x80\x10\x00", b"\x1a\x02\x0a\x02", b"\x0c", b"\x0e"),
    ],
)
def test_bytes_that_are_no_message(message: bytes) -> None:
    with pytest.raises(DecodeError):
        secret_pb2.GetSecretRequest.FromString(message)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_secret_request(message)
