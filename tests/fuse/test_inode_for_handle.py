"""The step before libfuse, in each of its forms: on requests that are built here, and a libfuse that only looks."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secretfs.fuse.inode_for_handle import CHOICE
from tests.support.command import environment
from tests.support.lacking import cannot_test

ROOT = Path(__file__).parents[2]
COMPILED = list(ROOT.glob("secretfs/fuse/_inode_for_handle*.so"))
READ, WRITE, GETATTR, READDIR, READDIRPLUS, RELEASE = 15, 16, 3, 28, 44, 18

LOOK = """
import ctypes, json, struct, sys
import secretfs.fuse
from secretfs.fuse import inode_for_handle
import pyfuse3

seen = []
@ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
def libfuse(session, buffer):
    size, flags, memory = struct.unpack("=QQQ", ctypes.string_at(buffer, 24))
    seen.append(struct.unpack_from("=Q", ctypes.string_at(memory, 48), 40)[0])

address = ctypes.cast(libfuse, ctypes.c_void_p).value
if inode_for_handle._compiled:
    hook = inode_for_handle.install(pyfuse3.__file__)
    ctypes.c_void_p.in_dll(inode_for_handle._compiled[0], "secretfs_process_buf").value = address
    entry = ctypes.cast(inode_for_handle._compiled[0].fuse_session_process_buf, ctypes.c_void_p).value
else:
    library = ctypes.CDLL(pyfuse3.__file__)
    real = ctypes.cast(library.fuse_session_process_buf, ctypes.c_void_p).value
    slot = inode_for_handle._slot(library, real)
    hook = inode_for_handle.install(pyfuse3.__file__)
    assert ctypes.c_uint64.from_address(slot).value != real
    hook = inode_for_handle._patched(slot, address)
    entry = ctypes.c_uint64.from_address(slot).value
process = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(entry)

for opcode, handle, flags in json.loads(sys.argv[1]):
    request = ctypes.create_string_buffer(struct.pack("=IIQQIIIIQ", 48, opcode, 1, 77, 0, 0, 0, 0, handle), 80)
    buffer = ctypes.create_string_buffer(struct.pack("=QQQ", 48, flags, ctypes.addressof(request)), 64)
    process(None, ctypes.addressof(buffer))
print(json.dumps({"name": hook.name, "requests": hook.requests(), "handles": seen}))
"""


def compiled() -> Path:
    """Return what is compiled, where it is."""
    if not COMPILED:
        cannot_test("what is compiled is not there: python setup.py build_ext --inplace")
    return COMPILED[0]


def looked_at(way: str, *requests: tuple[int, int, int]) -> Any:
    """Send requests, each an opcode, a handle and the flags of its buffer, of inode 77; returns what libfuse sees."""
    if way == "compiled":
        compiled()
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(requests)],
        env={**environment(), CHOICE: way},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", ["compiled", "patched"])
def test_requests_without_a_handle_get_their_inode(way: str) -> None:
    pipe = 1 << 1
    found = looked_at(
        way,
        *((opcode, 0, 0) for opcode in (READ, WRITE, READDIR, READDIRPLUS)),
        *((opcode, 5, 0) for opcode in (READ, WRITE, READDIR, READDIRPLUS)),
        *((GETATTR, 0, 0), (RELEASE, 0, 0)),
        (WRITE, 0, pipe),
    )
    assert found == {"name": way, "requests": 11, "handles": [77] * 4 + [5] * 4 + [0, 0, 0]}


def test_nothing_is_installed_where_that_is_asked_for() -> None:
    code = (
        "import secretfs.fuse.session as session; from secretfs.fuse import inode_for_handle;"
        "print(session.HOOK, inode_for_handle.installed())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), CHOICE: "none"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None None\n"


def test_what_is_compiled_needs_neither_python_nor_libfuse() -> None:
    library = ctypes.CDLL(str(compiled()), mode=os.RTLD_LOCAL)
    assert ctypes.c_ulong.in_dll(library, "secretfs_requests").value == 0
