import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.dapr.component import Component, Item, SecretKeyRef, load_manifests
from secretfs.dapr.references import (
    TemplateContext,
    component_references,
    depends_on_app,
    resolve,
    resolve_annotations,
    unquote,
)
from secretfs.errors import ConfigurationError, SecretNotFound, Source, StoreUnavailable
from secretfs.settings import Property
from secretfs.store import Secret
from tests.support.canary import CANARY, secret

HERE = Source("x.yaml", 7)


class FakeStore:
    """Reads from a dict and remembers what was asked."""

    def __init__(self, secrets: Mapping[str, Mapping[str, bytes]]) -> None:
        self.secrets = secrets
        self.asked: list[str] = []

    def read(self, name: str) -> Secret:
        self.asked.append(name)
        if name not in self.secrets:
            raise SecretNotFound(f"no secret {name}")
        return Secret(self.secrets[name])


def component(*items: Item, secret_store: str = "env") -> Component:
    return Component("vault", "secretstores.hashicorp.vault", items=items, secret_store=secret_store)


def ref(name: str, key: str = "", *, value: str | None = None, env_ref: str = "") -> Item:
    return Item("p", value, env_ref, SecretKeyRef(name, key or name), HERE)


def resolved(
    *items: Item,
    secrets: Mapping[str, Mapping[str, bytes]] | None = None,
    environ: Mapping[str, str] | None = None,
    app_id: str = "app",
) -> list[str]:
    properties, _ = resolve(component(*items), TemplateContext(environ or {}, app_id), FakeStore(secrets or {}).read)
    return [prop.value for prop in properties]


def notices(
    item: Item, secrets: Mapping[str, Mapping[str, bytes]], environ: Mapping[str, str] | None = None
) -> list[str]:
    _, found = resolve(component(item), TemplateContext(environ or {}), FakeStore(secrets).read)
    return [str(notice) for notice in found]


def test_literal_values_keep_name_order_and_place() -> None:
    items = (Item("a", "1", source=HERE), Item("b", source=HERE), Item("a", "", source=HERE))
    assert resolve(component(*items), TemplateContext({}), None) == (
        [Property("a", "1", HERE), Property("b", "", HERE), Property("a", "", HERE)],
        [],
    )


# --- secretKeyRef, dapr secret_test.go ---


def test_a_reference_names_secret_and_key() -> None:
    assert resolved(ref("s", "k"), secrets={"s": {"k": secret().encode(), "s": b"other"}}) == [secret()]


def test_without_a_key_the_key_is_the_name_of_the_secret(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: v}\nauth: {secretStore: e}\n"
        "spec: {type: secretstores.local.env, metadata: [{name: p, secretKeyRef: {name: s}}]}\n"
    )
    (declared,) = load_manifests([tmp_path], namespace="").visible_to("").components
    properties, _ = resolve(declared, TemplateContext({}), FakeStore({"s": {"s": b"one", "": b"two"}}).read)
    assert [prop.value for prop in properties] == ["one"]


def test_a_resolved_secret_wins_over_a_literal() -> None:
    assert resolved(ref("s", value="literal"), secrets={"s": {"s": b"resolved"}}) == ["resolved"]


@pytest.mark.parametrize("literal", [None, "literal", ""])
@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ({}, "there is no secret s in env"),
        ({"s": {"other": b"x"}}, "secret s has no key k"),
        ({"s": {}}, "secret s has no key k"),
        ({"s": {"k": b""}}, "secret s is empty at key k"),
    ],
)
def test_what_is_not_there_leaves_the_literal(
    literal: str | None, secrets: Mapping[str, Mapping[str, bytes]], reason: str
) -> None:
    item = ref("s", "k", value=literal)
    rest = "without a value" if literal is None else "with the value in the manifest"
    assert resolved(item, secrets=secrets) == [literal or ""]
    assert notices(item, secrets) == [f"x.yaml:7: secretKeyRef of p: {reason}; it stays {rest}"]


def test_a_secret_is_read_once() -> None:
    store = FakeStore({"s": {"a": b"1", "b": b"2"}})
    items = (ref("s", "a"), ref("gone"), ref("s", "b"), ref("gone", value="x"))
    properties, found = resolve(component(*items), TemplateContext({}), store.read)
    assert [prop.value for prop in properties] == ["1", "", "2", "x"]
    assert store.asked == ["s", "gone"]
    assert len(found) == 2


def test_other_failures_go_up() -> None:
    def unavailable(name: str) -> Secret:
        raise StoreUnavailable(name)

    with pytest.raises(StoreUnavailable):
        resolve(component(ref("s")), TemplateContext({}), unavailable)


def test_a_reference_without_a_store_is_an_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(component(ref("s", value=secret()), secret_store=""), TemplateContext({}), None)
    assert str(caught.value) == (
        "x.yaml:7: p has a secretKeyRef, but the component does not say of which store: set auth.secretStore"
    )


