"""The table of store types."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from secretfs import stores
from secretfs.errors import ConfigurationError, Source
from secretfs.settings import specs
from secretfs.stores import BUILTIN, StoreModule, load_store_type, local_env, local_file
from secretfs.stores.vault import store as vault_store

SOURCE = Source("components.yaml", 7)


def offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, stores.ENTRY_POINT_GROUP) for name, value in points]
    monkeypatch.setattr(stores, "entry_points", lambda *, group: found if group == "secretfs.stores" else [])


@pytest.mark.parametrize("type_", BUILTIN)
def test_every_builtin_type_is_a_store_module(type_: str) -> None:
    module = load_store_type(type_)
    assert specs(module.Settings) is not None
    assert callable(module.open_store)


def test_builtin_modules_have_the_declared_shape() -> None:
    modules: list[StoreModule] = [local_env, local_file, vault_store]  # for mypy
    assert [module.__name__ for module in modules] == [  # type: ignore[attr-defined]
        BUILTIN["secretstores.local.env"],
        BUILTIN["secretstores.local.file"],
        BUILTIN["secretstores.hashicorp.vault"],
    ]


@pytest.mark.parametrize("type_", ["secretstores.Local.Env", "SECRETSTORES.LOCAL.ENV"])
def test_types_match_without_regard_to_case(type_: str) -> None:
    assert load_store_type(type_) is local_env


@pytest.mark.parametrize("version", ["", "v0", "v1", "V0", "V1"])
def test_versions_that_select_the_store(version: str) -> None:
    assert load_store_type("secretstores.local.env", version) is local_env


@pytest.mark.parametrize("version", ["v2", "1", "v1alpha1", " v1"])
def test_other_versions_do_not_exist(version: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_store_type("secretstores.local.env", version, SOURCE)
    assert f"couldn't find secret store secretstores.local.env/{version}" in str(caught.value)
    assert caught.value.source == SOURCE


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_store_type("secretstores.hashicorp.valut", "v1", SOURCE)
    assert str(caught.value) == (
        "components.yaml:7: couldn't find secret store secretstores.hashicorp.valut/v1"
        " (did you mean secretstores.hashicorp.vault?)"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("secretstores.aws.secretsmanager", "secretstores.aws.secretmanager"),
        ("secretstores.aws.parameter", "secretstores.aws.parameterstore"),
        ("secretstores.azure.keyvaults", "secretstores.azure.keyvault"),
        ("secretstores.localfile", "secretstores.local.file"),
        ("secretstores.gcp.secretsmanager", "secretstores.gcp.secretmanager"),
    ],
)
def test_what_all_types_share_does_not_make_them_alike(written: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\(did you mean {re.escape(meant)}\?"):
        load_store_type(written, "v1")


def test_a_type_like_none_has_no_hint() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_store_type("secretstores.zzz", "v1")
    assert str(caught.value) == "couldn't find secret store secretstores.zzz/v1"


def test_a_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hvac")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "secretfs.stores.vault.store")
    monkeypatch.delitem(sys.modules, "secretfs.stores.vault.http", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install secretfs-fuse\[vault\]"):
        load_store_type("secretstores.hashicorp.vault")


def test_a_missing_module_of_our_own_is_no_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN, "secretstores.broken", "secretfs.stores.broken")
    with pytest.raises(ModuleNotFoundError):
        load_store_type("secretstores.broken")


def test_other_packages_offer_types(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("secretstores.Example", "secretfs.stores.local_file"))
    assert load_store_type("secretstores.example", "v1") is local_file


def test_a_builtin_type_cannot_be_shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("secretstores.local.env", "secretfs.stores.local_file"))
    assert load_store_type("secretstores.local.env") is local_env


def test_the_nearest_name_may_be_a_third_partys(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("secretstores.example", "example"))
    with pytest.raises(ConfigurationError, match=r"did you mean secretstores\.example"):
        load_store_type("secretstores.exmple")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module", "secretstores.example: cannot import no_such_module"),
        ("secretfs.stores:no_such_attribute", "cannot import secretfs.stores:no_such_attribute"),
        ("secretfs.store", "secretfs.store has no Settings and no open_store"),
    ],
)
def test_an_entry_point_that_is_no_store(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    offer(monkeypatch, ("secretstores.example", value))
    with pytest.raises(ConfigurationError, match=message):
        load_store_type("secretstores.example", "", SOURCE)


def test_of_two_packages_that_offer_a_type_neither_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("secretstores.example", "secretfs.stores.local_file"), ("secretstores.Example", "elsewhere"))
    with pytest.raises(ConfigurationError, match=r"secretstores\.example is offered twice: .*local_file and elsewhere"):
        load_store_type("secretstores.example", "", SOURCE)


def test_an_entry_point_may_name_any_object(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Settings=local_env.Settings, open_store=local_env.open_store)
    monkeypatch.setattr(local_file, "example", module, raising=False)
    offer(monkeypatch, ("secretstores.example", "secretfs.stores.local_file:example"))
    assert load_store_type("secretstores.example") is module


def test_importing_the_table_imports_no_store() -> None:
    code = (
        "import sys, secretfs.stores\n"
        "heavy = ('grpc', 'hvac', 'requests', 'urllib3', 'secretfs.store')\n"
        "print(*sorted(name for name in sys.modules if name.startswith(heavy)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["secretfs.store", "secretfs.stores", "secretfs.stores._sockets"]


def test_a_library_that_is_not_needed_is_no_warning() -> None:
    """urllib3 warns where PySocks is missing, and SDKs that are imported side by side may let that through."""
    program = "import secretfs.stores\ntry:\n import urllib3.contrib.socks\nexcept ImportError:\n pass"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
