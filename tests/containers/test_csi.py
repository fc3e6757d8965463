"""The CSI driver, called as a kubelet calls it, on a real mount of several apps.

The cases are those of csi-sanity for a driver without a controller, and what that leaves to a controller.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.app_host import NOBODY, ORDERS, read_as
from tests.support.canary import leaked, secret
from tests.support.command import secretfs
from tests.support.csi import NAME, NODE, Kubelet, binds_below, csi_driver, refused
from tests.support.csi_node import ORDERS_APP, WIDE, Node, _kubelet, _mount, _node, _protocol
from tests.support.mounted import Mounted
from tests.support.shell import output, stop
from tests.support.volume_server import VolumeServer
from tests.support.waiting import PATIENCE, wait_until

__all__ = ["_kubelet", "_mount", "_node", "_protocol"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]


@pytest.fixture(scope="module", name="driver")
def _driver(node: Node, mount: Mounted) -> Iterator[VolumeServer]:
    with csi_driver(node.kubelet.directory, mount.path) as driver:
        yield driver


def test_identity(kubelet: Kubelet) -> None:
    """csi-1: It says its name, that it has no controller, and whether its mount answers."""
    info = kubelet.identity("GetPluginInfo")
    assert (info.name, bool(info.vendor_version)) == (NAME, True)
    assert list(kubelet.identity("GetPluginCapabilities").capabilities) == []
    assert kubelet.identity("Probe").ready.value is True


def test_node(kubelet: Kubelet) -> None:
    """It names the node, and takes the group of a pod (csi-1)."""
    info = kubelet.node("NodeGetInfo")
    assert (info.node_id, info.max_volumes_per_node, info.HasField("accessible_topology")) == (NODE, 0, False)
    capabilities = kubelet.node("NodeGetCapabilities").capabilities
    wanted = kubelet.pb.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP
    assert [capability.rpc.type for capability in capabilities] == [wanted]


def test_registration(kubelet: Kubelet, driver: VolumeServer) -> None:
    """csi-2: The kubelet's plug-in watcher registers it without a sidecar, and the log has what the kubelet says."""
    info = kubelet.register()
    assert (info.type, info.name, info.endpoint) == ("CSIPlugin", NAME, str(kubelet.socket))
    assert list(info.supported_versions) == ["1.0.0"]
    kubelet.register(error="no such version")
    assert f"ERROR the kubelet has not registered the driver {NAME}: no such version" in driver.log
    for path in (kubelet.socket, kubelet.registration_socket):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("method", ["NodeStageVolume", "NodeUnstageVolume", "NodeGetVolumeStats", "NodeExpandVolume"])
def test_what_is_not_announced(kubelet: Kubelet, method: str) -> None:
    """A call that it has not announced is unimplemented (csi-1)."""
    assert refused(kubelet.node, method, volume_id="v")[0] == "UNIMPLEMENTED"


def test_a_volume_is_a_view(kubelet: Kubelet, mount: Mounted) -> None:
    """csi-3: A published volume shows the view of its app at the target, read-only; unpublished, nothing is left."""
    target = kubelet.publish("csi-1", ORDERS_APP)
    assert sorted(os.listdir(target)) == ["file"]  # noqa: PTH208 - names are what counts
    assert (target / "file/tls/key").read_text(encoding="utf-8") == secret("key")
    assert os.statvfs(target).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == 15
    assert binds_below(kubelet.directory) == [str(target)]
    kubelet.unpublish("csi-1")
    assert not target.exists()
    assert not (mount.path / "csi-1").exists()


@pytest.mark.parametrize("missing", ["volume_id", "target_path", "volume_capability"])
def test_a_publish_without(kubelet: Kubelet, missing: str) -> None:
    """What a publish has to have, it has to have (csi-4)."""
    empty = None if missing == "volume_capability" else ""
    said = refused(kubelet.publish, "v", ORDERS_APP, **{missing: empty})
    assert said == ("INVALID_ARGUMENT", f"{missing} is missing")


@pytest.mark.parametrize("missing", ["volume_id", "target_path"])
def test_an_unpublish_without(kubelet: Kubelet, missing: str) -> None:
    """What an unpublish has to have, it has to have (csi-4)."""
    fields = {"volume_id": "v", "target_path": "/x"} | {missing: ""}
    assert refused(kubelet.node, "NodeUnpublishVolume", **fields) == ("INVALID_ARGUMENT", f"{missing} is missing")


