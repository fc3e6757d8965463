"""``secretstores.local.env``."""

import os
from collections.abc import Iterator

import pytest

from secretfs.errors import SecretNotFound
from secretfs.store import Names, SecretStore
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.opened import opened

TYPE = "secretstores.local.env"


@pytest.fixture
def prefixed() -> Iterator[SecretStore]:
    with opened(TYPE, {"prefix": "CONTRACT_"}) as store:
        yield store


class TestContract(StoreContract):
    multi_valued = False
    mark = CANARY
    has_folders = False  # a variable's name may hold "/", which secretfs takes for a folder all the same
    has_versions = False  # an environment tells neither
    tells_modified = False
    can_be_denied = False  # a variable that is not served is not found
    can_be_unreachable = False  # it is in this process
    counts_reads = False  # nobody answers who could count

    @pytest.fixture
    def store(self) -> Iterator[SecretStore]:
        with opened(TYPE, {}) as store:
            yield store

    @pytest.fixture
    def seed(self, monkeypatch: pytest.MonkeyPatch) -> Seed:
        return lambda name, values: monkeypatch.setitem(os.environb, os.fsencode(name), values[name])

    def can_hold(self, name: str) -> bool:
        return "=" not in name


class TestContractWithPrefix(TestContract):
    @pytest.fixture
    def store(self, prefixed: SecretStore) -> SecretStore:
        return prefixed

    @pytest.fixture
    def seed(self, monkeypatch: pytest.MonkeyPatch) -> Seed:
        return lambda name, values: monkeypatch.setitem(os.environb, os.fsencode(f"CONTRACT_{name}"), values[name])


def test_daprs_conformance_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("conftestsecret", "abcd")
    monkeypatch.setenv("secondsecret", "efgh")
    with opened(TYPE, {}) as store:
        assert store.fetch("conftestsecret").values == {"conftestsecret": b"abcd"}
        assert store.names("").secrets >= {"conftestsecret", "secondsecret"}
        assert store.fetch("secondsecret").values == {"secondsecret": b"efgh"}


def test_a_variable_that_is_not_set_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with opened(TYPE, {}) as store, pytest.raises(SecretNotFound, match="secret NOT_SET not found"):
        store.fetch("NOT_SET")


def test_names_are_case_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_NAME", secret())
    with opened(TYPE, {}) as store, pytest.raises(SecretNotFound):
        store.fetch("some_name")


@pytest.mark.parametrize(
    "name", ["APP_API_TOKEN", "app_api_token", "DAPR_API_TOKEN", "dapr_api_token", "Dapr_x", "DAPR_"]
)
def test_daprs_own_variables_are_never_served(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, secret())
    with opened(TYPE, {}) as store:
        assert name not in store.names("").secrets
        with pytest.raises(SecretNotFound):
            store.fetch(name)


@pytest.mark.parametrize("prefix", ["DAPR_", "dapr_", "DAPR", "APP_API_"])
def test_a_prefix_does_not_get_around_that(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    for name in ("DAPR_API_TOKEN", "dapr_api_token", "APP_API_TOKEN"):
        monkeypatch.setenv(name, secret())
    with opened(TYPE, {"prefix": prefix}) as store:
        assert store.names("") == Names()
        for name in ("API_TOKEN", "api_token", "_API_TOKEN", "TOKEN"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


def test_what_only_looks_like_them_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP_API_TOKEN_2", "MY_APP_API_TOKEN", "DAPR", "XDAPR_X"):
        monkeypatch.setenv(name, secret(name))
    with opened(TYPE, {}) as store:
        assert store.fetch("APP_API_TOKEN_2").values["APP_API_TOKEN_2"] == secret("APP_API_TOKEN_2").encode()
        assert store.names("").secrets >= {"APP_API_TOKEN_2", "MY_APP_API_TOKEN", "DAPR", "XDAPR_X"}


def test_a_prefix_is_taken_off(monkeypatch: pytest.MonkeyPatch, prefixed: SecretStore) -> None:
    monkeypatch.setenv("CONTRACT_KEY", secret())
    monkeypatch.setenv("contract_lower", secret())
    monkeypatch.setenv("OTHER", secret())
    assert prefixed.names("") == Names(frozenset({"KEY"}))
    assert prefixed.fetch("KEY").values == {"KEY": secret().encode()}
    for name in ("CONTRACT_KEY", "OTHER", "lower"):
        with pytest.raises(SecretNotFound):
            prefixed.fetch(name)


def test_a_variable_named_like_the_prefix_is_skipped(monkeypatch: pytest.MonkeyPatch, prefixed: SecretStore) -> None:
    monkeypatch.setenv("CONTRACT_", secret())
    assert prefixed.names("") == Names()
    with pytest.raises(SecretNotFound):
        prefixed.fetch("")


def test_the_environment_is_read_live(monkeypatch: pytest.MonkeyPatch, prefixed: SecretStore) -> None:
    assert prefixed.names("") == Names()
    monkeypatch.setenv("CONTRACT_LATER", secret())
    assert prefixed.names("").secrets == {"LATER"}
    monkeypatch.delenv("CONTRACT_LATER")
    assert prefixed.names("") == Names()


def test_a_value_may_hold_the_equals_sign(monkeypatch: pytest.MonkeyPatch, prefixed: SecretStore) -> None:
    monkeypatch.setenv("CONTRACT_URL", "a=b=c")
    assert prefixed.fetch("URL").values == {"URL": b"a=b=c"}


def test_a_name_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch, prefixed: SecretStore) -> None:
    monkeypatch.setitem(os.environb, b"CONTRACT_\xff", b"\xfe")
    assert prefixed.names("").secrets == {"\udcff"}
    assert prefixed.fetch("\udcff").values == {"\udcff": b"\xfe"}
