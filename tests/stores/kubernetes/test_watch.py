"""``secretstores.kubernetes``: changes show by themselves, on a real API server with real kubectl."""

import threading
import time
from collections.abc import Iterator

import pytest

from secretfs.errors import AccessDenied, SecretNotFound, StoreUnavailable
from secretfs.store import CachedRead, Secret
from secretfs.stores.kubernetes import watch as kubernetes_watch
from secretfs.stores.kubernetes.store import KubernetesStore
from tests.conftest import ExpectLog
from tests.support.canary import CANARY, secret
from tests.support.kube_fixtures import (
    Changes,
    Namespace,
    is_live,
    kube,
    kubernetes,
    namespace,
    outside,
    watching,
)
from tests.support.servers.cuttable import Cuttable
from tests.support.servers.kube_apiserver import KubeApiserver
from tests.support.shell import wait_until
from tests.support.waiting import PATIENCE

__all__ = ["kube", "namespace", "outside"]


@pytest.fixture
def way(kube: KubeApiserver) -> Iterator[Cuttable]:
    with Cuttable(kube.port) as way:
        yield way


@pytest.fixture
def store(namespace: Namespace, way: Cuttable) -> Iterator[KubernetesStore]:
    """Open a store by way of a connection that can be cut."""
    kubeconfig = namespace.server.kubeconfig("reader", port=way.port)
    with kubernetes({"defaultNamespace": namespace.name, "kubeconfigPath": str(kubeconfig)}) as store:
        yield store


def values(store: KubernetesStore, name: str = "db") -> dict[str, bytes]:
    return dict(store.fetch(name).values)


def test_kubectl_creates_changes_and_deletes(namespace: Namespace, store: KubernetesStore) -> None:
    changes = watching(store)
    assert store.names("").secrets == frozenset()
    namespace.server.forget()
    namespace.kubectl("create", "secret", "generic", "db", f"--from-literal=password={secret('old')}")
    changes.wait_for("db")
    assert values(store) == {"password": secret("old").encode()}
    first = store.fetch("db")
    patch = f'{{"stringData": {{"password": "{secret("new")}", "user": "me"}}}}'
    namespace.kubectl("patch", "secret", "db", "--patch", patch)
    changes.wait_for("db")
    assert values(store) == {"password": secret("new").encode(), "user": b"me"}
    assert store.fetch("db").version != first.version
    assert store.names("").secrets == {"db"}
    namespace.kubectl("delete", "secret", "db")
    changes.wait_for("db")
    with pytest.raises(SecretNotFound, match="secret db: not found"):
        store.fetch("db")
    assert store.names("").secrets == frozenset()
    assert namespace.requests() == []  # the watch was open before, and is the only request


def test_what_has_not_changed_is_told_by_the_copy(namespace: Namespace, store: KubernetesStore, way: Cuttable) -> None:
    for name in ("kept", "changed", "deleted"):
        namespace.put(name, {"key": secret("old").encode()})
    known = {name: CachedRead(store.fetch(name), 0.0) for name in ("kept", "changed", "deleted")}
    assert store.unchanged(known) == frozenset()  # there is no copy yet
    changes = watching(store)
    namespace.server.forget()
    assert store.unchanged(known) == known.keys()
    namespace.put("changed", {"key": secret("new").encode()})
    namespace.delete("deleted")
    changes.wait_for("changed", "deleted")
    assert store.unchanged(known) == {"kept"}
    assert namespace.requests() == []
    way.cut()
    wait_until(lambda: not is_live(store))
    assert store.unchanged(known) == frozenset()
    way.mend()


def test_the_whole_store_is_one_list_of_pages_and_one_watch(namespace: Namespace, store: KubernetesStore) -> None:
    names = {f"secret{number:04}" for number in range(1000)}
    items = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": secret(name)}}
        for name in names
    ]
    for item in items:
        namespace.server.call("POST", f"/api/v1/namespaces/{namespace.name}/secrets", item)
    namespace.server.forget()
    watching(store)
    assert store.names("").secrets == names
    assert all(values(store, name) == {"key": secret(name).encode()} for name in names)
    assert namespace.requests() == ["list"] * 10 + ["watch"]
    assert CANARY not in f"{store!r} {store._caches!r} {vars(store._caches[namespace.name])!r}"


