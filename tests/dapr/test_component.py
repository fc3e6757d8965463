import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secretfs.dapr.component import Component, Item, Manifests, SecretKeyRef, load_manifests
from secretfs.errors import ConfigurationError
from tests.support.canary import CANARY, secret

FULL = f"""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: vault
  namespace: production
  labels: {{team: a, whatever: b}}
  annotations:
    secretfs/ttl: 30s
    secretfs/mode: 0440
    other: yes
spec:
  type: secretstores.hashicorp.vault
  version: v1
  ignoreErrors: true
  initTimeout: 1m30s
  metadata:
    - name: vaultAddr
      value: https://127.0.0.1:8200
    - name: skipVerify
      value: true
    - name: empty
      value: ""
    - name: vaultToken
      value: {secret("literal")}
      secretKeyRef: {{name: token, key: value}}
    - name: caPem
      secretKeyRef: {{name: ca}}
    - name: prefix
      envRef: PREFIX
    - name: nothing
auth:
  secretStore: env
scopes: [app1, app2]
"""


def store(
    name: str = "vault", *, extra: str = "", component_type: str = "secretstores.local.env", metadata: str = ""
) -> str:
    return (
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\n{metadata}"
        f"spec:\n  type: {component_type}\n  version: v1\n{extra}"
    )


def load(directory: Path, text: str | None = None, *, app_id: str = "", namespace: str = "") -> Manifests:
    if text is not None:
        (directory / "x.yaml").write_text(text, encoding="utf-8")
    manifests = load_manifests([directory], namespace=namespace)
    visible = manifests.visible_to(app_id)
    return Manifests(visible.components, (*manifests.notices, *visible.notices))


def names(manifests: Manifests) -> list[str]:
    return [component.name for component in manifests.components]


def messages(manifests: Manifests, directory: Path) -> list[str]:
    return [str(notice).removeprefix(f"{directory}/") for notice in manifests.notices]


def refused(directory: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text)
    message = str(caught.value)
    assert CANARY not in message
    return message.removeprefix(f"{directory}/")


def test_a_whole_component(tmp_path: Path) -> None:
    manifests = load(tmp_path, FULL, app_id="app2")
    assert manifests.notices == ()
    (component,) = manifests.components
    assert component == Component(
        name="vault",
        type="secretstores.hashicorp.vault",
        version="v1",
        namespace="production",
        ignore_errors=True,
        init_timeout=90.0,
        items=(
            Item("vaultAddr", "https://127.0.0.1:8200"),
            Item("skipVerify", "true"),
            Item("empty", ""),
            Item("vaultToken", secret("literal"), secret_key_ref=SecretKeyRef("token", "value")),
            Item("caPem", secret_key_ref=SecretKeyRef("ca", "ca")),
            Item("prefix", env_ref="PREFIX"),
            Item("nothing"),
        ),
        secret_store="env",
        scopes=("app1", "app2"),
        annotations={"secretfs/ttl": "30s", "secretfs/mode": "288", "other": "true"},
    )
    assert str(component.source) == f"{tmp_path}/x.yaml:1"
    assert str(component.items[3].source) == f"{tmp_path}/x.yaml:23"
    assert str(component.annotation_sources["secretfs/mode"]) == f"{tmp_path}/x.yaml:9"
    assert CANARY not in repr(manifests)


def test_the_least_component(tmp_path: Path) -> None:
    text = "{apiVersion: dapr.io/v1alpha1, kind: Component, metadata: {name: e}, spec: {type: secretstores.local.env}}"
    (component,) = load(tmp_path, text).components
    assert component == Component("e", "secretstores.local.env")
    assert (component.init_timeout, component.ignore_errors, component.version) == (5.0, False, "")


# --- files ---


def test_files_and_documents_are_read_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "z", tmp_path / "a"
    for directory in (first, second):
        directory.mkdir()
    (first / "b.yaml").write_text(store("3") + "---\n" + store("4"))
    (first / "a.YML").write_text(store("2"))
    (first / "B.Yaml").write_text("---\n" + store("1"))
    (second / "a.yaml").write_text(store("5") + "--- # rest of the line\n" + store("6"))
    manifests = load_manifests([first, second], namespace="").visible_to("")
    assert names(manifests) == ["1", "2", "3", "4", "5", "6"]
    assert str(manifests.components[3].source) == f"{first}/b.yaml:9"
    assert manifests.notices == ()