WRONG: list[tuple[dict[str, str], str]] = [
    ({"appID": "x"}, "unknown volume attribute appID (did you mean appId?)"),
    ({"size": "1"}, "unknown volume attribute size (there are appId, configuration, owner, group, mode, resources)"),
    ({"appId": "../x"}, "volume attribute appId: '../x' cannot be an app id here: it has a slash"),
    ({"owner": "root"}, "volume attribute owner: 'root' is not an id such as 1000"),
    ({"group": "4294967295"}, "volume attribute group: '4294967295' is not an id"),
    ({"mode": "0777"}, "volume attribute mode: '0777': a file here can be read and nothing else (0400, 0440, 0444)"),
    ({"resources": "../billing"}, "volume attribute resources: '../billing' cannot be the name of a directory"),
    ({"resources": "billing/team"}, "volume attribute resources: 'billing/team' cannot be the name of a directory"),
    ({"resources": "tem"}, "/sets/shop/tem (did you mean shop/team?)"),
    ({"configuration": "wid"}, "there is no Configuration named wid (did you mean wide?)"),
    ({"appId": "orders"}, "has to say which configuration is its own: strict, wide"),
]


@pytest.mark.parametrize(("attributes", "said"), WRONG)
def test_wrong_attributes(kubelet: Kubelet, node: Node, attributes: dict[str, str], said: str) -> None:
    """csi-4: A mistake is refused with what would be right, in the event of the pod, and nothing is left of it."""
    code, text = refused(kubelet.publish, "v", attributes)
    assert code == "INVALID_ARGUMENT"
    assert said in text
    assert str(node.volumes) not in text
    assert node.is_clean()
    assert not kubelet.target("v").exists()


def test_an_app_id_that_sees_nothing(kubelet: Kubelet, node: Node) -> None:
    """A volume with nothing in it is refused: its app id is no app's (csi-4)."""
    code, text = refused(kubelet.publish, "v", {"appId": "ordres", **WIDE})
    assert code == "FAILED_PRECONDITION"
    assert text == "app id ordres sees no secret store; compare it with the scopes of the components"
    assert node.is_clean()


def test_other_mistakes(kubelet: Kubelet, node: Node) -> None:
    """Neither a block device nor a path that is none can be published (csi-4)."""
    block = kubelet.pb.VolumeCapability(block={}, access_mode={"mode": "SINGLE_NODE_WRITER"})
    said = refused(kubelet.publish, "v", ORDERS_APP, volume_capability=block)
    assert said == ("INVALID_ARGUMENT", "a volume has files, and is no block device")
    said = refused(kubelet.publish, "../v", ORDERS_APP, target=kubelet.target("v"))
    assert said == ("INVALID_ARGUMENT", "volume_id '../v' cannot be the name of a directory")
    assert refused(kubelet.publish, "v", ORDERS_APP, target=Path("x"))[0] == "INVALID_ARGUMENT"
    assert refused(kubelet.publish, "v", ORDERS_APP, group="nobody")[0] == "INVALID_ARGUMENT"
    code, text = refused(kubelet.publish, "v", WIDE, pod={})
    assert (code, "podInfoOnMount: true" in text) == ("FAILED_PRECONDITION", True)
    assert node.is_clean()


def test_a_set_of_components(kubelet: Kubelet, node: Node) -> None:
    """csi-23: A volume shows a set of components of its namespace, and only those, when the pod names it."""
    target = kubelet.publish("v", {"appId": "orders", "resources": "team"})
    assert os.listdir(target) == ["shop"]  # noqa: PTH208 - names are what counts
    assert (target / "shop/db").read_text(encoding="utf-8") == secret("team")
    everybody = kubelet.publish("w", ORDERS_APP)
    assert os.listdir(everybody) == ["file"]  # noqa: PTH208 - likewise
    said = refused(kubelet.publish, "x", {"appId": "orders", "resources": "team"}, pod={})
    assert said[0] == "FAILED_PRECONDITION"
    assert "podInfoOnMount: true is missing" in said[1]
    kubelet.unpublish("v")
    kubelet.unpublish("w")
    code, text = refused(kubelet.publish, "v", {"appId": "orders", "resources": "components.dapr.io"})
    assert (code, "give it the flag --components-from-api" in text) == ("FAILED_PRECONDITION", True)
    assert node.is_clean()


def test_mount_flags(kubelet: Kubelet, node: Node) -> None:
    """csi-20: Mount flags that hold anyway are taken; a label of SELinux is refused with what to change."""

    def capability(*flags: str) -> Any:
        return kubelet.pb.VolumeCapability(mount={"mount_flags": flags}, access_mode={"mode": "SINGLE_NODE_WRITER"})

    label = f'context="system_u:object_r:container_file_t:s0:c1,{secret("c2")}"'
    for flags, said in (
        (
            ["ro", label],
            "the volumes of a node are parts of one file system, and have its label; leave seLinuxMount: true",
        ),
        ([f"password={secret()}"], "there is a mount flag that a volume cannot have; it has ro, nosuid, nodev, noexec"),
        (["context"], "there is a mount flag that a volume cannot have"),
    ):
        code, text = refused(kubelet.publish, "v", ORDERS_APP, volume_capability=capability(*flags))
        assert (code, said in text) == ("INVALID_ARGUMENT", True)
        assert node.is_clean()
    kubelet.publish("v", ORDERS_APP, volume_capability=capability("ro", "noexec", "nosuid", "nodev"))


