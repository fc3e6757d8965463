"""``secretfs csi``: the views of apps as volumes of Kubernetes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from secretfs.cli.options import DIRECTORY, METRICS_LISTEN, PATH, take_sources
from secretfs.errors import ConfigurationError
from secretfs.linux.log import log_to_stderr
from secretfs.linux.mountpoint import resolve
from secretfs.observe.address import Address, listen

if TYPE_CHECKING:
    from secretfs.containers.csi.api_server import ApiServer
    from secretfs.containers.csi.measures import Measures
    from secretfs.containers.csi.volumes import Volumes

NAME = "csi.secretfs.dev"
"""Of the driver: what a pod writes as ``csi.driver``."""
KUBELET = Path("/var/lib/kubelet")
_NAME = re.compile(r"[a-zA-Z]([a-zA-Z0-9.-]{0,61}[a-zA-Z])?")
"""csi.proto, GetPluginInfoResponse."""


def _driver_name(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not a domain name of at most 63 characters, such as {NAME}")
    return text


@click.command("csi")
@click.option("--node-id", metavar="NAME", help="The name of this node.")
@click.option("--name", default=NAME, show_default=True, callback=_driver_name, help="The name of the driver.")
@click.option(
    "--kubelet-dir", type=PATH, default=KUBELET, show_default=True, metavar="DIR", help="The kubelet's --root-dir."
)
@DIRECTORY
@METRICS_LISTEN
@click.option(
    "--components-from-api",
    is_flag=True,
    help="Let volumes show Dapr's Component and Configuration objects in the namespace of their pod.",
)
@click.option("--probe", is_flag=True, help="Say by the exit code whether the driver of this node is ready, and end.")
@click.argument("mountpoint", type=PATH, required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
def csi_command(mountpoint: Path | None, *, node_id: str | None, probe: bool, **flags: Any) -> None:
    """Serve the mount at MOUNTPOINT to the kubelet as a CSI driver.

    With options of `secretfs mount` after `--`, the driver mounts. Its mount outlives the driver, and the next driver
    takes it over. MOUNTPOINT is made, and beside it what the driver keeps. Without options, the mount is one made
    with --apps and --allow-other. Metrics are those of the driver and those of the mount.

    \b
      secretfs csi --node-id n1 /run/secretfs/csi/mnt -- --resources-path c
      secretfs csi --node-id n1 /srv/secrets

    \b
    Exit codes:
      0  ended by a signal; with --probe, ready
      2  a mistake in flags, manifests or configuration
      3  there is no mount, another driver serves, or with --probe: not ready
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    try:
        import grpc  # noqa: F401, PLC0415 - a library that others do not need
    except ModuleNotFoundError as error:
        message = f"this needs the package {error.name}: pip install secretfs-fuse[csi]"
        raise ConfigurationError(message) from None
    endpoint = flags["kubelet_dir"] / "plugins" / flags["name"] / "csi.sock"
    if probe:
        from secretfs.containers.csi.probe import require_ready  # noqa: PLC0415 - needs grpcio

        require_ready(endpoint)
        return
    if not node_id:
        raise ConfigurationError("--node-id NAME is missing: the name of this node, as in spec.nodeName")
    if mountpoint is None:
        raise ConfigurationError("MOUNTPOINT is missing, such as /run/secretfs/csi/mnt")
    if flags["metrics_listen"] is not None:
        from secretfs.daemon.measuring import require_metrics  # noqa: PLC0415 - not in a probe

        require_metrics("--metrics-listen")
    from secretfs.containers.csi.api_server import ApiServer  # noqa: PLC0415 - not in a probe

    api = ApiServer.of_this_pod()
    if flags["components_from_api"] and api is None:
        raise ConfigurationError("--components-from-api: the API server is known in a pod only")
    log_to_stderr()
    place = resolve(mountpoint)
    if flags["options"]:
        _mount(place, flags["options"], with_objects=flags["components_from_api"])
    _serve(place, node_id, endpoint, api, flags)


def _mount(mountpoint: Path, options: Sequence[str], *, with_objects: bool) -> None:
    """Mount, or take over, with options of `secretfs mount`. A mistake in what they name stops before that."""
    from secretfs.cli.main import command  # noqa: PLC0415 - it imports this module
    from secretfs.containers.csi.host_mount import (  # noqa: PLC0415 - not in a probe
        DOCUMENTS,
        prepare,
        prepare_objects,
        serve_outside,
    )
    from secretfs.dapr.load import declare  # noqa: PLC0415 - likewise

    prepare(mountpoint)
    given = [*options, "--allow-other", "--apps", str(mountpoint.parent / DOCUMENTS)]
    given += ["--app-objects", str(prepare_objects(mountpoint.parent))] if with_objects else []
    try:
        context = command("mount").make_context("mount", [*given, str(mountpoint)])
    except click.UsageError as error:
        raise ConfigurationError(f"after --: {error.format_message()}") from None
    if context.params["foreground"]:
        raise ConfigurationError("after --: the mount outlives the driver: leave --foreground out")
    declare(take_sources(dict(context.params)))
    serve_outside(mountpoint, given)


def _serve(mountpoint: Path, node_id: str, endpoint: Path, api: "ApiServer | None", flags: Mapping[str, Any]) -> None:
    from secretfs.containers.csi import services  # noqa: PLC0415 - needs grpcio
    from secretfs.containers.csi.host_mount import prepare_objects  # noqa: PLC0415 - not in a probe
    from secretfs.containers.csi.measures import Measures  # noqa: PLC0415 - likewise
    from secretfs.containers.csi.object_sets import ObjectSets  # noqa: PLC0415 - likewise
    from secretfs.containers.csi.server import run  # noqa: PLC0415 - needs grpcio
    from secretfs.containers.csi.volumes import Volumes  # noqa: PLC0415 - likewise
    from secretfs.daemon.app_documents import document_directory  # noqa: PLC0415 - likewise

    documents = flags["directory"] or document_directory(mountpoint)
    measures = Measures()
    objects = None
    if api and flags["components_from_api"]:
        objects = ObjectSets(prepare_objects(mountpoint.parent if flags["options"] else documents.parent), api)
    volumes = Volumes(mountpoint, documents, api, objects, measures)
    volumes.resume()
    name = flags["name"]
    for_volumes = {
        services.IDENTITY: services.identity(name, volumes),
        services.NODE: services.node(node_id, volumes),
    }
    for_watcher = {services.REGISTRATION: services.registration(name, endpoint)}
    sockets = {endpoint: for_volumes, flags["kubelet_dir"] / "plugins_registry" / f"{name}-reg.sock": for_watcher}
    with _metrics(flags["metrics_listen"], name, measures, volumes):
        run(sockets, measures)


@contextmanager
def _metrics(address: Address | None, name: str, measures: "Measures", volumes: "Volumes") -> Iterator[None]:
    """Serve metrics at an address, if there is one. Raises `ConfigurationError`."""
    if address is None:
        yield
        return
    from secretfs.containers.csi.metrics_page import MetricsServer, page  # noqa: PLC0415 - needs prometheus_client

    with closing(listen(address)) as opened:
        try:
            with MetricsServer(opened, partial(page, name, measures, volumes)):
                yield
        finally:
            if address.path is not None:
                address.path.unlink(missing_ok=True)