def test_what_is_not_yaml_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "vault.yaml").write_text(store())
    (tmp_path / ".yaml").write_text(store("hidden"))
    (tmp_path / "vault.yaml~").write_text("x")
    (tmp_path / "vault.json").write_text("x")
    (tmp_path / ".vault.yaml.swp").write_text("x")
    (tmp_path / "deeper.yaml").mkdir()
    (tmp_path / "deeper.yaml" / "x.yaml").write_text(store("deep"))
    (tmp_path / "..data").symlink_to("deeper.yaml")
    manifests = load(tmp_path)
    assert names(manifests) == ["hidden", "vault"]
    assert messages(manifests, tmp_path) == [
        "vault.json: not a YAML file, passed over",
        "vault.yaml~: not a YAML file, passed over",
    ]


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links through ``..data``."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "vault.yaml").write_text(store())
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "vault.yaml").symlink_to("..data/vault.yaml")
    assert names(load(tmp_path)) == ["vault"]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none: cannot be read: No such file or directory"):
        load_manifests([tmp_path / "none"], namespace="")


def test_an_empty_directory_is_none(tmp_path: Path) -> None:
    assert load(tmp_path) == Manifests(())
    assert load_manifests([], namespace="").visible_to("") == Manifests(())


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigurationError, match=r"pipe.yaml: not a regular file"):
        load(tmp_path)
    (tmp_path / "pipe.yaml").unlink()
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match=r"gone.yaml: cannot be read"):
        load(tmp_path)
    (tmp_path / "gone.yaml").unlink()
    (tmp_path / "latin.yaml").write_bytes(store().encode() + b"# caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"latin.yaml:8: not UTF-8 text"):
        load(tmp_path)


# --- which documents count ---


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "just text",
        "- a\n- list\n",
        "{}",
        store().replace("dapr.io/v1alpha1", "dapr.io/v1alpha2"),
        store().replace("dapr.io/v1alpha1", "Dapr.io/v1alpha1"),
        store().replace("kind: Component", "kind: component"),
        store().replace("kind: Component", "kind: Configuration"),
        store().replace("kind: Component", "kind: 5"),
        store().replace("kind: Component\n", ""),
        # what is not a component may be as strange as it likes
        "kind: ConfigMap\napiVersion: [1]\nmetadata: 5\n",
        "kind: ConfigMap\n~: null key\n<<: 5\nx: .inf\n? [a]\n: b\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a/b}\nspec: {type: secretstores.local.env}\n",
    ],
)
def test_other_documents_are_none_of_our_business(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text + "\n---\n" + store("kept")).components[0].name == "kept"
    assert len(load(tmp_path).components) == 1
    assert load(tmp_path).notices == ()


@pytest.mark.parametrize(
    "spec",
    [
        "{type: state.redis, metadata: {a: b}}",
        "{type: state.redis, version: [1], ignoreErrors: 'true'}",
        "{type: pubsub.redis, metadata: [{nmae: x}]}",
        "{type: middleware.http.x, metdata: []}",
        "{type: own.kind}",
    ],
)
def test_components_of_other_types_are_none_of_our_business(tmp_path: Path, spec: str) -> None:
    text = f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: other}}\nspec: {spec}\n"
    manifests = load(tmp_path, f"{text}\n---\n{store()}")
    assert names(manifests) == ["vault"]
    assert manifests.notices == ()


def test_even_a_name_that_dapr_refuses(tmp_path: Path) -> None:
    assert names(load(tmp_path, store("a/b", component_type="state.redis") + "\n---\n" + store())) == ["vault"]


def test_field_names_match_without_regard_to_case(tmp_path: Path) -> None:
    text = """
APIVersion: dapr.io/v1alpha1
KIND: Component
Metadata: {Name: vault}
SPEC:
  Type: secretstores.Local.Env
  METADATA:
    - {NAME: a, Value: b}
    - {name: c, SecretKeyRef: {Name: s, KEY: k}}
    - {name: d, EnvRef: E}
Auth: {secretstore: other}
Scopes: [app]
"""
    manifests = load(tmp_path, text, app_id="app")
    assert manifests.notices == ()
    assert manifests.components[0].type == "secretstores.Local.Env"
    assert manifests.components[0].secret_store == "other"
    assert manifests.components[0].items == (
        Item("a", "b"),
        Item("c", secret_key_ref=SecretKeyRef("s", "k")),
        Item("d", env_ref="E"),
    )


