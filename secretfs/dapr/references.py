"""References in a component's properties, and how they are resolved: envRef, secretKeyRef, Dapr's ``{...}`` templates.

The rules are dapr ``pkg/runtime/processor/secret/secret.go`` (ProcessResource) and ``pkg/runtime/meta/meta.go``
(convertItemsToProps). Secret scopes do not apply to references (dapr#8176). Where the referenced secrets come from is
the registry's business: it hands in a function that reads one.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from secretfs.dapr.component import Component, Item, SecretKeyRef
from secretfs.errors import ConfigurationError, Notice, SecretNotFound, Source
from secretfs.settings import Property
from secretfs.store import Secret

_TOKEN = re.compile(r"\{appToken(?::([^{}]*))?\}")
"""Ours: the path of the app's token for an audience."""
_OURS = "secretfs/"
_OF_APP = re.compile(rf"\{{appID\}}|\{{namespace\}}|{_TOKEN.pattern}")

ReadSecret = Callable[[str], Secret]
"""Reads a secret by name from the store that the component's ``auth.secretStore`` names."""


@dataclass(frozen=True, slots=True)
class TemplateContext:
    """What a manifest may refer to beyond itself."""

    environ: Mapping[str, str] = field(repr=False)
    app_id: str = ""
    look_up: bool = True
    """Whether names of hosts may be looked up, to see where they lead."""

    @property
    def namespace(self) -> str:
        """``NAMESPACE``; "default" when it is not set at all, empty when it is set to nothing."""
        return self.environ.get("NAMESPACE", "default")

    @property
    def pod_name(self) -> str:
        """``POD_NAME``, empty when not set."""
        return self.environ.get("POD_NAME", "")


def component_references(component: Component) -> frozenset[str]:
    """Name the stores that must be open before ``component`` can be resolved."""
    if component.secret_store and any(_secret_wanted(item) for item in component.items):
        return frozenset({component.secret_store})
    return frozenset()


def depends_on_app(component: Component) -> bool:
    """Whether a component differs from app to app: it has a template with the app id, or with a token of the app."""
    ours = (text for name, text in component.annotations.items() if name.startswith(_OURS))
    return any(_OF_APP.search(text or "") for text in (*(item.value for item in component.items), *ours))


def resolve(
    component: Component, context: TemplateContext, read: ReadSecret | None
) -> tuple[list[Property], list[Notice]]:
    """Resolve all items of ``component``. ``read`` is None when the component names no store.

    A secret that is not there leaves the literal value, as in Dapr, with a notice; every other `StoreError` goes up.
    Raises `ConfigurationError` for a reference that can never be followed.
    """
    resolution = _Resolution(component, context, read)
    return [resolution.property(item) for item in component.items], resolution.notices


def resolve_annotations(
    component: Component, annotations: Mapping[str, str], context: TemplateContext
) -> Mapping[str, str]:
    """Replace the templates in annotations of ``component``. Raises `ConfigurationError` as for a property."""
    resolution = _Resolution(component, context, None)
    places = component.annotation_sources
    return {
        name: resolution.fill_in(f"annotation {name}", text, places.get(name)) for name, text in annotations.items()
    }


def _uuid(_: re.Match[str]) -> str:
    from uuid import uuid4  # noqa: PLC0415 - hardly any component has one

    return str(uuid4())


def _secret_wanted(item: Item) -> SecretKeyRef | None:
    """Return the reference that counts: envRef comes first, unless there is a value, which may be empty."""
    return None if item.value is None and item.env_ref else item.secret_key_ref


