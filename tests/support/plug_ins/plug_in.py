"""A pluggable secret store in Python, as its author would write it: generated code, reflection, a Unix socket.

    plug_in.py SOCKET DIRECTORY     the directory has the generated code

What it serves, and how, is in ``state.json`` in the directory, which is read at each call. What it is asked is
appended to ``calls.jsonl``, and ``ready`` is said when it serves. A component that has not been initialised is refused.
The property ``set`` of a component names what it is served: ``secrets`` if there is none.
"""

import json
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

SOCKET, DIRECTORY = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
sys.path.insert(0, str(DIRECTORY))
pb: Any
pb_grpc: Any
pb, pb_grpc = __import__("secretstore_pb2"), __import__("secretstore_pb2_grpc")

_writing = threading.Lock()
_sets: dict[str, str] = {}
"""What each component is served."""


class SecretStore(pb_grpc.SecretStoreServicer):  # type: ignore[misc]
    """Serves what the state says."""

    def Init(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the service, as are those below
        properties = dict(request.metadata.properties)
        _note("Init", context, properties=properties)
        _sets[_instance(context)] = properties.get("set", "secrets")
        return pb.SecretStoreInitResponse()

    def Features(self, request: Any, context: Any) -> Any:  # noqa: N802
        _note("Features", context)
        return pb.FeaturesResponse(features=_state()["features"])

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        _note("Get", context, key=request.key)
        if request.key in _state()["denied"]:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, json.dumps(_state()))
        if request.key in _state()["broken"]:
            raise RuntimeError(json.dumps(_state()))
        found = _served(context).get(request.key)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such secret")
        return pb.GetSecretResponse(data=found)

    def BulkGet(self, request: Any, context: Any) -> Any:  # noqa: N802
        _note("BulkGet", context)
        return pb.BulkGetSecretResponse(
            data={name: pb.SecretResponse(secrets=values) for name, values in _served(context).items()}
        )

    def Ping(self, request: Any, context: Any) -> Any:  # noqa: N802
        _note("Ping", context)
        return pb.PingResponse()


def _state() -> Any:
    return json.loads((DIRECTORY / "state.json").read_text(encoding="utf-8"))


def _served(context: Any) -> Any:
    served = _sets.get(_instance(context))
    if served is None:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not initialised")
    return _state()[served]


def _instance(context: Any) -> str:
    return str(dict(context.invocation_metadata()).get("x-component-instance"))


def _note(method: str, context: Any, **more: Any) -> None:
    line = json.dumps({"method": method, "instance": _instance(context), **more})
    with _writing, (DIRECTORY / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(f"{line}\n")


def main() -> None:
    """Serve until the process is ended."""
    SOCKET.unlink(missing_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    pb_grpc.add_SecretStoreServicer_to_server(SecretStore(), server)
    name = pb.DESCRIPTOR.services_by_name["SecretStore"].full_name
    reflection.enable_server_reflection((name, reflection.SERVICE_NAME), server)
    server.add_insecure_port(f"unix:{SOCKET}")
    server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.wait_for_termination()


main()
