"""The test that both stores of AWS pass, with moto in the place of AWS: `AwsContract`."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest

from secretfs.store import SecretStore
from secretfs.testing import StoreContract
from tests.support.aws_fixtures import PATIENT, opened
from tests.support.canary import CANARY, secret
from tests.support.servers.aws import Aws


class AwsContract(StoreContract):
    """What secretfs relies on. A subclass says which store it is, and provides `seed`."""

    type: ClassVar[str]
    properties: ClassVar[Mapping[str, str]] = {}
    """Besides those of the login."""
    reading: ClassVar[tuple[str, ...]]
    """The operations that read values."""
    punctuation: ClassVar[str]
    """What a name can have besides letters and digits."""

    multi_valued = False
    deadline = PATIENT
    can_be_empty = False  # AWS takes no empty text
    mark = CANARY

    def put(self, aws: Aws, name: str, value: str) -> str:
        """Write a new version of a secret; returns the name that AWS has for it."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, aws: Aws) -> Iterator[SecretStore]:
        with opened(self.type, aws.login(**self.properties)) as store:
            yield store

    @pytest.fixture
    def denied(self, aws: Aws, store: SecretStore) -> tuple[SecretStore, str]:
        aws.denied[self.put(aws, "denied", secret())] = "AccessDeniedException"
        return store, "denied"

    @pytest.fixture
    def unreachable(self, aws: Aws) -> Iterator[SecretStore]:
        with opened(self.type, aws.login(**self.properties, endpoint="http://127.0.0.1:1")) as store:
            yield store

    @pytest.fixture
    def reads(self, aws: Aws) -> Callable[[], int]:
        return lambda: sum(aws.requests[operation] for operation in self.reading)

    def can_hold(self, name: str) -> bool:
        taken = all(c.isascii() and (c.isalnum() or c in self.punctuation) for c in name)
        return bool(name) and len(name) <= 512 and taken
