"""What we take of the kernel's offer: its messages are built here as linux/fuse.h has them."""

import json
import os
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secretfs.errors import MountError
from secretfs.fuse.handshake import accept, answer, is_accepted, kernel_opens, knows_resend, require_init
from tests.support.canary import secret
from tests.support.fake_type import Fakes, installed
from tests.support.manifests import component
from tests.support.mounted import mounted

ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC, READDIRPLUS, PARALLEL_DIROPS, MAX_PAGES = 1 << 3, 1 << 13, 1 << 18, 1 << 22
RESEND = 1 << 7
EVERYTHING = 2**32 - 1


def offer(*, opcode: int = 26, flags: int = EVERYTHING, flags2: int = RESEND, minor: int = 45) -> bytes:
    """Build a FUSE_INIT of the kernel's."""
    body = struct.pack("=IIIII44x", 7, minor, 131072, flags, flags2)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 77, 0, 0, 0, 0, 0) + body


def flags_of(message: bytes) -> int:
    return int(struct.unpack_from("=I", message, 52)[0])


def test_nothing_is_taken_but_what_helps() -> None:
    taken = accept(offer())
    assert len(taken) == len(offer())
    assert flags_of(taken) & READDIRPLUS
    assert flags_of(taken) & PARALLEL_DIROPS
    assert not flags_of(taken) & ATOMIC_O_TRUNC
    assert accept(taken) == taken
    assert flags_of(accept(offer(flags=ATOMIC_O_TRUNC))) == 0  # nor what the kernel does not offer


def test_the_kernel_opens_by_itself_only_where_it_waits_for_what_it_reads() -> None:
    taken = accept(offer(), kernel_opens=True)
    assert kernel_opens(taken)
    assert not flags_of(taken) & ASYNC_READ
    assert accept(taken, kernel_opens=True) == taken
    for other in (
        accept(offer()),
        offer(),  # libfuse has answered it
        accept(offer(flags=EVERYTHING & ~(1 << 17)), kernel_opens=True),
        accept(offer(flags=EVERYTHING & ~(1 << 24)), kernel_opens=True),
    ):
        assert not kernel_opens(other)
        assert flags_of(other) & ASYNC_READ


def test_an_offer_that_libfuse_has_answered_can_be_told() -> None:
    """A mount of the version before: its journal has the offer as it came."""
    assert is_accepted(accept(offer()))
    assert not is_accepted(offer())


def test_our_answer() -> None:
    taken = accept(offer())
    message = answer(taken)
    assert struct.unpack_from("=IiQ", message) == (len(message), 0, 77) == (80, 0, 77)
    major, minor, readahead, flags = struct.unpack_from("=IIII", message, 16)
    background, congestion, write, _, pages = struct.unpack_from("=HHIIH", message, 32)
    assert (major, minor, readahead, flags) == (7, 38, 131072, flags_of(taken))
    assert (background, congestion, write, pages) == (512, 384, 131072, 256)
    assert struct.unpack_from("=I", answer(accept(offer(minor=31))), 20)[0] == 31


def test_whether_it_can_be_taken_over() -> None:
    assert knows_resend(accept(offer()))
    assert not knows_resend(accept(offer(flags2=0)))
    assert not knows_resend(offer()[:56])


@pytest.mark.parametrize("message", [offer(opcode=1), offer()[:40], b""])
def test_anything_else_is_refused(message: bytes) -> None:
    with pytest.raises(MountError):
        require_init(message)


@pytest.mark.mount
@pytest.mark.root("mounts fusectl, in a namespace of its own")
def test_the_kernel_takes_our_answer_and_not_the_one_of_libfuse(tmp_path: Path) -> None:
    component(tmp_path / "components", "env", "local.env", {})
    with mounted(tmp_path / "components") as mount:
        control = "/sys/fs/fuse/connections"
        limit = f"{control}/{os.minor(mount.path.stat().st_dev)}/max_background"
        script = f"mount -t fusectl none {control} && cat {limit}"
        assert subprocess.check_output(["unshare", "--mount", "sh", "-c", script]) == b"512\n"


@pytest.mark.mount
def test_names_of_one_directory_are_looked_up_side_by_side(tmp_path: Path) -> None:
    """A store that lets nobody list it is asked for each name: all eight look-ups are under way at the same time."""
    names = [f"secret-{n}" for n in range(8)]
    with installed(tmp_path / "site") as site:
        fakes = Fakes(tmp_path / "components", site)
        fakes.add(
            "store",
            secrets=json.dumps({name: {name: secret(name)} for name in names}),
            multiValued="false",
            fail="names:=AccessDenied",
            meet="8",
            annotations={"secretfs/deadline": "20s"},
        )
        path = f"{Path(__file__).parents[2]}:{site}"
        with (
            mounted(tmp_path / "components", env={"PYTHONPATH": path}, expect_log=["the fake says so"]) as mount,
            ThreadPoolExecutor(len(names)) as readers,
        ):
            read = readers.map(lambda name: (mount.path / "store" / name).read_text(), names)
            assert list(read) == [secret(name) for name in names]
