"""``secretstores.kubernetes`` as a component: its annotations, references to it, and the store that every pod has."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from secretfs.cache.freshness import Freshness
from secretfs.dapr import declaration as dapr_declaration
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import load
from secretfs.errors import ConfigurationError
from secretfs.registry.opening import open_registry
from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace, outside
from tests.support.manifests import component, configuration

__all__ = ["kube", "namespace", "outside"]

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty directory for manifests, next to the files of a service account."""
    account = tmp_path / "token"
    account.touch()
    monkeypatch.setattr(dapr_declaration, "_SERVICE_ACCOUNT", account)
    path = tmp_path / "components"
    path.mkdir()
    return path


def declared(
    manifests: Path, environ: Mapping[str, str] = IN_POD, *configs: Path, builtin: bool = True
) -> tuple[Component, ...]:
    return load([manifests], configs, "shop", environ, builtin=builtin).components


# --- the store that every pod has ---


def test_a_pod_has_the_store_kubernetes_first(manifests: Path) -> None:
    component(manifests, "env", "local.env")
    first, second = declared(manifests)
    assert (first.name, first.type, first.version, first.items) == ("kubernetes", "secretstores.kubernetes", "v1", ())
    assert second.name == "env"


@pytest.mark.parametrize("environ", [{}, {"KUBERNETES_SERVICE_HOST": ""}])
def test_elsewhere_nobody_has(manifests: Path, environ: dict[str, str]) -> None:
    assert declared(manifests, environ) == ()


def test_it_can_be_done_without(manifests: Path) -> None:
    assert declared(manifests, builtin=False) == ()
    dapr_declaration._SERVICE_ACCOUNT.unlink()
    assert declared(manifests) == ()


def test_no_deny_list_takes_it_away(manifests: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path / "config")
    config.write_text(config.read_text() + "  components: {deny: [secretstores.kubernetes/v1]}\n")
    assert [each.name for each in declared(manifests, IN_POD, config)] == ["kubernetes"]


def test_the_same_one_may_be_declared_with_annotations(manifests: Path) -> None:
    component(manifests, "kubernetes", "kubernetes", annotations={"secretfs/namespaces": "*"})
    (only,) = declared(manifests)
    assert only.annotations == {"secretfs/namespaces": "*"}


@pytest.mark.parametrize(("type_", "properties"), [("local.env", {}), ("kubernetes", {"defaultNamespace": "x"})])
def test_another_of_that_name_is_a_mistake(manifests: Path, type_: str, properties: dict[str, object]) -> None:
    component(manifests, "kubernetes", type_, properties)
    with pytest.raises(ConfigurationError, match=r"kubernetes.yaml:1: component kubernetes already exists"):
        declared(manifests)
    assert [each.type for each in declared(manifests, builtin=False)] == [f"secretstores.{type_}"]


def test_a_reference_without_a_store_means_it(manifests: Path) -> None:
    reference = {"secretKeyRef": {"name": "files", "key": "path"}}
    component(manifests, "a", "local.file", {"secretsFile": reference})
    component(manifests, "b", "local.file", {"secretsFile": reference}, secret_store="other")
    stores = {each.name: each.secret_store for each in declared(manifests)}
    assert (stores["a"], stores["b"]) == ("kubernetes", "other")
    assert [each.secret_store for each in declared(manifests, {})] == ["", "other"]


# --- references ---


@pytest.mark.parametrize("variable", [False, True])
async def test_a_reference_is_to_the_namespace_of_its_component(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, variable: bool
) -> None:
    """As in Dapr, where the store's own namespace comes after that of the component that refers to it."""
    other = Namespace(namespace.server, f"{namespace.name}-b")
    namespace.server.create_namespace(other.name)
    for each in (namespace, other):
        (tmp_path / each.name).write_text(f'{{"found": "{secret(each.name)}"}}')
        each.put("files", {"path": str(tmp_path / each.name).encode()})
    environ = {"NAMESPACE": namespace.name} if variable else {}
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    manifests = tmp_path / "components"
    component(manifests, "k8s", "kubernetes", namespace.properties())
    reference: dict[str, object] = {"secretsFile": {"secretKeyRef": {"name": "files", "key": "path"}}}
    component(manifests, "plain", "local.file", reference, secret_store="k8s")
    component(manifests, "there", "local.file", reference, secret_store="k8s", namespace=other.name)
    loaded = load([manifests], [], "shop", environ)
    async with open_registry(loaded.components, loaded.context, Freshness()) as registry:
        registry.require()
        found = {
            name: opened.store.fetch("found").values["found"].decode()
            for name, opened in registry.stores.items()
            if name != "k8s"
        }
    expected = {"plain": secret(namespace.name)}
    assert found == (expected if variable else expected | {"there": secret(other.name)})


# --- annotations ---


@pytest.mark.parametrize(
    ("type_", "name", "told"),
    [
        ("kubernetes", "secretfs/namespace", "(did you mean secretfs/namespaces?)"),
        ("kubernetes", "secretfs/labelselector", "(did you mean secretfs/label-selector?)"),
        ("local.env", "secretfs/namespaces", "unknown annotation secretfs/namespaces"),
    ],
)
async def test_annotations_that_nobody_reads(tmp_path: Path, type_: str, name: str, told: str) -> None:
    component(
        tmp_path, "k8s", type_, {"defaultNamespace": "x"} if type_ == "kubernetes" else {}, annotations={name: "x"}
    )
    loaded = load([tmp_path], [], "shop", {})
    async with open_registry(loaded.components, loaded.context, Freshness()) as registry:
        (failure,) = registry.failures
    assert f"unknown annotation {name}" in str(failure)
    assert told in str(failure)


async def test_annotations_reach_the_store(namespace: Namespace, tmp_path: Path) -> None:
    annotations = {"secretfs/namespaces": namespace.name, "secretfs/ttl": "1h", "other": "x"}
    component(tmp_path, "k8s", "kubernetes", namespace.properties(), annotations=annotations)
    loaded = load([tmp_path], [], "shop", {})
    async with open_registry(loaded.components, loaded.context, Freshness()) as registry:
        registry.require()
        assert registry.stores["k8s"].store.names("").folders == {namespace.name}


# --- what it costs those who do not use it ---


def test_other_stores_do_not_import_the_client(tmp_path: Path) -> None:
    component(tmp_path, "env", "local.env", annotations={"secretfs/ttl": "1h"})
    code = (
        "import sys, secretfs.cli.main\n"
        f"try: sys.argv[1:] = ['check', '--connect', '--resources-path', {str(tmp_path)!r}]; secretfs.cli.main.main()\n"
        "except SystemExit: print('kubernetes' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, check=True, text=True
    )
    assert done.stdout.split()[-1] == "False"
