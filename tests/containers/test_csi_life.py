"""The CSI driver when it, or its mount, is killed: between any two steps, and in the middle of everything."""

import ctypes
import platform
import signal
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.csi import Protocol, binds_below, csi_driver, killed_at, refused
from tests.support.csi_node import ORDERS_APP, Node, _mount, _node, _protocol, csi_node
from tests.support.mounted import Mounted
from tests.support.waiting import PATIENCE

__all__ = ["_mount", "_node", "_protocol"]

_TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]  # asm/unistd_64.h, asm-generic/unistd.h

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]


def test_a_driver_that_is_killed(node: Node, mount: Mounted) -> None:
    """csi-10: A driver that is killed is replaced by another one, which knows as much; readers notice nothing."""
    kubelet = node.another_kubelet
    with csi_driver(kubelet.directory, mount.path) as killed:
        target = kubelet.publish("w", ORDERS_APP)
        killed.kill()
        assert (target / "file/tls/key").read_text(encoding="utf-8") == secret("key")
        with csi_driver(kubelet.directory, mount.path):
            kubelet.publish("w", ORDERS_APP)
            assert binds_below(kubelet.directory) == [str(target)]
            kubelet.unpublish("w")
            assert not target.exists()
    assert not kubelet.socket.exists()


def test_a_signal_ends_it_whichever_thread_takes_it(node: Node, mount: Mounted) -> None:
    """Also one that comes between two instructions of Python: no wait is interrupted then, either (csi-10)."""
    with csi_driver(node.another_kubelet.directory, mount.path) as driver:
        threads = [int(thread.name) for thread in Path(f"/proc/{driver.process.pid}/task").iterdir()]
        another = next(thread for thread in threads if thread != driver.process.pid)
        assert ctypes.CDLL(None).syscall(_TGKILL, driver.process.pid, another, signal.SIGTERM) == 0
        assert driver.process.wait(PATIENCE) == 0


PUBLISH = ["change", "require_shown", "bind_read_only"]
"""The functions with effects of a publish, in their order."""
UNPUBLISH = ["unmount", "_remove_directory", "change"]


@pytest.mark.parametrize("place", PUBLISH)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("then", ["publish", "unpublish"])
def test_killed_while_publishing(node: Node, mount: Mounted, place: str, when: str, then: str) -> None:
    """csi-11: Killed between any two steps of a publish or an unpublish, it ends what is asked of it next."""
    kubelet = node.another_kubelet
    with csi_driver(kubelet.directory, mount.path, program=killed_at(place, when)) as driver:
        assert refused(kubelet.publish, "w", ORDERS_APP)[0] == "UNAVAILABLE"
        assert driver.process.wait() == -signal.SIGKILL
    with csi_driver(kubelet.directory, mount.path):
        if then == "publish":
            target = kubelet.publish("w", ORDERS_APP)
            assert binds_below(kubelet.directory) == [str(target)]
            assert (target / "file/tls/key").read_text(encoding="utf-8") == secret("key")
        kubelet.unpublish("w")
        assert not kubelet.target("w").exists()
    assert not binds_below(kubelet.directory)
    assert node.is_clean()


@pytest.mark.parametrize("place", UNPUBLISH)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_unpublishing(node: Node, mount: Mounted, place: str, when: str) -> None:
    """What a killed driver has not taken away, the next one does (csi-11)."""
    kubelet = node.another_kubelet
    with csi_driver(kubelet.directory, mount.path):
        kubelet.publish("w", ORDERS_APP)
    with csi_driver(kubelet.directory, mount.path, program=killed_at(place, when)) as driver:
        assert refused(kubelet.unpublish, "w")[0] == "UNAVAILABLE"
        assert driver.process.wait() == -signal.SIGKILL
    with csi_driver(kubelet.directory, mount.path):
        kubelet.unpublish("w")
        assert not kubelet.target("w").exists()
    assert not binds_below(kubelet.directory)
    assert node.is_clean()


def test_what_nobody_asks_for_again(node: Node, mount: Mounted) -> None:
    """What was declared and never bound is gone with the next driver, although no kubelet knows of it (csi-11)."""
    kubelet = node.another_kubelet
    with csi_driver(kubelet.directory, mount.path, program=killed_at("bind_read_only", "before")) as driver:
        assert refused(kubelet.publish, "w", ORDERS_APP)[0] == "UNAVAILABLE"
        driver.process.wait()
    assert (mount.path / "w/file").is_dir()
    with csi_driver(kubelet.directory, mount.path):
        assert not (mount.path / "w").exists()
    kubelet.target("w").rmdir()


def test_a_mount_that_is_dead(tmp_path: Path, protocol: Protocol) -> None:
    """csi-12: While the mount is dead a publish waits for it, and an unpublish does not; then it is bound anew."""
    with (
        csi_node(tmp_path, protocol) as node,
        node.mounted() as mount,
        csi_driver(node.kubelet.directory, mount.path),
    ):
        kubelet = node.kubelet
        kubelet.publish("v", ORDERS_APP)
        kubelet.publish("w", ORDERS_APP)
        mount.kill()
        assert kubelet.identity("Probe").ready.value is False
        code, text = refused(kubelet.publish, "v", ORDERS_APP)
        assert (code, text.startswith(f"the secretfs at {mount.path} was killed")) == ("UNAVAILABLE", True)
        assert binds_below(kubelet.directory) == [str(kubelet.target(name)) for name in ("v", "w")]  # it is the truth
        kubelet.unpublish("w")
        assert binds_below(kubelet.directory) == [str(kubelet.target("v"))]
        with node.mounted():
            assert kubelet.identity("Probe").ready.value is True
            assert not (mount.path / "w").exists()
            target = kubelet.publish("v", ORDERS_APP)
            assert binds_below(kubelet.directory) == [str(target)]
            assert (target / "file/tls/key").read_text(encoding="utf-8") == secret("key")
            kubelet.unpublish("v")
        assert node.is_clean()