def test_owner_group_and_mode(kubelet: Kubelet) -> None:
    """csi-5: Files are for whoever is in the pod, for its fsGroup where it has one, or as the attributes say."""
    cases: list[tuple[dict[str, str], str, int, int, int]] = [
        ({}, "", 0, 0, 0o444),
        ({}, "4003", 0, 4003, 0o440),
        ({"owner": str(ORDERS), "mode": "0400"}, "4003", ORDERS, 4003, 0o400),
        ({"owner": str(NOBODY), "group": "4004"}, "4003", NOBODY, 4004, 0o440),
    ]
    for number, (attributes, group, uid, gid, mode) in enumerate(cases):
        target = kubelet.publish(f"v{number}", {**ORDERS_APP, **attributes}, group=group)
        status = (target / "file/tls/key").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (uid, gid, mode)
    for directory in kubelet.target("v0").parents:
        directory.chmod(directory.stat().st_mode | 0o011)  # in a container, nothing is in the way of its mount
    assert read_as(NOBODY, kubelet.target("v0") / "file/tls/key") == secret("key")
    assert read_as(NOBODY, kubelet.target("v1") / "file/tls/key", 4003) == secret("key")
    assert read_as(NOBODY, kubelet.target("v1") / "file/tls/key") == "Permission denied"


def test_the_service_account_is_the_default(kubelet: Kubelet) -> None:
    """Outside a cluster no annotation is read: the app id is that of the service account (csi-6)."""
    target = kubelet.publish("v", {"configuration": "strict"})
    assert sorted(os.listdir(target / "file")) == ["tls"]  # noqa: PTH208 - likewise


def test_again(kubelet: Kubelet, mount: Mounted) -> None:
    """csi-7: The same volume may be published and unpublished again; with other attributes it is another one."""
    for _ in range(3):
        kubelet.publish("v", {**ORDERS_APP, "mode": "0440"})
    assert binds_below(kubelet.directory) == [str(kubelet.target("v"))]
    code, text = refused(kubelet.publish, "v", ORDERS_APP)
    assert (code, text.startswith("volume v is published with other attributes:")) == ("ALREADY_EXISTS", True)
    assert refused(kubelet.publish, "v", {**ORDERS_APP, "mode": "0440"}, group="7")[0] == "ALREADY_EXISTS"
    for _ in range(2):
        kubelet.unpublish("v")
    kubelet.unpublish("never-published")
    kubelet.publish("v", ORDERS_APP)


def test_two_targets(kubelet: Kubelet, node: Node) -> None:
    """A volume with two targets stays until the last of them is unpublished (csi-7)."""
    first = kubelet.publish("v", ORDERS_APP)
    second = kubelet.publish("v", ORDERS_APP, target=kubelet.target("w"))
    kubelet.unpublish("v", first)
    assert (second / "file/tls/key").read_text(encoding="utf-8") == secret("key")
    kubelet.unpublish("v", second)
    assert node.is_clean()


def test_at_once(kubelet: Kubelet, node: Node) -> None:
    """csi-8: Calls for one volume at once end with one mount or with none, and are refused or done."""
    codes: list[str] = []

    def call(method: Any, *arguments: Any) -> None:
        try:
            method(*arguments)
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)

    calls = [threading.Thread(target=call, args=(kubelet.publish, "v", ORDERS_APP)) for _ in range(8)]
    calls += [threading.Thread(target=call, args=(kubelet.unpublish, "v")) for _ in range(8)]
    for thread in calls:
        thread.start()
    for thread in calls:
        thread.join()
    assert set(codes) <= {"OK", "ABORTED"}
    kubelet.publish("v", ORDERS_APP)
    assert binds_below(kubelet.directory) == [str(kubelet.target("v"))]
    kubelet.unpublish("v")
    assert node.is_clean()


def test_many_volumes_at_once(kubelet: Kubelet, node: Node) -> None:
    """Volumes do not get in each other's way (csi-8)."""
    names = [f"v{number}" for number in range(20)]
    with ThreadPoolExecutor(len(names)) as pool:
        targets = list(pool.map(lambda name: kubelet.publish(name, ORDERS_APP), names))
    assert sorted(binds_below(kubelet.directory)) == sorted(map(str, targets))
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(kubelet.unpublish, names))
    assert node.is_clean()