def test_a_value_that_is_not_text_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolved(ref("s", "k"), secrets={"s": {"k": secret().encode() + b"\xff"}})
    assert str(caught.value) == "x.yaml:7: p: key k of secret s is not UTF-8 text"
    assert caught.value.__context__ is None
    with pytest.raises(ConfigurationError, match="p: variable VAR is not UTF-8 text"):
        resolved(Item("p", env_ref="VAR"), environ={"VAR": f"{secret()}\udcff"})


# --- envRef ---


def test_a_variable() -> None:
    environ = {"VAR": secret(), "var": "other"}
    assert resolved(Item("p", env_ref="VAR"), Item("p", env_ref="var"), environ=environ) == [secret(), "other"]


def test_a_variable_that_is_not_set_is_empty() -> None:
    assert resolved(Item("p", env_ref="VAR")) == [""]
    assert notices(Item("p", env_ref="VAR"), {}) == []


@pytest.mark.parametrize("literal", ["literal", ""])
def test_a_value_comes_before_a_variable(literal: str) -> None:
    assert resolved(Item("p", literal, "VAR"), environ={"VAR": "x"}) == [literal]


def test_a_variable_comes_before_a_secret_unless_there_is_a_value() -> None:
    secrets, environ = {"s": {"s": b"secret"}}, {"VAR": "variable"}
    assert resolved(ref("s", env_ref="VAR"), secrets=secrets, environ=environ) == ["variable"]
    assert resolved(ref("s", env_ref="VAR", value=""), secrets=secrets, environ=environ) == ["secret"]
    assert resolved(ref("s", env_ref="UNSET"), secrets=secrets, environ=environ) == [""]


@pytest.mark.parametrize(
    ("name", "listed", "allowed"),
    [
        ("FOO", None, True),
        ("DAPR_TEST", None, False),
        ("dapr_foo", None, False),
        ("APP_API_TOKEN", None, False),
        ("app_api_token", None, False),
        ("FOO BAR", None, False),
        ("DAPR", None, True),
        ("FOO", "", True),
        *((name, "FOO BAR TEST", True) for name in ("FOO", "BAR", "TEST", "foo")),
        *((name, "FOO BAR TEST", False) for name in ("FO", "EST", "BA", "AR", "O BAR", "DAPR_TEST", "APP_API_TOKEN")),
        ("DAPR_TEST", "DAPR_TEST", False),
        ("foo", "foo", False),
    ],
)
def test_which_variables_are_allowed(name: str, listed: str | None, *, allowed: bool) -> None:
    environ = {name: secret()} | ({} if listed is None else {"DAPR_ENV_KEYS": listed})
    item = Item("p", env_ref=name, source=HERE)
    assert resolved(item, environ=environ) == [secret() if allowed else ""]
    refusal = f"x.yaml:7: envRef of p: variable {name} is not allowed"
    assert notices(item, {}, environ) == ([] if allowed else [refusal])


# --- which stores are needed ---


@pytest.mark.parametrize(
    ("items", "store", "needed"),
    [
        ((), "env", set()),
        ((Item("a", "1"),), "env", set()),
        ((ref("s"),), "env", {"env"}),
        ((Item("a"), ref("s", value="x")), "env", {"env"}),
        ((ref("s", env_ref="VAR"),), "env", set()),
        ((ref("s", env_ref="VAR", value=""),), "env", {"env"}),
        ((ref("s"),), "", set()),
    ],
)
def test_which_stores_a_component_needs(items: tuple[Item, ...], store: str, needed: set[str]) -> None:
    assert component_references(component(*items, secret_store=store)) == needed


# --- templates ---

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.mark.parametrize(
    ("value", "environ", "expected"),
    [
        ("{appID}", {}, "app"),
        ("{appID}/{appID}", {}, "app/app"),
        ("{namespace}", {}, "default.app"),
        ("{namespace}", {"NAMESPACE": "prod"}, "prod.app"),
        ("{namespace}", {"NAMESPACE": ""}, ".app"),
        ("{podName}-{podName}", {"POD_NAME": "pod"}, "pod-pod"),
        ("{podName}", {"POD_NAME": "{namespace}"}, "default.app"),
        ("{namespace}", {"NAMESPACE": "{appID}"}, "app.app"),
        ("{namespace}", {"NAMESPACE": "{podName}"}, "{podName}.app"),
        ("{appid} {UUID} {PodName} { appID } {other} appID", {}, "{appid} {UUID} {PodName} { appID } {other} appID"),
        ("{{appID}}", {}, "{app}"),
    ],
)
def test_templates(value: str, environ: Mapping[str, str], expected: str) -> None:
    assert resolved(Item("p", value), environ=environ) == [expected]


def test_every_uuid_is_its_own() -> None:
    (value,) = resolved(Item("p", "{uuid}:{uuid}"))
    first, second = value.split(":")
    assert re.fullmatch(UUID, first)
    assert re.fullmatch(UUID, second)
    assert first != second


