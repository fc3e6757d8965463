"""What secretfs does with the input of a vector, in a form that can be compared with Dapr's answer."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from secretfs import settings
from secretfs.dapr.component import Component, load_manifests
from secretfs.dapr.configuration import Configuration, load_configuration
from secretfs.dapr.references import TemplateContext, component_references, resolve
from secretfs.errors import ConfigurationError, Notice, SecretFSError, SecretNotFound, StoreError
from secretfs.store import StoreContext
from secretfs.stores import local_env, local_file
from secretfs.stores.azure import credentials as azure_credentials
from secretfs.stores.azure import store as azure
from secretfs.stores.azure.transport import DeadlineTransport
from secretfs.stores.kubernetes import store as kubernetes
from secretfs.stores.vault import auth as vault_auth
from secretfs.stores.vault import settings as vault
from secretfs.stores.vault import store as vault_store
from tests.vectors.vector import Vector, read_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an input: a refusal, or what was understood."""

    error: str = ""
    value: Any = None
    notices: tuple[Notice, ...] = field(default=())


PARKED = "parked"
"""A component that waits for a store that is not there."""


class Subject:
    """Runs inputs. ``directory`` is empty, and the working directory while an input is run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, vector: Vector) -> Answer:
        """Run the input of a vector."""
        with _working_in(self._directory):
            try:
                return _RUN[vector.area](self, vector.given)
            except SecretFSError as error:
                return Answer(str(error).replace(f"{self._directory}/", ""))

    def _put(self, name: str, given: Mapping[str, Any]) -> Path:
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        for before in directory.iterdir():
            before.unlink()
        for file in given["files"]:
            (directory / file["name"]).write_bytes(read_bytes(file))
        return directory

    def manifest(self, given: Mapping[str, Any]) -> Answer:
        namespace = given.get("env", {}).get("NAMESPACE", "")
        manifests = load_manifests([self._put("r", given)], namespace=namespace).visible_to(given["app_id"])
        return Answer(value=manifests.components, notices=manifests.notices)

    def config(self, given: Mapping[str, Any]) -> Answer:
        directory = self._put("c", given)
        paths = [directory / file["name"] for file in given["files"]]
        found: Configuration = load_configuration(paths, given["env"])
        return Answer(value=found, notices=found.notices)

    def file(self, given: Mapping[str, Any]) -> Answer:
        self._put("f", given)
        chosen, _ = settings.decode(local_file.Settings, _properties(given))
        store = local_file.open_store(chosen, StoreContext("c"))
        return Answer(value={name: _texts(store.fetch(name).values) for name in store.names("").secrets})

    def env(self, given: Mapping[str, Any]) -> Answer:
        with _environment(given["env"]):
            chosen, _ = settings.decode(local_env.Settings, _properties(given))
            store = local_env.open_store(chosen, StoreContext("c"))
            gets: dict[str, dict[str, str] | None] = {}
            for name in given["names"]:
                try:
                    gets[name] = _texts(store.fetch(name).values)
                except SecretNotFound:
                    gets[name] = None
            return Answer(value=(set(store.names("").secrets), gets))

    def settings(self, given: Mapping[str, Any]) -> Answer:
        return Answer(value=_SETTINGS[given["store"]](given))

    def resolve(self, given: Mapping[str, Any]) -> Answer:
        env = dict(given.get("env", {}))
        directory = self._put("r", given)
        components = (
            load_manifests([directory], namespace=env.get("NAMESPACE", "")).visible_to(given["app_id"]).components
        )
        secrets = self._directory / "secrets.json"
        secrets.write_text(given["secrets"], encoding="utf-8")
        store = local_file.FileStore(secrets, ":", multi_valued=True)
        if given.get("pod_name"):
            env["POD_NAME"] = given["pod_name"]
        context = TemplateContext(env, given["app_id"])
        return Answer(value=[_resolved(component, context, store) for component in components])


def _resolved(component: Component, context: TemplateContext, store: local_file.FileStore) -> Any:
    read = store.fetch if component.secret_store == "base" else None
    if component.secret_store not in ("base", "") and component_references(component):
        return PARKED
    try:
        properties, _ = resolve(component, context, read)
    except (ConfigurationError, StoreError) as error:
        return Answer(str(error))
    return {it.name: it.value for it in properties}


def _vault(given: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen, _ = settings.decode(vault.Settings, _properties(given))
    token = vault_auth.given_token(chosen)
    # Reading the authorities of this machine takes long, and Dapr's answers do not depend on them.
    of_its_own = chosen.ca_pem or chosen.ca_path or chosen.ca_cert
    opened = chosen if of_its_own else replace(chosen, skip_verify=True)
    vault_store.open_store(opened, StoreContext("c")).close()
    return {
        "address": chosen.address,
        "token": token if isinstance(token, str) else "",
        "tokenPath": chosen.token_path,
        "prefix": chosen.prefix.strip("/") if chosen.use_prefix else "",
        "engine": chosen.engine.strip("/"),
        "valueType": chosen.value_type,
        "skipVerify": chosen.skip_verify,
    }


def _azure(given: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen, _ = settings.decode(azure.Settings, _properties(given))
    with _environment({**os.environ, **given["env"]}):
        name, cloud = azure.vault(chosen)
        identity = azure_credentials.Identity(
            cloud, chosen.tenant_id, chosen.client_id, chosen.client_secret,
            chosen.certificate_file, chosen.certificate, chosen.certificate_password,
        )  # fmt: skip
        transport = DeadlineTransport("c", 5.0)
        azure_credentials.credential_sources("c", identity, chosen.auth_methods, transport)
    return {
        "uri": f"https://{name}.{cloud.suffix}",
        "env:TenantID": chosen.tenant_id,
        "env:ClientID": chosen.client_id,
        "env:ClientSecret": chosen.client_secret,
    }


def _kubernetes(given: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen, _ = settings.decode(kubernetes.Settings, _properties(given))
    return {"defaultNamespace": chosen.namespace, "kubeconfigPath": chosen.kubeconfig}


_RUN: dict[str, Callable[[Subject, Mapping[str, Any]], Answer]] = {
    "config": Subject.config,
    "env": Subject.env,
    "file": Subject.file,
    "manifest": Subject.manifest,
    "resolve": Subject.resolve,
    "settings": Subject.settings,
}
_SETTINGS = {"vault": _vault, "azure": _azure, "kubernetes": _kubernetes}


def _properties(given: Mapping[str, Any]) -> list[settings.Property]:
    return [settings.Property(name, value) for name, value in given["properties"].items()]


def _texts(values: Mapping[str, bytes]) -> dict[str, str]:
    return {key: value.decode("utf-8", "surrogateescape") for key, value in values.items()}


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
