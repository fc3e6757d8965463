"""Dapr's objects as files: listed and watched at a real API server, by a service account that may do no more."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.containers.csi.api_server import ApiServer
from secretfs.containers.csi.failures import FailedPrecondition, InvalidArgument, Unavailable
from secretfs.containers.csi.object_sets import ObjectSets
from secretfs.dapr.component import load_manifests
from secretfs.dapr.configuration import load_configurations
from tests.conftest import ExpectLog
from tests.support.canary import leaked, secret
from tests.support.csi_cluster import Cluster
from tests.support.dapr_objects import DaprObjects, install_definitions, let_read_objects, remove_definition
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.servers.cuttable import Cuttable
from tests.support.servers.kube_apiserver import KubeApiserver
from tests.support.waiting import wait_until

__all__ = ["kube", "namespace"]

AWAY = "cannot ask the API server at 127.0.0.1:|the API server ends the watch of .* at once"
"""What the log says of a way that is cut, also while a watch begins."""

_others = itertools.count(1)


@pytest.fixture
def cluster(namespace: Namespace) -> Cluster:
    """Give a namespace whose driver may not read objects yet."""
    install_definitions(namespace.server)
    return Cluster(namespace)


@pytest.fixture
def may_read(cluster: Cluster) -> None:
    let_read_objects(cluster.namespace)


@pytest.fixture
def way(kube: KubeApiserver) -> Iterator[Cuttable]:
    """Give a way to the API server that can be cut."""
    with Cuttable(kube.port) as way:
        yield way


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "objects"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def api(cluster: Cluster, way: Cuttable, tmp_path: Path) -> ApiServer:
    return ApiServer("127.0.0.1", way.port, cluster.account(tmp_path / "account"))


@pytest.fixture
def sets(directory: Path, api: ApiServer) -> Iterator[ObjectSets]:
    sets = ObjectSets(directory, api)
    yield sets
    sets.close()


@pytest.fixture
def objects(cluster: Cluster) -> DaprObjects:
    return DaprObjects(cluster.server, cluster.namespace.name)


@pytest.fixture
def others(kube: KubeApiserver, cluster: Cluster) -> DaprObjects:
    """Give another namespace."""
    name = f"others{next(_others)}"
    kube.create_namespace(name)
    return DaprObjects(kube, name)


def properties(directory: Path) -> dict[str, dict[str, str | None]]:
    """Return the properties of all components in a directory, as the mount reads them."""
    found = load_manifests([directory], namespace="").components
    return {component.name: {item.name: item.value for item in component.items} for component, _ in found}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.usefixtures("may_read")
def test_objects_are_files(sets: ObjectSets, objects: DaprObjects, directory: Path) -> None:
    """csi-25: All objects of the namespace are files before a volume is published, for root alone, and in memory."""
    strange = "tab\t, line\n---\nnext, \x85\u2028\ufeff \U0001f511 \\u0041 ${HOME} {{ x }} \"'\\"
    for number in range(45):  # several pages
        objects.component(f"vault-{number}", "hashicorp.vault", {"vaultAddr": f"https://{number}", "strange": strange})
    objects.configuration("strict", {"storeName": "vault-1", "defaultAccess": "deny"})
    sets.hold(objects.namespace, "v")
    place = directory / objects.namespace
    assert properties(place) == {
        f"vault-{number}": {"vaultAddr": f"https://{number}", "strange": strange} for number in range(45)
    }
    (configuration,) = [path for path in place.iterdir() if path.name.startswith("Configuration.")]
    assert load_configurations([configuration], {})["strict"].scopes["vault-1"].default_access.value == "deny"
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("may_read")
def test_changes_show(sets: ObjectSets, objects: DaprObjects, others: DaprObjects, directory: Path) -> None:
    """csi-26: A change of an object shows at once, and one that is gone goes; namespaces have nothing in common."""
    objects.component("vault", "hashicorp.vault", {"vaultAddr": "https://1"})
    others.component("vault", "hashicorp.vault", {"vaultAddr": "https://others"})
    sets.hold(objects.namespace, "v")
    sets.hold(others.namespace, "w")
    place = directory / objects.namespace
    objects.component("vault", "hashicorp.vault", {"vaultAddr": "https://2"})
    wait_until(lambda: properties(place) == {"vault": {"vaultAddr": "https://2"}})
    objects.component("more", "hashicorp.vault", {"vaultAddr": "https://3"})
    objects.configuration("strict")
    wait_until(lambda: names(place) == ["Component.more.yaml", "Component.vault.yaml", "Configuration.strict.yaml"])
    objects.delete("Component", "vault")
    objects.delete("Configuration", "strict")
    wait_until(lambda: names(place) == ["Component.more.yaml"])
    assert properties(directory / others.namespace) == {"vault": {"vaultAddr": "https://others"}}
    assert sets.counts() == (2, 0)


@pytest.mark.usefixtures("may_read")
def test_only_what_people_write_changes_a_file(sets: ObjectSets, objects: DaprObjects, directory: Path) -> None:
    """What the API server notes of an object, and what kubectl does, is not in its file (csi-25)."""
    path = "kubectl.kubernetes.io/last-applied-configuration"
    content = {"spec": {"type": "secretstores.hashicorp.vault"}, "status": {"x": 1}}
    objects.put("Component", "vault", content, {path: "{}", "secretfs/ttl": "1m"})
    sets.hold(objects.namespace, "v")
    file = directory / objects.namespace / "Component.vault.yaml"
    before = file.stat().st_ino
    objects.put("Component", "vault", content | {"status": {"x": 2}}, {path: "{ }", "secretfs/ttl": "1m"})
    objects.component("later", "hashicorp.vault", {})
    wait_until((directory / objects.namespace / "Component.later.yaml").exists)
    assert file.stat().st_ino == before
    assert "secretfs/ttl" in file.read_text("ascii")


@pytest.mark.usefixtures("may_read")
def test_an_api_server_that_is_away(
    expect_log: ExpectLog,
    sets: ObjectSets,
    objects: DaprObjects,
    directory: Path,
    way: Cuttable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """csi-27: While the API server is away files stay, and then they are as it says; no change is missed."""
    expect_log(AWAY)
    objects.component("kept", "hashicorp.vault", {"vaultAddr": "https://1"})
    objects.component("gone", "hashicorp.vault", {})
    sets.hold(objects.namespace, "v")
    place = directory / objects.namespace
    way.cut()
    wait_until(lambda: sets.counts() == (1, 1))
    objects.component("kept", "hashicorp.vault", {"vaultAddr": "https://2"})
    objects.delete("Component", "gone")
    assert properties(place) == {"kept": {"vaultAddr": "https://1"}, "gone": {}}
    way.mend()
    wait_until(lambda: properties(place) == {"kept": {"vaultAddr": "https://2"}})
    wait_until(lambda: sets.counts() == (1, 0))
    assert "Connection refused; what is known of them stays" in caplog.text


@pytest.mark.usefixtures("may_read")
def test_an_api_server_that_has_forgotten(
    expect_log: ExpectLog, sets: ObjectSets, objects: DaprObjects, directory: Path, way: Cuttable, kube: KubeApiserver
) -> None:
    """What the API server no longer knows the way to is listed anew (csi-27)."""
    expect_log(AWAY)
    objects.component("kept", "hashicorp.vault", {})
    objects.component("gone", "hashicorp.vault", {})
    sets.hold(objects.namespace, "v")
    way.cut()
    wait_until(lambda: sets.counts() == (1, 1))
    objects.delete("Component", "gone")
    objects.component("new", "hashicorp.vault", {})
    kube.put(objects.namespace, "something", {})
    kube.compact()
    kube.kill()  # which has the changes in memory
    kube.restart()
    way.mend()
    wait_until(lambda: sorted(properties(directory / objects.namespace)) == ["kept", "new"])


@pytest.mark.usefixtures("may_read")
def test_the_last_volume_of_a_namespace(sets: ObjectSets, objects: DaprObjects, directory: Path, way: Cuttable) -> None:
    """csi-28: With the last volume of a namespace its watch ends and its files go."""
    objects.component("vault", "hashicorp.vault", {})
    for volume in ("v", "w", "v"):
        sets.hold(objects.namespace, volume)
    sets.release(objects.namespace, "w")
    sets.release(objects.namespace, "unknown")
    assert sets.counts() == (1, 0)
    assert names(directory) == [objects.namespace]
    sets.release(objects.namespace, "v")
    assert sets.counts() == (0, 0)
    assert names(directory) == []
    wait_until(lambda: not way._sockets)  # the watches have ended
    sets.hold(objects.namespace, "v")
    assert names(directory / objects.namespace) == ["Component.vault.yaml"]


@pytest.mark.usefixtures("may_read")
def test_the_next_driver(
    expect_log: ExpectLog,
    sets: ObjectSets,
    objects: DaprObjects,
    others: DaprObjects,
    directory: Path,
    api: ApiServer,
    way: Cuttable,
) -> None:
    """csi-29: A driver that starts goes on with the files of the one before, for the volumes that there are."""
    expect_log(AWAY)
    for each in (objects, others):
        each.component("vault", "hashicorp.vault", {"vaultAddr": "https://1"})
        sets.hold(each.namespace, each.namespace)
    sets.close()
    objects.component("vault", "hashicorp.vault", {"vaultAddr": "https://2"})
    way.cut()
    after = ObjectSets(directory, api)
    try:
        after.resume({"v": objects.namespace})
        assert names(directory) == [objects.namespace]
        assert properties(directory / objects.namespace) == {"vault": {"vaultAddr": "https://1"}}
        with pytest.raises(Unavailable, match=r"cannot ask the API server at .*: Connection refused"):
            after.hold(objects.namespace, "another")
        way.mend()
        after.hold(objects.namespace, "another")
        assert properties(directory / objects.namespace) == {"vault": {"vaultAddr": "https://2"}}
        after.release(objects.namespace, "v")
        assert names(directory) == [objects.namespace]
    finally:
        after.close()


def test_a_right_that_is_missing(
    expect_log: ExpectLog, sets: ObjectSets, objects: DaprObjects, cluster: Cluster, directory: Path
) -> None:
    """csi-34: A right, or a definition, that is missing is in the event of the pod, and nothing is left then."""
    expect_log("does not let the driver read .* of namespace")
    place = f"components of namespace {objects.namespace}"
    said = rf"does not let the driver read {place} \(403\): .* the rights to list and watch components of dapr\.io"
    with pytest.raises(FailedPrecondition, match=said):
        sets.hold(objects.namespace, "v")
    assert names(directory) == []
    let_read_objects(cluster.namespace, "list", binding="half")
    sets.hold(objects.namespace, "v")  # what is listed is there
    wait_until(lambda: sets.counts() == (1, 1))
    let_read_objects(cluster.namespace)
    wait_until(lambda: sets.counts() == (1, 0))
    with pytest.raises(InvalidArgument, match=r"'\.\.' cannot be a namespace"):
        sets.hold("..", "v")


@pytest.mark.usefixtures("may_read")
def test_a_cluster_without_dapr(
    expect_log: ExpectLog, sets: ObjectSets, objects: DaprObjects, kube: KubeApiserver, directory: Path
) -> None:
    """Its definitions are to be installed (csi-34)."""
    expect_log("the cluster does not know")
    remove_definition(kube, "configurations")
    try:
        said = r"the cluster does not know configurations\.dapr\.io \(404\): install Dapr"
        with pytest.raises(FailedPrecondition, match=said):
            sets.hold(objects.namespace, "v")
        assert names(directory) == []
    finally:
        install_definitions(kube)
    sets.hold(objects.namespace, "v")


@pytest.mark.usefixtures("may_read")
def test_a_namespace_has_limits(
    expect_log: ExpectLog, sets: ObjectSets, objects: DaprObjects, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """csi-35: A namespace fills the memory of a node up to a limit: what has no place is left out, until it has."""
    expect_log("is left out: ")
    half = {"vaultAddr": secret("a") + "x" * (600 << 10)}
    objects.component("a", "hashicorp.vault", half)
    objects.component("b", "hashicorp.vault", half)
    objects.component("c", "hashicorp.vault", {})
    objects.component("n" * 220, "hashicorp.vault", {})
    sets.hold(objects.namespace, "v")
    place = directory / objects.namespace
    assert names(place) == ["Component.a.yaml", "Component.c.yaml"]
    left_out = "Component b of {} is left out: those of a namespace have at most 1024 KiB together"
    assert left_out.format(objects.namespace) in caplog.text
    assert "is left out: its name is longer than 200 bytes" in caplog.text
    objects.component("c", "hashicorp.vault", half)  # what fits no more stays as it was
    objects.component("d", "hashicorp.vault", {})
    wait_until((place / "Component.d.yaml").exists)
    assert properties(place)["c"] == {}
    objects.delete("Component", "a")
    wait_until(lambda: names(place) == ["Component.b.yaml", "Component.c.yaml", "Component.d.yaml"])
    assert not leaked(caplog.text)


@pytest.mark.usefixtures("may_read")
def test_files_that_cannot_be_written(
    expect_log: ExpectLog, sets: ObjectSets, objects: DaprObjects, directory: Path
) -> None:
    """The watch goes on, and files follow as soon as they can (csi-27)."""
    expect_log("cannot write components of namespace .*: No such file or directory")
    sets.hold(objects.namespace, "v")
    place = directory / objects.namespace
    shutil.rmtree(place)
    objects.component("vault", "hashicorp.vault", {})
    wait_until(lambda: sets.counts() == (1, 1))
    place.mkdir()
    wait_until(lambda: sets.counts() == (1, 0) and names(place) == ["Component.vault.yaml"])
