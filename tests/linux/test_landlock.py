"""Where a process that has restricted itself can still write, tried out in one whose /run is of its own."""

import re
import subprocess

from secretfs.linux import landlock
from tests.support.command import in_namespace

RESTRICTED = """
import os, socket, sys, threading
from pathlib import Path
from secretfs.linux.landlock import restrict

def attempts(place):
    a, b = place / "a", place / "b"
    yield "mkdir", lambda: os.mkdir(a / "new")
    yield "rmdir", lambda: os.rmdir(a / "empty")
    yield "unlink", lambda: os.unlink(a / "old")
    yield "create", lambda: os.close(os.open(a / "new-file", os.O_CREAT | os.O_WRONLY))
    yield "write", lambda: os.close(os.open(a / "file", os.O_WRONLY))
    yield "truncate", lambda: os.truncate(a / "file", 0)
    yield "fifo", lambda: os.mkfifo(a / "fifo")
    yield "symlink", lambda: os.symlink("file", a / "link")
    yield "bind", lambda: socket.socket(socket.AF_UNIX).bind(f"{a}/socket")
    yield "rename", lambda: os.rename(a / "file", a / "other")
    yield "move", lambda: os.rename(a / "moved", b / "moved")
    yield "link", lambda: os.link(a / "linked", b / "link")
    yield "chmod", lambda: os.chmod(b / "file", 0o600)
    yield "append", lambda: os.write(opened[place], b"more")
    yield "read", lambda: (b / "file").read_text()
    yield "connect", lambda: socket.socket(socket.AF_UNIX).connect(f"{place}/listens")

def attempt():
    for place in places:
        for name, call in attempts(place):
            try:
                call()
            except OSError as error:
                print(place, name, error.strerror)

places = [Path(name) for name in sys.argv[1].split(":")]
opened, listening = {}, []
for place in places:
    for name in "a", "b":
        (place / name / "empty").mkdir(parents=True)
        for file in "file", "old", "moved", "linked":
            (place / name / file).write_text("text")
    opened[place] = os.open(place / "a/file", os.O_WRONLY)
    listening.append(socket.socket(socket.AF_UNIX))
    listening[-1].bind(f"{place}/listens")
    listening[-1].listen()
print(restrict(map(Path, sys.argv[2:])))
thread = threading.Thread(target=attempt)
thread.start()
thread.join()
memory = os.memfd_create("memory")
os.ftruncate(memory, 10)
os.close(os.open(f"/proc/self/fd/{memory}", os.O_WRONLY))
Path("/dev/null").write_text("")
Path("/proc/self/comm").write_text("named")
print("ready", flush=True)
"""


def restricted(places: str, allowed: str = "", before: str = "") -> list[str]:
    done = in_namespace(f"""
        cat > restricted.py <<-'END'
{RESTRICTED}
END
        {before}
        setpriv --no-new-privs /mnt/python/bin/python restricted.py {places} {allowed} < /dev/null
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == "True"
    assert done.out.splitlines()[-1] == "ready"
    return done.out.splitlines()[1:-1]


REFUSED = [
    *(f"{name} Permission denied" for name in ("mkdir", "rmdir", "unlink", "create", "write", "truncate", "fifo")),
    *(f"{name} Permission denied" for name in ("symlink", "bind", "rename", "move", "link")),
]


def test_the_system_is_read_and_not_written() -> None:
    """What is open, and sockets where others listen, can be written to as before; modes can be changed."""
    assert restricted("/run/system") == [f"/run/system {line}" for line in REFUSED]


def test_other_directories_are_written_as_before() -> None:
    """Files can be moved and linked from one directory to another, too."""
    assert restricted("/mnt/nobody/x:/mnt/x") == []


def test_directories_that_are_named() -> None:
    """Also those that the environment names, and through links; a directory that is not there does no harm."""
    before = (
        "mkdir -p /run/one /run/user/0 /run/two/x; ln -s /run/one link; export RUNTIME_DIRECTORY=/run/two:/run/none"
    )
    places = "/run/one/x:/run/user/0/x:/run/two/x/y:/run/three"
    found = restricted(places, allowed="link /run/none", before=before)
    assert found == [f"/run/three {line}" for line in REFUSED]


IN_ROOT = """
import os
from secretfs.linux.landlock import restrict
restrict([])
for path in "/swapfile", "/run/file", "/media/file", "/new", "/var/file":
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        print(path, error.strerror)
"""


def test_only_directories_of_the_root_directory_are_written() -> None:
    """A link there makes nothing writable that is the system's, as /vmlinuz would the kernel."""
    done = in_namespace(f"""
        mount -t tmpfs none /srv
        cd /srv
        mkdir -p root/run root/var root/usr root/mnt root/proc root/dev
        touch root/swapfile root/run/file root/var/file
        ln -s run root/media
        for each in mnt proc dev usr; do mount --rbind /$each root/$each; done
        cp -a /bin /lib /lib64 root  # links to /usr
        cat > root/var/program.py <<-'END'
{IN_ROOT}
END
        setpriv --no-new-privs chroot root /mnt/python/bin/python /var/program.py
    """)
    assert (done.status, done.err) == (0, "")
    refused = ("/swapfile", "/run/file", "/media/file", "/new")
    assert done.out.splitlines() == [f"{path} Permission denied" for path in refused]


LATER = """
import os, subprocess, sys
from pathlib import Path
from secretfs.linux.landlock import restrict
mount = "read go; mount -t tmpfs none /srv && mkdir -p below && mount -t tmpfs none below; echo done"
free = subprocess.Popen(["sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
restrict([])
free.communicate(b"go\\n")
for path in "/srv/file", "below/file":
    try:
        Path(path).touch()
    except OSError as error:
        print(path, error.strerror)
"""


def test_what_is_mounted_later() -> None:
    """Where there was a directory of / it may not be written to, below one it may."""
    done = in_namespace(f"""
        cat > later.py <<-'END'
{LATER}
END
        setpriv --no-new-privs /mnt/python/bin/python later.py
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == ["/srv/file Permission denied"]


def test_the_rights_are_those_of_the_kernel() -> None:
    """The header of this machine has those of its time."""
    done = subprocess.run(
        ["cc", "-E", "-dM", "-include", "linux/landlock.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    )
    rights = {name: int(bit) for name, bit in re.findall(r"LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", done.stdout)}
    changing = {bit for name, bit in rights.items() if not re.match("EXECUTE|READ_|IOCTL_DEV", name)}
    handled = sum(landlock._RIGHTS.values())
    assert {bit for bit in range(64) if handled >> bit & 1} == changing | {14}  # TRUNCATE, since Linux 6.2
