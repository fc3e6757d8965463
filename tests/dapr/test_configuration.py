import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secretfs.dapr import configuration as configuration_module
from secretfs.dapr.component import Component
from secretfs.dapr.configuration import Configuration, expand_env, load_configuration
from secretfs.dapr.memo import forget_undeclared
from secretfs.errors import ConfigurationError
from secretfs.scopes import ALLOW_ALL, Access, SecretScope
from tests.support.canary import CANARY, secret
from tests.support.counting import counting
from tests.support.waiting import wait_until_settled

HEAD = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: any, namespace: any}\n"
ENVIRON = {"STORE": "vault", "NAME": "s1", "EMPTY": "", "SECRET": secret(), "LINES": "a\nb"}


def load(directory: Path, *texts: str, environ: Mapping[str, str] = ENVIRON) -> Configuration:
    paths = [directory / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return load_configuration(paths, environ)


def refused(directory: Path, *texts: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, *texts)
    assert CANARY not in str(caught.value)
    return str(caught.value).removeprefix(f"{directory}/")


def messages(configuration: Configuration, directory: Path) -> list[str]:
    return [str(notice).removeprefix(f"{directory}/") for notice in configuration.notices]


def scopes(*entries: str) -> str:
    return HEAD + "spec:\n  secrets:\n    scopes:\n" + "".join(f"      - {entry}\n" for entry in entries)


def deny(*types: str) -> str:
    return HEAD + f"spec: {{components: {{deny: [{', '.join(types)}]}}}}\n"


def scope(store: str, default: str = "allow", allowed: str = "", denied: str = "") -> SecretScope:
    return SecretScope(store, Access(default), frozenset(allowed.split()), frozenset(denied.split()))


def test_no_files_limit_nothing() -> None:
    configuration = load_configuration([], {})
    assert configuration == Configuration()
    assert configuration.scopes.get("vault", ALLOW_ALL) is ALLOW_ALL


def test_a_file_that_has_not_changed_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was changed a moment ago the content counts as well: its size and times may be the same."""
    old, fresh = tmp_path / "old.yaml", tmp_path / "fresh.yaml"
    for path in (old, fresh):
        path.write_text(scopes("{storeName: vault}"), encoding="utf-8")
    wait_until_settled(old)
    parsed = counting(monkeypatch, configuration_module, "parse")
    for environ, expected in ((ENVIRON, 1), (ENVIRON, 1), ({}, 2)):
        load_configuration([old], environ)
        assert len(parsed) == expected
    forget_undeclared()
    load_configuration([], ENVIRON)
    forget_undeclared()
    load_configuration([old], {})
    assert len(parsed) == 3  # what is not declared any more leaves memory
    later = time.time() + 3600
    for number, store in enumerate(("one", "two", "six"), 4):
        fresh.write_text(scopes(f"{{storeName: {store}}}"), encoding="utf-8")
        os.utime(fresh, (later, later))  # it stays one that was changed a moment ago
        for _ in range(2):
            assert list(load_configuration([fresh], ENVIRON).scopes) == [store]
            assert len(parsed) == number


def test_a_whole_configuration(tmp_path: Path) -> None:
    text = (
        HEAD
        + """
spec:
  tracing: {samplingRate: "1", whatever: here}
  secrets:
    scopes:
      - storeName: vault
        defaultAccess: deny
        allowedSecrets: [a, b]
      - storeName: env
        defaultAccess: DeNy
      - storeName: file
        defaultAccess: AllOw
        deniedSecrets:
          - c
      - storeName: open
  components:
    deny:
      - state.redis
      - secretstores.local.file/v1
"""
    )
    configuration = load(tmp_path, text)
    assert configuration.scopes == {
        "vault": scope("vault", "deny", "a b"),
        "env": scope("env", "deny"),
        "file": scope("file", "allow", "", "c"),
        "open": scope("open"),
    }
    assert configuration.denied_types == ("state.redis", "secretstores.local.file/v1")
    assert configuration.notices == ()
    assert str(configuration.scope_sources["file"]) == f"{tmp_path}/0.yaml:14"


@pytest.mark.parametrize("text", ["", "# nothing\n", HEAD, HEAD + "spec:\n", HEAD + "spec: {secrets: {scopes: ~}}\n"])
def test_a_file_that_says_nothing(tmp_path: Path, text: str) -> None:
    configuration = load(tmp_path, text)
    assert configuration == Configuration()
    assert all("is not" in message for message in messages(configuration, tmp_path))


def test_names_keep_their_source_text(tmp_path: Path) -> None:
    text = scopes(
        "{storeName: 0123, allowedSecrets: [0123, yes, 1.10, 12:30, 'quoted', !!binary aGk=], deniedSecrets: [on]}"
    )
    assert load(tmp_path, text).scopes == {"0123": scope("0123", allowed="0123 yes 1.10 12:30 quoted hi", denied="on")}


def test_names_are_case_sensitive_and_empty_entries_are_legal(tmp_path: Path) -> None:
    configuration = load(
        tmp_path, scopes("{storeName: Vault, defaultAccess: ~, allowedSecrets: ['', A]}", "{storeName: vault}")
    )
    assert set(configuration.scopes) == {"Vault", "vault"}
    assert configuration.scopes["Vault"].allowed_names == frozenset({"", "A"})


# --- merging ---


def test_a_later_list_of_scopes_replaces_an_earlier(tmp_path: Path) -> None:
    first, second = scopes("{storeName: a}", "{storeName: b}"), scopes("{storeName: c}")
    assert set(load(tmp_path, first, second).scopes) == {"c"}
    assert set(load(tmp_path, second, first).scopes) == {"a", "b"}


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (HEAD, True),
        (HEAD + "spec: ~\n", True),
        (HEAD + "spec: {secrets: {}}\n", True),
        (deny("x"), True),
        (HEAD + "spec: {secrets: ~}\n", False),
        (HEAD + "spec: {secrets: {scopes: ~}}\n", False),
        (HEAD + "spec: {secrets: {scopes: []}}\n", False),
    ],
)
def test_a_later_file_without_scopes_leaves_the_earlier(tmp_path: Path, later: str, *, kept: bool) -> None:
    assert bool(load(tmp_path, scopes("{storeName: a}"), later).scopes) is kept


@pytest.mark.parametrize(
    ("later", "denied"),
    [(HEAD, ("a",)), (deny("b"), ("b",)), (deny(), ()), (HEAD + "spec: {components: ~}\n", ())],
)
def test_deny_lists_merge_alike(tmp_path: Path, later: str, denied: tuple[str, ...]) -> None:
    assert load(tmp_path, deny("a"), later).denied_types == denied


def test_validation_is_for_the_merged_result(tmp_path: Path) -> None:
    wrong = scopes("{storeName: a, defaultAccess: maybe}")
    assert set(load(tmp_path, wrong, scopes("{storeName: b}")).scopes) == {"b"}


# --- what stops ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            scopes("{storeName: vault}", "{storeName: vault}"),
            "0.yaml:8: vault storeName is repeated in secrets configuration",
        ),
        (scopes("{allowedSecrets: [a]}", "{}"), "0.yaml:8:  storeName is repeated in secrets configuration"),
        (
            scopes("storeName: vault\n        defaultAccess: maybe"),
            "0.yaml:8: defaultAccess maybe can be either allow or deny",
        ),
        (
            scopes("{storeName: vault, defaultAccess: $SECRET}"),
            "0.yaml:7: defaultAccess (from the environment) can be either allow or deny",
        ),
        (
            scopes("{storeName: vault, allowedSecrets: s1}"),
            "0.yaml:7: spec.secrets.scopes[0].allowedSecrets must be a list, not a single value",
        ),
        (
            scopes("{storeName: vault, allowedSecrets: [[s1]]}"),
            "0.yaml:7: spec.secrets.scopes[0].allowedSecrets[0] must be a string, not a list",
        ),
        (scopes("{storeName: [a]}"), "0.yaml:7: spec.secrets.scopes[0].storeName must be a string, not a list"),
        (scopes("{[a]: b}"), "0.yaml:7: a key of spec.secrets.scopes[0] must be a string, not a list"),
        (scopes("vault"), "0.yaml:7: spec.secrets.scopes[0] must be a map, not a single value"),
        (HEAD + "spec: {secrets: {scopes: {}}}", "0.yaml:4: spec.secrets.scopes must be a list, not a map"),
        (HEAD + "spec: {secrets: []}", "0.yaml:4: spec.secrets must be a map, not a list"),
        (HEAD + "spec: []", "0.yaml:4: spec must be a map, not a list"),
        ("- a", "0.yaml:1: the document must be a map, not a list"),
        ("text", "0.yaml:1: the document must be a map, not a single value"),
        (HEAD + "spec: {components: {deny: a}}", "0.yaml:4: spec.components.deny must be a list, not a single value"),
        (HEAD + "kind: Configuration\n", "0.yaml:4: mapping key already defined at line 2"),
        (
            scopes("storeName: vault\n        defaultAccess: deny\n        storeName: env"),
            "0.yaml:9: mapping key already defined at line 7",
        ),
        (scopes("{storeName: a, $SECRET: b, $SECRET: c}"), "0.yaml:7: mapping key already defined at line 7"),
        (HEAD + "spec: [a, }]", "0.yaml:4: not valid YAML: did not find expected node content"),
        (HEAD + "spec: {secrets: {scopes: [{storeName: !!int x}]}}", "0.yaml:4: the value is not a !!int"),
        (f"a: '$SECRET\n{secret()}", "0.yaml:2: not valid YAML: found unexpected end of stream"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.yaml: cannot be read: No such file"):
        load_configuration([tmp_path / "none.yaml"], {})
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_configuration([tmp_path], {})


def test_a_text_that_grows_without_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="once variables are expanded"):
        load(tmp_path, "# $BIG\n" * 1000, environ={"BIG": "x" * 10_000})


# --- what is noticed ---

IGNORED = "is ignored, by Dapr as well"
OPEN = ", so every secret of vault is allowed"
UNLIMITED = ", so no store is limited"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{storeName: vault, defaultAcess: deny}",
            f"unknown field spec.secrets.scopes[0].defaultAcess (did you mean defaultAccess?) {IGNORED}{OPEN}",
        ),
        (
            "{storeName: vault, allowedsecrets: [a]}",
            f"unknown field spec.secrets.scopes[0].allowedsecrets (did you mean allowedSecrets?) {IGNORED}{OPEN}",
        ),
        (
            "{storeName: vault, defaultAccess: deny, deniedsecrets: [a]}",
            f"unknown field spec.secrets.scopes[0].deniedsecrets (did you mean deniedSecrets?) {IGNORED}",
        ),
        (
            "{storeName: vault, allowedSecrets: [~]}",
            f"spec.secrets.scopes[0].allowedSecrets has an entry without a value, which is ignored{OPEN}",
        ),
        ("{defaultAccess: deny}", "a scope without storeName limits no store"),
    ],
)
def test_a_scope_that_does_not_say_what_was_meant(tmp_path: Path, entry: str, message: str) -> None:
    assert messages(load(tmp_path, scopes(entry)), tmp_path) == [f"0.yaml:7: {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secrets: {scopes: []}", f"secrets (it belongs in spec.secrets) {IGNORED}{UNLIMITED}"),
        ("spec: {scopes: []}", f"spec.scopes (it belongs in spec.secrets.scopes) {IGNORED}{UNLIMITED}"),
        ("spec: {secrets: {scope: []}}", f"spec.secrets.scope (did you mean scopes?) {IGNORED}{UNLIMITED}"),
        ("spec: {Secrets: {scopes: []}}", f"spec.Secrets (did you mean secrets?) {IGNORED}{UNLIMITED}"),
        (
            "spec: {secrets: {defaultAccess: deny}}",
            f"spec.secrets.defaultAccess (it belongs in an entry of spec.secrets.scopes) {IGNORED}{UNLIMITED}",
        ),
        ("spec: {zzz: 1}", f"spec.zzz {IGNORED}"),
        ("spec: {components: {dney: []}}", f"spec.components.dney (did you mean deny?) {IGNORED}"),
    ],
)
def test_a_field_in_the_wrong_place(tmp_path: Path, text: str, message: str) -> None:
    assert messages(load(tmp_path, HEAD + text), tmp_path) == [f"0.yaml:4: unknown field {message}"]


def test_a_field_in_the_wrong_place_next_to_a_scope_that_holds(tmp_path: Path) -> None:
    configuration = load(tmp_path, scopes("{storeName: vault}") + "  scopes: []\n")
    assert messages(configuration, tmp_path) == [
        f"0.yaml:8: unknown field spec.scopes (it belongs in spec.secrets.scopes) {IGNORED}"
    ]


def test_a_field_whose_name_comes_from_the_environment_is_not_shown(tmp_path: Path) -> None:
    configuration = load(tmp_path, HEAD + "spec: {$SECRET: 1}")
    assert messages(configuration, tmp_path) == [
        "0.yaml:4: unknown field spec.(from the environment) is ignored, by Dapr as well"
    ]


@pytest.mark.parametrize("name", ["kind", "apiVersion"])
def test_another_kind_is_read_all_the_same(tmp_path: Path, name: str) -> None:
    text = scopes("{storeName: vault}").replace(f"{name}: ", f"{name}: other")
    configuration = load(tmp_path, text)
    assert set(configuration.scopes) == {"vault"}
    assert [message.partition(";")[0] for message in messages(configuration, tmp_path)] == [
        f"0.yaml:{1 + (name == 'kind')}: {name} is not {'Configuration' if name == 'kind' else 'dapr.io/v1alpha1'}"
    ]


@pytest.mark.parametrize("value", ["{a: b}", "[a]", "~"])
def test_a_kind_that_is_no_text_is_another_kind(tmp_path: Path, value: str) -> None:
    text = scopes("{storeName: vault}").replace("apiVersion: dapr.io/v1alpha1", f"apiVersion: {value}")
    configuration = load(tmp_path, text)
    assert set(configuration.scopes) == {"vault"}
    assert [message.partition(";")[0] for message in messages(configuration, tmp_path)] == [
        "0.yaml:1: apiVersion is not dapr.io/v1alpha1"
    ]


def test_a_file_that_a_later_one_overrides_is_decoded_all_the_same(tmp_path: Path) -> None:
    """As Dapr does: it decodes each into one struct."""
    first, second = scopes("{storeName: a, allowedSecrets: x}"), scopes("{storeName: a}")
    with pytest.raises(ConfigurationError, match=r"0.yaml:.*allowedSecrets must be a list"):
        load(tmp_path, first, second)


def test_only_the_first_document_is_read(tmp_path: Path) -> None:
    configuration = load(tmp_path, scopes("{storeName: a}") + "---\n" + scopes("{storeName: b}"))
    assert set(configuration.scopes) == {"a"}
    assert messages(configuration, tmp_path) == [
        "0.yaml:9: only the first document of a configuration file is read, by Dapr as well"
    ]
    assert load(tmp_path, "---\n" + scopes("{storeName: a}") + "---\n# nothing\n").notices == ()


def test_merge_keys_come_after_what_is_written(tmp_path: Path) -> None:
    text = scopes("&a {storeName: a, defaultAccess: deny}", "{storeName: b, <<: *a, ~: x}", "{<<: *a, storeName: c}")
    assert load(tmp_path, text).scopes == {name: scope(name, "deny") for name in "abc"}


# --- os.ExpandEnv ---


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("", ""),
        ("$STORE", "vault"),
        ("${STORE}", "vault"),
        ("$STORE/$NAME", "vault/s1"),
        ("x${STORE}x", "xvaultx"),
        ("$STOREx", ""),
        ("$UNSET.", "."),
        ("${UNSET}.", "."),
        ("$EMPTY.", "."),
        ("$$STORE", "STORE"),
        ("$$", ""),
        ("$", "$"),
        ("a$", "a$"),
        ("$ a", "$ a"),
        ("$.a", "$.a"),
        ("$(a)", "$(a)"),
        ("$é", "$é"),
        ("${}", ""),
        ("${}x", "x"),
        ("${", ""),
        ("${STORE", "STORE"),
        ("}${STORE", "}STORE"),
        ("${STO RE}x", "x"),
        ("$1x", "x"),
        ("$12", "2"),
        ("$*-$#-$@-$!-$?-$-", "-----"),
        ("${*}${#}", ""),
        ("$LINES", "a\nb"),
        ("\\$STORE", "\\vault"),
        ("'$STORE'", "'vault'"),
    ],
)
def test_variables_expand_as_in_go(text: str, expanded: str) -> None:
    assert expand_env(text, ENVIRON) == expanded


def test_special_variables_are_looked_up_too() -> None:
    assert expand_env("$1 $$ ${?}", {"1": "one", "$": "dollar", "?": "what"}) == "one dollar what"


def test_expansion_is_quick_on_what_never_ends() -> None:
    assert expand_env("${" * 500_000, {}) == ""


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="${}AB1*_ x", max_size=20))
def test_expansion_agrees_with_a_transcription_of_go(text: str) -> None:
    environ = {"A": "[a]", "AB": "[ab]", "1": "[1]", "*": "[*]", "_": "[_]", "A B": "[a b]"}
    assert expand_env(text, environ) == _go_expand(text, environ)


def _go_expand(text: str, environ: Mapping[str, str]) -> str:
    """Go's os.Expand, byte by byte."""
    out, i = "", 0
    while i < len(text):
        if text[i] != "$" or i + 1 == len(text):
            out, i = out + text[i], i + 1
            continue
        name, width = _go_shell_name(text[i + 1 :])
        if name:
            out += environ.get(name, "")
        elif width == 0:
            out += "$"
        i += 1 + width
    return out


def _go_shell_name(rest: str) -> tuple[str, int]:
    if rest[0] == "{":
        end = rest.find("}")
        return (rest[1:end], end + 1) if end > 1 else ("", 2 if end == 1 else 1)
    if rest[0] in "*#$@!?-0123456789":
        return rest[0], 1
    width = next(
        (n for n, char in enumerate(rest) if not (char.isascii() and (char.isalnum() or char == "_"))), len(rest)
    )
    return rest[:width], width


def test_variables_expand_over_the_whole_text(tmp_path: Path) -> None:
    configuration = load(tmp_path, scopes("{storeName: $STORE, allowedSecrets: [\"${NAME}\", '$UNSET']}"))
    assert configuration.scopes == {"vault": SecretScope("vault", Access.ALLOW, frozenset({"s1", ""}))}


# --- denied component types ---


@pytest.mark.parametrize(
    ("denied", "component_type", "version", "expected"),
    [
        # dapr authorizer/component_test.go
        ([], "state.foo", "v1", False),
        ([], "no.version", "", False),
        (["state.foo"], "", "", True),
        (["state.foo"], "no.version", "", True),
        (["state.foo"], "state.foo", "v1", True),
        (["state.foo"], "state.foo", "v2", True),
        (["state.foo"], "state.bar", "v1alpha1", False),
        (["state.foo/v2"], "state.foo", "v1", False),
        (["state.foo/v2"], "state.foo", "v2", True),
        (["state.foo", "state.bar/v2"], "state.bar", "v1alpha1", False),
        (["foo/bar/v2", "''"], "foo", "bar", False),
        (["foo/bar/v2"], "foo", "bar/v2", False),
        (["state.foo/"], "state.foo", "v1", True),
        (["State.Foo"], "state.foo", "v1", False),
        (["state.foo/V1"], "state.foo", "v1", False),
        (["''"], "no.version", "", True),
        (["~"], "no.version", "", False),
    ],
)
def test_denied_types(tmp_path: Path, denied: list[str], component_type: str, version: str, *, expected: bool) -> None:
    assert load(tmp_path, deny(*denied)).denies(Component("x", component_type, version)) is expected


# --- fuzzing ---


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def accepts_or_refuses(directory: Path, data: bytes) -> None:
    path = directory / "x.yaml"
    path.write_bytes(data)
    configuration, refusal = Configuration(), ""
    try:
        configuration = load_configuration([path], ENVIRON)
    except ConfigurationError as error:
        refusal = str(error)
    assert CANARY not in refusal + "".join(map(str, configuration.notices))
    assert not refusal or refusal.startswith(str(path))
    assert all(scope.store_name == name for name, scope in configuration.scopes.items())


FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
BITS = ("{", "}", "[", "]", ":", "- ", "\n", "\n---\n", "&a ", "*a", "<<: ", "!!int ", "'", '"', "~", "|")
VARIABLES = ("$SECRET", "${SECRET}", "$")
VALID = (
    scopes(
        "storeName: vault\n        defaultAccess: deny\n        allowedSecrets: [a, b]\n        deniedSecrets: [c]",
        "{storeName: $STORE-2}",
    )
    + "  components:\n    deny: [a/v1]\n"
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
    data = VALID
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20])))
        data = data[:start] + draw(st.sampled_from(BITS + VARIABLES)) + data[end:]
    return data.encode()


@settings(FUZZ, max_examples=400)
@given(mutations())
def test_any_mutation_of_a_configuration(fuzzed: Path, data: bytes) -> None:
    accepts_or_refuses(fuzzed, data)
