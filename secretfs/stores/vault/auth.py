"""The ways to log in to Vault: what each sends, and where it has that from.

hvac knows the requests. A login gives a token and says how long it lives; keeping it alive is the business of
`secretfs.stores.vault.token`.
Files are read again at each login when they have changed, because somebody rotates what they hold.
"""

import importlib
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hvac.api.auth_methods import JWT, AppRole, Kubernetes, Userpass
from hvac.utils import format_url

from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, StoreUnavailable
from secretfs.settings import specs
from secretfs.store import StoreContext
from secretfs.stores._http.failures import about
from secretfs.stores._http.trust import file_identity
from secretfs.stores.vault.http import PoolAdapter, Response
from secretfs.stores.vault.settings import Settings, given

_FIELDS = {
    "token": ("vaultToken",),
    "kubernetes": ("vaultKubernetes", "vaultServiceAccount"),
    "approle": ("vaultAppRole",),
    "jwt": ("vaultJwt",),
    "userpass": ("vaultUserpass",),
    "cert": ("vaultCert",),
    "aws": ("vaultAws",),
    "gcp": ("vaultGcp",),
    "azure": ("vaultAzure",),
}
"""How the names of the properties start that belong to one method."""


def header(text: str) -> str:
    """Strip a token. Raises ValueError, which does not repeat it, for what no HTTP header can carry."""
    token = text.strip()
    if not token:
        raise ValueError("the token is empty")
    if not token.isascii() or not token.isprintable():
        raise ValueError("the token has characters that no token has")
    return token


