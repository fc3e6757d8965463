"""The control files of a mount as the commands use them: `secretfs status MOUNTPOINT` and `secretfs refresh`."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.daemon.control_client import read_status, refresh
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux import mountpoint
from tests.support.canary import secret
from tests.support.command import in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.shell import stop
from tests.support.waiting import PATIENCE


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    component(tmp_path / "components", "env", "local.env", {"prefix": "SFS_"})
    with mounted(tmp_path / "components", env={"SFS_A": secret()}) as mount:
        yield mount


@pytest.mark.mount
class TestCommands:
    def test_status(self, mount: Mounted) -> None:
        done = secretfs("status", mount.path)
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines()[1].split()[:2] == ["env", "ok"]
        assert "\033" not in done.out

    def test_json_is_the_file(self, mount: Mounted) -> None:
        done = secretfs("status", "--json", mount.path)
        assert done.out == (mount.path / ".secretfs/status.json").read_text()

    def test_refresh(self, mount: Mounted) -> None:
        for paths in ([], ["env"], ["env/A", f"{mount.path}/env/A"], [mount.path], [f"{mount.path}/"]):
            done = secretfs("refresh", mount.path, *paths)
            assert (done.status, done.out, done.err) == (0, "", "")

    def test_refresh_says_what_is_not_there_and_does_the_rest(self, mount: Mounted) -> None:
        done = secretfs("refresh", mount.path, "env/nope", "env/A", "no")
        assert done.status == 4
        where = f"see secretfs status {mount.path}"
        assert done.lines == [
            f"secretfs: env/nope: No such file or directory; {where}",
            f"secretfs: no: No such file or directory; {where}",
        ]

    def test_refresh_takes_a_link_to_the_mount_for_it(self, mount: Mounted, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(mount.path)
        assert secretfs("refresh", link, link / "env/A").status == 0
        assert secretfs("status", link).status == 0

    @pytest.mark.parametrize("path", ["/etc/passwd", "{}-other/env", "env/line\nbreak"])
    def test_refresh_of_another_place_is_a_mistake(self, mount: Mounted, path: str) -> None:
        with pytest.raises(ConfigurationError):
            list(refresh(mount.path, mount.path, [path.format(mount.path)]))
        assert secretfs("refresh", mount.path, path.format(mount.path)).status == 2

    @pytest.mark.parametrize("command", ["status", "refresh"])
    def test_without_a_mount(self, tmp_path: Path, command: str) -> None:
        done = secretfs(command, tmp_path)
        assert (done.status, done.err) == (3, f"secretfs: {tmp_path} has no secretfs mounted\n")

    @pytest.mark.parametrize("command", ["status", "refresh"])
    def test_a_mount_that_was_killed(self, mount: Mounted, command: str) -> None:
        mount.kill()
        done = secretfs(command, mount.path)
        assert done.status == 3
        assert done.lines == [
            f"secretfs: the secretfs at {mount.path} was killed; mount again: secretfs mount ... {mount.path}"
        ]

    def test_a_mount_that_hangs(self, mount: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mountpoint, "_PATIENCE", 0.1)
        stop(mount.worker)
        try:
            with pytest.raises(MountError, match="does not answer; unmount it by force"):
                read_status(mount.path)
            with pytest.raises(MountError, match="does not answer; unmount it by force"):
                list(refresh(mount.path, mount.path, ["env"]))
        finally:
            os.kill(mount.worker, signal.SIGCONT)

    def test_a_store_that_takes_its_time_is_waited_for(self, mount: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
        statvfs, asked = os.statvfs, threading.Event()

        def ask(path: Path) -> os.statvfs_result:
            asked.set()
            return statvfs(path)

        def slowly() -> int:  # until it is asked whether the mount is alive
            assert asked.wait(PATIENCE)
            return 7

        monkeypatch.setattr(os, "statvfs", ask)
        assert mountpoint.call_with_timeout(mount.path, slowly, while_alive=True) == 7

    @pytest.mark.parametrize("options", ["", "--allow-other --mode 0444"])
    def test_the_mount_of_somebody_else(self, options: str) -> None:
        done = in_namespace(f"""
            mkdir c m
            printf '%s\\n' 'apiVersion: dapr.io/v1alpha1' 'kind: Component' 'metadata: {{name: env}}' \
                'spec: {{type: secretstores.local.env}}' > c/env.yaml
            A=b secretfs mount --resources-path c {options} m
            as_nobody secretfs status m || echo $?
            as_nobody secretfs refresh m env || echo $?
            secretfs unmount m
        """)
        assert (done.status, done.out) == (0, "3\n3\n")
        reason = "secretfs: the secretfs at /mnt/nobody/m answers only to the user who runs it; become that user"
        assert done.lines == [reason, reason]
