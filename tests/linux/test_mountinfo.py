"""The table of mounts: what is mounted where, also at paths that the kernel has to escape."""

from pathlib import Path

import pytest

from secretfs.linux.mountinfo import is_mounted, mounts
from tests.support.command import in_namespace
from tests.support.mount_fixtures import components
from tests.support.mounted import mounted

__all__ = ["components"]


@pytest.mark.mount
@pytest.mark.parametrize(
    "name", ["a - b\ttab\nline\\slash", r"grün \040", b"\xff".decode(errors="surrogateescape")], ids=ascii
)
def test_awkward_names(components: Path, tmp_path: Path, name: str) -> None:
    point = tmp_path / name
    with mounted(components, mountpoint=point):
        assert is_mounted(point)
        assert str(point) in [mount.path for mount in mounts()]


def test_what_is_mounted_last_is_what_one_sees() -> None:
    done = in_namespace("""
        cat > look.py <<-'END'
from pathlib import Path
from secretfs.linux.mountinfo import is_mounted
print(is_mounted(Path("/mnt/nobody/m")), is_mounted(Path("/mnt/nobody")), is_mounted(Path("/mnt/nobody/m/x")))
END
        mkdir m
        look() { /mnt/python/bin/python look.py; }
        sfs() { exec 3<>/dev/fuse; mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=0,group_id=0 sfs m; }
        look; sfs; look; mount -t tmpfs none m; look; umount m; look; umount m; look
    """)
    assert done.err == ""
    assert done.out.splitlines() == [f"{seen} False False" for seen in (False, True, False, True, False)]


def test_a_user_cannot_pass_a_mount_off_as_somebody_elses() -> None:
    """What is shown as mounted is for the user to choose who mounts; it comes before the options."""
    done = in_namespace("""
        as_nobody mkdir m
        cat > mount.py <<-'END'
from pathlib import Path
from secretfs.linux.fuse_mount import connect
from secretfs.linux.mountinfo import secretfs_at
path = Path("m").resolve()
connection = connect(path, "user_id=0,group_id=0,allow_other", allow_other=False)
print(secretfs_at(path)[3:8])
END
        as_nobody /mnt/python/bin/python mount.py
    """)
    assert (done.status, done.out) == (0, "(65534, False, 65534, False, False)\n"), done.err
