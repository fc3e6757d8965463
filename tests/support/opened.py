"""Open a store from properties, the way the registry does it, without a registry."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from secretfs.settings import Property, decode
from secretfs.store import SecretStore, StoreContext
from secretfs.stores import load_store_type

DEADLINE = 10.0
"""Seconds: more than a server on a busy machine takes."""


@contextmanager
def opened(
    type: str,  # noqa: A002
    properties: Mapping[str, str],
    *,
    deadline: float = DEADLINE,
    annotations: Mapping[str, str] | None = None,
) -> Iterator[SecretStore]:
    """Open the store of a component named ``store``, and close it. A property that nothing reads is a mistake."""
    module = load_store_type(type)
    settings, notices = decode(module.Settings, [Property(name, value) for name, value in properties.items()])
    assert notices == []
    store = module.open_store(settings, StoreContext("store", deadline=deadline, annotations=annotations or {}))
    try:
        yield store
    finally:
        store.close()
