"""The pages about stores: what they say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from secretfs.settings import Property, decode, specs
from secretfs.stores import BUILTIN, load_store_type
from tests.support.canary import CANARY

ROOT = Path(__file__).parents[2]
PAGES = {
    "secretstores.local.env": "local-env.md",
    "secretstores.local.file": "local-file.md",
    "secretstores.hashicorp.vault": "hashicorp-vault.md",
    "secretstores.kubernetes": "kubernetes.md",
    "secretstores.azure.keyvault": "azure-key-vault.md",
    "secretstores.alicloud.parameterstore": "alicloud-parameter-store.md",
    "secretstores.huaweicloud.csms": "huaweicloud-csms.md",
    "secretstores.tencentcloud.ssm": "tencentcloud-ssm.md",
    "secretstores.gcp.secretmanager": "gcp-secret-manager.md",
    "secretstores.aws.secretmanager": "aws-secrets-manager.md",
    "secretstores.aws.parameterstore": "aws-parameter-store.md",
    "secretstores.secretfs.directory": "directory.md",
    "secretstores.secretfs.keyring": "keyring.md",
    "secretstores.secretfs.sops": "sops.md",
}


def read(page: str) -> str:
    return (ROOT / "docs" / "stores" / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[tuple[str, ...]]:
    """Find the rows of the table that starts with the word Property."""
    table = re.search(r"^\| Property .*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert table
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[0].splitlines()[2:]]


def shown(default: Any) -> str:
    text = str(default).lower() if isinstance(default, bool) else ", ".join(default) if default == () else str(default)
    return f"`{text}`" if text else ""


def test_the_pages_are_known_to_the_table_of_types() -> None:
    assert PAGES.keys() == BUILTIN.keys()


@pytest.mark.parametrize("type_", PAGES)
def test_the_table_of_properties_is_what_the_store_reads(type_: str) -> None:
    declared = load_store_type(type_).Settings
    defaults = {field: declared.__dataclass_fields__[field].default for field in specs(declared)}
    expected = [
        (f"`{spec.name}`" + (" (required)" if spec.required else ""), shown(defaults[field]), spec.help)
        for field, spec in specs(declared).items()
    ]
    assert rows(read(PAGES[type_])) == expected


@pytest.mark.parametrize("type_", PAGES)
def test_the_yaml_is_a_component_without_a_mistake(type_: str) -> None:
    components = [yaml.safe_load(block) for block in blocks(read(PAGES[type_]), "yaml")]
    assert components
    for component in components:
        assert (component["apiVersion"], component["kind"]) == ("dapr.io/v1alpha1", "Component")
        module = load_store_type(component["spec"]["type"], component["spec"]["version"])
        assert component["spec"]["type"] == type_
        items = component["spec"]["metadata"]
        properties = [Property(item["name"], item["value"] if "value" in item else item["envRef"]) for item in items]
        assert decode(module.Settings, properties)[1] == []


def test_the_example_store_keeps_the_contract(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "writing-a-store.md").read_text(encoding="utf-8")
    store, test = blocks(page, "python")
    assert len(store.splitlines()) < 60
    for block in (store, test):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block.replace("StoreContract):", f'StoreContract):\n    mark = "{CANARY}"'))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
