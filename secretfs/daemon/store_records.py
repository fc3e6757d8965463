"""What kind of store each component was when it was served last: in the journal, and compared after a takeover."""

import hashlib
import json
from collections.abc import Mapping

from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration
from secretfs.fs.journal import Journal, StoreRecord
from secretfs.registry.opening import KnownStore
from secretfs.registry.store_set import RunningStore

_NEVER_OPEN = "never open"


def known_stores(journal: Journal, declaration: Declaration) -> dict[str, KnownStore]:
    """Return what our predecessor knew of the components that are declared."""
    records, components = journal.stores, {component.name: component for component in declaration.components}
    return {
        component.name: KnownStore(
            record.multi_valued, _is_edited(component, record, journal), record.reads_have_effects
        )
        for name, store in declaration.stores.items()
        if (record := records.get(name)) is not None
        for component in (components[store.component],)
    }


def replaced_stores(journal: Journal, shown: Mapping[str, RunningStore]) -> frozenset[str]:
    """Return what came, went, or is another kind of store than the journal says."""
    before, now = journal.stores, _records(journal, shown)
    both = before.keys() & now.keys()
    return frozenset(before.keys() ^ now.keys()) | {name for name in both if not _same_kind(before[name], now[name])}


def edited_stores(journal: Journal, shown: Mapping[str, RunningStore]) -> frozenset[str]:
    """Return what is declared in another way than the journal says: values known of it may be wrong."""
    before = journal.stores
    return frozenset(
        name
        for name, store in shown.items()
        if name in before and _is_edited(store.opened.component, before[name], journal)
    )


def record_stores(journal: Journal, shown: Mapping[str, RunningStore]) -> None:
    """Write down what is shown from now on."""
    journal.stores = _records(journal, shown)


def _records(journal: Journal, shown: Mapping[str, RunningStore]) -> dict[str, StoreRecord]:
    records = {id(store): _record(journal, store) for store in {id(store): store for store in shown.values()}.values()}
    return {name: records[id(store)] for name, store in shown.items()}


def _record(journal: Journal, store: RunningStore) -> StoreRecord:
    component = store.opened.component
    return StoreRecord(
        store.cached.multi_valued,
        component.type.lower(),
        # What nobody has opened yet counts as edited: its kind is a guess.
        _NEVER_OPEN if store.opened.was_never_open else _declaration(component, journal),
        store.cached.reads_have_effects,
    )


def _same_kind(before: StoreRecord, now: StoreRecord) -> bool:
    return before.multi_valued == now.multi_valued and before.type in ("", now.type)


def _is_edited(component: Component, record: StoreRecord, journal: Journal) -> bool:
    if not record.declaration:
        return False
    return (record.type, record.declaration) != (component.type.lower(), _declaration(component, journal))


def _declaration(component: Component, journal: Journal) -> str:
    """Return a keyed digest of what decides whether a store is multi-valued. It reveals nothing about a property."""
    items = [
        (item.name, item.value, item.env_ref, ref and (ref.name, ref.key))
        for item in component.items
        for ref in (item.secret_key_ref,)
    ]
    text = json.dumps([component.version, component.secret_store, items])
    return hashlib.blake2b(text.encode(), key=journal.digest_key, digest_size=16).hexdigest()
