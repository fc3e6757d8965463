"""Documents of kind File: what they may say, and what is said of those that are wrong."""

from pathlib import Path
from typing import Any

import pytest

from secretfs.dapr import goyaml
from secretfs.dapr.app import App
from secretfs.dapr.app_views import load_for_apps
from secretfs.dapr.declaration import Declaration, load
from secretfs.dapr.file_views import load_file_views
from secretfs.dapr.rendered_file import load_files
from secretfs.errors import ConfigurationError, Notice
from secretfs.rendering.job import Format, Reference, Template
from tests.support.files import file
from tests.support.manifests import component


@pytest.fixture
def resources(tmp_path: Path) -> Path:
    component(tmp_path / "components", "vault", "local.env")
    component(tmp_path / "components", "other", "local.env", scopes=["other"])
    return tmp_path / "components"


def loaded(resources: Path, app_id: str = "") -> Declaration:
    return load([resources], [], app_id, {})


def declared(resources: Path, text: str) -> Declaration:
    (resources / "f.yaml").write_text("apiVersion: secretfs/v1alpha1\nkind: File\n" + text, encoding="utf-8")
    return loaded(resources)


def test_a_template(resources: Path) -> None:
    file(resources, "pgpass", "files/sub/pgpass", "{{ secret('vault', 'db').user }}\n", mode="0440", group="0")
    declaration = loaded(resources)
    (shown,) = declaration.files
    found = declaration.files[shown]
    assert shown == "files/sub/pgpass"
    assert (found.file.directory, found.file.inner) == ("files", "sub/pgpass")
    assert found.file.job.template == Template("{{ secret('vault', 'db').user }}\n")
    assert (found.file.mode, found.file.gid, found.file.uid) == (0o440, 0, None)
    assert (set(found.stores), found.asks_others) == ({"vault"}, False)
    assert declaration.notices == ()


def test_values_keep_their_order(resources: Path) -> None:
    file(
        resources, "app", "files/app.json", form="json",
        values={"z": {"store": "vault", "secret": "db", "key": "user"}, "a": {"template": "x"}},
    )  # fmt: skip
    job = loaded(resources).files["files/app.json"].file.job
    assert job.format is Format.JSON
    assert job.values == (("z", Reference("vault", "db", "user")), ("a", Template("x")))


def test_scopes_say_who_has_it(resources: Path) -> None:
    file(resources, "one", "files/one", "x", scopes=["shop"])
    file(resources, "all", "files/all", "x")
    assert set(loaded(resources, "shop").files) == {"files/one", "files/all"}
    assert set(loaded(resources, "bar").files) == {"files/all"}


def test_apps_have_their_own(resources: Path, tmp_path: Path) -> None:
    file(resources, "all", "files/all", "{{ secret('vault', 'x') }}")
    apps = tmp_path / "apps"
    file(apps, "own", "files/own", "x", scopes=["shop-id"])
    (apps / "apps.yaml").write_text(
        "apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {name: shop}\nspec: {appId: shop-id}\n---\n"
        "apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {name: bar}\n",
        encoding="utf-8",
    )
    declaration = load_for_apps([resources], [], [apps], {})
    assert set(declaration.files) == {"shop/files/all", "shop/files/own", "bar/files/all"}
    own = declaration.files["shop/files/own"]
    assert (own.prefix, own.directory, own.shown) == ("shop/", "shop/files", "shop/files/own")