class _Resolution:
    """The resolution of one component: reads each secret once."""

    def __init__(self, component: Component, context: TemplateContext, read: ReadSecret | None) -> None:
        self._component = component
        self._context = context
        self._read = read
        self._secrets: dict[str, Secret | None] = {}
        self.notices: list[Notice] = []

    def property(self, item: Item) -> Property:
        text = self._reference(item)
        value = (item.value or "") if text is None else unquote(text)
        return Property(item.name, self.fill_in(f"property {item.name}", value, item.source), item.source)

    def fill_in(self, what: str, value: str, source: Source | None) -> str:
        """Replace Dapr's templates, in Dapr's order: what one brings in, a later one may replace.

        Raises `ConfigurationError` with ``what`` and its place for what cannot be filled in.
        """
        value = _TOKEN.sub(lambda match: self._token(what, match[1] or "", source), value)
        value = re.sub(r"\{uuid\}", _uuid, value)
        if "{podName}" in value:
            if not self._context.pod_name:
                raise ConfigurationError(
                    f"failed to parse metadata: {what} refers to {{podName}} but podName is not set", source
                )
            value = value.replace("{podName}", self._context.pod_name)
        app_id = self._component.app_id or self._context.app_id
        namespace = self._component.namespace if self._component.contained_in else self._context.namespace
        value = value.replace("{namespace}", f"{namespace}.{app_id}")
        return value.replace("{appID}", app_id)

    def _reference(self, item: Item) -> str | None:
        reference = _secret_wanted(item)
        if reference:
            return self._secret_value(item, reference)
        return self._variable(item) if item.value is None and item.env_ref else None

    def _variable(self, item: Item) -> str:
        environ = self._context.environ
        if _variable_allowed(item.env_ref, environ):
            return _decode(os.fsencode(environ.get(item.env_ref, "")), item, f"variable {item.env_ref}")
        self.notices.append(Notice(f"envRef of {item.name}: variable {item.env_ref} is not allowed", item.source))
        return ""

    def _secret_value(self, item: Item, reference: SecretKeyRef) -> str | None:
        secret = self._secret(item, reference)
        if secret is None:
            self._leave(item, f"there is no secret {reference.name} in {self._component.secret_store}")
            return None
        value = secret.values.get(reference.key)
        if not value:
            state = "has no key" if value is None else "is empty at key"
            self._leave(item, f"secret {reference.name} {state} {reference.key}")
            return None
        return _decode(value, item, f"key {reference.key} of secret {reference.name}")

    def _secret(self, item: Item, reference: SecretKeyRef) -> Secret | None:
        if self._read is None:
            # Self-hosted Dapr stops here without a word, and starts the component half configured.
            raise ConfigurationError(
                f"{item.name} has a secretKeyRef, but the component does not say of which store: set auth.secretStore",
                item.source,
            )
        if reference.name not in self._secrets:
            try:
                self._secrets[reference.name] = self._read(reference.name)
            except SecretNotFound:
                self._secrets[reference.name] = None
        return self._secrets[reference.name]

    def _leave(self, item: Item, reason: str) -> None:
        rest = "without a value" if item.value is None else "with the value in the manifest"
        self.notices.append(Notice(f"secretKeyRef of {item.name}: {reason}; it stays {rest}", item.source))

    def _token(self, what: str, audience: str, source: Source | None) -> str:
        """Return the path of the app's token for an audience; the file need not be there yet."""
        if not self._component.tokens:
            raise ConfigurationError(
                f"{what} refers to a token of the app, which has none: its App document names no tokens; "
                "for a pod, tokenRequests in the CSIDriver object has to ask for them",
                source,
            )
        return f"{self._component.tokens}/{token_file(audience)}"


def token_file(audience: str) -> str:
    """Return the name of the file with an app's token for an audience, which may be any text."""
    return f"{quote(audience, safe='')}.jwt"


def _variable_allowed(name: str, environ: Mapping[str, str]) -> bool:
    """Dapr's isEnvVarAllowed: its own variables are out of reach, and so is what DAPR_ENV_KEYS leaves out."""
    upper = name.upper()
    if upper == "APP_API_TOKEN" or upper.startswith("DAPR_") or " " in upper:
        return False
    allowed = environ.get("DAPR_ENV_KEYS", "")
    return not allowed or upper in allowed.split(" ")


def _decode(value: bytes, item: Item, origin: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        pass
    # Raised here and not above: the decoding error holds the bytes.
    raise ConfigurationError(f"{item.name}: {origin} is not UTF-8 text", item.source)


_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPE = r"\\(?:[abfnrtv\\%s]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_QUOTED = re.compile(
    rf'"(?:[^"\\\n]|{_ESCAPE % chr(34)})*"' + rf"|'(?:[^'\\\n]|{_ESCAPE % chr(39)})'" + r"|`[^`]*`",
)


def unquote(text: str) -> str:
    """Take off the quotes of a text that is a Go string literal; any other text stays as it is.

    Dapr stores what a reference resolves to without quotes and then unquotes it like JSON (``namevalue.go``). People
    rely on it without knowing: ``docker --env-file`` keeps the quotes of ``NAME="value"``.
    """
    if not _QUOTED.fullmatch(text):
        return text
    body = text[1:-1]
    if text[0] == "`":
        return body.replace("\r", "")
    try:
        return re.sub(_ESCAPE % "\"'", _unescape, body).encode("utf-8", "surrogateescape").decode()
    except (UnicodeError, ValueError):
        return text


def _unescape(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if escape[0] in "uU":
        code = int(escape[1:], 16)
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            raise ValueError("not a character")
        return chr(code)
    if escape[0] in "x01234567":
        byte = int(escape[1:], 16) if escape[0] == "x" else int(escape, 8)
        return bytes([byte]).decode("ascii", "surrogateescape")
    return _ESCAPES.get(escape, escape)
