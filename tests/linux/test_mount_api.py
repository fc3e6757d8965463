"""Mounts without a place: what is made there, and what may be written through which."""

import os
from pathlib import Path

import pytest

from secretfs.linux.mount_api import NODEV, NOEXEC, NOSUID, make_read_only, new_mount, place, writable
from secretfs.linux.mountinfo import mounts
from tests.support.shell import errno_of, run

pytestmark = pytest.mark.root("only root mounts")


def test_a_mount_has_its_options_before_it_has_a_place() -> None:
    mount = new_mount("tmpfs", {"source": "nothing", "size": "1m", "noswap": None}, NOSUID | NODEV | NOEXEC)
    try:
        assert os.fstatvfs(mount).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RDONLY) == (
            os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        )
        os.mkdir("before", dir_fd=mount)
        make_read_only(mount)
        assert errno_of(lambda: os.mkdir("after", dir_fd=mount)) == "EROFS"
    finally:
        os.close(mount)


def test_a_wrong_option_is_an_error() -> None:
    assert errno_of(new_mount, "tmpfs", {"no-such-option": None}) == "EINVAL"


def test_what_is_read_only_at_its_place_can_be_written_through_another_mount(tmp_path: Path) -> None:
    mount = new_mount("tmpfs", {})
    make_read_only(mount)
    try:
        place(mount, os.fsencode(tmp_path))
    finally:
        os.close(mount)
    try:
        (there,) = [each for each in mounts() if each.path == str(tmp_path)]
        assert there.read_only
        assert errno_of((tmp_path / "seen").mkdir) == "EROFS"
        with writable(os.fsencode(tmp_path)) as other:
            os.mkdir("seen", dir_fd=other)
            assert len([each for each in mounts() if each.minor == there.minor]) == 1  # nobody sees the other
        assert os.listdir(tmp_path) == ["seen"]  # noqa: PTH208
        assert errno_of((tmp_path / "seen").rmdir) == "EROFS"
    finally:
        assert run("umount", tmp_path).returncode == 0  # the other does not keep it