def test_numbers_and_booleans_become_text(tmp_path: Path) -> None:
    text = store(
        "123", metadata="  namespace: yes\n", extra="  metadata: [{name: 5, secretKeyRef: {name: 6, key: 7.50}}]\n"
    )
    (component,) = load(tmp_path, text.replace("version: v1", "version: 1")).components
    assert (component.name, component.namespace, component.version) == ("123", "true", "1")
    assert component.items == (Item("5", secret_key_ref=SecretKeyRef("6", "7.5")),)


@pytest.mark.parametrize("metadata", ["", "  metadata:\n", "  metadata: ~\n", "  metadata: []\n"])
def test_no_metadata_is_fine(tmp_path: Path, metadata: str) -> None:
    assert load(tmp_path, store(extra=metadata)).components[0].items == ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[vault_address]", '["vault_address"]'),
        ("{b: <1>, a: 2}", '{"a":2,"b":"\\u003c1\\u003e"}'),
        ("12:30", "12:30"),
        ("08", "8"),
        ("y", "true"),
        ("~", None),
        ("", None),
        ("''", ""),
        ("'\"x\"'", '"x"'),
    ],
)
def test_values(tmp_path: Path, value: str, expected: str | None) -> None:
    extra = f"  metadata:\n    - name: a\n      value: {value}\n"
    assert load(tmp_path, store(extra=extra)).components[0].items == (Item("a", expected),)


@pytest.mark.parametrize(
    ("written", "seconds", "reason"),
    [
        ("20s", 20.0, None),
        ("1m", 60.0, None),
        ("''", 5.0, None),
        ("0s", 5.0, "not positive"),
        ("-5s", 5.0, "not positive"),
        ("20", 5.0, "not a duration such as 30s, 5m or 1h30m"),
        ("soon", 5.0, "not a duration such as 30s, 5m or 1h30m"),
    ],
)
def test_init_timeout(tmp_path: Path, written: str, seconds: float, reason: str | None) -> None:
    manifests = load(tmp_path, store(extra=f"  initTimeout: {written}\n"))
    assert manifests.components[0].init_timeout == seconds
    expected = [f"x.yaml:8: spec.initTimeout is {reason}; 5s counts instead"] if reason else []
    assert messages(manifests, tmp_path) == expected


# --- names, namespaces, duplicates, scopes ---


