"""The messages of Dapr's ``components/v1/secretstore.proto``, and of gRPC's server reflection.

What decodes an answer raises `MalformedAnswer`, whose text shows nothing of it.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Final, TypeVar

from secretfs import protobuf
from secretfs.errors import MalformedAnswer
from secretfs.protobuf import Message

EMPTY: Final = b""
"""The request of Features, Ping and BulkGet."""
LIST_SERVICES: Final = b"\x3a\x00"
"""A ServerReflectionRequest whose field 7, ``list_services``, is set; its text does not matter."""

Values = dict[str, bytes]
"""The values of a secret, by key. They are UTF-8: the protocol has no other."""

_Decoded = TypeVar("_Decoded")


def _decoder(decode: Callable[[bytes], _Decoded]) -> Callable[[bytes], _Decoded]:
    @wraps(decode)
    def guarded(answer: bytes) -> _Decoded:
        try:
            return decode(answer)
        except ValueError as error:
            raise MalformedAnswer(f"the answer is no message of a secret store: {error}") from None

    return guarded


def init_request(properties: Mapping[str, str]) -> bytes:
    """Encode ``SecretStoreInitRequest{MetadataRequest metadata = 1 {map<string, string> properties = 1}}``."""
    return protobuf.field(1, protobuf.texts(1, properties))


def get_request(name: str) -> bytes:
    """Encode ``GetSecretRequest{string key = 1}``. Its metadata is what a request to Dapr would have; here is none."""
    return protobuf.text(1, name)


@_decoder
def features(answer: bytes) -> frozenset[str]:
    """Decode ``FeaturesResponse{repeated string features = 1}``."""
    return frozenset(protobuf.as_text(name).decode() for name in Message(answer).all(1))


@_decoder
def values(answer: bytes) -> Values:
    """Decode ``GetSecretResponse{map<string, string> data = 1}``."""
    return _values(Message(answer))


@_decoder
def secrets(answer: bytes) -> dict[str, Values]:
    """Decode ``BulkGetSecretResponse{map<string, SecretResponse{map<string, string> secrets = 1}> data = 1}``."""
    return {name: _values(Message(secret)) for name, secret in Message(answer).entries(1).items()}


@_decoder
def services(answer: bytes) -> frozenset[str]:
    """Decode ``ServerReflectionResponse{... list_services_response = 6 {repeated service = 1 {string name = 1}}}``."""
    listed = map(Message, Message(answer).all(6))
    return frozenset(Message(service).text(1) for one in listed for service in one.all(1))


def _values(secret: Message) -> Values:
    return {key: protobuf.as_text(value) for key, value in secret.entries(1).items()}
