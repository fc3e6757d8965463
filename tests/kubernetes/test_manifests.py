"""What is in deploy/: the manifests for kustomize, the chart for Helm, and the examples."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import secretfs
from tests.support.command import ROOT
from tests.support.kube_fixtures import kube
from tests.support.servers.kube_apiserver import KUBECTL, KubeApiserver

__all__ = ["kube"]

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/secretfs"


def kustomize(directory: Path) -> list[dict[str, Any]]:
    done = subprocess.run([KUBECTL, "kustomize", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def rendered(**more: Any) -> list[dict[str, Any]]:
    """Render the chart with its own values, or with others, as far as its templates use Helm's language."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")) | more
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    def value(name: str) -> Any:
        found = values
        for part in name.split("."):
            found = found[part]
        return found

    def block(match: re.Match[str]) -> str:
        indent = " " * int(match[2])
        lines = yaml.safe_dump(value(match[1]), sort_keys=False).rstrip().splitlines()
        return "".join(f"\n{indent}{line}" for line in lines)

    def entries(match: re.Match[str]) -> str:
        return "".join(
            re.sub(r"\{\{ \$set\.(\S+) \}\}", lambda field: item[field[1]], match[2]).replace(  # noqa: B023 - used at once
                "{{ $number }}", str(number)
            )
            for number, item in enumerate(value(match[1]))
        )

    documents: list[dict[str, Any]] = []
    for path in sorted((CHART / "templates").iterdir()):
        text = path.read_text(encoding="utf-8")
        text = re.sub(
            r"\s*\{\{- range \S+ \$set := \.Values\.(\S+) \}\}(.*?)\s*\{\{- end \}\}", entries, text, flags=re.DOTALL
        )
        text = re.sub(
            r"\s*\{\{- if \.Values\.(\S+) \}\}(.*?)\s*\{\{- end \}\}",
            lambda match: match[2] if value(match[1]) else "",
            text,
            flags=re.DOTALL,
        )
        text = re.sub(r" \{\{- toYaml \.Values\.(\S+) \| nindent (\d+) \}\}", block, text)
        text = text.replace("{{ .Release.Namespace }}", "secretfs")
        text = text.replace("{{ .Values.image.tag | default .Chart.AppVersion }}", chart["appVersion"])
        text = re.sub(r"\{\{ not \(empty \.Values\.(\S+)\) \}\}", lambda match: json.dumps(bool(value(match[1]))), text)
        text = re.sub(r"\{\{ \.Values\.(\S+) \}\}", lambda match: str(value(match[1])), text)
        assert "{{" not in text, f"{path.name} has a template that this test does not know"
        documents += filter(None, yaml.safe_load_all(text))
    return documents


