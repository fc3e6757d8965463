"""A mount for many apps: which components are opened, and which app sees which of them."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from secretfs.dapr.app_views import load_for_apps
from secretfs.dapr.declaration import Declaration, DeclaredStore
from secretfs.dapr.memo import forget_undeclared
from secretfs.dapr.references import resolve
from secretfs.errors import ConfigurationError
from secretfs.scopes import ALLOW_ALL
from tests.support.manifests import component, configuration, scope


def app(directory: Path, name: str, **spec: str) -> None:
    directory.mkdir(exist_ok=True)
    lines = "".join(f"\n  {key}: {value}" for key, value in spec.items())
    text = f"apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\nspec:{lines}\n"
    (directory / f"{name}.yaml").write_text(text, encoding="utf-8")


class Files:
    def __init__(self, root: Path) -> None:
        self.components, self.apps, self.configs = root / "components", root / "apps", root / "configs"
        self.components.mkdir()
        self.apps.mkdir()

    def load(self, *configs: Path, sets: Path | None = None, objects: Path | None = None) -> Declaration:
        declaration = load_for_apps(
            [self.components], configs, [self.apps], {}, app_resources=sets, app_objects=objects
        )
        forget_undeclared()
        return declaration


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def opened(declaration: Declaration) -> list[str]:
    return sorted(component.name for component in declaration.components)


def shown(declaration: Declaration) -> dict[str, str]:
    return {name: store.component for name, store in declaration.stores.items()}


def messages(declaration: Declaration) -> Iterable[str]:
    return [notice.message for notice in declaration.notices]


def test_equal_components_are_shared(files: Files) -> None:
    component(files.components, "env", "local.env")
    app(files.apps, "orders")
    app(files.apps, "billing")
    declaration = files.load()
    assert opened(declaration) == ["env"]
    assert shown(declaration) == {"billing/env": "env", "orders/env": "env"}
    assert declaration.apps is not None
    assert list(declaration.apps) == ["billing", "orders"]


def test_a_directory_may_have_another_name_than_its_app(files: Files) -> None:
    """The scopes and templates of components are about the app id."""
    component(files.components, "file", "local.file", {"secretsFile": "/{appID}.json"}, scopes=["shop"])
    app(files.apps, "orders", appId="shop")
    app(files.apps, "shop-copy")
    declaration = files.load()
    assert shown(declaration) == {"orders/file": "shop/file"}
    assert [component.app_id for component in declaration.components] == ["shop"]


def test_a_component_that_depends_on_the_app_is_opened_for_each(files: Files) -> None:
    component(files.components, "file", "local.file", {"secretsFile": "/secrets/{appID}.json"})
    app(files.apps, "orders")
    app(files.apps, "billing")
    declaration = files.load()
    assert shown(declaration) == {"billing/file": "billing/file", "orders/file": "orders/file"}
    assert {c.name: c.app_id for c in declaration.components} == {"billing/file": "billing", "orders/file": "orders"}


def test_so_is_what_takes_its_credentials_from_such_a_one(files: Files) -> None:
    component(files.components, "token", "local.file", {"secretsFile": "/secrets/{appID}.json"})
    reference = {"vaultToken": {"secretKeyRef": {"name": "token", "key": "token"}}}
    component(files.components, "vault", "hashicorp.vault", reference, secret_store="token")
    app(files.apps, "orders")
    (token, vault) = sorted(files.load().components, key=lambda c: c.name)
    assert (token.name, vault.name, vault.secret_store) == ("orders/token", "orders/vault", "orders/token")


def test_scopes_of_components_decide_who_sees_them(files: Files) -> None:
    component(files.components, "env", "local.env", scopes=["orders"])
    component(files.components, "file", "local.file", {"secretsFile": "x.json"})
    app(files.apps, "orders")
    app(files.apps, "billing")
    assert sorted(files.load().stores) == ["billing/file", "orders/env", "orders/file"]


def test_two_components_of_one_name_are_refused_as_dapr_refuses_them(files: Files) -> None:
    component(files.components, "env", "local.env", scopes=["orders"])
    component(files.components / "..more", "env", "local.env", {"prefix": "B_"}, scopes=["billing"])
    app(files.apps, "orders")
    with pytest.raises(ConfigurationError, match="duplicate definition of Component name env"):
        load_for_apps([files.components, files.components / "..more"], [], [files.apps], {})


def test_each_app_has_the_scopes_of_the_configuration_that_it_names(files: Files) -> None:
    component(files.components, "env", "local.env")
    strict = configuration(files.configs, scope("env", default="deny", allowed=["A"]), name="strict")
    open_ = configuration(files.configs, scope("env", denied=["B"]), name="open")
    app(files.apps, "orders", configuration="strict")
    app(files.apps, "billing", configuration="open")
    declaration = files.load(strict, open_)
    assert declaration.scope("orders/env").allowed_secrets == {"A"}
    assert declaration.scope("billing/env").denied_secrets == {"B"}


def test_without_a_name_it_is_the_only_one(files: Files, tmp_path: Path) -> None:
    component(files.components, "env", "local.env")
    app(files.apps, "orders")
    assert files.load().stores == {"orders/env": DeclaredStore("env", ALLOW_ALL)}
    only = configuration(files.configs, scope("env", denied=["B"]), name="only")
    assert files.load(only).scope("orders/env").denied_secrets == {"B"}
    other = configuration(files.configs, name="other")
    with pytest.raises(ConfigurationError, match=r"orders\.yaml:1: app orders has to say which .*: only, other$"):
        files.load(only, other)
    app(files.apps, "orders", configuration="ony")
    with pytest.raises(ConfigurationError, match=r"no Configuration named ony \(did you mean only\?\)"):
        files.load(only, other)


def test_files_of_one_name_are_merged(files: Files, tmp_path: Path) -> None:
    component(files.components, "env", "local.env")
    app(files.apps, "orders")
    first = configuration(files.configs, scope("env", denied=["A"]), name="same")
    second = configuration(tmp_path / "later", scope("env", denied=["B"]), name="same")
    assert files.load(first, second).scope("orders/env").denied_secrets == {"B"}


def test_an_app_without_a_store_is_noted(files: Files) -> None:
    component(files.components, "env", "local.env", scopes=["orders"])
    app(files.apps, "billing")
    assert messages(files.load()) == ["app billing sees no secret store: its directory is empty"]


def test_another_app_changes_no_name(files: Files) -> None:
    component(files.components, "env", "local.env")
    component(files.components, "file", "local.file", {"secretsFile": "/secrets/{appID}.json"})
    app(files.apps, "orders")
    before = files.load()
    app(files.apps, "billing")
    after = files.load()
    assert before.stores.items() <= after.stores.items()
    assert all(component in after.components for component in before.components)


def test_the_same_notice_is_said_once(files: Files) -> None:
    component(files.components, "env", "local.env")
    (files.components / "notes.txt").write_text("x", encoding="utf-8")
    app(files.apps, "orders")
    app(files.apps, "billing")
    assert list(messages(files.load())) == ["not a YAML file, passed over"]


def test_apps_of_one_identity_share_what_logs_in_as_them(files: Files) -> None:
    """Another app id, other tokens, or none: each is somebody else."""
    component(files.components, "vault", "hashicorp.vault", {"vaultJwtPath": "{appToken:vault}"})
    component(files.components, "env", "local.env")
    app(files.apps, "one", appId="orders", tokens="/run/t/a")
    app(files.apps, "two", appId="orders", tokens="/run/t/a")
    app(files.apps, "three", appId="orders", tokens="/run/t/b")
    app(files.apps, "four", appId="billing", tokens="/run/t/a")
    app(files.apps, "five", appId="orders")
    app(files.apps, "six", appId="orders")
    declaration = files.load()
    assert {name: store for name, store in shown(declaration).items() if name.endswith("vault")} == {
        "one/vault": "orders@%2Frun%2Ft%2Fa/vault",
        "two/vault": "orders@%2Frun%2Ft%2Fa/vault",
        "three/vault": "orders@%2Frun%2Ft%2Fb/vault",
        "four/vault": "billing@%2Frun%2Ft%2Fa/vault",
        "five/vault": "orders/vault",
        "six/vault": "orders/vault",
    }
    vaults = {component.name: component for component in declaration.components if component.name != "env"}
    assert {name: (one.app_id, one.tokens, one.ignore_errors) for name, one in vaults.items()} == {
        "orders@%2Frun%2Ft%2Fa/vault": ("orders", "/run/t/a", True),
        "orders@%2Frun%2Ft%2Fb/vault": ("orders", "/run/t/b", True),
        "billing@%2Frun%2Ft%2Fa/vault": ("billing", "/run/t/a", True),
        "orders/vault": ("orders", "", False),
    }


def test_tokens_are_at_an_absolute_path(files: Files) -> None:
    app(files.apps, "orders", tokens="tokens")
    with pytest.raises(ConfigurationError, match=r"orders.yaml:5: spec.tokens: 'tokens' is not an absolute path"):
        files.load()


def test_an_app_sees_the_components_of_the_set_that_it_names(files: Files, tmp_path: Path) -> None:
    """What everybody sees is not there for it, nor does their Configuration count (app-22)."""
    component(files.components, "env", "local.env")
    everybody = configuration(files.configs, scope("own", default="deny"), name="everybody")
    component(tmp_path / "sets/team/shared", "own", "local.env", {"prefix": "A_"})
    app(files.apps, "orders", resources="team/shared")
    app(files.apps, "billing", resources="team/shared")
    app(files.apps, "plain")
    declaration = files.load(everybody, sets=tmp_path / "sets")
    assert shown(declaration) == {
        "billing/own": "resources://team/shared:own",
        "orders/own": "resources://team/shared:own",
        "plain/env": "env",
    }
    assert opened(declaration) == ["env", "resources://team/shared:own"]
    assert declaration.scope("orders/own") == ALLOW_ALL


def test_references_and_templates_stay_in_the_set(files: Files, tmp_path: Path) -> None:
    """The store of a set that another one refers to, or one that depends on the app, has a name of the set, too."""
    team = tmp_path / "sets/team"
    component(files.components, "token", "local.env")
    component(team, "token", "local.file", {"secretsFile": "/secrets/token.json"})
    component(team, "mine", "local.file", {"secretsFile": "/secrets/{appID}.json"})
    reference = {"vaultToken": {"secretKeyRef": {"name": "token", "key": "token"}}}
    component(team, "vault", "hashicorp.vault", reference, secret_store="token")
    app(files.apps, "orders", resources="team")
    declaration = files.load(sets=tmp_path / "sets")
    stores = {component.name: component for component in declaration.components}
    assert sorted(stores) == ["resources://team:orders/mine", "resources://team:token", "resources://team:vault"]
    assert stores["resources://team:vault"].secret_store == "resources://team:token"
    assert stores["resources://team:orders/mine"].app_id == "orders"


def test_a_set_brings_its_configurations_and_its_files(files: Files, tmp_path: Path) -> None:
    team = tmp_path / "sets/team"
    component(team, "env", "local.env")
    configuration(team, scope("env", default="deny", allowed=["A"]), name="strict")
    document = {
        "apiVersion": "secretfs/v1alpha1", "kind": "File", "metadata": {"name": "f"},
        "spec": {"path": "files/f", "template": "{{ secret('env', 'A') }}"},
    }  # fmt: skip
    (team / "f.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    component(files.components, "env", "local.env")
    app(files.apps, "orders", resources="team")
    app(files.apps, "plain")
    declaration = files.load(sets=tmp_path / "sets")
    assert declaration.scope("orders/env").allowed_secrets == {"A"}
    assert declaration.scope("plain/env") == ALLOW_ALL
    assert list(declaration.files) == ["orders/files/f"]
    configuration(team, name="wide")
    with pytest.raises(ConfigurationError, match="app orders has to say which configuration is its own: strict, wide"):
        files.load(sets=tmp_path / "sets")
    app(files.apps, "orders", resources="team", configuration="wide")
    assert files.load(sets=tmp_path / "sets").scope("orders/env") == ALLOW_ALL


def test_a_set_that_is_not_there_is_a_mistake_of_its_app(files: Files, tmp_path: Path) -> None:
    (tmp_path / "sets/team/shared").mkdir(parents=True)
    app(files.apps, "orders", resources="team/share")
    with pytest.raises(ConfigurationError, match=r"orders\.yaml:1: .*\(did you mean team/shared\?\)"):
        files.load(sets=tmp_path / "sets")
    with pytest.raises(ConfigurationError, match="takes --app-resources"):
        files.load()


def test_a_configuration_of_a_set_that_cannot_be_read_is_a_mistake(files: Files, tmp_path: Path) -> None:
    """Without it nothing would be limited."""
    team = tmp_path / "sets/team"
    component(team, "env", "local.env")
    (team / "strict.yaml").write_text("kind: Configuration\nspec: [", encoding="utf-8")
    app(files.apps, "orders", resources="team")
    with pytest.raises(ConfigurationError, match=r"strict\.yaml"):
        files.load(sets=tmp_path / "sets")


def test_objects_that_cannot_be_read_are_left_out_and_stop_nothing(files: Files, tmp_path: Path) -> None:
    """app-27: What could be read before somebody broke it goes on; and nobody else's components suffer."""
    shop = tmp_path / "objects/shop"
    component(
        shop, "good", "hashicorp.vault", {"vaultAddr": "https://vault"}, annotations={"secretfs/permissions": "[]"}
    )
    component(shop, "later", "hashicorp.vault", {"vaultAddr": "https://vault"})
    spec = "spec: {type: secretstores.a, metadata: b}"
    broken = f"{{apiVersion: dapr.io/v1alpha1, kind: Component, metadata: {{name: X}}, {spec}}}"
    (shop / "bad.yaml").write_text(broken.replace("X", "bad"), encoding="utf-8")
    component(files.components, "env", "local.env")
    app(files.apps, "orders", objects="shop")
    app(files.apps, "plain")
    declaration = files.load(objects=tmp_path / "objects")
    assert shown(declaration) == {
        "orders/good": "objects://shop:good", "orders/later": "objects://shop:later", "plain/env": "env",
    }  # fmt: skip
    good = declaration.components[0]
    assert (good.contained_in, good.ignore_errors, good.init_timeout, good.rules) == ("shop", True, 5.0, ())
    assert any(message.endswith("; it is left out") for message in messages(declaration))
    (shop / "later.yaml").write_text(broken.replace("X", "later"), encoding="utf-8")
    declaration = files.load(objects=tmp_path / "objects")
    assert "orders/later" in shown(declaration)
    assert any(message.endswith("; it stays as it was") for message in messages(declaration))
    (shop / "later.yaml").unlink()
    assert "orders/later" not in shown(files.load(objects=tmp_path / "objects"))
    (shop / "later.yaml").write_text(broken.replace("X", "later"), encoding="utf-8")
    assert "orders/later" not in shown(files.load(objects=tmp_path / "objects"))


