"""The messages of Dapr's gRPC API that carry secrets.

Field numbers are those of ``dapr/proto/runtime/v1/secret.proto`` and ``metadata.proto``.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from secretfs import protobuf
from secretfs.protobuf import Message


class SecretRequest(NamedTuple):
    """``GetSecretRequest``."""

    store: str
    key: str
    metadata: Mapping[str, str]


class BulkRequest(NamedTuple):
    """``GetBulkSecretRequest``."""

    store: str
    metadata: Mapping[str, str]


class RegisteredComponent(NamedTuple):
    """``RegisteredComponents``: a store that the app sees."""

    name: str
    type: str
    version: str
    capabilities: tuple[str, ...]


def read_secret_request(message: bytes) -> SecretRequest:
    """Read a ``GetSecretRequest``. Raises `ValueError` for what is none."""
    fields = Message(message)
    return SecretRequest(fields.text(1), fields.text(2), fields.texts(3))


def read_bulk_request(message: bytes) -> BulkRequest:
    """Read a ``GetBulkSecretRequest``. Raises `ValueError` for what is none."""
    fields = Message(message)
    return BulkRequest(fields.text(1), fields.texts(2))


def secret_response(secret: Mapping[str, str]) -> bytes:
    """Write a ``GetSecretResponse``."""
    return protobuf.texts(1, secret)


def bulk_response(secrets: Mapping[str, Mapping[str, str]]) -> bytes:
    """Write a ``GetBulkSecretResponse``: each value of its map is a ``SecretResponse``."""
    return protobuf.entries(1, {name: protobuf.texts(1, secret) for name, secret in secrets.items()})


def metadata_response(
    app_id: str, components: Iterable[RegisteredComponent], extended: Mapping[str, str], version: str
) -> bytes:
    """Write a ``GetMetadataResponse``."""
    registered = b"".join(protobuf.field(3, _component(component)) for component in components)
    return protobuf.text(1, app_id) + registered + protobuf.texts(4, extended) + protobuf.text(8, version)


def _component(component: RegisteredComponent) -> bytes:
    capabilities = b"".join(protobuf.field(4, capability.encode()) for capability in component.capabilities)
    names = enumerate((component.name, component.type, component.version), 1)
    return b"".join(protobuf.text(number, name) for number, name in names) + capabilities
