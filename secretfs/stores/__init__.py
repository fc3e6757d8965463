"""The table of secret store types: which module serves a component's ``spec.type``.

A store module is imported when a component names its type, and not before: an SDK that no component needs costs no
start-up time, and need not be installed. Other packages add types through the entry point group ``secretfs.stores``;
docs/writing-a-store.md shows how. A type that is neither is that of a plug-in, by the name of its socket.
"""

import importlib
import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from secretfs.errors import ConfigurationError, Source, StoreUnavailable
from secretfs.settings import nearest_name
from secretfs.store import SecretStore, StoreContext
from secretfs.stores import _sockets as sockets

ENTRY_POINT_GROUP = "secretfs.stores"

# What requests says by a filter of its own. That is lost where another SDK, imported in another thread at that moment,
# changes the filters for a while (warnings.catch_warnings).
warnings.filterwarnings("ignore", message="SOCKS support in urllib3")

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
    "secretstores.secretfs.sops": "secretfs.stores.sops",
    "secretstores.tencentcloud.ssm": "secretfs.stores.signed.tencentcloud",
}

_PREFIX = "secretstores."
_VERSIONS = frozenset({"", "v0", "v1"})
_EXTRA_WITH = {
    "azure": "azure", "botocore": "aws", "dateutil": "aws", "google": "gcp", "grpc": "pluggable", "hvac": "vault",
    "jeepney": "keyring", "jmespath": "aws", "kubernetes": "kubernetes", "requests": "vault",
    "secretstorage": "keyring", "urllib3": "vault",
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

    Raises `ConfigurationError` when there is none, or when what it needs is not installed; `StoreUnavailable` when a
    plug-in may serve it as soon as it runs.
    """
    wanted = type.lower()
    if version.lower() not in _VERSIONS:
        raise ConfigurationError(f"couldn't find secret store {type}/{version}: the version is v1", source)
    if wanted in BUILTIN:
        return _import(BUILTIN[wanted], wanted, source)
    offered = list(entry_points(group=ENTRY_POINT_GROUP))
    points = [point for point in offered if point.name.lower() == wanted]
    if len(points) > 1:
        # Which of them sees the credentials is not left to the order of installation.
        values = " and ".join(point.value for point in points)
        raise ConfigurationError(f"{wanted} is offered twice: by {values}", source)
    if points:
        return _load_entry_point(points[0], source)
    names = [point.name for point in offered]
    folder = sockets.folder()
    if folder:
        plugged_in = _plug_ins(type, folder)
        if wanted in plugged_in:
            return _load_plug_in(wanted, plugged_in[wanted], source)
        names += plugged_in
    message = f"couldn't find secret store {type}/{version}" + _nearest(wanted, names)
    if folder:
        raise StoreUnavailable(f"{message}: no socket of this name is in {folder}")
    raise ConfigurationError(message, source)


def _nearest(wanted: str, offered: Iterable[str]) -> str:
    """Say which type may have been meant. The prefix that all of them share would make any two look alike."""
    known = {name.removeprefix(_PREFIX): name for name in (*BUILTIN, *offered)}
    name = nearest_name(wanted.removeprefix(_PREFIX), known)
    return f" (did you mean {known[name]}?)" if name else ""


def _plug_ins(type: str, folder: str) -> dict[str, list[str]]:  # noqa: A002
    """Return the paths of all sockets, by the type that each of them is."""
    try:
        return {_PREFIX + name: paths for name, paths in sockets.by_name(folder).items()}
    except OSError as error:
        raise StoreUnavailable(f"couldn't find secret store {type}: {folder}: {error.strerror}") from None


def _load_plug_in(type: str, paths: list[str], source: Source | None) -> StoreModule:  # noqa: A002
    if len(paths) > 1:  # whose secrets are served is not left to the order of the directory
        raise ConfigurationError(f"{type} is offered twice: by {' and '.join(paths)}", source)
    module: Any = _import("secretfs.stores.pluggable.store", type, source)
    return cast("StoreModule", module.PluggableType(paths[0]))


def _import(module: str, type: str, source: Source | None) -> StoreModule:  # noqa: A002
    try:
        return cast("StoreModule", importlib.import_module(module))
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