def test_templates_apply_to_what_is_resolved() -> None:
    assert resolved(ref("s"), secrets={"s": {"s": b"a-{appID}"}}) == ["a-app"]
    assert resolved(Item("p", env_ref="VAR"), environ={"VAR": "{namespace}"}) == ["default.app"]


@pytest.mark.parametrize("environ", [{}, {"POD_NAME": ""}])
def test_a_pod_name_that_is_not_set_is_an_error(environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolved(Item("p", f"{secret()}{{podName}}", source=HERE), environ=environ)
    assert str(caught.value) == (
        "x.yaml:7: failed to parse metadata: property p refers to {podName} but podName is not set"
    )


# --- the quotes that Dapr takes off ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"abc"', "abc"),
        ("`abc`", "abc"),
        ("`a\\n\r\nb`", "a\\n\nb"),
        ("'c'", "c"),
        ("'é'", "é"),
        ('""', ""),
        ("``", ""),
        (r'"a\n\t\\\"\x41\101\u00e9\U0001F511"', 'a\n\t\\"AAé🔑'),
        (r'"\xc3\xa9"', "é"),
        (r"'\''", "'"),
        (r"'\n'", "\n"),
        ('"it\'s"', "it's"),
        # not Go literals
        ("", ""),
        ('"', '"'),
        ("abc", "abc"),
        ("'abc'", "'abc'"),
        ("''", "''"),
        ("'''", "'''"),
        ('"a', '"a'),
        ('"a"b"', '"a"b"'),
        ('"a\nb"', '"a\nb"'),
        (r'"\q"', r'"\q"'),
        (r'"\'"', r'"\'"'),
        ("`a`b`", "`a`b`"),
        (r'"\xff"', r'"\xff"'),
        (r'"\400"', r'"\400"'),
        (r'"\ud800"', r'"\ud800"'),
        (r'"\udcc3\udca9"', r'"\udcc3\udca9"'),
        (r'"\UFFFFFFFF"', r'"\UFFFFFFFF"'),
        (' "a"', ' "a"'),
    ],
)
def test_the_quotes_of_a_go_literal_come_off(text: str, expected: str) -> None:
    assert unquote(text) == expected
    assert resolved(Item("p", env_ref="VAR"), environ={"VAR": text}) == [expected]
    assert resolved(Item("p", text)) == [text]
    if text:
        assert resolved(ref("s"), secrets={"s": {"s": text.encode()}}) == [expected]


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="\"'`\\xu0a1\n", max_size=12) | st.text(max_size=20))
def test_unquoting_takes_any_text(text: str) -> None:
    assert unquote(text).encode() is not None


def test_nothing_shows_a_value() -> None:
    context = TemplateContext({"VAR": secret()}, "app")
    properties, found = resolve(component(Item("p", env_ref="VAR")), context, None)
    assert properties[0].value == secret()
    assert CANARY not in repr(context) + repr(properties) + repr(found)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("{appToken:vault}", "/run/t/vault.jwt"),
        ("{appToken:sts.amazonaws.com}", "/run/t/sts.amazonaws.com.jwt"),
        ("{appToken:https://x/y z}", "/run/t/https%3A%2F%2Fx%2Fy%20z.jwt"),
        ("{appToken}", "/run/t/.jwt"),
        ("{appToken:../../x}", "/run/t/..%2F..%2Fx.jwt"),
        ("{appTokens:x}", "{appTokens:x}"),
    ],
)
def test_the_path_of_a_token(value: str, path: str) -> None:
    """The audience is one segment of it, whatever it is. What an app id has in it is no template."""
    one = replace(component(Item("p", value)), app_id="{appToken:x}", tokens="/run/t")
    properties, _ = resolve(one, TemplateContext({}), FakeStore({}).read)
    assert [prop.value for prop in properties] == [path]
    assert depends_on_app(one) is (path.startswith("/run"))


def test_a_token_of_an_app_that_has_none() -> None:
    with pytest.raises(ConfigurationError, match=r"x.yaml:7: property p refers to a token of the app, which has none"):
        resolved(Item("p", "{appToken:vault}", source=HERE))


def test_templates_in_our_annotations() -> None:
    """A path may be in one, and makes the component one of each app; annotations of others are not ours to read."""
    annotations = {"secretfs/token-file": "{appToken:a/b}", "secretfs/x": "{appID}.{namespace}", "other": "{appID}"}
    sources = {"secretfs/token-file": HERE}
    one = replace(component(), annotations=annotations, annotation_sources=sources, app_id="orders", tokens="/run/t")
    assert resolve_annotations(one, annotations, TemplateContext({})) == {
        "secretfs/token-file": "/run/t/a%2Fb.jwt",
        "secretfs/x": "orders.default.orders",
        "other": "orders",
    }
    assert depends_on_app(one)
    assert not depends_on_app(replace(one, annotations={"other": "{appID}", "secretfs/ttl": "1s"}))
    with pytest.raises(
        ConfigurationError, match=r"x.yaml:7: annotation secretfs/token-file refers to a token of the a"
    ):
        resolve_annotations(replace(one, tokens=""), annotations, TemplateContext({}))
