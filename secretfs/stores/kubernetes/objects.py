"""Secret objects of a Kubernetes API server: which to list or read, and how to read the answers."""

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from secretfs.errors import MalformedAnswer, SecretNotFound
from secretfs.store import LARGEST_LISTING, Secret
from secretfs.stores._http.body import TooLarge
from secretfs.stores.kubernetes.http import Api, Expired

T = TypeVar("T")

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE = 100
_SMALL_PAGE = 5  # in which all may be as large as etcd takes them


def is_namespace(name: str) -> bool:
    """Tell whether a namespace can be called ``name`` (an RFC 1123 label)."""
    return _NAMESPACE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class ListScope:
    """What one list contains: the secrets of a namespace, or of all namespaces, that match the selectors."""

    namespace: str = ""
    """Empty means all namespaces."""
    labels: str = ""
    fields: str = ""
    in_folders: bool = False
    """Whether a secret's name in the store starts with its namespace."""

    def __str__(self) -> str:
        return f"namespace {self.namespace}" if self.namespace else "all namespaces"

    @property
    def path(self) -> str:
        """The path of the list in the API."""
        return _path(self.namespace)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The selectors as query parameters."""
        return _query(self.labels, self.fields)

    def name_of(self, item: dict[str, Any]) -> str:
        """Return the name in the store of a listed secret. Raises `MalformedAnswer`."""
        name, namespace = _text(item, "name"), _text(item, "namespace")
        return f"{namespace}/{name}" if self.in_folders else name

    def names(self, api: Api) -> frozenset[str]:
        """List the names. The server sends metadata only, no values. Raises `StoreError`."""
        names, _ = list_pages(api, self, self.name_of, accept=_METADATA_ONLY)
        return frozenset(names)

    def first_name(self, api: Api) -> None:
        """List at most one secret, metadata only. Raises `StoreError`."""
        api.get(self.path, [*self.query, ("limit", "1")], accept=_METADATA_ONLY)

    def read(self, api: Api, namespace: str, name: str) -> Secret:
        """Read one secret, if it matches the selectors. Raises `StoreError`."""
        if not (_NAME.fullmatch(name) and is_namespace(namespace)):
            raise SecretNotFound("no secret can have that name")
        path = _path(namespace)
        if not (self.labels or self.fields):
            found = api.get(f"{path}/{name}")
        else:
            # Only the server evaluates selectors, and only in lists.
            fields = f"metadata.name={name}" + (f",{self.fields}" if self.fields else "")
            listed = _items(api.get(path, _query(self.labels, fields)))
            if not listed:
                raise SecretNotFound("not found")
            found = listed[0]
        if _text(found, "name") != name:
            raise MalformedAnswer("the answer is not the secret that was asked for")
        return secret_of(found)


def list_pages(
    api: Api, scope: ListScope, take: Callable[[dict[str, Any]], T], *, accept: str = "application/json"
) -> tuple[list[T], str]:
    """List page by page. Returns the result of ``take`` for each item, and the resourceVersion of the list.

    A list that expires between two pages is read again as one page, which cannot expire. Raises `StoreError`.
    """
    try:
        return _pages(api, scope, take, accept, _PAGE)
    except Expired:
        return _pages(api, scope, take, accept, None)


def _pages(
    api: Api, scope: ListScope, take: Callable[[dict[str, Any]], T], accept: str, limit: int | None
) -> tuple[list[T], str]:
    taken: list[T] = []
    place: list[tuple[str, str]] = []
    while True:
        size = [] if limit is None else [("limit", str(limit))]
        try:
            page = api.get(scope.path, [*scope.query, *size, *place], accept=accept)
        except TooLarge:
            if limit != _PAGE:
                raise
            limit = _SMALL_PAGE
            continue
        taken += map(take, _items(page))
        if len(taken) > LARGEST_LISTING:
            raise MalformedAnswer(f"more than {LARGEST_LISTING} secrets are listed")
        if not (more := metadata_of(page).get("continue")):
            return taken, version_of(page)
        place = [("continue", more)]


def secret_of(item: dict[str, Any]) -> Secret:
    """Read a Secret object. Raises `MalformedAnswer`."""
    data = item.get("data") or {}
    try:
        values = {key: b64decode(value, validate=True) for key, value in data.items()}
    except (ValueError, TypeError, AttributeError):
        values = None
    if values is None:  # raised here: the error of base64 could show a value
        raise MalformedAnswer("the data of a secret is not what it should be")
    return Secret(values, version_of(item), _modified(metadata_of(item)))


def metadata_of(item: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of an object or a list. Raises `MalformedAnswer`."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        raise MalformedAnswer("the answer has no metadata")
    return metadata


def version_of(item: dict[str, Any]) -> str:
    """Return the resourceVersion of an object or a list. Raises `MalformedAnswer`."""
    return _text(item, "resourceVersion")


def _text(item: dict[str, Any], field: str) -> str:
    text = metadata_of(item).get(field)
    if not isinstance(text, str):
        raise MalformedAnswer(f"the answer has no {field}")
    return text


def _items(page: dict[str, Any]) -> list[dict[str, Any]]:
    items = page.get("items")
    if items is None and str(page.get("kind", "")).endswith("List"):
        return []  # Go writes an empty list as null
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise MalformedAnswer("the answer is not a list")
    return items


def _modified(metadata: dict[str, Any]) -> float | None:
    """Return when the object was last written, in seconds since the epoch, as its managed fields record."""
    try:
        return max(datetime.fromisoformat(entry["time"]).timestamp() for entry in metadata["managedFields"])
    except (KeyError, TypeError, ValueError):
        return None


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets" if namespace else "/api/v1/secrets"


def _query(labels: str, fields: str) -> list[tuple[str, str]]:
    selectors = (("labelSelector", labels), ("fieldSelector", fields))
    return [(name, selector) for name, selector in selectors if selector]
