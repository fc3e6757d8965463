"""The table of secret store types: which module serves a component's ``spec.type``.

A store module is imported when a component names its type, and not before: an SDK that no component needs costs no
start-up time, and need not be installed. Other packages add types through the entry point group ``secretfs.stores``;
docs/writing-a-store.md shows how.
"""

import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from secretfs.errors import ConfigurationError, Source
from secretfs.settings import nearest_name
from secretfs.store import SecretStore, StoreContext

ENTRY_POINT_GROUP = "secretfs.stores"

BUILTIN: dict[str, str] = {
    "secretstores.alicloud.parameterstore": "secretfs.stores.signed.alicloud",
    "secretstores.aws.parameterstore": "secretfs.stores.aws.parameter_store",
    "secretstores.aws.secretmanager": "secretfs.stores.aws.secret_manager",
    "secretstores.azure.keyvault": "secretfs.stores.azure.store",
    "secretstores.gcp.secretmanager": "secretfs.stores.gcp.store",
    "secretstores.hashicorp.vault": "secretfs.stores.vault.store",
    "secretstores.huaweicloud.csms": "secretfs.stores.signed.huaweicloud",
    "secretstores.kubernetes": "secretfs.stores.kubernetes.store",
    "secretstores.local.env": "secretfs.stores.local_env",
    "secretstores.local.file": "secretfs.stores.local_file",
    "secretstores.secretfs.directory": "secretfs.stores.directory",
    "secretstores.secretfs.keyring": "secretfs.stores.keyring",
    "secretstores.tencentcloud.ssm": "secretfs.stores.signed.tencentcloud",
}

_PREFIX = "secretstores."
_VERSIONS = frozenset({"", "v0", "v1"})
_EXTRA_WITH = {
    "azure": "azure", "botocore": "aws", "dateutil": "aws", "google": "gcp", "hvac": "vault", "jeepney": "keyring",
    "jmespath": "aws", "kubernetes": "kubernetes", "requests": "vault", "secretstorage": "keyring",
    "urllib3": "vault",
}  # fmt: skip
_EXTRA_OF = {
    "secretstores.alicloud.parameterstore": "alicloud",
    "secretstores.huaweicloud.csms": "huaweicloud",
    "secretstores.tencentcloud.ssm": "tencentcloud",
}


class StoreModule(Protocol):
    """What a store's module offers."""

    @property
    def Settings(self) -> type[Any]:  # noqa: N802 - the name of a class in that module
        """A dataclass whose fields are declared with `secretfs.settings.setting`."""

    def open_store(self, settings: Any, context: StoreContext, /) -> SecretStore:
        """Open the store. Raises `ConfigurationError` for settings that cannot work, and contacts no backend."""


def load_store_type(type: str, version: str = "", source: Source | None = None) -> StoreModule:  # noqa: A002 - Dapr's word
    """Import the module that serves ``type``, which is matched without regard to case.

    Raises `ConfigurationError` when there is none, or when what it needs is not installed.
    """
    wanted = type.lower()
    if version.lower() not in _VERSIONS:
        raise ConfigurationError(f"couldn't find secret store {type}/{version}: the version is v1", source)
    if wanted in BUILTIN:
        return _import_builtin(wanted, source)
    offered = list(entry_points(group=ENTRY_POINT_GROUP))
    points = [point for point in offered if point.name.lower() == wanted]
    if len(points) > 1:
        # Which of them sees the credentials is not left to the order of installation.
        values = " and ".join(point.value for point in points)
        raise ConfigurationError(f"{wanted} is offered twice: by {values}", source)
    if points:
        return _load_entry_point(points[0], source)
    message = f"couldn't find secret store {type}/{version}"
    raise ConfigurationError(message + _nearest(wanted, [point.name for point in offered]), source)


def _nearest(wanted: str, offered: Iterable[str]) -> str:
    """Say which type may have been meant. The prefix that all of them share would make any two look alike."""
    known = {name.removeprefix(_PREFIX): name for name in (*BUILTIN, *offered)}
    name = nearest_name(wanted.removeprefix(_PREFIX), known)
    return f" (did you mean {known[name]}?)" if name else ""


def _import_builtin(type: str, source: Source | None) -> StoreModule:  # noqa: A002
    try:
        return cast("StoreModule", importlib.import_module(BUILTIN[type]))
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get(type) or _EXTRA_WITH.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        message = f"{type} needs the package {error.name}: pip install secretfs-fuse[{extra}]"
        raise ConfigurationError(message, source) from error


def _load_entry_point(point: EntryPoint, source: Source | None) -> StoreModule:
    try:
        module = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{point.name}: cannot import {point.value}: {error}", source) from error
    lacking = [name for name in ("Settings", "open_store") if not hasattr(module, name)]
    if lacking:
        raise ConfigurationError(f"{point.name}: {point.value} has no {' and no '.join(lacking)}", source)
    return cast("StoreModule", module)