@pytest.mark.parametrize("name", ["a b", "ünïcode", "🔑", "a:b", "...", ".hidden", "UPPER", "a\\\\b", "x" * 300, "-"])
def test_names_that_are_accepted(tmp_path: Path, name: str) -> None:
    assert names(load(tmp_path, store(f'"{name}"'))) == [name.replace("\\\\", "\\")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "x.yaml:4: invalid name 'a/b' for 'Component': may not contain '/'"),
        ("a%b", "x.yaml:4: invalid name 'a%b' for 'Component': may not contain '%'"),
        (".", "x.yaml:4: invalid name '.' for 'Component': may not be '.'"),
        ("..", "x.yaml:4: invalid name '..' for 'Component': may not be '..'"),
        ("''", "x.yaml:4: metadata.name is missing"),
        ("", "x.yaml:4: metadata.name is missing"),
        ("[a]", "x.yaml:4: metadata.name must be a string, not a list"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    assert refused(tmp_path, store(name)) == message


@pytest.mark.parametrize(
    ("namespace", "declared", "loaded"),
    [("", "a", True), ("a", "", True), ("a", "a", True), ("a", "b", False), ("a", "A", False), ("", "", True)],
)
def test_namespaces(tmp_path: Path, namespace: str, declared: str, *, loaded: bool) -> None:
    text = store(metadata=f"  namespace: '{declared}'\n")
    assert names(load(tmp_path, text, namespace=namespace)) == (["vault"] if loaded else [])


@pytest.mark.parametrize(
    ("scopes", "app_id", "loaded"),
    [
        ("[app1]", "app1", True),
        ("[app2, app1]", "app1", True),
        ("[app2]", "app1", False),
        ("[APP1]", "app1", False),
        ("['*']", "app1", False),
        ("[app]", "app1", False),
        ("[]", "app1", True),
        ("~", "app1", True),
        ("[app1]", "", False),
        ("['']", "", False),
        ("[~]", "", False),
        ("[]", "", True),
    ],
)
def test_scopes(tmp_path: Path, scopes: str, app_id: str, *, loaded: bool) -> None:
    assert names(load(tmp_path, store(extra=f"scopes: {scopes}\n"), app_id=app_id)) == (["vault"] if loaded else [])


def test_a_name_declared_twice_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\n" + store())
    message = refused(tmp_path, store(component_type="secretstores.local.file"))
    assert message == (
        "x.yaml:1: duplicate definition of Component name vault (secretstores.local.file/v1)"
        f" with existing vault (secretstores.local.env/v1) at {tmp_path}/a.yaml:2"
    )


def test_the_type_does_not_matter_for_duplicates(tmp_path: Path) -> None:
    other = store(component_type="state.redis").replace("  version: v1\n", "")
    assert "duplicate definition" in refused(tmp_path, store() + "---\n" + other)
    assert "with existing vault (state.redis) at" in refused(tmp_path, other + "---\n" + store())


def test_only_an_earlier_component_that_is_seen_counts_for_duplicates(tmp_path: Path) -> None:
    foreign = store(extra="scopes: [other]\n")
    elsewhere = store(metadata="  namespace: other\n")
    text = foreign + "---\n" + store() + "---\n" + elsewhere
    assert len(load(tmp_path, text, app_id="app", namespace="mine").components) == 1
    with pytest.raises(ConfigurationError, match="duplicate definition"):
        load(tmp_path, store() + "---\n" + foreign, app_id="app")


# --- what stops ---


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("  metadata: {a: b}\n", "x.yaml:8: spec.metadata must be a list, not a map"),
        ("  metadata: text\n", "x.yaml:8: spec.metadata must be a list, not a string"),
        ("  metadata: [text]\n", "x.yaml:8: spec.metadata[0] must be a map, not a string"),
        ("  metadata:\n    - name: [a]\n", "x.yaml:9: spec.metadata[0].name must be a string, not a list"),
        (
            "  metadata:\n    - name: a\n    - name: b\n      secretKeyRef: c\n",
            "x.yaml:11: spec.metadata[1].secretKeyRef must be a map, not a string",
        ),
        ("  metadata: [{name: a, envRef: {}}]\n", "x.yaml:8: spec.metadata[0].envRef must be a string, not a map"),
        (
            "  metadata: [{name: a, value: [.inf]}]\n",
            "x.yaml:8: spec.metadata[0].value[0] is infinite or not a number: JSON has no such value",
        ),
        ("  ignoreErrors: 'true'\n", "x.yaml:8: spec.ignoreErrors must be a boolean, not a string"),
        ("  initTimeout: [5s]\n", "x.yaml:8: spec.initTimeout must be a string, not a list"),
        ("  version: [v1]\n", "x.yaml:8: spec.version must be a string, not a list"),
        ("scopes: app1\n", "x.yaml:8: scopes must be a list, not a string"),
        ("scopes: [a, 5]\n", "x.yaml:8: scopes[1] must be a string, not a number"),
        ("auth: vault\n", "x.yaml:8: auth must be a map, not a string"),
        ("auth: {secretStore: [a]}\n", "x.yaml:8: auth.secretStore must be a string, not a list"),
        ("unread: .nan\n", "x.yaml:8: unread is infinite or not a number: JSON has no such value"),
        ("~: x\n", "x.yaml:8: a key in the document is null: JSON has no such key"),
        (f"? [{secret()}]\n: x\n", "x.yaml:8: a key in the document is a list: JSON has no such key"),
        (f"x: {secret()}: y\n", "x.yaml:8: not valid YAML: mapping values are not allowed in this context"),
    ],
)
def test_what_dapr_would_skip_stops_with_file_line_and_field(tmp_path: Path, extra: str, message: str) -> None:
    assert refused(tmp_path, store(extra=extra)) == message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("spec: []", "x.yaml:4: spec must be a map, not a list"),
        ("spec: {}", "x.yaml:4: spec.type is missing"),
        (
            "spec: {Type: 1, type: secretstores.x}",
            "x.yaml:4: spec.type is the same field as spec.Type at line 4: leave one of them out",
        ),
        ("spec: ~", "x.yaml:4: spec.type is missing"),
        ("", "x.yaml:1: spec.type is missing"),
        ("spec: {type: [a]}", "x.yaml:4: spec.type must be a string, not a list"),
        (
            "spec: {type: SecretStores.local.env}",
            "x.yaml:4: incorrect type SecretStores.local.env: a secret store's begins with secretstores.",
        ),
        (
            "spec: {type: secretstore.local.env}",
            "x.yaml:4: incorrect type secretstore.local.env: a secret store's begins with secretstores.",
        ),
    ],
)
def test_a_component_whose_type_cannot_be_told_stops(tmp_path: Path, spec: str, message: str) -> None:
    text = f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: a}}\n{spec}\n"
    assert refused(tmp_path, text) == message


