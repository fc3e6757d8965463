"""Opens one store: with what its component's properties refer to, and where others write the component, mean."""

from functools import partial

from secretfs.cache.freshness import Freshness
from secretfs.dapr.component import Component
from secretfs.dapr.references import ReadSecret, TemplateContext, resolve
from secretfs.errors import ConfigurationError, Notice
from secretfs.registry.annotations import resolved_annotations
from secretfs.registry.containment import look_up, require_contained
from secretfs.registry.following import FollowingStore
from secretfs.registry.lease_file import TellLoan, ignore_loan_of
from secretfs.settings import Property, decode
from secretfs.store import SecretStore, StoreContext
from secretfs.stores import load_store_type


def open_store(
    component: Component,
    templates: TemplateContext,
    chosen: Freshness,
    read: ReadSecret | None,
    *,
    multi_valued: bool | None = None,
    reads_have_effects: bool = False,
    tell_loan: TellLoan = ignore_loan_of,
) -> tuple[SecretStore, list[Notice]]:
    """Resolve a component's properties and open its store. Blocks while ``read`` reads what they refer to.

    A store that refers to another one follows what it refers to: see `FollowingStore`. If it is known already whether
    it is ``multi_valued``, and whether its ``reads_have_effects``, that one is opened when it is first asked. Raises
    `ConfigurationError` with the place for whatever is wrong with the component, and any `StoreError` of ``read``.
    """
    module = load_store_type(component.type, component.version, component.source)
    context = StoreContext(
        component.name,
        component.namespace,
        chosen.deadline,
        resolved_annotations(component, templates),
        partial(tell_loan, component.name),
    )
    remarks: list[Notice] = []

    def read_properties() -> list[Property]:
        properties, remarks[:] = resolve(component, templates, read)
        require_contained(component, properties, context.annotations, look_up if templates.look_up else None)
        return properties

    def open_with(properties: list[Property]) -> SecretStore:
        settings, unknown = decode(module.Settings, properties, component.source)
        remarks.extend(unknown)
        try:
            store: SecretStore = module.open_store(settings, context)
        except ConfigurationError as error:
            raise ConfigurationError(error.args[0], error.source or component.source) from None
        return store

    if read is None:
        return open_with(read_properties()), remarks
    following = FollowingStore(
        component.name, read_properties, open_with, multi_valued=multi_valued, reads_have_effects=reads_have_effects
    )
    return following, remarks
