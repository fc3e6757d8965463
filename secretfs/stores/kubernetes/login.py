"""Find a Kubernetes API server and log in to it, in Dapr's order, with the official client.

Inside a cluster the service account is used, elsewhere a kubeconfig with its tokens, certificates and exec plugins.
"""

import os
import re
import ssl
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config
from kubernetes.config.exec_provider import ExecProvider
from kubernetes.config.incluster_config import SERVICE_TOKEN_FILENAME
from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from secretfs.errors import ConfigurationError, StoreError, StoreUnavailable
from secretfs.stores._http.trust import tls_context

_LOADING = threading.Lock()  # the client shares its temporary files of certificates between threads


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """The address of the server and our credentials. It holds a token, so it has no ``repr``."""

    configuration: Configuration
    tls: ssl.SSLContext


Login = Callable[[], Access]
"""Reads the address and the credentials as they are now. Raises `StoreError`."""


def find_login(kubeconfig: str, environ: Mapping[str, str]) -> Login:
    """Choose the login: the service account inside a cluster, else ``kubeconfig``, KUBECONFIG or ~/.kube/config.

    Raises `ConfigurationError` for a file that is missing or invalid. Sends no request and runs no plugin.
    """
    try:
        service_account()
    except StoreError:
        return _Kubeconfig(kubeconfig or environ.get("KUBECONFIG") or "~/.kube/config")
    return service_account


def service_account() -> Access:
    """Log in as a pod does."""
    configuration = Configuration()
    try:
        load_incluster_config(configuration)
    except ConfigException as error:
        raise StoreUnavailable(f"not inside a cluster: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "there is no text in it"
        raise StoreUnavailable(f"the service account cannot be read: {reason}") from None
    return _access(configuration)


def own_namespace() -> str:
    """Return the namespace of the pod that we run in; empty outside of a pod."""
    try:
        return Path(SERVICE_TOKEN_FILENAME).with_name("namespace").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


class _Kubeconfig:
    """A kubeconfig file, or several separated by ":", as kubectl reads them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._parse()

    def __call__(self) -> Access:
        """Log in as the user of the current context. Runs the exec plugin, if the user has one."""
        try:
            config, user, cluster = self._parse()
        except ConfigurationError as error:  # it was right when the store was opened
            raise StoreUnavailable(str(error)) from None
        _run_plugin(user, cluster)
        configuration = Configuration()
        # A key that is written in the file has to be a file of its own for Python's TLS; only until it is read.
        with _LOADING, tempfile.TemporaryDirectory(prefix="secretfs-") as scratch:
            try:
                KubeConfigLoader(config, config_base_path=None, temp_file_path=scratch).load_and_set(configuration)
            except Exception as error:  # noqa: BLE001 - the client raises anything, and some of it quotes credentials
                raise StoreUnavailable(f"{self._path}: cannot log in with it: {type(error).__name__}") from None
            # The client's own way would run the plugin again, and put keys into lasting files.
            configuration.refresh_api_key_hook = None
            return _access(configuration, cluster.value.get("proxy-url"))

    def _parse(self) -> tuple[ConfigNode, ConfigNode | None, ConfigNode]:
        """Return the content of the file, its current user and its current cluster."""
        try:
            config = KubeConfigMerger(self._path).config
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from None
        except Exception:  # noqa: BLE001 - as below
            raise ConfigurationError(f"{self._path}: not a kubeconfig") from None
        if config is None:
            raise ConfigurationError(f"not inside a cluster, and there is no kubeconfig {self._path}")
        try:
            context = KubeConfigLoader(config, config_base_path=None).current_context["context"]
            cluster = config["clusters"].get_with_name(context["cluster"])["cluster"]
            user = config["users"].get_with_name(context.get("user"), safe=True)
            return config, user["user"] if user is not None and user.value.get("user") else None, cluster
        except Exception:  # noqa: BLE001 - the client raises anything, and some of it quotes credentials
            raise ConfigurationError(f"{self._path}: not a kubeconfig with a complete current context") from None


def _run_plugin(user: ConfigNode | None, cluster: ConfigNode) -> None:
    """Run an exec plugin and replace its entry by the credentials that it prints. The client itself would log them."""
    if user is None or "exec" not in user:
        return
    try:
        status = ExecProvider(user["exec"], str(Path(cluster.path).absolute().parent), cluster).run()
        given = {"token": status.get("token")}
        for name, field in (("client-certificate-data", "clientCertificateData"), ("client-key-data", "clientKeyData")):
            given[name] = b64encode(status[field].encode()).decode() if field in status else None
    except OSError as error:
        raise StoreUnavailable(f"the exec plugin of the kubeconfig cannot be run: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - what a plugin prints can be anything
        # After the number comes what the plugin wrote.
        status_text = re.match(r"exec: (process returned -?\d+)", str(error))
        reason = status_text[1] if status_text else "what it printed is no ExecCredential"
        raise StoreUnavailable(f"the exec plugin of the kubeconfig failed: {reason}") from None
    del user.value["exec"]
    user.value.update({name: value for name, value in given.items() if value})


def _access(configuration: Configuration, proxy: str | None = None) -> Access:
    """Read the files that a configuration names into a TLS context. ``proxy`` overrides the environment's."""
    try:
        file = configuration.ssl_ca_cert
        authorities = [Path(file).read_text("ascii", errors="ignore")] if file and configuration.verify_ssl else None
        tls = tls_context(authorities, verify=configuration.verify_ssl)
        if configuration.cert_file:
            # Without a password Python would ask the terminal for that of an encrypted key.
            tls.load_cert_chain(configuration.cert_file, configuration.key_file, password="")
    except (OSError, ValueError, ConfigurationError):  # an SSLError is an OSError
        raise StoreUnavailable("the certificates for the server cannot be read") from None
    configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None
    configuration.proxy = proxy or _environment_proxy(configuration.host)
    configuration.no_proxy = None if proxy else configuration.no_proxy
    return Access(configuration, tls)


def _environment_proxy(server: str) -> str | None:
    """Choose the proxy as client-go does: by the scheme of the server's address, and never for this machine.

    The Python client takes any of HTTP_PROXY and HTTPS_PROXY for any server; it applies NO_PROXY itself.
    """
    url = urlsplit(server)
    host = url.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return None
    return os.environ.get(f"{url.scheme.upper()}_PROXY") or os.environ.get(f"{url.scheme}_proxy") or None