def test_annotations_must_be_texts(tmp_path: Path) -> None:
    text = store(metadata="  annotations:\n    secretfs/ttl: [1]\n")
    assert refused(tmp_path, text) == "x.yaml:6: metadata.annotations.secretfs/ttl must be a string, not a list"


BROKEN = [
    f"kind: Component\nspec:\n  type: state.redis\n  metadata:\n  - value: 'open {secret()}\n",
    "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {{ .Values.name }}\n{{- if .x }}\n",
    "{{- range .Values.all }}\nkind: Deployment\n{{- end }}\n",
    "kind: Component\nspec:\n  type: 'pubsub.kafka'\nauth:\n  secretStore: [vault\n",
    "\0\5\26\7\0 Mac OS X\n",
    "kind: Other\nx: caf\udce9\n",
]
"""What can be in a directory of manifests, and declares no store."""


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_document_that_names_no_secret_store_is_noted(tmp_path: Path, text: str) -> None:
    whole = f"{store()}---\n{text}\n---\n{store('after')}"
    (tmp_path / "x.yaml").write_bytes(whole.encode("utf-8", "surrogateescape"))
    manifests = load(tmp_path)
    assert names(manifests) == ["vault", "after"]
    (message,) = messages(manifests, tmp_path)
    assert re.fullmatch(r"x\.yaml:(?:9|1\d): not .*; passed over", message)
    assert CANARY not in message


@pytest.mark.parametrize(
    "text",
    [
        store(extra=f"  metadata:\n  - value: 'open {secret()}\n"),
        "kind: Component\nspec:\n  type: secretstore.local.file\n  x: [\n",
        "kind: Component\nmetadata: {name: [}\n",
        "# no type yet\nkind: Component\nspec:\n  x: [\n",
        store().replace("secretstores.local.env", "{{ .Values.type }}"),
        "kind: Component\nspec: {type: SECRETSTORES.x, x: [}\n",
    ],
)
def test_a_broken_document_that_may_be_a_secret_store_stops(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, f"{store('before')}---\n{text}").startswith("x.yaml:")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (store(extra="  metadata:\n  - name: a\n    value: {{ .Values.token }}\n"), 10),
        (store(extra="  metadata:\n  - name: a\n    value: %s\n"), 10),
        (store(extra="{{- if .Values.tls }}\n  metadata: []\n{{- end }}\n"), 8),
        (store("{{ .Release.Name }}"), 4),
    ],
)
def test_a_template_that_nobody_has_rendered_is_called_so(tmp_path: Path, text: str, line: int) -> None:
    message = refused(tmp_path, text)
    assert message.endswith("; it looks like a template that nobody has rendered")
    assert int(message.split(":")[1]) in (line, line + 1)


def test_a_mistake_beside_a_template_is_not_called_one(tmp_path: Path) -> None:
    text = store(extra="  ignoreErrors: 'true'\n  x: 1\n  metadata:\n  - {name: a, value: '{{ b }}'}\n")
    assert refused(tmp_path, text) == "x.yaml:8: spec.ignoreErrors must be a boolean, not a string"


@pytest.mark.parametrize("spec", ["{type: ~}", "{type: }", "{type: null, version: v1}"])
def test_a_type_that_is_null_is_none(tmp_path: Path, spec: str) -> None:
    text = f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: a}}\nspec: {spec}\n---\n{store()}"
    manifests = load(tmp_path, text)
    assert names(manifests) == ["vault"]
    assert messages(manifests, tmp_path) == ["x.yaml:1: spec.type is null, so this is no secret store; passed over"]


def test_a_directive_before_the_first_separator(tmp_path: Path) -> None:
    manifests = load(tmp_path, f"%YAML 1.1\n# comment\n---\n{store()}")
    assert names(manifests) == ["vault"]
    assert manifests.notices == ()