def test_a_set_of_objects_that_is_not_there_is_empty(files: Files, tmp_path: Path) -> None:
    app(files.apps, "orders", objects="shop")
    assert files.load(objects=tmp_path / "objects").components == ()
    with pytest.raises(ConfigurationError, match="takes --app-objects"):
        files.load()
    app(files.apps, "orders", objects="shop", resources="shop")
    with pytest.raises(ConfigurationError, match="both say what the app sees"):
        files.load(objects=tmp_path / "objects")


def test_configurations_among_objects(files: Files, tmp_path: Path) -> None:
    """app-26: One counts that is named, as with Dapr's operator; while it is not there the app sees nothing."""
    shop = tmp_path / "objects/shop"
    component(shop, "vault", "hashicorp.vault", {"vaultAddr": "https://vault"})
    configuration(shop, scope("vault", default="deny"), name="strict")
    app(files.apps, "orders", objects="shop")
    assert files.load(objects=tmp_path / "objects").scope("orders/vault") == ALLOW_ALL
    app(files.apps, "orders", objects="shop", configuration="strict")
    assert files.load(objects=tmp_path / "objects").scope("orders/vault").allowed_names == frozenset()
    app(files.apps, "orders", objects="shop", configuration="strikt")
    declaration = files.load(objects=tmp_path / "objects")
    assert declaration.stores == {}
    assert "app orders sees nothing: there is no Configuration strikt in shop" in messages(declaration)


