"""Images for the containers of tests, as OCI archives: from files of this machine, without an engine and a registry."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
APP = 1000
"""The user of images that is not root."""
_DIRECTORIES = ("bin", "etc", "proc", "sys", "dev", "run", "var", "root", "home", "usr", "srv")
_MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True)
class Image:
    """An image of busybox."""

    name: str
    """Its whole name, with the registry that it is not from: ``docker.io/library/busybox:1.37``."""
    command: tuple[str, ...] = ("/bin/sh",)


def write(archive: Path, images: Iterable[Image]) -> None:
    """Write an archive that ``ctr images import`` takes."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"{_MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data), **more}

    manifests = []
    for image in images:
        layer = blob(_layer(), "layer.v1.tar")
        config = {
            "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "os": "linux",
            "config": {"Cmd": list(image.command), "Env": ["PATH=/usr/sbin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": blob(json.dumps(config).encode(), "config.v1+json"),
            "layers": [layer],
        }
        named = {
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rsplit(":")[-1],
        }
        manifests.append(blob(json.dumps(manifest).encode(), "manifest.v1+json", annotations=named))
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())
        for digest, data in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", data)


def _layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in _DIRECTORIES:
            _add(tar, name, kind=tarfile.DIRTYPE, mode=0o755)
        _add(tar, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
            if applet != "busybox":
                _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        _add(tar, "etc/passwd", f"root:x:0:0::/root:/bin/sh\napp:x:{APP}:{APP}::/home:/bin/sh\n".encode())
        _add(tar, "etc/group", f"root:x:0:\napp:x:{APP}:\n".encode())
    return out.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
    tar.addfile(info, io.BytesIO(data))
