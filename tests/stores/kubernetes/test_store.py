"""``secretstores.kubernetes``: names, values, namespaces and rights, on a real API server."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound
from secretfs.store import Names, SecretStore
from secretfs.stores.kubernetes.http import Api
from secretfs.stores.kubernetes.store import KubernetesStore
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.kube_fixtures import Namespace, kube, kubernetes, namespace, outside, watching
from tests.support.servers.kube_apiserver import KubeApiserver

__all__ = ["kube", "namespace", "outside"]

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


# --- the contract ---


class TestContract(StoreContract):
    multi_valued = True
    mark = CANARY
    has_folders = False  # a name takes no "/"

    @pytest.fixture
    def store(self, namespace: Namespace) -> Iterator[SecretStore]:
        with namespace.store() as store:
            yield store

    @pytest.fixture
    def seed(self, namespace: Namespace) -> Seed:
        def put(name: str, values: Mapping[str, bytes]) -> None:
            namespace.put(name, values)

        return put

    @pytest.fixture
    def denied(self, namespace: Namespace) -> Iterator[tuple[SecretStore, str]]:
        namespace.put("denied", self.values("denied"))
        with namespace.store("nobody") as store:
            yield store, "denied"

    @pytest.fixture
    def unreachable(self, kube: KubeApiserver) -> Iterator[SecretStore]:
        with kubernetes({"defaultNamespace": "x", "kubeconfigPath": str(kube.kubeconfig("reader", port=1))}) as store:
            yield store

    @pytest.fixture
    def reads(self, namespace: Namespace) -> Callable[[], int]:
        return lambda: sum(request.startswith("get") for request in namespace.requests())

    def can_hold(self, name: str) -> bool:
        return NAME.fullmatch(name) is not None


class TestWatchingContract(TestContract):
    counts_reads = False  # values come with the watch, and nobody asks for one

    @pytest.fixture
    def seed(self, store: KubernetesStore, namespace: Namespace) -> Seed:
        changes = watching(store)

        def put(name: str, values: Mapping[str, bytes]) -> None:
            namespace.put(name, values)
            changes.wait_for(name)

        return put

    @pytest.fixture
    def unreachable(self, kube: KubeApiserver) -> Iterator[SecretStore]:
        with kubernetes({"defaultNamespace": "x", "kubeconfigPath": str(kube.kubeconfig("reader", port=1))}) as store:
            store.watch(lambda _: None)
            yield store


# --- names and values ---


def test_every_key_is_there_to_the_byte(namespace: Namespace, tmp_path: Path) -> None:
    binary = bytes(range(256)) + secret().encode()
    (tmp_path / "keystore.jks").write_bytes(binary)
    namespace.kubectl(
        *("create", "secret", "generic", "db"),
        *(f"--from-file={tmp_path / 'keystore.jks'}", f"--from-literal=user={secret('user')}\n"),
    )
    with namespace.store() as store:
        assert store.fetch("db").values == {"keystore.jks": binary, "user": f"{secret('user')}\n".encode()}


def test_a_secret_without_data(namespace: Namespace) -> None:
    namespace.kubectl("create", "secret", "generic", "empty")
    with namespace.store() as store:
        assert store.fetch("empty").values == {}
        watching(store)
        assert store.fetch("empty").values == {}


def test_a_read_is_one_request_and_so_are_all_names(namespace: Namespace) -> None:
    for name in ("a", "b"):
        namespace.put(name, {"key": secret().encode()})
    with namespace.store() as store:
        store.fetch("a")
        assert namespace.requests() == ["get a"]
        assert store.names("").secrets == {"a", "b"}
        assert namespace.requests() == ["get a", "list"]
        store.check()
        assert namespace.requests() == ["get a", "list", "list"]


def test_names_come_without_values(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.put("db", {"password": secret().encode()})
    answers = []

    def get(api: Api, *arguments: object, **options: object) -> object:
        answers.append(original(api, *arguments, **options))  # type: ignore[arg-type]
        return answers[-1]

    original = Api.get
    monkeypatch.setattr(Api, "get", get)
    with namespace.store() as store:
        store.names("")
        store.check()
        assert ["data" in item for answer in answers for item in answer["items"]] == [False, False]


def test_a_namespace_that_is_not_there_is_empty(namespace: Namespace) -> None:
    with kubernetes({**namespace.properties(), "defaultNamespace": "nowhere"}) as store:
        assert store.names("") == Names()
        with pytest.raises(SecretNotFound, match=r"secret db: https://.*: not found \(404\)"):
            store.fetch("db")


def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones(namespace: Namespace) -> None:
    values = {"key": b"x" * 1_000_000}  # 12 of them, in base64, are larger than one answer may be; 5 are not
    names = {f"large-{number:02}" for number in range(14)}
    for name in names:
        namespace.put(name, values)
    namespace.server.forget()
    with namespace.store() as store:
        watching(store)
        assert store.names("").secrets == names
        assert all(store.fetch(name).values == values for name in names)
        asked = namespace.requests()
        assert asked[: asked.index("watch")] == ["list"] * (1 + 3)


def test_a_list_that_expires_half_way_starts_again(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"secret{number:03}" for number in range(120)}
    for name in names:
        namespace.put(name, {"key": secret().encode()})
    original, asked = Api.get, []

    def get(api: Api, path: str, query: list[tuple[str, str]], **options: str) -> object:
        asked.append(sorted(dict(query)))
        answer = original(api, path, query, **options)
        if len(asked) == 1:
            namespace.put("later", {"key": secret().encode()})
            namespace.server.compact()
        return answer

    monkeypatch.setattr(Api, "get", get)
    with namespace.store() as store:
        assert store.names("").secrets == names | {"later"}
    assert asked == [["limit"], ["continue", "limit"], []]


# --- namespaces ---


def test_the_variable_goes_before_the_property(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.put("db", {"key": secret().encode()})
    properties = {**namespace.properties(), "defaultNamespace": "elsewhere"}
    monkeypatch.setenv("NAMESPACE", namespace.name)
    with kubernetes(properties) as store:
        assert store.names("").secrets == {"db"}
    monkeypatch.setenv("NAMESPACE", "")
    with kubernetes(properties) as store:
        assert store.names("") == Names()


@pytest.fixture
def pair(namespace: Namespace) -> tuple[Namespace, Namespace]:
    other = Namespace(namespace.server, f"{namespace.name}-b")
    namespace.server.create_namespace(other.name)
    for each in (namespace, other):
        each.put("same", {"key": secret(each.name).encode()})
    other.put("only-b", {"key": secret().encode()})
    namespace.server.forget()
    return namespace, other


@pytest.mark.parametrize("live", [False, True])
def test_several_namespaces_are_folders(pair: tuple[Namespace, Namespace], *, live: bool) -> None:
    a, b = pair
    with a.store(namespaces=f"{a.name}, {b.name}") as store:
        store.check()
        if live:
            changes = watching(store)
            a.server.forget()
            b.put("new", {"key": secret().encode()})
            changes.wait_for(f"{b.name}/new")
            b.delete("new")
            changes.wait_for(f"{b.name}/new")
        assert store.names("") == Names(folders=frozenset({a.name, b.name}))
        assert store.names(a.name).secrets == {f"{a.name}/same"}
        assert store.names(b.name).secrets == {f"{b.name}/same", f"{b.name}/only-b"}
        assert store.names("default") == Names()
        for each in pair:
            assert store.fetch(f"{each.name}/same").values == {"key": secret(each.name).encode()}
        for name in ("same", f"{a.name}/only-b", f"{a.name}/", "default/same", f"{a.name}/same/key", f"/{a.name}/same"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
        if live:
            assert a.requests() == b.requests() == []


@pytest.mark.parametrize("live", [False, True])
def test_all_namespaces(pair: tuple[Namespace, Namespace], *, live: bool) -> None:
    a, b = pair
    with a.store(namespaces="*") as store:
        store.check()
        if live:
            changes = watching(store)
            a.put("new", {"key": secret().encode()})
            changes.wait_for(f"{a.name}/new")
            a.delete("new")
            changes.wait_for(f"{a.name}/new")
            a.server.forget()
        assert {f"{a.name}/same", f"{b.name}/same", f"{b.name}/only-b"} <= store.names("").secrets
        assert store.names(a.name) == Names()
        assert store.fetch(f"{b.name}/same").values == {"key": secret(b.name).encode()}
        for name in ("same", f"{a.name}/only-b", f"../{a.name}/same", f"{a.name}/../{b.name}/same"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
        if live:
            assert a.requests() == b.requests() == a.server.requests() == []


def test_a_reference_is_to_a_namespace(pair: tuple[Namespace, Namespace]) -> None:
    a, b = pair
    with a.store() as store:
        assert store.fetch_in(a.name, "same").values == {"key": secret(a.name).encode()}
        assert store.fetch_in(b.name, "same").values == {"key": secret(b.name).encode()}
        with pytest.raises(SecretNotFound, match=f"secret only-b of namespace {a.name}-c: "):
            store.fetch_in(f"{a.name}-c", "only-b")
    with a.store(namespaces=b.name) as store:
        assert store.fetch_in(a.name, "same").values == {"key": secret(a.name).encode()}
        assert store.fetch_in(b.name, "same").values == {"key": secret(b.name).encode()}
        assert store.fetch_in(a.name, f"{b.name}/same").values == {"key": secret(b.name).encode()}


# --- selectors ---


@pytest.mark.parametrize("live", [False, True])
def test_selectors(namespace: Namespace, *, live: bool) -> None:
    namespace.put("mine", {"key": secret().encode()}, labels={"app": "shop"})
    namespace.put("others", {"key": secret().encode()}, labels={"app": "billing"})
    namespace.put("token", {"key": secret().encode()}, labels={"app": "shop"}, type="example.com/token")
    selectors = {"label_selector": "app in (shop,web)", "field_selector": "type!=example.com/token"}
    with namespace.store(**selectors) as store:
        store.check()
        if live:
            changes = watching(store)
            namespace.kubectl("label", "secret", "others", "app=web", "--overwrite")
            changes.wait_for("others")
            assert store.names("").secrets == {"mine", "others"}
            namespace.kubectl("label", "secret", "others", "app=billing", "--overwrite")
            changes.wait_for("others")
        assert store.names("").secrets == {"mine"}
        assert store.fetch("mine").values == {"key": secret().encode()}
        for name in ("others", "token", "nope"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


@pytest.mark.parametrize("selector", [{"label_selector": "app in"}, {"field_selector": "data=x"}])
def test_a_selector_that_makes_no_sense(namespace: Namespace, selector: dict[str, str]) -> None:
    with (
        namespace.store(**selector) as store,
        pytest.raises(MalformedAnswer, match=r"are the selectors right\? \(400\)"),
    ):
        store.check()


# --- rights ---


def test_without_the_right_to_list_secrets_can_be_read_by_name(namespace: Namespace) -> None:
    namespace.put("db", {"key": secret().encode()})
    with namespace.store("getter") as store:
        store.check()
        assert store.fetch("db").values == {"key": secret().encode()}
        with pytest.raises(AccessDenied, match=r"forbidden \(403\)"):
            store.names("")
        with pytest.raises(SecretNotFound):
            store.fetch("nope")


def test_the_right_to_one_secret_is_enough_to_read_it(namespace: Namespace) -> None:
    for name in ("one", "two"):
        namespace.put(name, {"key": secret(name).encode()})
    namespace.kubectl("create", "role", "one", "--verb=get", "--resource=secrets", "--resource-name=one")
    namespace.kubectl("create", "rolebinding", "one", "--role=one", "--user=nobody")
    with namespace.store("nobody") as store:
        store.check()
        assert store.fetch("one").values == {"key": secret("one").encode()}
        with pytest.raises(AccessDenied, match=r"^secret two: https://127.0.0.1:\d+: forbidden \(403\)$"):
            store.fetch("two")


def test_without_rights_nothing_works(namespace: Namespace) -> None:
    namespace.put("db", {"key": secret().encode()})
    with namespace.store("nobody") as store:
        for call in (lambda: store.fetch("db"), lambda: store.names(""), store.check):
            with pytest.raises(AccessDenied, match=r"forbidden \(403\)"):
                call()
    with namespace.store("getter", label_selector="app=shop") as store, pytest.raises(AccessDenied):
        store.check()  # only a list understands selectors


def test_one_namespace_that_is_forbidden_spoils_no_other(pair: tuple[Namespace, Namespace]) -> None:
    a, b = pair
    a.kubectl("create", "role", "all", "--verb=get,list,watch", "--resource=secrets")
    a.kubectl("create", "rolebinding", "all", "--role=all", "--user=nobody")
    with a.store("nobody", namespaces=f"{a.name},{b.name}") as store:
        with pytest.raises(AccessDenied, match=f"^namespace {b.name}: "):
            store.check()
        assert store.names(a.name).secrets == {f"{a.name}/same"}
        with pytest.raises(AccessDenied):
            store.names(b.name)
