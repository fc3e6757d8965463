"""Namespaces of real processes: what is in them, who is in them, and why one is refused."""

import errno
from pathlib import Path

import pytest

from secretfs.errors import MountError
from secretfs.linux import namespace
from secretfs.linux.namespace import empty_directory, remedy
from tests.support.command import Done, in_namespace

ENTER = """
import os, sys
from secretfs.errors import MountError
from secretfs.linux.namespace import enter
try:
    print(enter(), os.getuid(), os.getgid(), *open("/proc/self/uid_map").read().split(), flush=True)
except MountError as error:
    sys.exit(str(error))
os.execvp("sh", ["sh", "-c", sys.argv[1]])
"""


def entered(how: str, script: str, *, prelude: str = "", after: str = "") -> Done:
    """Enter a namespace in the way ``how`` says, and run a script there."""
    return in_namespace(f"""
        cat > enter.py <<-'END'
{ENTER}
END
        printf '%s\\n' {script!r} > inside
        mkdir place
        {prelude}
        {how} /mnt/python/bin/python enter.py '. ./inside'
        {after}
    """)


def test_root_gets_its_own_mounts_and_stays_who_it_is() -> None:
    script = "mount -t tmpfs none place; touch place/x; ls place; stat -c %u enter.py /mnt/nobody"
    done = entered("env", script, after="ls place")
    assert (done.status, done.err) == (0, "")
    assert done.out == "True 0 0 0 0 4294967295\nx\n0\n65534\n"


@pytest.mark.parametrize("how", ["as_nobody", "as_nobody --no-new-privs", "as_nobody --groups 4711"])
def test_a_user_gets_them_in_a_user_namespace(how: str) -> None:
    done = entered(how.replace("as_nobody --groups", "setpriv --reuid 65534 --regid 65534 --groups"), "id -u")
    assert (done.status, done.out, done.err) == (0, "False 65534 65534 65534 65534 1\n65534\n", "")


def test_the_command_has_no_rights_there_either() -> None:
    done = entered("as_nobody", "grep CapEff /proc/self/status; mount -t tmpfs none place 2> /dev/null || echo refused")
    assert done.out.splitlines()[1:] == ["CapEff:\t0000000000000000", "refused"]


@pytest.mark.parametrize("how", ["env", "as_nobody"])
def test_what_the_host_mounts_later_shows(how: str) -> None:
    done = in_namespace(f"""
        mount --make-rshared /
        mkdir place
        cat > enter.py <<-'END'
{ENTER}
END
        mkfifo -m 666 up go
        {how} /mnt/python/bin/python enter.py 'echo > up; read x < go; ls place' & inside=$!
        read x < up
        mount -t tmpfs none place; touch place/later
        echo > go
        wait $inside
        umount place
    """)
    assert (done.status, done.out.splitlines()[1:], done.err) == (0, ["later"], "")


def test_root_without_the_right_is_like_a_user() -> None:
    done = entered("setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin", "true")
    assert (done.status, done.out, done.err) == (0, "False 0 0 0 0 1\n", "")


def test_a_limit_of_none_is_told_with_the_way_out() -> None:
    done = entered(
        "unshare --user --map-root-user sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; exec"
        ' setpriv --bounding-set=-all --inh-caps=-all "$@"\' sh',
        "true",
    )
    assert done.status == 1
    (line,) = done.lines
    assert line.startswith("cannot make a mount namespace: No space left on device (user.max_user_namespaces is 0;")
    assert line.endswith(" as root: sysctl -w user.max_user_namespaces=10000)")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1)"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0)"),
        ("user/max_mnt_namespaces", "0", "user.max_mnt_namespaces=10000)"),
        ("user/max_user_namespaces", "96365", "seccomp=unconfined, or --cap-add SYS_ADMIN and to run as root)"),
    ],
)
def test_what_forbids_it_is_named(tmp_path: Path, name: str, value: str, told: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    assert remedy(errno.EPERM, tmp_path).endswith(told)


def test_too_many_is_told() -> None:
    assert "user.max_user_namespaces" in remedy(errno.ENOSPC, Path("/nowhere"))
    assert remedy(errno.EINVAL, Path("/nowhere")) == ""


class TestEmptyDirectory:
    def test_the_first_that_hides_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "used").mkdir()
        (tmp_path / "used/file").touch()
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("empty")
        (tmp_path / "empty").mkdir()
        places = [tmp_path / name for name in ("missing", "used", "file", "link", "empty")]
        monkeypatch.setattr(namespace, "PLACES", (*places, Path("/")))
        assert empty_directory() == tmp_path / "empty"

    def test_a_mount_is_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(namespace, "PLACES", (Path("/proc"), Path("/sys")))
        with pytest.raises(MountError, match=r"none of .* is an empty directory; say where to mount: --at DIR"):
            empty_directory()


CHROOT = """
mkdir -p new
for directory in usr bin lib lib64 proc mnt; do
    [ -e "/$directory" ] || continue
    mkdir -p "new/$directory"; mount --rbind "/$directory" "new/$directory"
done
"""


@pytest.mark.parametrize("user", ["", "--userspec=65534:65534 "])
def test_in_a_chroot_it_does_not_claim_to_be_in_a_container(user: str) -> None:
    script = f"{CHROOT} chroot {user}new /mnt/python/bin/python /mnt/nobody/enter.py true"
    done = in_namespace(f"cat > enter.py <<-'END'\n{ENTER}\nEND\n{script}")
    assert done.status == 1
    assert "(this is a chroot, in which the kernel makes none: run it outside;" in done.err
    assert "container" not in done.err


def test_in_a_chroot_that_is_a_mount_point_root_gets_its_own_mounts() -> None:
    script = f"{CHROOT} mount --rbind new new; chroot new /mnt/python/bin/python /mnt/nobody/enter.py true"
    done = in_namespace(f"cat > enter.py <<-'END'\n{ENTER}\nEND\n{script}")
    assert (done.status, done.out.split()[0]) == (0, "True"), done.err
