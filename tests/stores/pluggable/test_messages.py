"""The messages, against code that is generated from the protocol."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretfs.errors import MalformedAnswer
from secretfs.stores.pluggable import messages
from tests.support.pluggable import compile_protocol

TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=5)


@pytest.fixture(scope="module")
def pb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("pb")
    compile_protocol(directory)
    sys.path.insert(0, str(directory))
    yield importlib.import_module("secretstore_pb2")
    sys.path.remove(str(directory))
    del sys.modules["secretstore_pb2"]


def encoded(values: dict[str, str]) -> dict[str, bytes]:
    return {key: value.encode() for key, value in values.items()}


@given(properties=MAPS, name=TEXTS)
def test_requests(pb: Any, properties: dict[str, str], name: str) -> None:
    request = pb.SecretStoreInitRequest.FromString(messages.init_request(properties))
    assert request.metadata.properties == properties
    assert pb.GetSecretRequest.FromString(messages.get_request(name)) == pb.GetSecretRequest(key=name)


@given(features=st.lists(TEXTS, max_size=3), values=MAPS, secrets=st.dictionaries(TEXTS, MAPS, max_size=3))
def test_answers(pb: Any, features: list[str], values: dict[str, str], secrets: dict[str, dict[str, str]]) -> None:
    assert messages.features(pb.FeaturesResponse(features=features).SerializeToString()) == set(features)
    assert messages.values(pb.GetSecretResponse(data=values).SerializeToString()) == encoded(values)
    answer = pb.BulkGetSecretResponse(data={name: pb.SecretResponse(secrets=one) for name, one in secrets.items()})
    assert messages.secrets(answer.SerializeToString()) == {name: encoded(one) for name, one in secrets.items()}


@given(st.binary(max_size=40))
def test_any_bytes_are_what_the_library_makes_of_them_or_malformed(pb: Any, data: bytes) -> None:
    try:
        found = messages.values(data)
    except MalformedAnswer:
        return
    assert dict(pb.GetSecretResponse.FromString(data).data) == {key: value.decode() for key, value in found.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\x96\x01",  # field 1 is a number
        b"\x15abcd",  # field 2 has 4 bytes
        b"\x11abcdefgh",  # field 2 has 8 bytes
        b"\x12\x03abc",  # field 2 is text
    ],
)
def test_fields_of_newer_versions_are_passed_over(pb: Any, data: bytes) -> None:
    known = pb.GetSecretResponse(data={"a": "1"}).SerializeToString()
    assert messages.values(data + known + data) == {"a": b"1"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05ab",  # too short
        b"\x0b",  # a group
        b"\x0f",  # no such type
        b"\x02\x00",  # field 0
        b"\x80" * 11,  # a number without an end
        b"\x09abc",  # too short for its type
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(MalformedAnswer, match=r"^the answer is no message of a secret store: a "):
        messages.values(data)


def test_what_reflection_lists() -> None:
    pb = importlib.import_module("grpc_reflection.v1alpha.reflection_pb2")
    names = ["a.B", "c.D"]
    listed = pb.ListServiceResponse(service=[pb.ServiceResponse(name=name) for name in names])
    answer = pb.ServerReflectionResponse(list_services_response=listed)
    assert messages.services(answer.SerializeToString()) == set(names)
    assert (
        messages.services(pb.ServerReflectionResponse(error_response=pb.ErrorResponse()).SerializeToString()) == set()
    )
    assert (
        pb.ServerReflectionRequest.FromString(messages.LIST_SERVICES).WhichOneof("message_request") == "list_services"
    )
