"""Fixtures with three clouds on loopback. Import them: ``from tests.support.signed_fixtures import clouds, kind``."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from secretfs.store import SecretStore
from tests.support import opened as support
from tests.support.canary import secret
from tests.support.servers.signed_clouds import KEY, Clouds

__all__ = ["ALIBABA", "HUAWEI", "KINDS", "TENCENT", "Kind", "clouds", "opened"]


@dataclass(frozen=True)
class Kind:
    """A store type and how its component is written."""

    type: str
    region: str
    key_id: str
    key_secret: str

    def properties(self, **more: str) -> dict[str, str]:
        """Return the properties of a component, with or without other ones."""
        return {self.key_id: KEY, self.key_secret: secret("access-key"), self.region: "cn-north-4", **more}


ALIBABA = Kind("secretstores.alicloud.parameterstore", "regionId", "accessKeyId", "accessKeySecret")
HUAWEI = Kind("secretstores.huaweicloud.csms", "region", "accessKey", "secretAccessKey")
TENCENT = Kind("secretstores.tencentcloud.ssm", "region", "secretId", "secretKey")
KINDS = (ALIBABA, HUAWEI, TENCENT)


@pytest.fixture
def clouds() -> Iterator[Clouds]:
    with Clouds() as server:
        yield server


def opened(
    kind: Kind, clouds: Clouds, properties: Mapping[str, str] | None = None, *, deadline: float = support.DEADLINE
) -> AbstractContextManager[SecretStore]:
    """Open a store that speaks with these clouds."""
    properties = kind.properties() if properties is None else properties
    annotations = {"secretfs/endpoint": clouds.address}
    return support.opened(kind.type, properties, deadline=deadline, annotations=annotations)