def test_something_else_at_the_target(kubelet: Kubelet, node: Node) -> None:
    """csi-9: What somebody else has mounted, or put there, is not touched."""
    target = kubelet.target("v")
    target.mkdir()
    output("mount", "-t", "tmpfs", "none", target)
    for call in (partial(kubelet.publish, "v", ORDERS_APP), partial(kubelet.unpublish, "v")):
        assert refused(call) == ("FAILED_PRECONDITION", f"{target} has something else mounted: tmpfs")
    output("umount", target)
    (target / "file").touch()
    assert refused(kubelet.unpublish, "v") == ("FAILED_PRECONDITION", f"cannot remove {target}: Directory not empty")
    (target / "file").unlink()
    kubelet.unpublish("v")
    assert not target.exists()


def test_a_caller_that_hung_up(kubelet: Kubelet, mount: Mounted) -> None:
    """A kubelet that gives up asks again, and gets the volume (csi-8)."""
    worker = mount.worker
    stop(worker)  # the driver waits for the mount
    try:
        assert refused(kubelet.publish, "v", ORDERS_APP, timeout=1)[0] == "DEADLINE_EXCEEDED"
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: _published_unless_busy(kubelet))
    assert binds_below(kubelet.directory) == [str(kubelet.target("v"))]


def _published_unless_busy(kubelet: Kubelet) -> bool:
    try:
        kubelet.publish("v", ORDERS_APP)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ABORTED:
            raise
        return False
    return True


def test_tokens_are_in_no_log(kubelet: Kubelet, driver: VolumeServer) -> None:
    """csi-13: What the kubelet passes on in confidence is in no message and in no log."""
    tokens = json.dumps({"vault": {"token": secret("token"), "expirationTimestamp": "2030-01-01T00:00:00Z"}})
    given = {"csi.storage.k8s.io/serviceAccount.tokens": tokens}
    refused(kubelet.publish, "v", {**ORDERS_APP, "mode": "7", **given}, secrets={"key": secret("key")})
    code, text = refused(kubelet.publish, "v", {**ORDERS_APP, **given}, secrets={"key": secret("key")})
    assert (code, text) == (
        "FAILED_PRECONDITION",
        "tokens are reviewed by the API server, which is known in a pod only",
    )
    kubelet.publish("v", ORDERS_APP, secrets={"key": secret("key")})
    refused(kubelet.publish, "v", {**ORDERS_APP, "mode": "0400", **given})
    assert not leaked(driver.log)


def test_no_request_at_all(kubelet: Kubelet) -> None:
    """What is no message of the protocol is refused, and quoted nowhere (csi-4)."""
    with grpc.insecure_channel(f"unix:{kubelet.socket}") as channel:
        call = channel.unary_unary("/csi.v1.Node/NodePublishVolume")
        for message in (b"\x0a\xff", b"\x0a\x01\xff", b"\x0f", b"\x0a" + b"\xff" * 11):
            code, text = refused(call, message, timeout=PATIENCE)
            assert (code, text.startswith("the request cannot be read: ")) == ("INVALID_ARGUMENT", True)


def test_one_driver_at_a_socket(kubelet: Kubelet, mount: Mounted, driver: VolumeServer) -> None:
    """A driver that serves keeps its sockets (csi-10)."""
    flags = ["--node-id", NODE, "--name", NAME, "--kubelet-dir", str(kubelet.directory)]
    done = secretfs("csi", *flags, mount.path)
    assert (done.status, done.lines[-1]) == (
        3, f"secretfs: cannot listen at {kubelet.socket}: Address already in use",
    )  # fmt: skip
    assert kubelet.identity("Probe").ready.value is True


def test_probe(kubelet: Kubelet, driver: VolumeServer, tmp_path: Path) -> None:
    """``--probe`` asks the driver of the node, for its pod (csi-1)."""
    assert driver.process.poll() is None
    done = secretfs("csi", "--probe", "--name", NAME, "--kubelet-dir", kubelet.directory)
    assert (done.status, done.err) == (0, "")
    done = secretfs("csi", "--probe", "--kubelet-dir", tmp_path)
    assert (done.status, "does not answer" in done.err) == (3, True)


def test_mistakes_in_flags(tmp_path: Path) -> None:
    """csi-14: A mistake in its flags ends it, with what is missing."""
    done = secretfs("csi", tmp_path)
    assert (done.status, "--node-id NAME is missing" in done.err) == (2, True)
    done = secretfs("csi", "--node-id", NODE, "--name", "a b", tmp_path)
    assert (done.status, "'a b' is not a domain name" in done.err) == (2, True)
    done = secretfs("csi", "--node-id", NODE, "--components-from-api", tmp_path)
    assert (done.status, "--components-from-api: the API server is known in a pod only" in done.err) == (2, True)
    done = secretfs("csi", "--node-id", NODE, tmp_path)
    assert (done.status, done.err) == (3, f"secretfs: {tmp_path} has no secretfs mounted\n")