def test_the_namespace_of_objects_is_that_of_the_set(files: Files, tmp_path: Path) -> None:
    """Neither NAMESPACE of the daemon nor what it stands for counts (app-26)."""
    shop = tmp_path / "objects/shop"
    properties = {"vaultAddr": "https://vault", "vaultJwtRole": "{namespace}"}
    component(shop, "vault", "hashicorp.vault", properties, namespace="shop")
    app(files.apps, "orders", objects="shop")
    declaration = load_for_apps(
        [files.components], (), [files.apps], {"NAMESPACE": "kube-system"}, app_objects=tmp_path / "objects"
    )
    (vault,) = declaration.components
    assert resolve(vault, declaration.context, None)[0][1].value == "shop.orders"


def test_an_object_cannot_take_the_place_of_rendered_files(files: Files, tmp_path: Path) -> None:
    """It would stop everybody's mount: what the administrator has declared stays (app-27)."""
    shop = tmp_path / "objects/shop"
    properties = {"vaultAddr": "http://192.0.2.1", "vaultToken": "x"}
    for name in ("files", "vault"):
        component(shop, name, "hashicorp.vault", properties)
    document = {
        "apiVersion": "secretfs/v1alpha1", "kind": "File", "metadata": {"name": "f"},
        "spec": {"path": "files/f", "template": "x"},
    }  # fmt: skip
    app(files.apps, "orders", objects="shop")
    (files.apps / "f.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    declaration = files.load(objects=tmp_path / "objects")
    assert shown(declaration) == {"orders/vault": "objects://shop:vault"}
    assert list(declaration.files) == ["orders/files/f"]
    assert "files is a directory of rendered files; it is left out" in messages(declaration)
