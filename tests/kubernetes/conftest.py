"""One node for all tests here, and the image that is shipped, built for them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.kubernetes import images
from tests.support.kubernetes.documents import BUSYBOX
from tests.support.kubernetes.node import KubeNode, kube_node, require_node
from tests.support.lacking import require_root

__all__ = ["_image", "_machine", "_node"]


@pytest.fixture(scope="session", name="image")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the image; returns its OCI archive."""
    require_root("only root can build an image with Debian's packages in it")
    archive = tmp_path_factory.mktemp("image") / "secretfs.oci.tar"
    built = subprocess.run(
        [ROOT / "scripts/build-image", "--cached", archive], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return archive


@pytest.fixture(scope="session", name="machine")
def _machine() -> None:
    """Go on where a node can be booted: the image need not be built to find that out."""
    require_node()


@pytest.fixture(scope="session", name="node")
def _node(machine: None, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    """Run a node that has the image, and one of busybox."""
    directory = tmp_path_factory.mktemp("node")
    images.write(directory / "busybox.tar", [images.Image(BUSYBOX)])
    with kube_node(directory, [image, directory / "busybox.tar"]) as node:
        yield node