def _key(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def test_the_chart_with_its_own_values_is_the_base() -> None:
    base = {_key(document): document for document in kustomize(DEPLOY / "kubernetes/base")}
    del base["Namespace", "secretfs"]  # helm install --create-namespace
    assert {_key(document): document for document in rendered()} == base


def test_tokens_of_pods_are_values_of_the_chart() -> None:
    """With audiences the kubelet is asked to pass on renewed tokens as well."""
    requests = [{"audience": "vault", "expirationSeconds": 3600}, {"audience": "sts.amazonaws.com"}]
    (driver,) = [each for each in rendered(tokenRequests=requests) if each["kind"] == "CSIDriver"]
    assert (driver["spec"]["tokenRequests"], driver["spec"]["requiresRepublish"]) == (requests, True)


def test_sets_of_components_are_values_of_the_chart() -> None:
    """Each is a ConfigMap, which the first container copies to where the mount has it by namespace and name."""
    sets = [
        {"namespace": "shop", "name": "vault", "configMap": "shop-vault"},
        {"namespace": "billing", "name": "cloud", "configMap": "bill"},
    ]
    (driver,) = [each for each in rendered(sets=sets) if each["kind"] == "DaemonSet"]
    pod = driver["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["initContainers"][0]["volumeMounts"]}
    assert (mounted["set-0"], mounted["set-1"]) == (
        "/etc/secretfs/sets/shop/vault",
        "/etc/secretfs/sets/billing/cloud",
    )
    assert pod["volumes"][-2:] == [
        {"name": "set-0", "configMap": {"name": "shop-vault"}},
        {"name": "set-1", "configMap": {"name": "bill"}},
    ]


def test_what_the_first_container_copies(tmp_path: Path) -> None:
    """The components of all and the sets of namespaces, and those of the pod before stay for its mount."""
    (driver,) = [each for each in kustomize(DEPLOY / "kubernetes/base") if each["kind"] == "DaemonSet"]
    *program, script = driver["spec"]["template"]["spec"]["initContainers"][0]["command"]
    script = script.replace("/run/secretfs", f"{tmp_path}/run").replace("/etc/secretfs", f"{tmp_path}/etc")
    for name in ("components/vault.yaml", "sets/shop/vault/vault.yaml"):
        path = tmp_path / "etc" / name
        data = path.parent / "..data"  # as a ConfigMap is mounted
        data.mkdir(parents=True)
        (data / path.name).write_text(name)
        path.symlink_to(f"..data/{path.name}")
    (tmp_path / "run").mkdir()
    for pod in ("1", "2", "3"):
        subprocess.run([sys.executable, *program[1:], script], check=True, env={"POD": pod})
        age = 10 * (3 - int(pod))
        os.utime(tmp_path / "run/components" / pod, times=(time.time() - age,) * 2)
    copies = tmp_path / "run/components"
    assert sorted(path.name for path in copies.iterdir()) == ["2", "3"]
    files = sorted(str(path.relative_to(copies / "3")) for path in (copies / "3").rglob("*.yaml"))
    assert files == ["sets/shop/vault/vault.yaml", "vault.yaml"]
    assert (copies / "3/sets/shop/vault/vault.yaml").read_text() == "sets/shop/vault/vault.yaml"


def test_an_api_server_knows_every_field(kube: KubeApiserver) -> None:
    """One that is older than most: of fields that came later, the manifests have none."""
    kube.kubectl("create", "namespace", "secretfs")
    kube.kubectl("apply", "--dry-run=server", "--validate=true", "-k", str(DEPLOY / "kubernetes/overlay"))


def test_the_templates_are_as_they_are_generated() -> None:
    spec = importlib.util.spec_from_file_location("generate", DEPLOY / "helm/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = {path.name: path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir()}
    assert written == module.templates(), "run: python deploy/helm/generate.py"


def test_versions_are_those_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == secretfs.__version__
    text = (DEPLOY / "kubernetes/base/daemonset.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"image: \S+:(\S+)", text)) == {secretfs.__version__}


def overlay_with(directory: Path, *components: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the overlay has with additions, made in a directory."""
    for path in DEPLOY.glob("kubernetes/*/*.yaml"):
        copy = directory / path.relative_to(DEPLOY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (directory / "kubernetes/overlay/kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(f"components: [{', '.join(f'../{name}' for name in components)}]\n")
    return {_key(document): document for document in kustomize(directory / "kubernetes/overlay")}


def test_metrics_are_an_addition_to_any_overlay(tmp_path: Path) -> None:
    """The driver serves them inside of the pod, and the proxy outside."""
    found = overlay_with(tmp_path, "monitoring")
    assert ("PodMonitor", "secretfs") in found
    containers = {
        each["name"]: each for each in found["DaemonSet", "secretfs"]["spec"]["template"]["spec"]["containers"]
    }
    command = containers["csi"]["command"]
    assert command[:3] == ["secretfs", "csi", "--metrics-listen=127.0.0.1:9469"]
    assert command.index("--") > 3
    assert "--upstream=http://127.0.0.1:9469/" in containers["metrics"]["args"]


@pytest.mark.parametrize("more", [["monitoring", "components-from-api"], ["components-from-api", "monitoring"]])
def test_components_from_the_api_are_an_addition(tmp_path: Path, more: list[str]) -> None:
    """With metrics or without, in any order; and the chart says the same."""
    role = ("ClusterRole", "secretfs-components-from-api")
    found = overlay_with(tmp_path, *more)
    command = found["DaemonSet", "secretfs"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert set(command[2:4]) == {"--components-from-api", "--metrics-listen=127.0.0.1:9469"}
    assert found[role]["rules"] == [
        {"apiGroups": ["dapr.io"], "resources": ["components", "configurations"], "verbs": ["list", "watch"]}
    ]
    chart = {_key(document): document for document in rendered(componentsFromApi=True)}
    for key in (role, ("ClusterRoleBinding", "secretfs-components-from-api")):
        assert chart[key] == found[key]
    command = chart["DaemonSet", "secretfs"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["secretfs", "csi", "--components-from-api"]


@pytest.mark.parametrize("path", sorted((DEPLOY / "kubernetes/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_asks_for_a_volume_that_cannot_be_written(path: Path) -> None:
    (pod,) = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each["kind"] == "Pod"]
    (volume,) = [each for each in pod["spec"]["volumes"] if "csi" in each]
    assert volume["csi"]["driver"] == "csi.secretfs.dev"
    assert volume["csi"]["readOnly"] is True
