"""How many requests 1,000 values cost where a cloud reads several with one. docs/performance.md has the table."""

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import trio

from secretfs.cache.freshness import Freshness
from secretfs.fs.view import StoreView
from secretfs.scopes import SecretScope
from secretfs.store import BatchingStore, SecretStore
from secretfs.stores import BUILTIN, load_store_type
from tests.support import aws_fixtures, signed_fixtures
from tests.support.aws_fixtures import PARAMETERS, SECRETS
from tests.support.cached import Cached
from tests.support.canary import secret
from tests.support.servers.aws import Aws
from tests.support.servers.http_server import Answer
from tests.support.servers.moto_server import Moto
from tests.support.servers.signed_clouds import Clouds
from tests.support.signed_fixtures import ALIBABA

PAGE = Path(__file__).parents[3] / "docs/performance.md"
NAMES = [f"secret-{number:04}" for number in range(1000)]
PATIENT = Freshness(ttl=3600, deadline=600, bulk_deadline=600)
READS = {
    SECRETS: ("GetSecretValue", "BatchGetSecretValue"),
    PARAMETERS: ("GetParameter", "GetParameters"),
    ALIBABA.type: ("GetSecretParameter", "GetSecretParameters"),
}
"""Type to the operations that read values."""


class Holding(Aws):
    """AWS with a thousand secrets and parameters of its own: it takes long to put as many into moto."""

    def _passed_on(self, target: str, asked: dict[str, Any]) -> Answer:
        start, size = int(asked.get("NextToken", 0)), asked.get("MaxResults", 50)
        page = [{"Name": name} for name in NAMES[start : start + size]]
        more = {"NextToken": str(start + size)} if start + size < len(NAMES) else {}
        match target.partition(".")[2]:
            case "ListSecrets":
                return Answer.json(200, {"SecretList": page, **more})
            case "BatchGetSecretValue":
                found = [{"Name": name, "SecretString": secret(name)} for name in asked["SecretIdList"]]
                return Answer.json(200, {"SecretValues": found})
            case "DescribeParameters":
                return Answer.json(200, {"Parameters": page, **more})
            case "GetParameters":
                return Answer.json(200, {"Parameters": [{"Name": it, "Value": secret(it)} for it in asked["Names"]]})
        raise AssertionError(target)


@contextmanager
def filled(type_: str) -> Iterator[tuple[SecretStore, Counter[str]]]:
    """Open a store whose server has all the secrets; gives it with the server's count of requests."""
    if type_ == ALIBABA.type:
        with Clouds() as clouds:
            for name in NAMES:
                clouds.put(name, secret(name).encode())
            with signed_fixtures.opened(ALIBABA, clouds, deadline=600) as store:
                yield store, clouds.requests
        return
    with Holding(Moto("http://127.0.0.1:1")) as aws, aws_fixtures.opened(type_, aws.login(), deadline=600) as store:
        yield store, aws.requests


async def _read_all(store: SecretStore) -> None:
    """Read what a bulk file has."""
    async with trio.open_nursery() as nursery:
        cached = Cached("store", store, PATIENT, nursery)
        whole = await StoreView(cached, SecretScope()).every_secret()
        assert {name: it.values for name, it in whole.value.items()} == {n: {n: secret(n).encode()} for n in NAMES}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("type_", READS)
def test_1000_values_cost_what_the_page_says(type_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with filled(type_) as (store, requests):
        trio.run(_read_all, store)
        assert isinstance(store, BatchingStore)
        largest, reads = store.largest_batch, sum(requests[operation] for operation in READS[type_])
    rows = re.findall(rf"^\| `{re.escape(type_)}` \| (\d+) \| (\d+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [(str(largest), str(reads))]
    assert reads == len(NAMES) / largest


def test_every_type_with_batches_is_counted() -> None:
    batched = {
        type_
        for type_ in BUILTIN
        if "BatchedCloudStore" in inspect.getsource(cast("ModuleType", load_store_type(type_)))
    }
    assert batched == READS.keys()