def test_hidden_files_that_are_no_manifests_are_noted(tmp_path: Path) -> None:
    """The lock of Emacs, what macOS leaves on a foreign disk, and what another program keeps there."""
    (tmp_path / "vault.yaml").write_text(store())
    (tmp_path / ".#vault.yaml").symlink_to("user@host.1234:1")
    (tmp_path / "._vault.yaml").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        \0\xff")
    os.mkfifo(tmp_path / ".pipe.yaml")
    manifests = load(tmp_path)
    assert names(manifests) == ["vault"]
    assert messages(manifests, tmp_path) == [
        ".#vault.yaml: cannot be read: No such file or directory; passed over",
        "._vault.yaml:1: not UTF-8 text; passed over",
        ".pipe.yaml: not a regular file; passed over",
    ]


@pytest.mark.parametrize("value", ["secrets.json", "./components/secrets.json", "/somewhere/else/secrets.json"])
def test_a_file_that_a_store_names_is_not_noted(tmp_path: Path, value: str) -> None:
    """Dapr's quickstarts keep the secrets file beside the manifest; the path starts at some working directory."""
    (tmp_path / "secrets.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    manifests = load(tmp_path, store(extra=f"  metadata:\n  - name: secretsFile\n    value: {value}\n"))
    assert messages(manifests, tmp_path) == ["other.json: not a YAML file, passed over"]


def test_a_document_on_which_dapr_hangs_is_loaded_with_a_notice(tmp_path: Path) -> None:
    padding = "#" * (64 << 10)
    manifests = load(tmp_path, f"{store()}---\n{store('large', extra=padding)}\n---\n{store('after')}")
    assert names(manifests) == ["vault", "large", "after"]
    assert messages(manifests, tmp_path) == ["x.yaml:9: larger than 64 KiB: Dapr itself hangs when it reads this"]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("labels: abc", "metadata.labels must be a map, not a string"),
        ("labels: {a: [b]}", "metadata.labels.a must be a string, not a list"),
        ("generation: 1.5", "metadata.generation must be an integer"),
        ("generation: '1'", "metadata.generation must be an integer"),
        ("generation: 1e20", "metadata.generation must be an integer"),
        ("creationTimestamp: 2026-01-31", "metadata.creationTimestamp must be a time such as 2026-01-31T12:00:00Z"),
        ("creationTimestamp: 2026-02-30T12:00:00Z", "metadata.creationTimestamp must be a time such as 2026-01-31T12"),
        ("finalizers: a", "metadata.finalizers must be a list, not a string"),
        ("ownerReferences: [a]", "metadata.ownerReferences[0] must be a map, not a string"),
        ("uid: {}", "metadata.uid must be a string, not a map"),
    ],
)
def test_metadata_for_which_dapr_skips_a_component_is_noted(tmp_path: Path, metadata: str, reason: str) -> None:
    manifests = load(tmp_path, store(metadata=f"  {metadata}\n"))
    assert names(manifests) == ["vault"]
    (message,) = messages(manifests, tmp_path)
    assert message.startswith(f"x.yaml:5: {reason}")
    assert message.endswith(": Dapr skips this component")


@pytest.mark.parametrize(
    "metadata",
    [
        "labels: ~",
        "labels: {a: 1, b: .inf}",
        "generation: 1e3",
        "generation: 0x10",
        "creationTimestamp: ~",
        "creationTimestamp: 2026-01-31T12:00:00Z",
        "creationTimestamp: '2026-01-31T12:00:00.5+01:00'",
        "ownerReferences: [{kind: ReplicaSet}]\n  uid: 5",
    ],
)
def test_metadata_that_kubernetes_exports_is_not_noted(tmp_path: Path, metadata: str) -> None:
    assert load(tmp_path, store(metadata=f"  {metadata}\n")).notices == ()


def test_an_infinite_number_is_a_name(tmp_path: Path) -> None:
    """To Dapr as well: it makes texts of them before it makes JSON."""
    assert names(load(tmp_path, store(".inf", metadata="  namespace: -.Inf\n"))) == ["+Inf"]


def test_the_yaml_of_daprs_kubernetes_page_is_not_yaml(tmp_path: Path) -> None:
    message = refused(tmp_path, store(extra="  metadata:[]\n"))
    assert message == "x.yaml:9: not valid YAML: could not find expected ':'"


