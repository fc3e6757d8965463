"""Docker's protocol for volume plug-ins: JSON over HTTP on a Unix socket. Podman speaks it too.

https://docs.docker.com/engine/extend/plugins_volume/ has the calls. What is wrong is in ``Err``, which engines show to
the user; Podman looks for it in answers with the status 500 only. An engine calls Mount and Unmount with an id of each
container, more than once, and forgets to call Unmount when it is killed; so neither changes anything.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import trio

from secretfs.containers.volumes import Volume, Volumes
from secretfs.errors import ConfigurationError, SecretFSError, log_defect

CONTENT_TYPE: Final = b"application/vnd.docker.plugins.v1.2+json"
LARGEST: Final = 1 << 20
"""Bytes of a request that are read."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = dict[str, Any]

log = logging.getLogger(__name__)


class VolumePlugin:
    """The plug-in, as an ASGI application (https://asgi.readthedocs.io)."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._calls: Mapping[str, Callable[[Mapping[str, Any]], Answer]] = {
            "/Plugin.Activate": lambda _: {"Implements": ["VolumeDriver"]},
            "/VolumeDriver.Capabilities": lambda _: {"Capabilities": {"Scope": "local"}},
            "/VolumeDriver.List": self._list,
            "/VolumeDriver.Get": self._get,
            "/VolumeDriver.Path": self._path,
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            "/VolumeDriver.Mount": self._mount,
            "/VolumeDriver.Unmount": lambda _: {},
        }

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request. Concurrent ones are answered in threads of their own."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            answer = {"Err": ""} | await self._answer(scope["path"], receive)
            headers = [(b"content-type", CONTENT_TYPE)]
            await send({"type": "http.response.start", "status": 500 if answer["Err"] else 200, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _answer(self, path: str, receive: Receive) -> Answer:
        try:
            request = await _body(receive)
            return await trio.to_thread.run_sync(self._calls.get(path, _unknown), request)
        except SecretFSError as error:
            log.info("%s: %s", path.lstrip("/"), error)  # the engine shows it to who typed
            return {"Err": str(error)}
        except Exception as error:  # noqa: BLE001 - a defect must not look like a plug-in that is gone
            log_defect(log, error)
            return {"Err": "a defect in secretfs; the log of its volume plug-in has the place"}

    def _list(self, _: Mapping[str, Any]) -> Answer:
        return {"Volumes": [_described(volume) for volume in self._volumes.list()]}

    def _get(self, request: Mapping[str, Any]) -> Answer:
        volume = self._volumes.get(_name(request))
        status = dict(volume.options or {}) | {"mounts": len(self._volumes.users(volume.name))}
        return {"Volume": _described(volume) | {"Status": status}}

    def _path(self, request: Mapping[str, Any]) -> Answer:
        return {"Mountpoint": str(self._volumes.get(_name(request)).path)}

    def _mount(self, request: Mapping[str, Any]) -> Answer:
        return {"Mountpoint": str(self._volumes.mount(_name(request)))}

    def _create(self, request: Mapping[str, Any]) -> Answer:
        self._volumes.create(_name(request), _options(request))
        log.info("volume %s is created", _name(request))
        return {}

    def _remove(self, request: Mapping[str, Any]) -> Answer:
        self._volumes.remove(_name(request))
        log.info("volume %s is removed", _name(request))
        return {}


def _unknown(_: Mapping[str, Any]) -> Answer:
    raise ConfigurationError("this volume plug-in has no such call")


def _name(request: Mapping[str, Any]) -> str:
    name = request.get("Name")
    if not isinstance(name, str):
        raise ConfigurationError("the request names no volume")
    return name


def _options(request: Mapping[str, Any]) -> Mapping[str, str]:
    options = request.get("Opts") or {}
    if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
        raise ConfigurationError("the options of the request are not texts")
    return options


def _described(volume: Volume) -> Answer:
    created = {"CreatedAt": volume.created.isoformat(timespec="seconds")} if volume.created else {}
    return {"Name": volume.name, "Mountpoint": str(volume.path)} | created


async def _body(receive: Receive) -> Mapping[str, Any]:
    """Read the JSON object that a request is; none is an empty one."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST:
            raise ConfigurationError(f"a request may have {LARGEST} bytes")
    try:
        request = json.loads(body or b"{}")
    except ValueError:
        raise ConfigurationError("the request is not JSON") from None
    if not isinstance(request, dict):
        raise ConfigurationError("the request is no JSON object")
    return request


async def _live(receive: Receive, send: Send) -> None:
    """Take part in the server's start and end, in which nothing is to do."""
    for event in ("lifespan.startup", "lifespan.shutdown"):
        await receive()
        await send({"type": f"{event}.complete"})