def test_a_store_that_the_app_does_not_see_is_noted(resources: Path) -> None:
    file(resources, "f", "files/f", "{{ secret('vaul', 'x') }}{{ secret('other', 'x') }}")
    assert [notice.message for notice in loaded(resources).notices] == [
        "file f asks the store other, which this app does not see",
        "file f asks the store vaul, which this app does not see (did you mean vault?)",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{path: pgpass, template: x}", "spec.path 'pgpass': it has to be in a directory"),
        ("{path: a/../b, template: x}", r"spec.path 'a/../b': it has to be a path below the root"),
        ("{path: /a/b, template: x}", "spec.path '/a/b': it has to be a path below the root"),
        ("{path: a/50%, template: x}", "spec.path 'a/50%': a % would be written as %25"),
        ("{path: a/.bulk.json, template: x}", "spec.path 'a/.bulk.json': secretfs reserves that name"),
        ("{path: vault/x, template: x}", "spec.path: vault is the directory of a store"),
        ("{template: x}", "spec.path is missing"),
        ("{path: a/b}", "spec needs either template or values: neither is there"),
        (
            "{path: a/b, template: x, values: {a: {template: x}}}",
            "spec needs either template or values: both",
        ),
        ("{path: a/b, template: x, format: json}", "spec.template makes text; a json file is made of values"),
        ("{path: a/b, values: {a: {template: x}}}", "spec.format is missing: text, json"),
        ("{path: a/b, format: jsn, values: {a: {template: x}}}", r"there is no format 'jsn' \(did you mean json\?\)"),
        ("{path: a/b, format: json, values: {a: {store: v}}}", "spec.values.a.secret is missing"),
        ("{path: a/b, format: json, values: {a: {store: v, template: x}}}", "a value is a template or of a secret"),
        ("{path: a/b, format: pkcs12, values: {key: {template: x}}}", "spec.values.certificate is missing: pkcs12"),
        ("{path: a/b, template: x, mod: 1}", r"unknown field spec.mod \(did you mean mode\?\)"),
        ("{path: a/b, template: x, mode: '0600'}", "spec.mode: '0600'"),
        ("{path: a/b, template: '{{ x '}", "spec.template line 1: unexpected end of template"),
        ("{path: a/b, template: '{{ (10**99)**(10**9) }}'}", "spec.template: it takes more than 2 s to read"),
        ("{path: a/b, template: '{{ f(a=1, a=2) }}'}", "spec.template: Python refuses it: keyword argument repeated"),
        (
            "{path: a/b, format: dotenv, values: {db-user: {template: x}, b: {template: x}, db_user: {template: x}}}",
            "spec.values: db-user and db_user would be one variable, db_user: rename one of them",
        ),
    ],
)
def test_what_is_wrong_stops_the_mount(resources: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        declared(resources, f"metadata: {{name: f}}\nspec: {spec}\n")
    assert caught.value.source is not None
    assert caught.value.source.path == str(resources / "f.yaml")


def test_two_at_one_place(resources: Path) -> None:
    file(resources, "a", "files/x", "x")
    file(resources, "b", "files/x/y", "x")
    with pytest.raises(ConfigurationError, match=r"spec\.path: files/x is a file"):
        loaded(resources)
    file(resources, "b", "files/x", "x")
    with pytest.raises(ConfigurationError, match=r"spec\.path: file a is there, too"):
        loaded(resources)


def test_one_name_twice(resources: Path) -> None:
    file(resources, "a", "files/x", "x")
    (resources / "copy.yaml").write_text((resources / "file-a.yaml").read_text(), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"file a is declared twice, first at .*copy\.yaml"):
        loaded(resources)


def test_without_the_package_it_says_what_to_install(resources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(resources, "a", "files/x", "x")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        ConfigurationError, match=r"file a needs the package jinja2: pip install secretfs-fuse\[files\]"
    ):
        loaded(resources)


def test_the_packages_are_looked_for_once(resources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are, and with them one that takes cryptography."""
    asked: list[str] = []

    def find(name: str) -> object:
        asked.append(name)
        return name

    monkeypatch.setattr("importlib.util.find_spec", find)
    for number in range(5):
        file(resources, f"text{number}", f"files/{number}", "x")
        file(resources, f"pem{number}", f"files/{number}.pem", form="pem", values={"key": {"template": "x"}})
    assert len(loaded(resources).files) == 10
    assert sorted(asked) == ["cryptography", "jinja2"]


class Named(str):
    """Where a store is shown. Counts how often it is compared with the beginning of a place, or cut there."""

    looks = 0

    def startswith(self, *args: Any) -> bool:
        Named.looks += 1
        return super().startswith(*args)

    def partition(self, separator: str, /) -> tuple[str, str, str]:
        Named.looks += 1
        return super().partition(separator)


def test_a_store_is_looked_at_once_however_many_apps_there_are(
    resources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(resources, "f", "files/f", "{{ secret('vault', 'x') }}")
    monkeypatch.setattr(Named, "looks", 0)
    apps = {f"app{number}": App(f"app{number}") for number in range(50)}
    stores = [Named(f"{app}/{store}") for app in apps for store in ("vault", "other")]
    notices: list[Notice] = []
    files = load_file_views({name: [resources] for name in apps}, stores, apps, "", notices)
    assert set(files) == {f"{app}/files/f" for app in apps}
    assert notices == []
    assert Named.looks <= len(stores)


def test_only_documents_that_may_be_files_are_parsed(resources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that says File nowhere is none."""
    file(resources, "f", "files/f", "x")
    load_files([resources])
    parsed: list[str] = []

    def counting(text: str, *args: Any) -> object:
        parsed.append(text)
        return goyaml.parse(text, *args)

    monkeypatch.setattr("secretfs.dapr.documents.parse", counting)
    both = (resources / "file-f.yaml").read_text() + "---\nkind: Component\nspec: {type: state.redis}\n"
    (resources / "file-f.yaml").write_text(both, encoding="utf-8")
    (resources / "more.yaml").write_text("kind: Component\n", encoding="utf-8")
    assert [one.name for one in load_files([resources])] == ["f"]
    assert len(parsed) == 1


def test_other_kinds_are_somebody_elses(resources: Path) -> None:
    (resources / "f.yaml").write_text("apiVersion: example.org/v1\nkind: File\nspec: [whatever]\n", encoding="utf-8")
    assert loaded(resources).files == {}