def test_a_broken_watch_goes_on_from_where_it_was(
    namespace: Namespace, store: KubernetesStore, way: Cuttable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "_AT_LEAST", 0.1)
    for name in ("changed", "deleted"):
        namespace.put(name, {"key": secret("old").encode()})
    changes = watching(store)
    namespace.server.forget()
    way.cut()
    wait_until(lambda: not is_live(store))
    namespace.put("changed", {"key": secret("new").encode()})
    namespace.put("created", {"key": secret().encode()})
    namespace.delete("deleted")
    way.mend()
    changes.wait_for("changed", "created", "deleted")
    wait_until(lambda: is_live(store))
    assert store.names("").secrets == {"changed", "created"}
    assert values(store, "changed") == {"key": secret("new").encode()}
    assert namespace.requests() == ["watch"]


def test_without_a_watch_the_server_is_asked(
    namespace: Namespace, store: KubernetesStore, way: Cuttable, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.put("db", {"key": secret("old").encode()})
    watching(store)
    monkeypatch.setattr(kubernetes_watch, "_AT_LEAST", 20.0)
    namespace.server.forget()
    way.cut()
    wait_until(lambda: not is_live(store))
    for call in (lambda: store.fetch("db"), lambda: store.names("")):
        with pytest.raises(StoreUnavailable, match="cannot connect: Connection refused"):
            call()
    way.mend()
    namespace.put("db", {"key": secret("new").encode()})
    assert values(store) == {"key": secret("new").encode()}
    assert store.names("").secrets == {"db"}
    assert namespace.requests() == ["get db", "list"]
    wait_until(lambda: is_live(store))


def test_a_state_that_the_server_has_forgotten_is_listed_anew(
    namespace: Namespace, store: KubernetesStore, way: Cuttable
) -> None:
    for name in ("changed", "deleted", "same"):
        namespace.put(name, {"key": secret("old").encode()})
    changes = watching(store)
    way.cut()
    wait_until(lambda: not is_live(store))
    namespace.put("changed", {"key": secret("new").encode()})
    namespace.put("created", {"key": secret().encode()})
    namespace.delete("deleted")
    namespace.server.compact()
    namespace.server.kill()
    namespace.server.restart()  # what it had in memory of the past is gone, too
    namespace.server.forget()
    way.mend()
    wait_until(lambda: is_live(store))
    assert changes.take() == ["changed", "created", "deleted"]
    assert store.names("").secrets == {"changed", "created", "same"}
    assert values(store, "changed") == {"key": secret("new").encode()}
    assert [request for request in namespace.requests() if request == "list"] == ["list"]


def test_the_server_is_killed_and_comes_back(namespace: Namespace) -> None:
    namespace.put("db", {"key": secret("old").encode()})
    with namespace.store() as store:
        changes = watching(store)
        namespace.server.kill()
        wait_until(lambda: not is_live(store))
        with pytest.raises(StoreUnavailable):
            store.fetch("db")
        namespace.server.restart()
        wait_until(lambda: is_live(store))
        changes.take()
        namespace.put("db", {"key": secret("new").encode()})
        changes.wait_for("db")
        assert values(store) == {"key": secret("new").encode()}


def test_bookmarks_are_asked_for_and_move_on(namespace: Namespace, store: KubernetesStore) -> None:
    watching(store)
    (copy,) = store._caches.values()
    copy._take({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}, set())
    assert copy._version == "7"


def test_a_watch_that_ends_in_order_is_renewed_without_a_list(
    namespace: Namespace, store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "_WATCH", 1)
    monkeypatch.setattr(kubernetes_watch, "_AT_LEAST", 0.5)
    namespace.put("db", {"key": secret().encode()})
    changes = watching(store)
    wait_until(lambda: namespace.requests().count("watch") >= 3)
    wait_until(lambda: is_live(store))  # it is not for the moment between two watches
    namespace.put("db", {"key": secret("new").encode()})
    changes.wait_for("db")
    assert namespace.requests().count("list") == 1


def test_a_server_that_hangs_is_noticed(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_watch, "_WATCH", 1)
    with namespace.store() as store:
        store._api.deadline = 0.3
        watching(store)
        with namespace.server.hanging():
            wait_until(lambda: not is_live(store))
        wait_until(lambda: is_live(store))


# --- what was said while there was no copy ---


def test_what_was_read_before_the_copy_was_there_is_reported(
    namespace: Namespace, store: KubernetesStore, way: Cuttable
) -> None:
    """Somebody may keep an answer that was true once and that no event will correct."""
    namespace.put("gone", {"key": secret().encode()})
    way.cut()
    changes = Changes()
    store.watch(changes)
    (copy,) = store._caches.values()
    copy.fetch("gone", lambda: Secret({}))
    copy.names(lambda: frozenset({"listed"}))
    namespace.delete("gone")
    namespace.put("new", {"key": secret().encode()})
    way.mend()
    changes.wait_for("gone", "listed", "new")


# --- rights ---


def test_the_right_to_watch_is_missing(
    namespace: Namespace, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "_STARTING", 0)
    expect_log(rf"k8s: namespace {namespace.name}: changes show after ttl for now: .*forbidden \(403\)")
    namespace.put("db", {"key": secret("old").encode()})
    with namespace.store("lister") as store:
        store.watch(lambda _: None)
        wait_until(lambda: "watch" in namespace.requests())
        wait_until(lambda: not is_live(store))
        namespace.put("db", {"key": secret("new").encode()})
        assert values(store) == {"key": secret("new").encode()}
        assert store.names("").secrets == {"db"}


def test_the_right_to_list_is_missing(
    namespace: Namespace, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log("changes show after ttl for now: .*forbidden")
    monkeypatch.setattr(kubernetes_watch, "_STARTING", 0)
    namespace.put("db", {"key": secret().encode()})
    with namespace.store("getter") as store:
        store.watch(lambda _: None)
        wait_until(lambda: "list" in namespace.requests())
        assert values(store) == {"key": secret().encode()}
        with pytest.raises(AccessDenied):
            store.names("")


def test_a_right_that_is_taken_away(
    namespace: Namespace, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the watch is renewed, all is forgotten, and what readers keep is reported as changed."""
    expect_log("changes show after ttl for now: .*forbidden")
    monkeypatch.setattr(kubernetes_watch, "_STARTING", 0)
    monkeypatch.setattr(kubernetes_watch, "_WATCH", 1)
    namespace.put("db", {"key": secret().encode()})
    namespace.kubectl("create", "role", "all", "--verb=get,list,watch", "--resource=secrets")
    namespace.kubectl("create", "rolebinding", "all", "--role=all", "--user=nobody")
    with namespace.store("nobody") as store:
        changes = watching(store)
        namespace.kubectl("delete", "rolebinding", "all")
        changes.wait_for("db")
        (copy,) = store._caches.values()
        assert copy._secrets == {}
        with pytest.raises(AccessDenied):
            store.fetch("db")


# --- memory and threads ---


def test_what_does_not_fit_is_read_when_asked_for(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_watch, "_LARGEST_COPY", 100)
    for name in ("a", "b"):
        namespace.put(name, {"key": secret("x" * 60).encode()})
    with namespace.store() as store:
        changes = watching(store)
        namespace.server.forget()
        assert values(store, "a") == values(store, "b")
        assert namespace.requests() == ["get b"]
        namespace.delete("a")
        changes.wait_for("a")
        namespace.put("b", {"key": secret("new").encode()})
        changes.wait_for("b")
        namespace.server.forget()
        assert values(store, "b") == {"key": secret("new").encode()}
        assert namespace.requests() == []


def test_closing_is_prompt_and_ends_the_thread(namespace: Namespace, way: Cuttable) -> None:
    before = threading.active_count()
    with namespace.store() as store:
        watching(store)
        assert threading.active_count() == before + 1
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE / 2
    assert threading.active_count() == before


def test_closing_is_prompt_while_the_server_is_away(kube: KubeApiserver) -> None:
    with kubernetes({"defaultNamespace": "x", "kubeconfigPath": str(kube.kubeconfig("reader", port=1))}) as store:
        store.watch(lambda _: None)
        (copy,) = store._caches.values()
        wait_until(lambda: copy._failure)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE / 2
    assert not copy._thread.is_alive()