def _stripped(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text.strip()


def _line(text: str) -> str:
    if not text.rstrip("\r\n"):
        raise ValueError("it is empty")
    return text.rstrip("\r\n")


class TextFile:
    """A credential in a file, read again when the file changes."""

    def __init__(self, path: str, failure: str, read: Callable[[str], str]) -> None:
        self._path = Path(path).absolute()
        self._failure = failure.format(self._path)
        self._read = read
        self._known: tuple[object, str] = (None, "")

    def __call__(self) -> str:
        """Return the text as it is now. Raises `StoreUnavailable` when there is none."""
        try:
            status = self._path.stat()
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known, text = self._known
            if identity != known:
                text = self._read(self._path.read_bytes().decode("utf-8", "replace"))
                self._known = identity, text
        except OSError as error:
            reason = error.strerror or "unreadable"
        except ValueError as error:
            reason = str(error)
        else:
            return text
        raise StoreUnavailable(self._failure + reason)


class Wrapped:
    """What comes wrapped in a token. Each wrapping token is opened once, which is all that it can be.

    It must have been wrapped where the property ``made_at`` says.
    """

    def __init__(self, wrapping: Callable[[], str], settings: Settings, made_at: str) -> None:
        self._wrapping = wrapping
        self._made_at = getattr(settings, made_at)
        self._property = _name(made_at)
        self._opened = ""

    def open_new(self, adapter: PoolAdapter) -> Response | None:
        """Open the wrapping token that there is now; None if it has been opened here already."""
        token = self._wrapping()
        if token == self._opened:
            return None
        # An attacker who has read what is in it may have wrapped it again, but not at this path.
        made_at = adapter.post("/v1/sys/wrapping/lookup", json={"token": token}).data.get("creation_path")
        if made_at != self._made_at:
            raise AccessDenied(f"it was wrapped elsewhere than {self._property} says")
        answer: Response = adapter.bearing(token).post("/v1/sys/wrapping/unwrap", json={})
        self._opened = token
        return answer


class ResponseWrappedSecretId:
    """A secret id that comes wrapped, and is good for more than one login."""

    def __init__(self, wrapped: Wrapped) -> None:
        self._wrapped = wrapped
        self._known = ""

    def __call__(self, adapter: PoolAdapter) -> str:
        """Return the secret id, unwrapping it when a new one has come."""
        return about("wrapped secret id", lambda: self._newest(adapter))

    def _newest(self, adapter: PoolAdapter) -> str:
        answer = self._wrapped.open_new(adapter)
        if answer is not None:
            self._known = _text(answer.data, "secret_id")
        return self._known


class ResponseWrappedToken:
    """A token that comes wrapped. To open it is a login: then it is ours alone."""

    def __init__(self, wrapped: Wrapped) -> None:
        self._wrapped = wrapped

    def __call__(self, adapter: PoolAdapter) -> Response:
        """Return the token. Raises `AccessDenied` if it has been opened: it has ended, or is about to."""
        answer = self._wrapped.open_new(adapter)
        if answer is None:
            raise AccessDenied("it has been opened, and its token cannot be renewed any more: a new one is needed")
        return answer


class Certificate:
    """The certificate that we show to the server, from PEM texts or from files that may change."""

    def __init__(self, settings: Settings) -> None:
        self._texts = (settings.client_cert, settings.client_key)
        self._paths = (settings.client_cert_path, settings.client_key_path)
        self._read()

    def identity(self) -> object:
        """Return what changes when the files do."""
        return [file_identity(path) for path in self._paths if path]

    def load(self, tls: ssl.SSLContext) -> None:
        """Let connections of this context show the certificate. Raises `ConfigurationError`."""
        # OpenSSL's functions for memory are not in Python's ssl; this file is in memory, too, and has no name.
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self._read())
            tls.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
        except (OSError, ValueError):
            where = "vaultClientCert" if any(self._texts) else "vaultClientCertPath"
            raise ConfigurationError(f"{where}: there is no certificate with its private key in it") from None
        finally:
            os.close(descriptor)

    def _read(self) -> bytes:
        if any(self._texts):
            return "\n".join(self._texts).encode()
        try:
            return b"\n".join(Path(path).read_bytes() for path in self._paths if path)
        except OSError as error:
            raise StoreUnavailable(f"client certificate: {error.filename}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Login:
    """A way to get a token."""

    name: str
    """For messages: ``login with NAME``."""
    send: Callable[[PoolAdapter], Response] = field(repr=False)
    """Asks for a token. Raises `StoreError`."""

    def __call__(self, adapter: PoolAdapter) -> dict[str, Any]:
        """Log in, and return what the server says of the new token. Raises `StoreError`."""
        return about(f"login with {self.name}", lambda: self._log_in(adapter))

    def _log_in(self, adapter: PoolAdapter) -> dict[str, Any]:
        auth: dict[str, Any] = self.send(adapter).auth
        _text(auth, "client_token")
        return auth


def login_of(settings: Settings, context: StoreContext) -> Login | None:
    """Return the way to log in that the properties describe, or None for a token that is given.

    Raises `ConfigurationError` for properties that belong to another method or are missing.
    """
    _refuse_others(settings)
    if settings.method in _LOGINS:
        return _LOGINS[settings.method](settings)
    try:  # the SDK of a cloud is imported for those who log in with it
        module = importlib.import_module(f"secretfs.stores.vault.{settings.method}_login")
    except ModuleNotFoundError as error:
        extra = f"pip install secretfs-fuse[vault,{settings.method}]"
        raise ConfigurationError(f"vaultAuthMethod {settings.method} needs the package {error.name}: {extra}") from None
    login: Login = module.login(settings, context)
    return login


def _wrapped_token(settings: Settings) -> Login | None:
    if not settings.token_wrapping_path:
        return None
    token = given_token(settings)
    wrapping = token if isinstance(token, TextFile) else lambda: str(token)
    return Login("a wrapped token", ResponseWrappedToken(Wrapped(wrapping, settings, "token_wrapping_path")))


def _kubernetes(settings: Settings) -> Login:
    role, mount = needed(settings, "kubernetes_role"), settings.kubernetes_mount
    account = _source(settings, "", "service_account_path")
    return Login("kubernetes", lambda to: Kubernetes(to).login(role, account(), use_token=False, mount_point=mount))


def _approle(settings: Settings) -> Login:
    role, mount, secret_id = needed(settings, "role_id"), settings.approle_mount, _secret_id(settings)
    return Login("approle", lambda to: AppRole(to).login(role, secret_id(to), use_token=False, mount_point=mount))


def _jwt(settings: Settings) -> Login:
    role, mount, jwt = settings.jwt_role or None, settings.jwt_mount, _source(settings, "jwt", "jwt_path")
    return Login("jwt", lambda to: JWT(to).jwt_login(role, jwt(), use_token=False, path=mount))


def _userpass(settings: Settings) -> Login:
    name = quote(needed(settings, "username"), safe="")  # hvac does not
    mount, password = quote(settings.userpass_mount), _source(settings, "password", "password_path", _line)
    return Login("userpass", lambda to: Userpass(to).login(name, password(), use_token=False, mount_point=mount))


def _cert(settings: Settings) -> Login:
    if not settings.client_cert and not settings.client_cert_path:
        raise ConfigurationError("vaultAuthMethod cert needs vaultClientCert or vaultClientCertPath")
    role = {"name": settings.cert_role} if settings.cert_role else {}
    url = format_url("/v1/auth/{mount}/login", mount=settings.cert_mount)  # hvac's wants the files of the certificate
    return Login("cert", lambda to: to.login(url, use_token=False, json=role))


_LOGINS: dict[str, Callable[[Settings], Login | None]] = {
    "token": _wrapped_token,
    "kubernetes": _kubernetes,
    "approle": _approle,
    "jwt": _jwt,
    "userpass": _userpass,
    "cert": _cert,
}


def certificate_of(settings: Settings) -> Certificate | None:
    """Return the certificate to show, if one is given. Raises `ConfigurationError`."""
    texts, paths = settings.client_cert, settings.client_cert_path
    if texts and paths:
        raise ConfigurationError("vaultClientCert and vaultClientCertPath both set")
    for field_, key, of in (
        ("vaultClientKey", settings.client_key, texts),
        ("vaultClientKeyPath", settings.client_key_path, paths),
    ):
        if key and not of:
            raise ConfigurationError(f"{field_} is set, and there is no certificate of that kind")
    return Certificate(settings) if texts or paths else None


def given_token(settings: Settings) -> str | TextFile:
    """Return the token, or the file that has it, by Dapr's rules."""
    if settings.token and settings.token_path:
        raise ConfigurationError("token mount path and token both set")
    if settings.token_path:
        source = TextFile(settings.token_path, "couldn't read vault token from mount path {} err: ", header)
        source()
        return source
    if not settings.token:
        raise ConfigurationError("token mount path and token not set")
    return _read(settings, "token", header)


def _refuse_others(settings: Settings) -> None:
    for attribute, spec in specs(Settings).items():
        for method, starts in _FIELDS.items():
            if method != settings.method and spec.name.startswith(starts) and given(settings, attribute):
                raise ConfigurationError(
                    f"{spec.name} is for vaultAuthMethod {method}, and vaultAuthMethod is {settings.method}"
                )


def _name(attribute: str) -> str:
    return specs(Settings)[attribute].name


def needed(settings: Settings, attribute: str) -> str:
    """Return a property. Raises `ConfigurationError` if it is empty."""
    text = str(getattr(settings, attribute)).strip()
    if not text:
        raise ConfigurationError(f"vaultAuthMethod {settings.method} needs {_name(attribute)}")
    return text


def _read(settings: Settings, attribute: str, read: Callable[[str], str]) -> str:
    try:
        return read(getattr(settings, attribute))
    except ValueError as error:
        raise ConfigurationError(f"{_name(attribute)}: {error}") from None


def _source(settings: Settings, text: str, path: str, read: Callable[[str], str] = _stripped) -> Callable[[], str]:
    """Return what gives a credential: the property ``text``, or the file that the property ``path`` names."""
    has_text, has_path = bool(text and getattr(settings, text)), bool(getattr(settings, path))
    if has_text and has_path:
        raise ConfigurationError(f"{_name(text)} and {_name(path)} both set")
    if not has_text and not has_path:
        raise ConfigurationError(f"vaultAuthMethod {settings.method} needs {_name(text)} or {_name(path)}")
    if has_path:
        source = TextFile(getattr(settings, path), f"couldn't read {_name(path)} {{}}: ", read)
        source()
        return source
    known = _read(settings, text, read)
    return lambda: known


def _secret_id(settings: Settings) -> Callable[[PoolAdapter], str]:
    if settings.wrapping_path:
        wrapping = _source(settings, "secret_id", "secret_id_path", header)
        return ResponseWrappedSecretId(Wrapped(wrapping, settings, "wrapping_path"))
    source = _source(settings, "secret_id", "secret_id_path")
    return lambda _: source()


def _text(data: dict[str, Any], name: str) -> str:
    text = data.get(name)
    if not isinstance(text, str) or not text:
        raise MalformedAnswer(f"the answer has no {name}")
    return text
