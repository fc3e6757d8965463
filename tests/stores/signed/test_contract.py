"""The three stores of clouds with signed requests keep the contract, on a server that checks the signatures."""

from collections.abc import Callable, Iterator

import pytest

from secretfs.store import SecretStore
from secretfs.stores.signed import alicloud, huaweicloud, tencentcloud
from secretfs.testing import Seed, StoreContract
from tests.support import opened as support
from tests.support.canary import CANARY, secret
from tests.support.servers.signed_clouds import Clouds
from tests.support.signed_fixtures import ALIBABA, HUAWEI, TENCENT, Kind, clouds, opened

__all__ = ["clouds"]


class TestAlibaba(StoreContract):
    kind: Kind = ALIBABA
    name = alicloud._NAME
    counted: tuple[str, ...] = ("GetSecretParameter", "GetSecretParameters")

    multi_valued = False
    deadline = support.DEADLINE
    binary_values = False  # a value is text
    mark = CANARY

    @pytest.fixture
    def store(self, clouds: Clouds) -> Iterator[SecretStore]:
        with opened(self.kind, clouds) as store:
            yield store

    @pytest.fixture
    def seed(self, clouds: Clouds) -> Seed:
        return lambda name, values: clouds.put(name, values[name])

    @pytest.fixture
    def denied(self, clouds: Clouds, store: SecretStore) -> tuple[SecretStore, str]:
        clouds.put("denied", secret().encode())
        clouds.denied.add("denied")
        return store, "denied"

    @pytest.fixture
    def unreachable(self, clouds: Clouds) -> Iterator[SecretStore]:
        annotations = {"secretfs/endpoint": "http://127.0.0.1:1"}
        with support.opened(self.kind.type, self.kind.properties(), annotations=annotations) as store:
            yield store

    @pytest.fixture
    def reads(self, clouds: Clouds) -> Callable[[], int]:
        return lambda: sum(clouds.requests[action] for action in self.counted)

    def can_hold(self, name: str) -> bool:
        return self.name.fullmatch(name) is not None


class TestHuawei(TestAlibaba):
    kind = HUAWEI
    name = huaweicloud._NAME
    counted = ("get",)
    has_folders = False  # a name takes no "/"
    binary_values = True


class TestTencent(TestAlibaba):
    kind = TENCENT
    name = tencentcloud._NAME
    counted = ("GetSecretValue",)
    binary_values = True
