"""What the journal says of the stores that were served, compared with those that are declared or run now."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from secretfs.daemon.store_records import known_stores, record_stores, replaced_stores
from secretfs.dapr.component import Component, Item, SecretKeyRef
from secretfs.dapr.declaration import Declaration, DeclaredStore
from secretfs.dapr.references import TemplateContext
from secretfs.fs.journal import Journal, StoreRecord
from secretfs.registry.opening import KnownStore
from secretfs.registry.store_set import RunningStore
from tests.support.canary import secret

REFERENCE = SecretKeyRef("token", "token")
VAULT = Component(
    "kv",
    "secretstores.hashicorp.vault",
    items=(Item("vaultAddr", "http://a"), Item("vaultToken", secret_key_ref=REFERENCE), Item("x", secret("value"))),
    annotations={"secretfs/ttl": "5s"},
)


def running(*components: Component, multi_valued: bool = True, never_open: bool = False) -> dict[str, RunningStore]:
    return {
        component.name: cast(
            "RunningStore",
            SimpleNamespace(
                opened=SimpleNamespace(component=component, was_never_open=never_open),
                cached=SimpleNamespace(multi_valued=multi_valued, reads_have_effects=False),
            ),
        )
        for component in components
    }


def journal_of(*components: Component) -> Journal:
    journal = Journal()
    record_stores(journal, running(*components))
    return journal


def declared(component: Component) -> Declaration:
    return Declaration((component,), {component.name: DeclaredStore(component.name)}, TemplateContext({}), ())


@pytest.mark.parametrize(
    "now",
    [
        VAULT,
        replace(VAULT, type="secretstores.HashiCorp.Vault"),
        replace(VAULT, annotations={}, scopes=("shop",), ignore_errors=True),
    ],
    ids=["the same", "in other letters", "what does not decide about it"],
)
def test_a_component_that_is_what_it_was(now: Component) -> None:
    journal = journal_of(VAULT)
    assert known_stores(journal, declared(now)) == {"kv": KnownStore(multi_valued=True, edited=False)}
    assert replaced_stores(journal, running(now)) == frozenset()


@pytest.mark.parametrize(
    "now",
    [
        replace(VAULT, items=(*VAULT.items, Item("vaultValueType", "text"))),
        replace(VAULT, items=VAULT.items[1:]),
        replace(VAULT, items=(Item("vaultAddr", "http://b"), *VAULT.items[1:])),
        replace(VAULT, items=(VAULT.items[0], Item("vaultToken", secret_key_ref=SecretKeyRef("token", "other")))),
        replace(VAULT, version="v2"),
        replace(VAULT, secret_store="env"),
    ],
)
def test_a_component_that_was_edited_may_have_another_shape(now: Component) -> None:
    journal = journal_of(VAULT)
    assert known_stores(journal, declared(now)) == {"kv": KnownStore(multi_valued=True, edited=True)}
    assert replaced_stores(journal, running(now)) == frozenset()
    assert replaced_stores(journal, running(now, multi_valued=False)) == {"kv"}


def test_a_component_of_another_type() -> None:
    journal, now = journal_of(VAULT), replace(VAULT, type="secretstores.local.file")
    assert known_stores(journal, declared(now)) == {"kv": KnownStore(multi_valued=True, edited=True)}
    assert replaced_stores(journal, running(now)) == {"kv"}


def test_components_that_came_and_went() -> None:
    journal, other = journal_of(VAULT), replace(VAULT, name="other")
    assert known_stores(journal, declared(other)) == {}
    assert replaced_stores(journal, running(other)) == {"kv", "other"}


def test_a_journal_of_version_0_1_0_knows_the_shape_alone() -> None:
    journal = Journal()
    journal.stores = {"kv": StoreRecord(multi_valued=True)}
    assert known_stores(journal, declared(VAULT)) == {"kv": KnownStore(multi_valued=True, edited=False)}
    assert replaced_stores(journal, running(VAULT)) == frozenset()
    assert replaced_stores(journal, running(VAULT, multi_valued=False)) == {"kv"}


def test_no_property_is_in_the_journal() -> None:
    journal = journal_of(VAULT)
    assert secret("value") not in bytes(journal._map or b"").decode(errors="replace")
    assert journal.stores["kv"].declaration != journal_of(VAULT).stores["kv"].declaration


def test_what_nobody_could_open_yet_may_have_any_shape() -> None:
    journal = Journal()
    record_stores(journal, running(VAULT, multi_valued=False, never_open=True))
    (known,) = known_stores(journal, declared(VAULT)).values()
    assert known.edited