# --- what is noticed ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (store(extra="  metdata: []\n"), "8: unknown field spec.metdata is ignored (did you mean metadata?)"),
        (store(extra="scpoes: [a]\n"), "8: unknown field scpoes is ignored (did you mean scopes?)"),
        (store(extra="auth: {store: a}\n"), "8: unknown field auth.store is ignored (did you mean secretStore?)"),
        (store(extra="zzz: 1\n"), "8: unknown field zzz is ignored"),
        (store(metadata="  namepace: a\n"), "5: unknown field metadata.namepace is ignored (did you mean namespace?)"),
        (
            store(extra="  metadata:\n    - name: a\n      secretKeyRef: {nmae: b}\n"),
            "10: unknown field spec.metadata[0].secretKeyRef.nmae is ignored (did you mean name?)",
        ),
        (
            store(extra=f"  metadata:\n    - name: a\n      vlaue: {secret()}\n"),
            "10: unknown field spec.metadata[0].vlaue is ignored (did you mean value?)",
        ),
        (
            store(extra="  metadata:\n    - name: a\n      secretKeyRef: {key: b}\n"),
            "10: spec.metadata[0].secretKeyRef has no name and is ignored",
        ),
    ],
)
def test_a_misspelt_field_is_noticed(tmp_path: Path, text: str, message: str) -> None:
    manifests = load(tmp_path, text)
    assert f"x.yaml:{message}" in messages(manifests, tmp_path)
    assert len(manifests.components) == 1
    assert CANARY not in str(manifests.notices)


def test_what_another_app_misspells_is_not_noticed(tmp_path: Path) -> None:
    assert load(tmp_path, store(extra="scopes: [other]\nzzz: 1\n"), app_id="app").notices == ()


def test_two_components_are_equal_when_they_declare_the_same(tmp_path: Path) -> None:
    (before,) = load(tmp_path, FULL, app_id="app1").components
    (after,) = load(tmp_path, "# moved\n\n" + FULL, app_id="app1").components
    assert before == after
    assert before.source != after.source
    (changed,) = load(tmp_path, FULL.replace("PREFIX", "OTHER"), app_id="app1").components
    assert before != changed


# --- fuzzing ---


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def accepts_or_refuses(directory: Path, data: bytes) -> None:
    (directory / "x.yaml").write_bytes(data)
    manifests, refusal = Manifests(()), ""
    try:
        manifests = load(directory, app_id="app1")
    except ConfigurationError as error:
        refusal = str(error)
    assert CANARY not in refusal + "".join(map(str, manifests.notices))
    assert not refusal or refusal.startswith(f"{directory}/x.yaml")
    assert all(component.type.startswith("secretstores.") for component in manifests.components)


FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
BITS = (
    "{",
    "}",
    "[",
    "]",
    ":",
    "- ",
    "\n",
    "\n---\n",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "'",
    '"',
    "~",
    ".inf",
    "\t",
    "\x00",
    "|",
    "  ",
)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(fuzzed: Path, data: bytes) -> None:
    accepts_or_refuses(fuzzed, data)


@FUZZ
@given(st.text(max_size=200))
def test_any_text(fuzzed: Path, text: str) -> None:
    accepts_or_refuses(fuzzed, text.encode())


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = FULL
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20])))
        data = data[:start] + draw(st.sampled_from(BITS)) + data[end:]
    return data.encode()


@settings(FUZZ, max_examples=400)
@given(mutations())
def test_any_mutation_of_a_component(fuzzed: Path, data: bytes) -> None:
    accepts_or_refuses(fuzzed, data)


def trees() -> st.SearchStrategy[str]:
    """Flow YAML: any shape in any place."""
    scalars = st.sampled_from(["a", "5", "yes", "~", "''", ".nan", "1e3", "secretstores.local.env", secret()])
    keys = st.sampled_from(["name", "value", "type", "metadata", "secretKeyRef", "key", "~", "5", "Name", "[a]"])
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.lists(st.tuples(keys, inner), max_size=3).map(_flow_map)
        ),
        max_leaves=8,
    )


def _flow_map(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"


def _document(parts: tuple[str, str, str, str]) -> bytes:
    lines: Iterator[str] = (
        f"{name}: {part}" for name, part in zip(("metadata", "spec", "auth", "scopes"), parts, strict=True)
    )
    return "\n".join(("apiVersion: dapr.io/v1alpha1", "kind: Component", *lines)).encode()


@settings(FUZZ, max_examples=250)
@given(st.tuples(trees(), trees(), trees(), trees()).map(_document))
def test_any_shape_of_a_component(fuzzed: Path, data: bytes) -> None:
    accepts_or_refuses(fuzzed, data)
