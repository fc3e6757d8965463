"""Everything declared, read together: which components count, and what does not fit together."""

from pathlib import Path

import pytest

from secretfs.dapr.declaration import Declaration, load
from secretfs.errors import ConfigurationError
from secretfs.scopes import ALLOW_ALL
from tests.support.canary import leaked, secret
from tests.support.manifests import component, configuration, scope


def messages(declaration: Declaration, directory: Path) -> list[str]:
    return [str(notice).replace(f"{directory}/", "") for notice in declaration.notices]


@pytest.fixture
def components(tmp_path: Path) -> Path:
    directory = tmp_path / "components"
    component(directory, "env", "local.env")
    component(directory, "file", "local.file", {"secretsFile": "x.json"}, scopes=["shop"])
    return directory


def test_an_app_sees_the_components_in_its_scope(components: Path) -> None:
    assert [c.name for c in load([components], [], "", {}).components] == ["env"]
    assert [c.name for c in load([components], [], "shop", {}).components] == ["env", "file"]


def test_denied_types_are_left_out(components: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec: {components: {deny: [secretstores.local.env]}}\n",
        encoding="utf-8",
    )
    assert [c.name for c in load([components], [config], "shop", {}).components] == ["file"]


def test_scopes_belong_to_stores(components: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, scope("file", default="deny", allowed=["a"]))
    declaration = load([components], [config], "shop", {})
    assert declaration.scope("file").allowed_secrets == {"a"}
    assert declaration.scope("env") is ALLOW_ALL
    assert declaration.notices == ()


def test_a_scope_for_a_store_that_is_not_there_is_noted_as_dapr_does(components: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, scope("valut", default="deny"))
    assert messages(load([components], [config], "", {}), tmp_path) == [
        "appconfig.yaml:8: Secrets configuration added for 'valut', but no matching secret store was found"
    ]


def test_notices_of_all_files_are_there(components: Path, tmp_path: Path) -> None:
    (components / "notes.txt").write_text("x", encoding="utf-8")
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\n"
        "spec: {secrets: {scopes: [{storeName: env, defaultAcess: deny}]}}\n",
        encoding="utf-8",
    )
    first, second = messages(load([components], [config], "", {}), tmp_path)
    assert first == "components/notes.txt: not a YAML file, passed over"
    assert second.startswith(
        "config.yaml:3: unknown field spec.secrets.scopes[0].defaultAcess (did you mean defaultAccess?)"
    )
    assert "every secret of env is allowed" in second


def test_the_environment_gives_namespace_and_variables(components: Path, tmp_path: Path) -> None:
    component(components, "elsewhere", "local.env", namespace="other")
    environ = {"NAMESPACE": "mine", "STORE": "env"}
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\n"
        "spec: {secrets: {scopes: [{storeName: $STORE, defaultAccess: deny}]}}\n",
        encoding="utf-8",
    )
    declaration = load([components], [config], "", environ)
    assert [c.name for c in declaration.components] == ["env"]
    assert declaration.scope("env").allowed_names == frozenset()
    assert declaration.context.namespace == "mine"


def test_the_first_mistake_stops(components: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.yaml"):
        load([components], [tmp_path / "missing.yaml"], "", {})


def test_no_value_shows(tmp_path: Path) -> None:
    component(tmp_path / "c", "file", "local.file", {"secretsFile": secret()})
    assert not leaked(repr(load([tmp_path / "c"], [], "", {"TOKEN": secret()})))
