"""A server that is a proxy, and itself every host it connects to: clients speak TLS with hosts by their real names.

``HTTPS_PROXY`` points at it and ``SSL_CERT_FILE`` at its authority, so that nothing of a client is switched off.
"""

import ssl
from pathlib import Path

import trustme

from tests.support.servers.http_server import Handler, HttpServer


class ProxyHandler(Handler):
    """Also answers CONNECT."""

    def do_CONNECT(self) -> None:  # noqa: N802 - a name that http.server looks for
        """Become the host."""
        host, _, port = self.path.partition(":")
        owner = self.server.owner
        assert isinstance(owner, ProxiedServer)
        owner.hosts.append(host)
        if port != "443":
            owner.complaints.append(f"connects to port {port}")
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        self.host = host
        plain, self.connection = self.connection, owner.tls(host).wrap_socket(self.connection, server_side=True)
        self.server.connections.add(self.connection)
        self.server.connections.discard(plain)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", self.wbufsize)
        self.close_connection = False


class ProxiedServer(HttpServer):
    """The server. Over plain HTTP it is one host without a name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ProxyHandler)
        self.hosts: list[str] = []
        """The hosts that were connected to."""
        self.ca = folder / "ca.pem"
        """The authority that all hosts have their certificates from."""
        self.rotate_authority()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process reaches it."""
        return {"HTTPS_PROXY": self.address, "SSL_CERT_FILE": str(self.ca)}

    def rotate_authority(self) -> None:
        """Let new connections show certificates of a new authority, which replaces the old one in `ca`."""
        with self._lock:
            self._authority = trustme.CA()
            self._contexts: dict[str, ssl.SSLContext] = {}
            new = self.ca.with_suffix(".new")
            self._authority.cert_pem.write_to_path(str(new))
            new.replace(self.ca)

    def tls(self, host: str) -> ssl.SSLContext:
        """Return what shows the certificate of a host."""
        with self._lock:
            if host not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self._authority.issue_cert(host).configure_cert(context)
                self._contexts[host] = context
            return self._contexts[host]
