"""Fixtures with three clouds on loopback. Import them: ``from tests.support.signed_fixtures import clouds, kind``."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from secretfs.store import SecretStore
from tests.support import opened as support
from tests.support.canary import secret
from tests.support.servers.signed_clouds import KEY, Clouds, signed_clouds

__all__ = ["ALIBABA", "HUAWEI", "KINDS", "TENCENT", "Kind", "clouds", "opened"]


@dataclass(frozen=True)
class Kind:
    """A store type and how its component is written."""

    type: str
    region: str
    key_id: str
    key_secret: str
    more: tuple[tuple[str, str], ...]
    where: str
    """The host in messages."""

    def properties(self, clouds: Clouds, **more: str) -> dict[str, str]:
        """Return the properties of a component, with or without other ones."""
        region = {name: value for name, value in self.more if name == self.region}
        return {self.key_id: KEY, self.key_secret: secret("access-key"), **region, **more}


ALIBABA = Kind(
    "secretstores.alicloud.parameterstore", "regionId", "accessKeyId", "accessKeySecret",
    (("regionId", "cn-hangzhou"), ("token", "securityToken")), "oos.cn-hangzhou.aliyuncs.com",
)  # fmt: skip
HUAWEI = Kind(
    "secretstores.huaweicloud.csms", "region", "accessKey", "secretAccessKey",
    (("region", "cn-north-4"),), "kms.cn-north-4.myhuaweicloud.com",
)  # fmt: skip
TENCENT = Kind(
    "secretstores.tencentcloud.ssm", "region", "secretId", "secretKey",
    (("region", "ap-guangzhou"), ("token", "token")), "ssm.tencentcloudapi.com",
)  # fmt: skip
KINDS = (ALIBABA, HUAWEI, TENCENT)


@pytest.fixture
def clouds() -> Iterator[Clouds]:
    with signed_clouds() as server:
        yield server


def opened(
    kind: Kind, clouds: Clouds, properties: Mapping[str, str] | None = None, *, deadline: float = support.DEADLINE
) -> AbstractContextManager[SecretStore]:
    """Open a store that speaks with these clouds."""
    properties = kind.properties(clouds) if properties is None else properties
    annotations = {"secretfs/endpoint": clouds.address}
    return support.opened(kind.type, properties, deadline=deadline, annotations=annotations)
