"""Write the templates of the chart from the manifests for kustomize: ``python deploy/helm/generate.py``.

Templates are text and no YAML, so what a value of the chart decides is put in after YAML has been written.
"""

import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "kubernetes/base"
COMPONENTS_FROM_API = HERE.parent / "kubernetes/components-from-api"
TEMPLATES = HERE / "secretfs/templates"

_IMAGE = re.compile(r"ghcr\.io/secretfs/secretfs:\S+")
_HAS_TOKENS = "{{ not (empty .Values.tokenRequests) }}"
_IF = "{{{{- if .Values.componentsFromApi }}}}\n{}{{{{- end }}}}\n"
_SETS = re.compile(r"^( *)- '@sets: (.*)@'$", re.MULTILINE)
_MARK = re.compile(r"^( *)((?:- )?\S+): '?@(\S+)@'?$", re.MULTILINE)


def templates() -> dict[str, str]:
    """Return the text of each template by the name of its file."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    base = {name: _template(BASE / name) for name in names if name != "namespace.yaml"}  # Helm makes the namespace
    return base | {"components-from-api.yaml": _IF.format(_template(COMPONENTS_FROM_API / "rbac.yaml"))}


def _template(path: Path) -> str:
    documents = [_marked(document) for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    text = "---\n".join(yaml.dump(document, Dumper=_Plain, sort_keys=False, width=1000) for document in documents)
    text = _IMAGE.sub('"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"', text)
    text = text.replace("/var/lib/kubelet", "{{ .Values.kubeletDir }}")
    text = re.sub(r"namespace: secretfs$", "namespace: {{ .Release.Namespace }}", text, flags=re.MULTILINE)
    text = _MARK.sub(_block, text)
    text = _SETS.sub(_each_set, text)
    text = re.sub(
        r"^ *- '@componentsFromApi@'\n", _IF.format("        - --components-from-api\n"), text, flags=re.MULTILINE
    )
    return text.replace(f"'{_HAS_TOKENS}'", _HAS_TOKENS)


def _marked(document: dict[str, Any]) -> dict[str, Any]:
    """Put marks where a value of the chart is a whole block."""
    if document["kind"] == "ConfigMap":
        document["data"] = "@components@"
    if document["kind"] == "CSIDriver":
        document["spec"] |= {"tokenRequests": "@tokenRequests@", "requiresRepublish": _HAS_TOKENS}
    if document["kind"] == "DaemonSet":
        pod = document["spec"]["template"]["spec"]
        pod |= {"nodeSelector": "@nodeSelector@", "tolerations": "@tolerations@"}
        pod["volumes"].append("@sets: configMap: {name: {{ $set.configMap }}}@")
        path = "/etc/secretfs/sets/{{ $set.namespace }}/{{ $set.name }}"
        pod["initContainers"][0]["volumeMounts"].append(f"@sets: mountPath: {path}@")
        pod["containers"][0]["command"].insert(2, "@componentsFromApi@")
        for container in pod["containers"]:
            container["resources"] = "@resources@"
    return document


def _block(match: re.Match[str]) -> str:
    indent, key, name = match.groups()
    width = len(indent) + (4 if key.startswith("- ") else 2)
    return f"{indent}{key}: {{{{- toYaml .Values.{name} | nindent {width} }}}}"


def _each_set(match: re.Match[str]) -> str:
    """Return an entry of a list for each of the sets."""
    indent, field = match.groups()
    lines = ("{{- range $number, $set := .Values.sets }}", "- name: set-{{ $number }}", f"  {field}", "{{- end }}")
    return "\n".join(f"{indent}{line}" for line in lines)


class _Plain(yaml.SafeDumper):
    """Writes everything out, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    TEMPLATES.mkdir(exist_ok=True)
    for name, text in templates().items():
        (TEMPLATES / name).write_text(text, encoding="utf-8")
