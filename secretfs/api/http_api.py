"""Dapr's Secrets API over HTTP: paths, parameters, and bodies of JSON as Dapr writes them."""

import json
import posixpath
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import trio

from secretfs.api.secrets_api import Metadata, Refusal, SecretsApi, rendered
from secretfs.fs.bulk import render_json, render_secret
from secretfs.fs.keys import Bulk
from secretfs.gojson import compact

NEEDS_NO_TOKEN: Final = frozenset({"/v1.0/healthz", "/v1.0/healthz/outbound"})
"""Paths of Dapr's health checks (``pkg/api/http/healthz.go``)."""
METADATA_PREFIX: Final = "metadata."

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SECRETS: Final = re.compile(r"/v1\.0/secrets/([^/]+)/([^/]+)")


class Request(NamedTuple):
    """A request, its path and query as the client sent them."""

    method: str
    path: str
    query: str
    body: bytes


class Response(NamedTuple):
    """A response; without a body it has no type."""

    status: int
    body: bytes = b""
    content_type: str = ""


INVALID_TOKEN: Final = Response(401, b"invalid api token\n", _TEXT)
TOO_LARGE: Final = Response(413)
DEFECT: Final = Response(
    500, b'{"errorCode":"ERR_INTERNAL","message":"a defect in secretfs; its log has the place"}\n', _JSON
)


def clean(path: str) -> str:
    """Remove empty segments, dot segments and a slash at the end, as Dapr does, before anything is unescaped."""
    return posixpath.normpath("/" + path.lstrip("/"))


async def answer(api: SecretsApi, request: Request) -> Response:
    """Answer a request."""
    path = clean(request.path)
    try:
        if path in NEEDS_NO_TOKEN:
            return _health(api, path, request)
        if request.method != "GET":
            return Response(405)
        if path == "/v1.0/metadata":
            return _in_json(200, _metadata(api.metadata()))
        secrets = _SECRETS.fullmatch(path)
        if secrets is None:
            message = "failed getting app id either from the URL path or the header dapr-app-id"
            return _error(404, "ERR_DIRECT_INVOKE", message)
        return await _secrets(api, request, *secrets.groups())
    except Refusal as refusal:
        return _error(refusal.kind.http, refusal.kind.code, refusal.message)


def _health(api: SecretsApi, path: str, request: Request) -> Response:
    """Say that the mount serves: whoever gets an answer has it from a worker that does."""
    if request.method != "GET":
        return Response(405)
    wanted = dict(parse_qsl(request.query)).get("appid", api.app_id)
    if path == "/v1.0/healthz" and wanted != api.app_id:
        return _error(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
    return Response(204)


async def _secrets(api: SecretsApi, request: Request, store: str, name: str) -> Response:
    for escaped in (store, name):
        if bad := _BAD_ESCAPE.search(escaped):
            return Response(400, f'invalid URL escape "{escaped[bad.start() : bad.start() + 3]}"\n'.encode(), _TEXT)
    if request.body:
        try:
            json.loads(request.body)
        except ValueError:
            return _error(400, "ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: it is not JSON")
    component = _unescape(store)
    if name == "bulk":
        secrets = await api.get_all(component)
        return Response(200, await trio.to_thread.run_sync(render_json, secrets), _JSON)
    secret = await api.get(component, _unescape(name), _metadata_of(request.query))
    return Response(200, await rendered(secret, partial(render_secret, form=Bulk.JSON)), _JSON)


def _unescape(text: str) -> str:
    """Unescape a parameter as Go's ``url.QueryUnescape`` does: in a path, too, ``+`` is a space."""
    return unquote_to_bytes(text.replace("+", " ")).decode(errors="surrogateescape")


def _metadata_of(query: str) -> Mapping[str, str]:
    """Return the parameters ``metadata.NAME=VALUE``; of several with one name, the first."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name.startswith(METADATA_PREFIX):
            found.setdefault(name.removeprefix(METADATA_PREFIX), value)
    return found


def _metadata(metadata: Metadata) -> dict[str, Any]:
    """Return what Dapr's ``/v1.0/metadata`` has of an app that has nothing but secret stores."""
    return {
        "id": metadata.app_id,
        "runtimeVersion": metadata.version,
        "enabledFeatures": [],
        "actors": [],
        "components": [
            {**component._asdict(), "capabilities": list(component.capabilities)} for component in metadata.components
        ],
        "extended": dict(metadata.extended),
        "subscriptions": [],
        "appConnectionProperties": {},
        "actorRuntime": {"runtimeStatus": "DISABLED", "activeActors": [], "hostReady": False},
    }


def _error(status: int, code: str, message: str) -> Response:
    return _in_json(status, {"errorCode": code, "message": message})


def _in_json(status: int, value: Mapping[str, Any]) -> Response:
    return Response(status, compact(value).encode("utf-8", "backslashreplace") + b"\n", _JSON)
