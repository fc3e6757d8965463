"""The vectors: inputs, and what Dapr's own code did with them. README.md says how they were made."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
AREAS = ("config", "env", "file", "manifest", "resolve", "settings")
NEWEST, OLD = "newest", "v1.7.5"


@dataclass(frozen=True, slots=True)
class Vector:
    """One input, with the answer of each version of Dapr that has one."""

    id: str
    area: str
    kind: str
    given: Mapping[str, Any]
    newest: Mapping[str, Any]
    old: Mapping[str, Any] | None
    """None where 1.7.5 has no such function, or answered as the newest did."""

    @property
    def text(self) -> str:
        """All files of the input as one text, for the table of differences."""
        return "\n".join(read_bytes(file).decode("utf-8", "replace") for file in self.given.get("files", ()))


def vectors(area: str) -> Iterator[Vector]:
    """Read the vectors of an area."""
    common = json.loads((DATA / "common.json").read_bytes())
    for line in (DATA / f"{area}.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        answers = record[NEWEST], record[OLD]
        old = None if answers[1] in ("same", None) else _complete(area, answers[1])
        given = _given(area, record["in"], common)
        yield Vector(record["id"], area, record["kind"], given, _complete(area, answers[0]), old)


def read_bytes(file: Mapping[str, str]) -> bytes:
    """Return the content of a file of an input."""
    return base64.b64decode(file["b64"]) if "b64" in file else file["text"].encode()


def text_of(value: Any) -> Any:
    """Return a text of an answer, with surrogates for bytes that are not UTF-8; anything else as it is."""
    if isinstance(value, dict) and "b64" in value:
        return base64.b64decode(value["b64"]).decode("utf-8", "surrogateescape")
    return value


def texts_of(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a map of texts of an answer, whose keys may not be UTF-8 either."""
    return {key_of(key): text_of(value) for key, value in (values or {}).items()}


def key_of(key: str) -> str:
    """Return a key of a map of an answer."""
    return base64.b64decode(key[4:]).decode("utf-8", "surrogateescape") if key.startswith("b64:") else key


def _given(area: str, record: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what is the same for many vectors: the document around a text, the environment, the questions."""
    given = dict(record)
    if "slot" in given:
        slots = common["manifest_slots" if area == "manifest" else "config_slots"]
        name = "a.yaml" if area == "manifest" else "0.yaml"
        given["files"] = [{"name": name, "text": slots[given["slot"]].replace("@", given["s"])}]
    if area == "config":
        given |= {name: common[f"config_{name}"] for name in ("env", "queries", "components")}
    if area in ("manifest", "resolve"):
        given.setdefault("app_id", "app")
    return given


_COMPONENT: dict[str, Any] = {
    "name": "", "namespace": "", "type": "", "version": "", "initTimeout": "", "secretStore": "",
    "ignoreErrors": False, "initTimeoutParsed": None, "items": [], "scopes": [], "annotations": None
}  # fmt: skip
_ITEM = {"name": "", "value": "", "envRef": "", "raw": None}
_SCOPE = {"storeName": "", "defaultAccess": "", "allowedSecrets": [], "deniedSecrets": []}


def _complete(area: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that are left out because they have their default."""
    if "panic" in answer:
        return dict(answer)
    if area == "manifest":
        components = [
            {**_COMPONENT, **component, "items": [_item(item) for item in component.get("items", ())]}
            for component in answer.get("components", ())
        ]
        return {"warnings": [], "error": None, **answer, "components": components}
    if area == "config":
        scopes = [{**_SCOPE, **scope} for scope in answer.get("scopes", ())]
        decided = {name: [it == "1" for it in answer.get(name, "")] for name in ("allowed", "componentAllowed")}
        return {"error": None, **answer, "scopes": scopes, **decided}
    return dict(answer)


def _item(item: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**_ITEM, **item, "secretKeyRef": {"name": "", "key": "", **item.get("secretKeyRef", {})}}
    return whole | ({"raw": whole["value"]} if whole["raw"] is True else {})
